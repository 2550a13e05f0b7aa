//! Interrupts by message and by wire, SR-IOV, and what else not every function has.

use super::{
    builder::FunctionBuilder,
    function::{Bar, Function, set_masked},
    spec,
};

/// The virtual functions that a physical one can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SriovLayout {
    /// How many there can be.
    pub total: u16,
    /// Routing id of the first one, less that of the physical function.
    pub offset: u16,
    /// Routing ids from one to the next.
    pub stride: u16,
    /// Their device id; the vendor is the physical function's.
    pub device: u16,
    /// Their BARs: each takes the size for every one of them.
    pub bars: [Option<Bar>; 6],
}

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

impl Function {
    /// Whether it can be reset by itself: a function level reset.
    pub fn has_function_reset(&self) -> bool {
        let at = self
            .express
            .map(|at| at + spec::EXPRESS_DEVICE_CAPABILITIES + 3);
        at.is_some_and(|at| self.byte(at) & (spec::DEVCAP_FLR >> 24) as u8 != 0)
    }

    /// Whether there is a power management capability.
    pub fn has_power_states(&self) -> bool {
        self.power.is_some()
    }

    /// The virtual functions that it can have.
    pub fn sriov(&self) -> Option<SriovLayout> {
        self.sriov.map(|(_, layout)| layout)
    }

    /// Shows that `count` virtual functions are there. With any, the function stays in D0.
    pub fn show_virtual_functions(&self, count: u16) {
        let Some((offset, _)) = self.sriov else {
            return;
        };
        let mut config = self.config.lock();
        config.keeps_awake = count > 0;
        let control = if count > 0 { spec::SRIOV_ENABLED } else { 0 };
        for (at, value) in [
            (offset + spec::SRIOV_CONTROL, control),
            (offset + spec::SRIOV_COUNT, count),
        ] {
            for (at, byte) in (at..).zip(value.to_le_bytes()) {
                set_masked(&mut config.values, at, byte, 0xff);
                set_masked(&mut config.initial, at, byte, 0xff);
            }
        }
        drop(config);
        self.watchers.tell();
    }
}
