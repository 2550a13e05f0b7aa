//! Memory of a program for a device that has no DMA of its own: software that copies
//! (`drivers/vfio/iommufd.c`, the emulated half).

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock},
    time::Instant,
};

use ioasid_core::{
    AddrRange,
    sync::{Condvar, Mutex},
};
use ioasid_iommu::WITHHOLD_PATIENCE;
use ioasid_iommufd::{
    Access, AccessError, AccessKind, AccessUser, Context, Error as IommufdError, ObjectId,
};

use crate::base::error::{BindError, RegionError, Result};

/// How an emulated device reaches the memory of its user: by copies through an access object. No
/// IOMMU device, no PASID and no domain is behind it.
///
/// The device's author makes one, keeps it in the model and gives a clone to
/// [`Passthrough::Emulated`](crate::Passthrough::Emulated). It reaches nothing until a program has
/// bound the device and attached it to an IOAS, and nothing any more once the program has closed it.
#[derive(Clone, Default)]
pub struct EmulatedDma {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Held shared for each copy, exclusively to come and to go.
    access: RwLock<Option<Access>>,
    copies: Mutex<Copies>,
    /// A copy has ended.
    ended: Condvar,
}

#[derive(Default)]
struct Copies {
    /// The function must not copy.
    withheld: bool,
    under_way: usize,
}

/// One copy.
struct Copy<'a>(&'a Inner);

impl<'a> Copy<'a> {
    fn begin(inner: &'a Inner) -> Result<Self, RegionError> {
        let mut copies = inner.copies.lock();
        if copies.withheld {
            return Err(RegionError::NoBusMaster);
        }
        copies.under_way += 1;
        Ok(Copy(inner))
    }
}

impl Drop for Copy<'_> {
    fn drop(&mut self) {
        self.0.copies.lock().under_way -= 1;
        self.0.ended.notify_all();
    }
}

/// Nothing is pinned for longer than a copy, so there is nothing to let go of.
#[derive(Debug)]
struct NoPins;

impl AccessUser for NoPins {
    fn unmap(&self, _range: AddrRange) {}
}

impl EmulatedDma {
    /// Of no user.
    pub fn new() -> Self {
        EmulatedDma::default()
    }

    /// Copies `dst.len()` bytes from the address `iova` of the user's IOAS. May block as long as the
    /// user's memory does: not to be called from a register access.
    ///
    /// # Errors
    /// [`RegionError::NoBusMaster`] while the function must not; [`BindError::NotBound`] if there is no
    /// user; otherwise as [`Access::read`], [`NotAttached`](AccessError::NotAttached) among them.
    pub fn read(&self, iova: u64, dst: &mut [u8]) -> Result<()> {
        let _copy = Copy::begin(&self.inner)?;
        let access = self.inner.access.read();
        let access = access.unwrap_or_else(PoisonError::into_inner);
        Ok(access
            .as_ref()
            .ok_or(BindError::NotBound)?
            .read(iova, dst)?)
    }

    /// Copies `src` to the address `iova` of the user's IOAS; as [`EmulatedDma::read`].
    ///
    /// # Errors
    /// As [`EmulatedDma::read`].
    pub fn write(&self, iova: u64, src: &[u8]) -> Result<()> {
        let _copy = Copy::begin(&self.inner)?;
        let access = self.inner.access.read();
        let access = access.unwrap_or_else(PoisonError::into_inner);
        Ok(access
            .as_ref()
            .ok_or(BindError::NotBound)?
            .write(iova, src)?)
    }

    /// Whether copies may begin. If not, none is under way when this returns, but for one that has been
    /// blocked for [`WITHHOLD_PATIENCE`].
    pub(crate) fn set_bus_master(&self, on: bool) {
        let mut copies = self.inner.copies.lock();
        copies.withheld = !on;
        let deadline = Instant::now() + WITHHOLD_PATIENCE;
        while !on && copies.under_way > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            copies = self.inner.ended.wait_timeout(copies, left);
        }
    }

    /// A new user.
    pub(crate) fn bind(&self, context: &Arc<Context>) -> Result<BoundEmulated> {
        // As `vfio_iommufd_emulated_bind` asks for it: mappings are whole pages.
        let access = context.create_access(AccessKind::Pins(Arc::new(NoPins)))?;
        let id = access.id();
        self.set(Some(access));
        Ok(BoundEmulated {
            dma: self.clone(),
            id,
        })
    }

    fn set(&self, access: Option<Access>) {
        let place = self.inner.access.write();
        let old = std::mem::replace(&mut *place.unwrap_or_else(PoisonError::into_inner), access);
        drop(old);
    }

    fn with<R>(&self, use_: impl FnOnce(&Access) -> R) -> Result<R, BindError> {
        let access = self.inner.access.read();
        let access = access.unwrap_or_else(PoisonError::into_inner);
        Ok(use_(access.as_ref().ok_or(BindError::NotBound)?))
    }
}

impl fmt::Debug for EmulatedDma {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmulatedDma").finish_non_exhaustive()
    }
}

/// An emulated device that is bound. Dropping it waits for the copy that is under way and ends the
/// reach of the device.
#[derive(Debug)]
pub(crate) struct BoundEmulated {
    dma: EmulatedDma,
    id: ObjectId,
}

impl BoundEmulated {
    /// The id of the access object.
    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    /// Attaches to an IOAS, or to another one than before.
    pub(crate) fn attach(&self, ioas: ObjectId) -> Result<()> {
        self.dma.with(|access| match access.replace(ioas) {
            Err(IommufdError::Access(AccessError::NotAttached(_))) => access.attach(ioas),
            done => done,
        })??;
        Ok(())
    }

    pub(crate) fn detach(&self) {
        // Bound, so there is an access.
        let _ = self.dma.with(Access::detach);
    }
}

impl Drop for BoundEmulated {
    fn drop(&mut self) {
        self.dma.set(None);
    }
}
