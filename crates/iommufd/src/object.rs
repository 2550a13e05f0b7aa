//! The object table: one space of ids for all types.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::Arc,
};

use ioasid_core::failpoint;

use crate::{
    access::AccessObject,
    device::DeviceObject,
    error::Error,
    fault::FaultQueue,
    foreign::ForeignObject,
    hw_queue::HwQueue,
    hwpt::Hwpt,
    ioas::Ioas,
    vevent::VeventQueue,
    viommu::{Vdevice, Viommu},
};

/// The id of one object of a [`Context`](crate::Context), 1..=2^31-1. Programs send any number, so
/// holding one says nothing about an object existing.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectId(u32);

impl ObjectId {
    /// The id that a program sent.
    pub const fn from_raw(value: u32) -> Self {
        ObjectId(value)
    }

    /// The number.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "object {}", self.0)
    }
}

/// What an id stands for.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Ioas(Arc<Ioas>),
    Hwpt(Arc<Hwpt>),
    Device(Arc<DeviceObject>),
    Access(Arc<AccessObject>),
    FaultQueue(Arc<FaultQueue>),
    Viommu(Arc<Viommu>),
    Vdevice(Arc<Vdevice>),
    VeventQueue(Arc<VeventQueue>),
    HwQueue(Arc<HwQueue>),
    Foreign(Arc<dyn ForeignObject>),
}

#[derive(Debug)]
struct Entry {
    /// `None` while the object is being made: the id is taken, but names nothing yet.
    object: Option<Object>,
    /// Other objects and attachments that use it.
    users: u32,
}

/// Ids and objects. Ids are the lowest free numbers from 1, as in the kernel's
/// `xa_alloc(xa_limit_31b)`.
#[derive(Debug, Default)]
pub(crate) struct Table {
    entries: BTreeMap<ObjectId, Entry>,
    /// Free numbers below or equal to `high`.
    free: BTreeSet<u32>,
    high: u32,
}

impl Table {
    const LAST: u32 = i32::MAX as u32;

    /// Takes the lowest free id. It names nothing until [`Table::install`].
    pub(crate) fn reserve(&mut self) -> Result<ObjectId, Error> {
        // The object, and its entry.
        failpoint::allocation()?;
        failpoint::allocation()?;
        let number = match self.free.pop_first() {
            Some(number) => number,
            None if self.high < Self::LAST => {
                self.high += 1;
                self.high
            }
            None => return Err(Error::NoIds),
        };
        let id = ObjectId(number);
        let entry = Entry {
            object: None,
            users: 0,
        };
        self.entries.insert(id, entry);
        Ok(id)
    }

    /// Gives a reserved id its object.
    pub(crate) fn install(&mut self, id: ObjectId, object: Object) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.object = Some(object);
        }
    }

    /// Frees an id whatever uses it: for objects that were never seen, and for teardown.
    pub(crate) fn forget(&mut self, id: ObjectId) {
        if self.entries.remove(&id).is_some() {
            self.free.insert(id.0);
        }
    }

    /// The object, of any type.
    pub(crate) fn object(&self, id: ObjectId) -> Option<Object> {
        self.entries.get(&id)?.object.clone()
    }

    /// One more user.
    pub(crate) fn hold(&mut self, id: ObjectId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.users += 1;
        }
    }

    /// One user less; returns how many are left.
    pub(crate) fn put(&mut self, id: ObjectId) -> u32 {
        match self.entries.get_mut(&id) {
            Some(entry) => {
                entry.users = entry.users.saturating_sub(1);
                entry.users
            }
            None => 0,
        }
    }

    /// Takes an object out that nobody uses.
    pub(crate) fn remove(&mut self, id: ObjectId) -> Result<Object, Error> {
        let entry = self.entries.get(&id).ok_or(Error::NoObject(id))?;
        let object = entry.object.clone().ok_or(Error::NoObject(id))?;
        if entry.users > 0 {
            return Err(Error::InUse(id));
        }
        self.forget(id);
        Ok(object)
    }

    /// Takes an object away whatever uses it; its id names nothing from now on and is not used
    /// again.
    pub(crate) fn bury(&mut self, id: ObjectId) {
        if let Some(entry) = self.entries.get_mut(&id) {
            *entry = Entry {
                object: None,
                users: 0,
            };
        }
    }

    /// Takes out every object that nobody uses, by ascending id.
    pub(crate) fn take_unused(&mut self) -> Vec<Object> {
        let unused = |entry: &Entry| entry.users == 0 && entry.object.is_some();
        let ids: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| unused(entry))
            .map(|(id, _)| *id)
            .collect();
        ids.into_iter()
            .filter_map(|id| self.remove(id).ok())
            .collect()
    }

    /// Takes out every object of a back end that nobody uses.
    pub(crate) fn take_foreign(&mut self) -> Vec<Object> {
        let foreign = |entry: &Entry| matches!(entry.object, Some(Object::Foreign(_)));
        let ids: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.users == 0 && foreign(entry))
            .map(|(id, _)| *id)
            .collect();
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
