//! Making and removing devices by UUID.

use std::{collections::BTreeMap, sync::Arc};

use ioasid_core::{
    host::Spawner,
    inspect::{Inspect, Node},
    sync::Mutex,
};
use ioasid_vfio::{
    EmulatedDma, Passthrough,
    error::{DeviceError, MdevError},
    mdev::{MdevChild, MdevParent, MdevType, Uuid},
};

use crate::device::Edu;

/// The type of the children.
pub const TYPE_EDU: &str = "edu-1";
/// Children that one parent can have: each is a thread.
pub const INSTANCES: u32 = 16;

/// A parent without hardware behind it: its children are software.
#[derive(Debug)]
pub struct EduParent {
    name: String,
    spawner: Arc<dyn Spawner>,
    children: Mutex<BTreeMap<Uuid, Arc<Edu>>>,
}

impl EduParent {
    /// A parent that is called `name`; each child's thread is one of `spawner`'s.
    pub fn new(name: impl Into<String>, spawner: Arc<dyn Spawner>) -> Arc<Self> {
        Arc::new(EduParent {
            name: name.into(),
            spawner,
            children: Mutex::default(),
        })
    }

    /// What the child `uuid` says of itself.
    pub fn inspect_child(&self, uuid: Uuid) -> Option<Node> {
        let children = self.children.lock();
        children.get(&uuid).map(|child| child.inspect())
    }

    fn free(&self, children: usize) -> u32 {
        INSTANCES.saturating_sub(u32::try_from(children).unwrap_or(INSTANCES))
    }
}

impl MdevParent for EduParent {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn types(&self) -> Vec<MdevType> {
        vec![MdevType {
            id: TYPE_EDU.to_owned(),
            name: "Educational device".to_owned(),
            description: Some("software that copies; no DMA of its own".to_owned()),
        }]
    }

    fn available_instances(&self, id: &str) -> u32 {
        match id {
            TYPE_EDU => self.free(self.children.lock().len()),
            _ => 0,
        }
    }

    fn create(&self, id: &str, uuid: Uuid) -> Result<MdevChild, MdevError> {
        let (parent, type_id) = (self.name(), id.to_owned());
        if id != TYPE_EDU {
            return Err(MdevError::NoSuchType { parent, type_id });
        }
        let mut children = self.children.lock();
        if self.free(children.len()) == 0 {
            return Err(MdevError::NoInstance { parent, type_id });
        }
        let dma = EmulatedDma::new();
        let made = Edu::emulated(&*self.spawner, dma.clone());
        let device = made.map_err(|error| MdevError::Device(DeviceError::new(error)))?;
        children.insert(uuid, Arc::clone(&device));
        Ok(MdevChild {
            model: device,
            passthrough: Passthrough::Emulated(dma),
        })
    }

    fn remove(&self, uuid: Uuid) {
        self.children.lock().remove(&uuid);
    }
}

impl Inspect for EduParent {
    fn inspect(&self) -> Node {
        let children = self.children.lock();
        let mut node = Node::new();
        for (uuid, child) in &*children {
            node.set(uuid.to_string(), child.inspect());
        }
        Node::new()
            .with("available_instances", self.free(children.len()))
            .with("children", node)
    }
}
