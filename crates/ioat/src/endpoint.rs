//! An endpoint: what one owner sees of a device apart from its channels. The device itself has one,
//! and so has each child, so that interrupts of one owner never show to another.

use std::sync::Arc;

use ioasid_core::sync::Mutex;
use ioasid_engine::Interrupt;
use ioasid_iommu::Device;
use ioasid_vfio::{
    model::StateError,
    pci::{Bar, Function, FunctionBuilder, LayoutError, MsixLayout},
    saved::{Reader, Writer},
};

use crate::spec::{
    IntrCtrl,
    registers::{self as reg, INTRDELAY_MASK},
};

/// Configuration space, interrupt vectors and general registers of one owner.
#[derive(Debug)]
pub(crate) struct Endpoint {
    function: Function,
    registers: Mutex<Registers>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Registers {
    interrupts: IntrCtrl,
    /// ATTNSTATUS.
    attention: u32,
    delay: u16,
}

/// An interrupt that is to be raised once no lock is held: whose, and its vector.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) vector: u32,
}

impl Interrupt for Message {
    fn raise(self) {
        self.endpoint.function.vectors().signal(self.vector);
    }
}

impl Endpoint {
    pub(crate) fn new(channels: usize, device: &Device) -> Result<Arc<Self>, LayoutError> {
        Ok(Arc::new(Endpoint {
            function: function(channels, device)?,
            registers: Mutex::default(),
        }))
    }

    pub(crate) const fn function(&self) -> &Function {
        &self.function
    }

    /// Channel `index` wants attention. The vector that says so, to be raised without a lock.
    pub(crate) fn request_attention(&self, index: usize) -> Option<u32> {
        let mut registers = self.registers.lock();
        registers.attention |= bit(index);
        let interrupts = registers.interrupts;
        if interrupts.msix_vector_control() {
            Some(index as u32)
        } else {
            interrupts.master_int_en().then_some(0)
        }
    }

    /// The interrupt of channel `index` has been handled.
    pub(crate) fn rearm(&self, index: usize) {
        self.registers.lock().attention &= !bit(index);
    }

    pub(crate) fn attention(&self) -> u32 {
        self.registers.lock().attention
    }

    /// INTRCTRL; reading it disables the one interrupt of all channels.
    pub(crate) fn read_interrupts(&self) -> u8 {
        let mut registers = self.registers.lock();
        let status = registers.attention != 0;
        let value = registers.interrupts;
        registers.interrupts.set_master_int_en(false);
        value
            .with_int_status(status)
            .with_int(status && value.master_int_en())
            .into_bits()
    }

    /// Sets INTRCTRL. If the one interrupt is enabled while a channel waits, it is raised.
    pub(crate) fn set_interrupts(&self, value: u8) {
        let value = kept(value);
        let mut registers = self.registers.lock();
        registers.interrupts = value;
        let waits = registers.attention != 0;
        drop(registers);
        if waits && value.master_int_en() && !value.msix_vector_control() {
            self.function.vectors().signal(0);
        }
    }

    pub(crate) fn delay(&self) -> u16 {
        self.registers.lock().delay
    }

    pub(crate) fn set_delay(&self, value: u16) {
        self.registers.lock().delay = value & INTRDELAY_MASK;
    }

    /// Writes the registers into a state that is saved.
    pub(crate) fn save(&self, out: &mut Writer) {
        let registers = self.registers.lock();
        out.u8(registers.interrupts.into_bits());
        out.u32(registers.attention);
        out.u16(registers.delay);
    }

    /// Takes the registers of an owner of `channels` channels from such a state.
    pub(crate) fn load(&self, state: &mut Reader<'_>, channels: usize) -> Result<(), StateError> {
        let mut registers = self.registers.lock();
        *registers = Registers {
            interrupts: kept(state.u8()?),
            attention: state.u32()? & bit(channels).wrapping_sub(1),
            delay: state.u16()? & INTRDELAY_MASK,
        };
        Ok(())
    }

    /// Registers as after power-up.
    pub(crate) fn reset(&self) {
        *self.registers.lock() = Registers::default();
    }
}

/// What of a value for INTRCTRL is kept.
fn kept(value: u8) -> IntrCtrl {
    let value = IntrCtrl::from_bits(value);
    IntrCtrl::new()
        .with_master_int_en(value.master_int_en())
        .with_msix_vector_control(value.msix_vector_control())
}

/// The bit of channel `index` in ATTNSTATUS.
fn bit(index: usize) -> u32 {
    1_u32.checked_shl(index as u32).unwrap_or(0)
}

/// The PCI function of an I/OAT device with `channels` channels, each with an MSI-X vector.
fn function(channels: usize, device: &Device) -> Result<Function, LayoutError> {
    let msix = MsixLayout::new(0, reg::MSIX_TABLE, reg::MSIX_PBA, channels as u16);
    let bar = Bar {
        prefetchable: false,
        ..Bar::memory64(reg::BAR0_SIZE)
    };
    let mut builder = FunctionBuilder::new(reg::VENDOR, reg::DEVICE)
        .class(reg::CLASS, 0)
        .subsystem(reg::VENDOR, 0)
        .bar(0, bar)
        // Registers of the device's own among the capabilities: their places are fixed.
        .scratch(reg::CONFIG_DMAUNCERRSTS, 4)
        .scratch(reg::CONFIG_CHANERR_INT, 8)
        .express()
        .msix(msix)
        .power_management()
        .advanced_error_reporting();
    if device.max_pasids() > 0 {
        builder = builder.pasid(device.pasid_bits(), 0);
    }
    builder.build()
}
