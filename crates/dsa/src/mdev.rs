//! The parent of mediated devices: queues that were set aside become children of the type
//! `dsa-1dwq`.

use std::{collections::BTreeMap, sync::Arc};

use ioasid_core::{
    inspect::{Inspect, Node},
    sync::Mutex,
};
use ioasid_vfio::{
    Passthrough,
    mdev::{MdevChild, MdevParent, MdevType, Uuid},
};

use crate::{
    child::DsaChild,
    config::{Error, QueueType},
    device::DsaDevice,
};

/// The type of a child with one dedicated work queue.
pub const TYPE_1DWQ: &str = "dsa-1dwq";

/// A device whose queues can be given away. Its children keep the device alive.
#[derive(Debug)]
pub struct DsaParent {
    device: Arc<DsaDevice>,
    children: Mutex<BTreeMap<Uuid, Arc<DsaChild>>>,
    /// Queues that are kept for particular children.
    places: Mutex<BTreeMap<usize, Uuid>>,
}

impl DsaParent {
    /// The parent of children of `device`.
    pub fn new(device: Arc<DsaDevice>) -> Arc<Self> {
        Arc::new(DsaParent {
            device,
            children: Mutex::default(),
            places: Mutex::default(),
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<DsaDevice> {
        &self.device
    }

    /// The child `uuid`.
    pub fn child(&self, uuid: Uuid) -> Option<Arc<DsaChild>> {
        self.children.lock().get(&uuid).map(Arc::clone)
    }

    /// Keeps a queue for the child that will have this UUID, for a machine whose file says which.
    pub fn keep(&self, queue: usize, uuid: Uuid) {
        self.places.lock().insert(queue, uuid);
    }

    fn create_on(&self, queue: usize, uuid: Uuid) -> Result<Arc<DsaChild>, Error> {
        let child = DsaChild::new(&self.device, queue)?;
        self.children.lock().insert(uuid, Arc::clone(&child));
        Ok(child)
    }

    /// Free queues for `uuid`: the one that is kept for it, or else those that are kept for nobody.
    fn queues_for(&self, uuid: Uuid) -> Vec<usize> {
        let places = self.places.lock();
        let mut free = self.free_queues();
        let own = free
            .iter()
            .copied()
            .find(|queue| places.get(queue) == Some(&uuid));
        free.retain(|queue| !places.contains_key(queue));
        own.map_or(free, |queue| vec![queue])
    }

    /// Queues that were set aside for children and that nobody has.
    fn free_queues(&self) -> Vec<usize> {
        let state = self.device.shared.lock();
        let queues = self.device.queues().iter().zip(&state.queues).enumerate();
        queues
            .filter(|(_, (made, queue))| made.mdev && queue.claim.is_none())
            .map(|(index, _)| index)
            .collect()
    }
}

impl MdevParent for DsaParent {
    fn name(&self) -> String {
        self.device.device().address().to_string()
    }

    fn types(&self) -> Vec<MdevType> {
        vec![MdevType {
            id: TYPE_1DWQ.to_owned(),
            name: "1dwq".to_owned(),
            description: Some("one dedicated work queue of a DSA device".to_owned()),
        }]
    }

    fn available_instances(&self, id: &str) -> u32 {
        match id {
            TYPE_1DWQ => self.free_queues().len() as u32,
            _ => 0,
        }
    }

    fn create(&self, id: &str, uuid: Uuid) -> ioasid_vfio::Result<MdevChild> {
        if id != TYPE_1DWQ {
            return Err(ioasid_vfio::Error::NoSuchType);
        }
        for queue in self.queues_for(uuid) {
            match self.create_on(queue, uuid) {
                Ok(child) => {
                    return Ok(MdevChild {
                        model: child.clone(),
                        passthrough: Passthrough::Child(child),
                    });
                }
                // Somebody was faster.
                Err(Error::QueueBusy {
                    owner: QueueType::Mdev,
                    ..
                }) => {}
                Err(_) => return Err(ioasid_vfio::Error::Device("the queue cannot be given away")),
            }
        }
        Err(ioasid_vfio::Error::NoInstance)
    }

    fn remove(&self, uuid: Uuid) {
        let child = self.children.lock().remove(&uuid);
        if let Some(child) = child {
            child.retire();
        }
    }
}

impl Inspect for DsaParent {
    fn inspect(&self) -> Node {
        let mut children = Node::new();
        for (uuid, child) in &*self.children.lock() {
            children.set(uuid.to_string(), child.inspect());
        }
        self.device
            .inspect()
            .with("available_instances", self.available_instances(TYPE_1DWQ))
            .with("children", children)
    }
}
