//! What the author of a device writes: [`DeviceModel`], and [`DefaultPasid`] for a device that is
//! one queue of a parent.

use std::{fmt, sync::Arc};

use ioasid_core::Pasid;
use ioasid_iommu::Device;

pub use crate::base::saved::StateError;
use crate::{base::error::BindError, dma::emulated::EmulatedDma, pci::Function};

/// The behaviour of one PCI function, as a program sees it.
///
/// Configuration space, BAR sizes, interrupt vectors and their eventfds are not the model's
/// business: it describes them once in its [`Function`] and reacts to register accesses. The
/// protocol:
///
/// 1. [`read`](Self::read) and [`write`](Self::write) come from several threads at once, always
///    inside one BAR, never on its MSI-X table, 1, 2, 4 or 8 bytes long and naturally aligned;
///    on a BAR with [`wide_stores`](crate::pci::Bar::wide_stores) also 64 aligned bytes, which are
///    one store. They must not block: start work, do not wait for it.
/// 2. An interrupt is `function().vectors().signal(n)`. It may be called from any thread at any
///    time and does nothing while the program listens to no such vector.
/// 3. [`reset`](Self::reset) and [`release`](Self::release) are never concurrent with an access.
pub trait DeviceModel: Send + Sync + fmt::Debug {
    /// Configuration space and interrupt vectors.
    fn function(&self) -> &Function;

    /// Reads `data.len()` bytes at `offset` of BAR `bar`. Registers that do not exist read as 0.
    fn read(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Writes `data` at `offset` of BAR `bar`. Registers that do not exist ignore it.
    fn write(&self, bar: u8, offset: u64, data: &[u8]);

    /// A deferrable memory write of 64 aligned bytes at `offset` of BAR `bar` (`ENQCMD`, `ENQCMDS`:
    /// PCI Express base specification, 2.2.9.3). It is answered at once: whether the device took it.
    /// Otherwise the program has to try again. By default there is nothing that takes one.
    ///
    /// Bytes 0..=3 are what the processor made of them: PASID in bits 0..=19, privilege in bit 31.
    fn enqueue(&self, _bar: u8, _offset: u64, _data: &[u8; 64]) -> bool {
        false
    }

    /// Function level reset: when it returns, no DMA of the time before is in flight or can start,
    /// and the registers have their initial values. Configuration space and interrupt vectors are
    /// kept by the caller.
    fn reset(&self);

    /// The last user is gone and everything is pristine again; by default a [`reset`](Self::reset).
    /// Comes before the device is detached from its address space.
    fn release(&self) {
        self.reset();
    }

    /// How the device is saved and restored, if it can be. By default it cannot.
    fn migration(&self) -> Option<&dyn Migrate> {
        None
    }
}

/// A device model that can be stopped, saved in one process and restored in another.
///
/// Configuration space is the caller's business, and so are eventfds, which stay behind. None of
/// the calls is concurrent with a register access, or with each other. A
/// [`reset`](DeviceModel::reset) ends a pause.
pub trait Migrate {
    /// Stops the device. When it returns, no DMA is in flight or can start, no interrupt comes any
    /// more, and what was under way can be saved. It may wait for an access to memory that is under
    /// way, not for more. Does nothing to a device that is paused.
    fn pause(&self);

    /// Ends that: the device goes on where it was stopped, or where [`load`](Self::load) has put it.
    fn resume(&self);

    /// The state of the paused device, in a format of the model's own that names the model and its
    /// version. One of more than about 8 MiB cannot be moved
    /// ([`MAX_STATE`](crate::device::MAX_STATE)).
    fn save(&self) -> Vec<u8>;

    /// Gives the device, which was reset and then paused, a saved state. The bytes may come from
    /// anybody: they must not give the device more than its user could have made it do.
    ///
    /// # Errors
    /// [`StateError`] if they are not such a state, or one of a device with other abilities. The
    /// caller resets the device then.
    fn load(&self, state: &[u8]) -> Result<(), StateError>;
}

/// A child of a parent device that owns one PASID of it, hidden from its user.
///
/// The order of the calls is the order of a PASID's life: [`bind`](Self::bind), attach, detach and
/// attach again as the user likes, [`quiesce`](Self::quiesce), detach, [`unbind`](Self::unbind).
/// None of the last three can fail.
pub trait DefaultPasid: Send + Sync + fmt::Debug {
    /// Takes a PASID for a new user. Called once between two calls of [`unbind`](Self::unbind).
    ///
    /// # Errors
    /// [`BindError::NoPasid`], [`BindError::PasidTooLarge`].
    fn bind(&self) -> Result<(Arc<Device>, Pasid), BindError>;

    /// Stops the child's queue: disable, drain, flush the page requests that it still has. When it
    /// returns no DMA with the PASID is in flight or can start. It must not wait for an answer that
    /// the child's user owes.
    fn quiesce(&self);

    /// Frees the PASID: the child is detached and nothing uses it any more.
    fn unbind(&self);
}

/// How a VFIO device reaches its I/O address space.
#[derive(Clone, Debug)]
pub enum Passthrough {
    /// A whole device: its requester id, and PASIDs of the user's choice if it has any. Binding
    /// claims the DMA ownership of its group.
    Whole(Arc<Device>),
    /// A child by its default PASID. Binding claims nothing: the parent's driver goes on.
    Child(Arc<dyn DefaultPasid>),
    /// Software that copies: no IOMMU device and no PASID. Binding makes an access object, attaching
    /// attaches that, and there is never a domain.
    Emulated(EmulatedDma),
}
