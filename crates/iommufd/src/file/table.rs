//! The object table: one space of ids for all types.
//!
//! An entry has the uses that its object makes of other objects: they end when the object leaves
//! the table. So an object that is in use cannot be destroyed, and one that nothing uses always
//! can.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use ioasid_core::{
    AddrRange, failpoint,
    sync::{Mutex, MutexGuard},
};

use super::object::{ForeignObject, Object};
use crate::{
    base::{
        error::{Error, ObjectError},
        id::{ObjectId, Use, Users},
    },
    hardware::{device::DeviceObject, fault::FaultQueue, hwpt::Hwpt, viommu::Viommu},
    space::{ioas::Ioas, ledger::HasAreas, pages::Pages},
};

#[derive(Debug, Default)]
struct Entry {
    /// `None` while the object is being made: the id is taken, but names nothing yet.
    object: Option<Object>,
    /// Its uses by other objects, attachments and handles.
    users: Users,
    /// What it uses.
    uses: Vec<Use>,
}

/// An object that is out of the table, with its uses of others: they end when this is dropped.
#[derive(Debug)]
pub(crate) struct Removed {
    pub(crate) object: Object,
    pub(crate) uses: Vec<Use>,
}

/// Ids and objects. Ids are the lowest free numbers from 1, as in the kernel's
/// `xa_alloc(xa_limit_31b)`.
#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: BTreeMap<ObjectId, Entry>,
    /// Free numbers below or equal to `high`.
    free: BTreeSet<u32>,
    high: u32,
    /// The last descriptor of the file is gone.
    pub(crate) closed: bool,
}

impl Table {
    const LAST: u32 = i32::MAX as u32;

    /// Takes the lowest free id. It names nothing until [`Table::install`].
    fn reserve(&mut self) -> Result<ObjectId, Error> {
        // The object, and its entry.
        failpoint::allocation()?;
        failpoint::allocation()?;
        let number = match self.free.pop_first() {
            Some(number) => number,
            None if self.high < Self::LAST => {
                self.high += 1;
                self.high
            }
            None => return Err(ObjectError::NoIds.into()),
        };
        let id = ObjectId::from_raw(number);
        self.entries.insert(id, Entry::default());
        Ok(id)
    }

    /// Gives a reserved id its object, which uses others; returns a use of it.
    fn install(&mut self, id: ObjectId, object: Object, uses: Vec<Use>) -> Use {
        let entry = self.entries.entry(id).or_default();
        entry.object = Some(object);
        entry.uses = uses;
        entry.users.add()
    }

    /// Frees an id whatever uses it: for objects that were never seen, and for teardown.
    pub(crate) fn forget(&mut self, id: ObjectId) {
        if self.entries.remove(&id).is_some() {
            self.free.insert(id.get());
        }
    }

    /// The object, of any type.
    pub(crate) fn object(&self, id: ObjectId) -> Option<Object> {
        self.entries.get(&id)?.object.clone()
    }

    /// One more use of an id that is taken.
    pub(crate) fn use_of(&self, id: ObjectId) -> Result<Use, Error> {
        let entry = self.entries.get(&id).ok_or(ObjectError::Missing(id))?;
        Ok(entry.users.add())
    }

    /// Whether anything uses the object.
    pub(crate) fn is_used(&mut self, id: ObjectId) -> bool {
        self.entries
            .get_mut(&id)
            .is_some_and(|entry| entry.users.any())
    }

    fn take(&mut self, id: ObjectId) -> Option<Removed> {
        let entry = self.entries.get_mut(&id)?;
        let object = entry.object.take()?;
        let uses = std::mem::take(&mut entry.uses);
        Some(Removed { object, uses })
    }

    /// Takes an object out that nothing uses.
    pub(crate) fn remove(&mut self, id: ObjectId) -> Result<Removed, Error> {
        let entry = self.entries.get_mut(&id).ok_or(ObjectError::Missing(id))?;
        if entry.object.is_some() && entry.users.any() {
            return Err(ObjectError::InUse(id).into());
        }
        let removed = self.take(id).ok_or(ObjectError::Missing(id))?;
        self.forget(id);
        Ok(removed)
    }

    /// Takes an object out whatever uses it; its id names nothing from now on and is not used
    /// again.
    pub(crate) fn retire(&mut self, id: ObjectId) -> Option<Removed> {
        let removed = self.take(id);
        if let Some(entry) = self.entries.get_mut(&id) {
            *entry = Entry::default();
        }
        removed
    }

    /// Takes out every object that nothing uses and that `which` agrees to, by ascending id.
    pub(crate) fn take_unused(&mut self, which: impl Fn(&Object) -> bool) -> Vec<Removed> {
        let mut ids = Vec::new();
        for (id, entry) in &mut self.entries {
            if entry.object.as_ref().is_some_and(&which) && !entry.users.any() {
                ids.push(*id);
            }
        }
        ids.into_iter()
            .filter_map(|id| self.remove(id).ok())
            .collect()
    }

    /// Whether any id is taken.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every object, by ascending id.
    pub(crate) fn objects(&self) -> Vec<Object> {
        let entries = self.entries.values();
        entries.filter_map(|entry| entry.object.clone()).collect()
    }
}

