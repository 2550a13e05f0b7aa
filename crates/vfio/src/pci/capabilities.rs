//! Describing what not every function has: interrupts by message and by wire, SR-IOV, and more.

use super::{builder::FunctionBuilder, layout::SriovLayout, spec};

impl FunctionBuilder {
    /// A wired interrupt on pin INTA.
    #[must_use]
    pub fn intx(mut self) -> Self {
        self.set8(spec::INTERRUPT_PIN, 1);
        self
    }

    /// An MSI capability with 2 to the power `shift` vectors (0 to 5), 64-bit addresses and masks.
    #[must_use]
    pub fn msi(mut self, shift: u8) -> Self {
        if let Some(offset) = self.standard(spec::CAP_MSI, spec::MSI_SIZE) {
            let capable = u16::from(shift.min(5)) << spec::MSI_CAPABLE_SHIFT;
            let control = capable | spec::MSI_64BIT | spec::MSI_MASKABLE;
            self.set16(offset + spec::MSI_CONTROL, control);
            self.writable16(offset + spec::MSI_CONTROL, 0xff);
            self.writable32(offset + spec::MSI_ADDRESS, u32::MAX);
            self.writable32(offset + spec::MSI_ADDRESS + 4, u32::MAX);
            self.writable16(offset + spec::MSI_DATA, u16::MAX);
            self.writable32(offset + spec::MSI_MASK, u32::MAX);
            self.msi = Some(offset);
        }
        self
    }

    /// Completes atomic operations of other devices: bits of [`spec::DEVCAP2_ATOMIC_32`] and so on. Comes
    /// after [`FunctionBuilder::express`].
    #[must_use]
    pub fn atomics(mut self, bits: u32) -> Self {
        if let Some(express) = self.express {
            self.set32(
                express + spec::EXPRESS_DEVICE_CAPABILITIES_2,
                spec::DEVCAP2_TIMEOUT_DISABLE | bits,
            );
        }
        self
    }

    /// A capability of the vendor: its bytes after the length, which programs may read, and write
    /// where hardware lets them.
    #[must_use]
    pub fn vendor_specific(mut self, data: &[u8]) -> Self {
        let size = 3 + data.len();
        if let Some(offset) = self.standard(spec::CAP_VENDOR, size) {
            self.set8(offset + 2, u8::try_from(size).unwrap_or(u8::MAX));
            for (at, byte) in (offset + 3..).zip(data) {
                self.set8(at, *byte);
            }
        }
        self
    }

    /// Virtual functions. Read-only for programs: the host enables them.
    #[must_use]
    pub fn sriov(mut self, layout: SriovLayout) -> Self {
        if let Some(offset) = self.extended(spec::EXT_SRIOV, 1, spec::SRIOV_SIZE, false) {
            self.set16(offset + spec::SRIOV_INITIAL, layout.total);
            self.set16(offset + spec::SRIOV_INITIAL + 2, layout.total);
            self.set16(offset + spec::SRIOV_OFFSET, layout.offset);
            self.set16(offset + spec::SRIOV_STRIDE, layout.stride);
            self.set16(offset + spec::SRIOV_DEVICE, layout.device);
            self.set32(offset + spec::SRIOV_PAGES, 0x553);
            self.set32(offset + spec::SRIOV_PAGES + 4, 1);
            for (index, bar) in layout.bars.iter().enumerate() {
                if let Some(bar) = bar {
                    self.set32(offset + spec::SRIOV_BAR0 + 4 * index, bar.flags());
                }
            }
            self.sriov = Some((offset, layout));
        }
        self
    }

    /// It is a virtual function: no wired interrupt, no memory enable of its own, and ids that are
    /// VFIO's doing.
    #[must_use]
    pub fn virtual_function(mut self) -> Self {
        self.is_virtual = true;
        self
    }
}
