//! Access objects: memory of an IOAS for software that needs no page table - an emulated device
//! whose "DMA" is copied by software, or a queue that hardware reads by physical address.
//!
//! An access object has an id in the object table like everything else, is attached to one IOAS at
//! a time, and either copies bytes ([`Access::read`], [`Access::write`]) or pins pages
//! ([`Access::pin`]). A pin keeps system physical addresses valid until it is dropped; an UNMAP of
//! the area asks its user to drop it ([`AccessUser::unmap`](crate::AccessUser::unmap)) and waits
//! for that, with a limit. (drivers/iommu/iommufd/device.c, second half.)

use std::{fmt, sync::Arc};

use ioasid_core::{AddrRange, sync::Mutex};

use crate::{
    base::{
        error::{AccessError, Error},
        id::{ObjectId, Use},
    },
    file::{context::Context, object::Object},
    space::{
        access::{AccessKind, AccessObject, PinnedPages},
        ioas::{AttachedAccess, CopyPart, Ioas},
    },
};

/// An access object of a [`Context`]. Dropping it detaches and takes the object away; pins are to
/// be dropped before.
pub struct Access {
    context: Arc<Context>,
    object: Arc<AccessObject>,
    /// Held through a whole attach.
    attached: Mutex<Option<Attached>>,
    /// DESTROY cannot take the object away.
    _used: Use,
}

/// An access object on its IOAS, detached before its use of the IOAS ends.
#[derive(Debug)]
struct Attached {
    access: AttachedAccess,
    _ioas: Use,
}

impl Access {
    /// A new access object that is attached to nothing.
    pub(crate) fn new(context: &Arc<Context>, kind: AccessKind) -> Result<Self, Error> {
        let id = context.objects().reserve_open()?;
        let object = AccessObject::new(id.id(), kind);
        let used = id.name_used(Object::Access(Arc::clone(&object)), Vec::new());
        Ok(Access {
            context: Arc::clone(context),
            object,
            attached: Mutex::new(None),
            _used: used,
        })
    }

    /// The id of the access object.
    pub fn id(&self) -> ObjectId {
        self.object.id()
    }

    /// Attaches to an IOAS.
    ///
    /// # Errors
    /// [`AccessError::AlreadyAttached`], [`ObjectError::Missing`](crate::ObjectError::Missing), and
    /// [`RangeError::MisalignedAreas`](crate::RangeError::MisalignedAreas) if it pins pages and a
    /// mapping is not aligned to pages.
    pub fn attach(&self, ioas: ObjectId) -> Result<(), Error> {
        let mut attached = self.attached.lock();
        if let Some(attached) = attached.as_ref() {
            return Err(AccessError::AlreadyAttached {
                access: self.id(),
                ioas: attached.access.ioas().id(),
            }
            .into());
        }
        *attached = Some(self.join(ioas)?);
        Ok(())
    }

    /// Leaves its IOAS for another one. What was pinned is asked back; to itself nothing happens.
    ///
    /// # Errors
    /// [`AccessError::NotAttached`], and those of [`Access::attach`]: the old IOAS stays then.
    pub fn replace(&self, ioas: ObjectId) -> Result<(), Error> {
        let mut attached = self.attached.lock();
        let old = attached
            .as_ref()
            .ok_or(AccessError::NotAttached(self.id()))?;
        let new = self.context.objects().ioas(ioas)?;
        if Arc::ptr_eq(old.access.ioas(), &new) {
            return Ok(());
        }
        let old = attached.replace(self.join(ioas)?);
        // Its user is asked for its pins with no lock held.
        drop(attached);
        drop(old);
        Ok(())
    }

    /// Leaves its IOAS, if it has one.
    pub fn detach(&self) {
        let old = self.attached.lock().take();
        drop(old);
    }

    fn join(&self, id: ObjectId) -> Result<Attached, Error> {
        let (ioas, used) = self.context.objects().use_ioas(id)?;
        Ok(Attached {
            access: AttachedAccess::new(ioas, &self.object)?,
            _ioas: used,
        })
    }

    fn ioas(&self) -> Result<Arc<Ioas>, Error> {
        let attached = self.attached.lock();
        let attached = attached
            .as_ref()
            .ok_or(AccessError::NotAttached(self.id()))?;
        Ok(Arc::clone(attached.access.ioas()))
    }

    /// Pins the pages of `len` bytes from `iova` on; to be written too if `write`.
    ///
    /// # Errors
    /// In the kernel's order: [`AccessError::CopiesOnly`], [`AccessError::Empty`],
    /// [`AccessError::Overflow`], [`AccessError::NotAttached`]; then area by area
    /// [`AccessError::Leaving`], [`AccessError::DevicePages`], [`AccessError::Permission`],
    /// [`AccessError::PartialPage`], [`Error::Pin`], and [`AccessError::NotMapped`] where there is
    /// none.
    pub fn pin(&self, iova: u64, len: u64, write: bool) -> Result<PinnedPages, Error> {
        if !self.object.pins() {
            return Err(AccessError::CopiesOnly(self.id()).into());
        }
        let range = checked(iova, len)?;
        self.ioas()?.pin(range, write, self.object.locks())
    }

    /// Copies `dst.len()` bytes from `iova`.
    ///
    /// # Errors
    /// [`AccessError::Empty`], [`AccessError::Overflow`], [`AccessError::NotAttached`], then area
    /// by area [`AccessError::Leaving`], [`AccessError::DevicePages`], [`AccessError::Permission`],
    /// [`AccessError::MemoryGone`], and [`AccessError::NotMapped`]. What comes before is copied.
    pub fn read(&self, iova: u64, dst: &mut [u8]) -> Result<(), Error> {
        let mut rest = dst;
        self.copy(iova, rest.len() as u64, false, &mut |area, offset, len| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(len);
            rest = after;
            area.pages().read(offset, part)
        })
    }

    /// Copies `src` to `iova`.
    ///
    /// # Errors
    /// As for [`Access::read`].
    pub fn write(&self, iova: u64, src: &[u8]) -> Result<(), Error> {
        let mut rest = src;
        self.copy(iova, rest.len() as u64, true, &mut |area, offset, len| {
            let (part, after) = rest.split_at(len);
            rest = after;
            area.pages().write(offset, part)
        })
    }

    fn copy(&self, iova: u64, len: u64, write: bool, copy: &mut CopyPart<'_>) -> Result<(), Error> {
        let range = checked(iova, len)?;
        self.ioas()?.copy(range, write, copy)
    }
}

fn checked(iova: u64, len: u64) -> Result<AddrRange, AccessError> {
    if len == 0 {
        return Err(AccessError::Empty);
    }
    AddrRange::from_len(iova, len).ok_or(AccessError::Overflow { start: iova, len })
}

impl Drop for Access {
    fn drop(&mut self) {
        self.detach();
        self.context.objects().forget(self.object.id());
        self.context.finish_close();
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.object, f)
    }
}
