//! How a device reaches memory: the one difference between a whole device and an emulated one.

use std::sync::Arc;

use ioasid_core::{
    inject::{Failure, Point},
    sync::Mutex,
};
use ioasid_iommu::{Device, DmaGuard, DmaPort, Stop};
use ioasid_vfio::EmulatedDma;

/// Memory as a device addresses it.
///
/// The device has no register that reports an error: a transfer that is refused ends as any other.
pub(crate) enum Memory {
    /// The access object of the program that has bound an emulated device.
    Access(EmulatedDma),
    /// DMA of a PCI function behind the IOMMU.
    Bus {
        /// The device's own thread alone enters it.
        port: Mutex<DmaPort>,
        /// The address bits that the device drives; the others are 0 on the bus.
        mask: u64,
    },
}

impl Memory {
    /// DMA of `device`, which drives the address bits of `mask`.
    pub(crate) fn bus(device: &Arc<Device>, mask: u64) -> Self {
        Memory::Bus {
            port: Mutex::new(device.port()),
            mask,
        }
    }

    /// A transfer begins: how it is to fail, if a test has asked for that. A refusal is carried out by
    /// the transfer's own access.
    pub(crate) fn begin(&self) -> Option<Failure> {
        let Memory::Bus { port, .. } = self else {
            return None;
        };
        let mut port = port.lock();
        let failure = port.device().injections().at(Point::Descriptor);
        if failure == Some(Failure::Refuse) {
            port.refuse_next(true);
        }
        failure
    }

    /// Reads `bytes` from `address`, up to the first byte that is refused. May block as long as the
    /// program's memory does.
    pub(crate) fn read(&self, address: u64, bytes: &mut [u8]) {
        match self {
            // What is refused moves nothing, bus mastering that is off included.
            Memory::Access(dma) => drop(dma.read(address, bytes)),
            Memory::Bus { port, mask } => transfer(&mut port.lock(), |guard, done| {
                guard.read_on(address & mask, bytes, done)
            }),
        }
    }

    /// Writes `bytes` at `address`; as [`Memory::read`].
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        match self {
            Memory::Access(dma) => drop(dma.write(address, bytes)),
            Memory::Bus { port, mask } => transfer(&mut port.lock(), |guard, done| {
                guard.write_on(address & mask, bytes, done)
            }),
        }
    }
}

/// Repeats `step` until everything is done or refused. A fault is reported once, to the owner of the
/// domain.
fn transfer(
    port: &mut DmaPort,
    mut step: impl FnMut(&mut DmaGuard<'_>, &mut u64) -> Result<(), Stop>,
) {
    let mut done = 0;
    loop {
        // The device serves one program at a time, so its thread may wait for that one's memory.
        let mut guard = port.enter_blocking(None);
        match step(&mut guard, &mut done) {
            Err(Stop::Budget) => {}
            Err(Stop::Fault(fault)) => return guard.report(&fault),
            // Without Bus Master there is no request: as on hardware, nothing moves.
            Ok(()) | Err(Stop::Withheld | Stop::Remote(_)) => return,
        }
    }
}