/// The object table of a file. Its lock is held for lookups and bookkeeping only, inside every
/// other lock.
#[derive(Debug, Default)]
pub(crate) struct Objects(Mutex<Table>);

impl Objects {
    pub(crate) fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock()
    }

    /// Takes the lowest free id, for an object that is still being made.
    pub(crate) fn reserve(self: &Arc<Self>) -> Result<ReservedId, Error> {
        Ok(ReservedId {
            id: self.lock().reserve()?,
            objects: Arc::clone(self),
            named: false,
        })
    }

    /// [`Objects::reserve`], while the file is open.
    pub(crate) fn reserve_open(self: &Arc<Self>) -> Result<ReservedId, Error> {
        let mut table = self.lock();
        if table.closed {
            return Err(ObjectError::Closed.into());
        }
        Ok(ReservedId {
            id: table.reserve()?,
            objects: Arc::clone(self),
            named: false,
        })
    }

    /// The file is open.
    pub(crate) fn check_open(&self) -> Result<(), Error> {
        match self.lock().closed {
            true => Err(ObjectError::Closed.into()),
            false => Ok(()),
        }
    }

    pub(crate) fn object(&self, id: ObjectId) -> Result<Object, Error> {
        let object = self.lock().object(id);
        Ok(object.ok_or(ObjectError::Missing(id))?)
    }

    pub(crate) fn ioas(&self, id: ObjectId) -> Result<Arc<Ioas>, Error> {
        match self.object(id)? {
            Object::Ioas(ioas) => Ok(ioas),
            _ => Err(ObjectError::Missing(id).into()),
        }
    }

    /// An IOAS and a use of it.
    pub(crate) fn use_ioas(&self, id: ObjectId) -> Result<(Arc<Ioas>, Use), Error> {
        let table = self.lock();
        match table.object(id) {
            Some(Object::Ioas(ioas)) => Ok((ioas, table.use_of(id)?)),
            _ => Err(ObjectError::Missing(id).into()),
        }
    }

    /// A page table of an IOAS.
    pub(crate) fn hwpt(&self, id: ObjectId) -> Result<Arc<Hwpt>, Error> {
        match self.object(id)? {
            Object::Hwpt(hwpt) if hwpt.paging().is_some() => Ok(hwpt),
            _ => Err(ObjectError::Missing(id).into()),
        }
    }

    pub(crate) fn device(&self, id: ObjectId) -> Result<Arc<DeviceObject>, Error> {
        match self.object(id)? {
            Object::Device(device) => Ok(device),
            _ => Err(ObjectError::Missing(id).into()),
        }
    }

    pub(crate) fn fault_queue(&self, id: ObjectId) -> Result<Arc<FaultQueue>, Error> {
        match self.object(id)? {
            Object::FaultQueue(queue) => Ok(queue),
            _ => Err(ObjectError::Missing(id).into()),
        }
    }

    pub(crate) fn viommu(&self, id: ObjectId) -> Result<Arc<Viommu>, Error> {
        match self.object(id)? {
            Object::Viommu(viommu) => Ok(viommu),
            _ => Err(ObjectError::Missing(id).into()),
        }
    }

    /// A virtual IOMMU and a use of it.
    pub(crate) fn use_viommu(&self, id: ObjectId) -> Result<(Arc<Viommu>, Use), Error> {
        let table = self.lock();
        match table.object(id) {
            Some(Object::Viommu(viommu)) => Ok((viommu, table.use_of(id)?)),
            _ => Err(ObjectError::Missing(id).into()),
        }
    }

    /// One more use of an object.
    pub(crate) fn use_of(&self, id: ObjectId) -> Result<Use, Error> {
        self.lock().use_of(id)
    }

    /// As [`Table::forget`].
    pub(crate) fn forget(&self, id: ObjectId) {
        self.lock().forget(id);
    }

    /// Every object, by ascending id.
    pub(crate) fn all(&self) -> Vec<Object> {
        self.lock().objects()
    }
}

impl HasAreas for Objects {
    fn pinning(&self, page: AddrRange) -> Vec<Arc<Pages>> {
        let pages = self.all().into_iter().filter_map(|object| match object {
            Object::Ioas(ioas) => Some(ioas.pinning(page)),
            _ => None,
        });
        pages.flatten().collect()
    }
}

/// An id that names nothing yet. Dropping it gives the id back.
pub struct ReservedId {
    objects: Arc<Objects>,
    id: ObjectId,
    named: bool,
}

impl ReservedId {
    /// The id.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Lets it name `object`.
    pub fn install(self, object: Arc<dyn ForeignObject>) -> ObjectId {
        self.name(Object::Foreign(object), Vec::new())
    }

    /// Lets it name `object`, which uses others.
    pub(crate) fn name(mut self, object: Object, uses: Vec<Use>) -> ObjectId {
        self.named = true;
        self.objects.lock().install(self.id, object, uses);
        self.id
    }

    /// [`ReservedId::name`], for an object that is in use from the start.
    pub(crate) fn name_used(mut self, object: Object, uses: Vec<Use>) -> Use {
        self.named = true;
        self.objects.lock().install(self.id, object, uses)
    }
}

impl Drop for ReservedId {
    fn drop(&mut self) {
        if !self.named {
            self.objects.forget(self.id);
        }
    }
}

impl fmt::Debug for ReservedId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ReservedId({})", self.id)
    }
}
