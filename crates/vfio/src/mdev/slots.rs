//! What devices have in common whose queues become children of one type each: which queue goes to
//! which UUID, and the default PASID of a child.

use std::{collections::BTreeMap, fmt, sync::Arc};

use ioasid_core::{
    Pasid,
    inspect::{Inspect, Node},
    sync::Mutex,
};
use ioasid_iommu::{Device, PasidHandle, PasidPool, PasidQuota, PasidUse};

use super::registry::{MdevChild, MdevParent, MdevType};
use crate::{
    base::{
        error::{BindError, DeviceError, MdevError},
        uuid::Uuid,
    },
    model::{DefaultPasid, DeviceModel, Passthrough},
};

/// Why a slot gives no child.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SlotError {
    /// Another child has it by now.
    #[error("the slot is in use by another child")]
    Taken,
    /// The device refuses.
    #[error("the device gives no child")]
    Refused(#[source] DeviceError),
}

impl SlotError {
    /// The device refuses, with an error of its own.
    pub fn refused(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        SlotError::Refused(DeviceError::new(error))
    }
}

/// A device with numbered slots (queues, channels), some of them set aside for children.
pub trait Slots: Inspect + Send + Sync + fmt::Debug {
    /// What a slot becomes.
    type Child: DeviceModel + DefaultPasid + Inspect + 'static;

    /// The name in sysfs, for a PCI device the address.
    fn name(&self) -> String;

    /// The type of the children.
    fn mdev_type(&self) -> MdevType;

    /// Slots that were set aside for children and are not in use.
    fn free_slots(&self) -> Vec<usize>;

    /// Makes a child of a slot.
    ///
    /// # Errors
    /// [`SlotError`].
    fn make(self: &Arc<Self>, slot: usize) -> Result<Arc<Self::Child>, SlotError>;

    /// The child is gone: gives its slot back. It answers nothing from now on.
    fn retire(&self, child: &Self::Child);
}

/// The parent of children of a device with slots. Its children keep the device alive.
#[derive(Debug)]
pub struct SlotParent<D: Slots> {
    device: Arc<D>,
    children: Mutex<BTreeMap<Uuid, Arc<D::Child>>>,
    /// Slots that are kept for particular children.
    places: Mutex<BTreeMap<usize, Uuid>>,
}

impl<D: Slots> SlotParent<D> {
    /// The parent of children of `device`.
    pub fn new(device: Arc<D>) -> Arc<Self> {
        Arc::new(SlotParent {
            device,
            children: Mutex::default(),
            places: Mutex::default(),
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// The child `uuid`.
    pub fn child(&self, uuid: Uuid) -> Option<Arc<D::Child>> {
        self.children.lock().get(&uuid).map(Arc::clone)
    }

    /// Keeps a slot for the child that will have this UUID, for a machine whose file says which.
    pub fn keep(&self, slot: usize, uuid: Uuid) {
        self.places.lock().insert(slot, uuid);
    }

    /// Free slots for `uuid`: the one that is kept for it, or else those that are kept for nobody.
    fn slots_for(&self, uuid: Uuid) -> Vec<usize> {
        let places = self.places.lock();
        let mut free = self.device.free_slots();
        let own = free
            .iter()
            .copied()
            .find(|slot| places.get(slot) == Some(&uuid));
        free.retain(|slot| !places.contains_key(slot));
        own.map_or(free, |slot| vec![slot])
    }
}

impl<D: Slots> MdevParent for SlotParent<D> {
    fn name(&self) -> String {
        self.device.name()
    }

    fn types(&self) -> Vec<MdevType> {
        vec![self.device.mdev_type()]
    }

    fn available_instances(&self, id: &str) -> u32 {
        match id == self.device.mdev_type().id {
            true => self.device.free_slots().len() as u32,
            false => 0,
        }
    }

    fn create(&self, id: &str, uuid: Uuid) -> Result<MdevChild, MdevError> {
        let (parent, type_id) = (self.name(), id.to_owned());
        if id != self.device.mdev_type().id {
            return Err(MdevError::NoSuchType { parent, type_id });
        }
        for slot in self.slots_for(uuid) {
            match self.device.make(slot) {
                Ok(child) => {
                    self.children.lock().insert(uuid, Arc::clone(&child));
                    return Ok(MdevChild {
                        model: child.clone(),
                        passthrough: Passthrough::Child(child),
                    });
                }
                // Another child was faster.
                Err(SlotError::Taken) => {}
                Err(SlotError::Refused(error)) => return Err(MdevError::Device(error)),
            }
        }
        Err(MdevError::NoInstance { parent, type_id })
    }

    fn remove(&self, uuid: Uuid) {
        let child = self.children.lock().remove(&uuid);
        if let Some(child) = child {
            self.device.retire(&child);
        }
    }
}

impl<D: Slots> Inspect for SlotParent<D> {
    fn inspect(&self) -> Node {
        let mut children = Node::new();
        for (uuid, child) in &*self.children.lock() {
            children.set(uuid.to_string(), child.inspect());
        }
        self.device
            .inspect()
            .with("available_instances", self.device.free_slots().len())
            .with("children", children)
    }
}

/// The default PASID of one child, from bind to unbind: one at a time, out of its parent's pool.
#[derive(Debug)]
pub struct PasidSlot {
    pool: Arc<PasidPool>,
    quota: Arc<PasidQuota>,
    handle: Mutex<Option<PasidHandle>>,
}

impl PasidSlot {
    /// Without a PASID yet.
    pub fn new(pool: &Arc<PasidPool>) -> Self {
        PasidSlot {
            pool: Arc::clone(pool),
            quota: PasidQuota::new(1),
            handle: Mutex::default(),
        }
    }

    /// Takes a PASID that `device` can send.
    ///
    /// # Errors
    /// [`BindError::NoPasid`], [`BindError::PasidTooLarge`].
    pub fn bind(&self, device: &Arc<Device>) -> Result<(Arc<Device>, Pasid), BindError> {
        let handle = self.pool.alloc(&self.quota).map_err(BindError::NoPasid)?;
        let (pasid, limit) = (handle.pasid(), device.max_pasids());
        if pasid.get() >= limit {
            return Err(BindError::PasidTooLarge { pasid, limit });
        }
        *self.handle.lock() = Some(handle);
        Ok((Arc::clone(device), pasid))
    }

    /// The PASID while there is one. For the host alone: no user can read it.
    pub fn pasid(&self) -> Option<Pasid> {
        self.handle.lock().as_ref().map(PasidHandle::pasid)
    }

    /// Keeps the PASID from being reused while work carries it.
    pub fn use_token(&self) -> Option<PasidUse> {
        self.handle.lock().as_ref().map(PasidHandle::use_token)
    }

    /// Gives it back.
    pub fn unbind(&self) {
        let handle = self.handle.lock().take();
        drop(handle);
    }
}
