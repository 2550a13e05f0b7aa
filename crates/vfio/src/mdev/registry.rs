//! Parents, their types, and the children that exist.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use ioasid_core::{
    inspect::{Inspect, Node},
    sync::{Condvar, Mutex},
};

use crate::{
    base::{error::MdevError, uuid::Uuid},
    model::{DeviceModel, Passthrough},
    nodes::{device::VfioDevice, vfio::Vfio},
};

/// A kind of child that a parent offers: one directory of `mdev_supported_types`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MdevType {
    /// The name of the directory, `<driver>-<type>`.
    pub id: String,
    /// The file `name`: what it is, in a word or two.
    pub name: String,
    /// The file `description`, if there is one.
    pub description: Option<String>,
}

/// A child as its parent made it.
#[derive(Clone, Debug)]
pub struct MdevChild {
    /// What programs see of it.
    pub model: Arc<dyn DeviceModel>,
    /// How it reaches memory: by a PASID of its parent's, or as software that copies.
    pub passthrough: Passthrough,
}

/// A device whose queues can be devices of their own.
pub trait MdevParent: Send + Sync + fmt::Debug {
    /// Its name in sysfs, for a PCI device the address. Unique among parents.
    fn name(&self) -> String;

    /// The types that it offers.
    fn types(&self) -> Vec<MdevType>;

    /// How many more children of the type `id` can be created; 0 for a type that it does not offer.
    fn available_instances(&self, id: &str) -> u32;

    /// Makes a child. The registry has checked the UUID and the type.
    ///
    /// # Errors
    /// [`MdevError::NoInstance`] if none is left after all, or what the device says.
    fn create(&self, id: &str, uuid: Uuid) -> Result<MdevChild, MdevError>;

    /// The child is gone: nobody has it open and nobody can open it. Its instance is free again.
    fn remove(&self, uuid: Uuid);
}

/// A mediated device that exists.
#[derive(Debug)]
pub struct Mdev {
    uuid: Uuid,
    type_id: String,
    parent: Arc<dyn MdevParent>,
    device: Arc<VfioDevice>,
}

impl Mdev {
    /// Its name under `/sys/bus/mdev/devices`.
    pub fn uuid(&self) -> Uuid {
        self.uuid
    }

    /// The type it was made of.
    pub fn type_id(&self) -> &str {
        &self.type_id
    }

    /// Its parent.
    pub fn parent(&self) -> &Arc<dyn MdevParent> {
        &self.parent
    }

    /// The device that programs open.
    pub fn device(&self) -> &Arc<VfioDevice> {
        &self.device
    }
}

/// All mediated devices of one machine.
#[derive(Debug)]
pub struct MdevRegistry {
    vfio: Arc<Vfio>,
    state: Mutex<State>,
    /// A child was made, or was not.
    made: Condvar,
}

#[derive(Debug, Default)]
struct State {
    parents: BTreeMap<String, Parent>,
    devices: BTreeMap<Uuid, Slot>,
}

/// A UUID that is in use.
#[derive(Debug)]
enum Slot {
    /// The parent of this name is making the child.
    Making(String),
    /// The child exists.
    Made(Arc<Mdev>),
}

impl State {
    fn children(&self) -> impl Iterator<Item = &Arc<Mdev>> {
        self.devices.values().filter_map(|slot| match slot {
            Slot::Made(mdev) => Some(mdev),
            Slot::Making(_) => None,
        })
    }

    fn is_making(&self, parent: &str) -> bool {
        let mut slots = self.devices.values();
        slots.any(|slot| matches!(slot, Slot::Making(name) if name == parent))
    }
}

#[derive(Debug)]
struct Parent {
    parent: Arc<dyn MdevParent>,
    /// No child can be made any more.
    leaving: bool,
}

impl MdevRegistry {
    /// No parents. Children appear among the devices of `vfio`.
    pub fn new(vfio: &Arc<Vfio>) -> Arc<Self> {
        Arc::new(MdevRegistry {
            vfio: Arc::clone(vfio),
            state: Mutex::default(),
            made: Condvar::new(),
        })
    }

    /// Lets children of `parent` be made. Its name must not be another parent's.
    pub fn add_parent(&self, parent: Arc<dyn MdevParent>) {
        let entry = Parent {
            parent: Arc::clone(&parent),
            leaving: false,
        };
        self.state.lock().parents.insert(parent.name(), entry);
    }

    /// The parents, by name.
    pub fn parents(&self) -> Vec<Arc<dyn MdevParent>> {
        let state = self.state.lock();
        let parents = state.parents.values();
        parents.map(|entry| Arc::clone(&entry.parent)).collect()
    }

    /// Takes a parent away: its children go first, each is asked for and waited for. No new ones
    /// can be made meanwhile.
    ///
    /// # Errors
    /// [`MdevError::ParentGone`] if there is no such parent, or it is leaving already;
    /// [`StillOpen`](crate::error::BindError::StillOpen) if a child is in use after `patience`: the
    /// parent stays, with the children that are left.
    pub fn remove_parent(&self, name: &str, patience: Duration) -> Result<(), MdevError> {
        let end = Instant::now() + patience;
        let mut state = self.state.lock();
        match state.parents.get_mut(name) {
            Some(parent) if !parent.leaving => parent.leaving = true,
            _ => return Err(parent_gone(name)),
        }
        while state.is_making(name) {
            state = self.made.wait(state);
        }
        let children: Vec<_> = state.children().cloned().collect();
        drop(state);
        let gone = children
            .into_iter()
            .filter(|mdev| mdev.parent.name() == name)
            .map(|mdev| self.remove(mdev.uuid, end.saturating_duration_since(Instant::now())))
            .filter(|result| !matches!(result, Err(MdevError::NotFound { .. })))
            .fold(Ok(()), Result::and);
        let mut state = self.state.lock();
        if gone.is_ok() {
            state.parents.remove(name);
        } else if let Some(parent) = state.parents.get_mut(name) {
            parent.leaving = false;
        }
        gone
    }

    /// Creates a child of the parent called `parent`, as by writing `text` to the `create` file of
    /// the type `type_id`.
    ///
    /// # Errors
    /// In this order: [`MdevError::NoSuchType`] (there is no such file), [`MdevError::Uuid`],
    /// [`MdevError::Exists`], [`MdevError::NoInstance`], [`MdevError::ParentGone`] while the parent is
    /// leaving, or what the parent says.
    pub fn create(&self, parent: &str, type_id: &str, text: &[u8]) -> Result<Arc<Mdev>, MdevError> {
        let no_such_type = || MdevError::NoSuchType {
            parent: parent.to_owned(),
            type_id: type_id.to_owned(),
        };
        let parent = {
            let state = self.state.lock();
            let entry = state.parents.get(parent).ok_or_else(no_such_type)?;
            Arc::clone(&entry.parent)
        };
        if !parent.types().iter().any(|offered| offered.id == type_id) {
            return Err(no_such_type());
        }
        let uuid = Uuid::from_create(text)?;
        self.reserve(&parent, type_id, uuid)?;
        let made = parent.create(type_id, uuid).map(|child| {
            Arc::new(Mdev {
                uuid,
                type_id: type_id.to_owned(),
                device: self
                    .vfio
                    .add_named(uuid.to_string(), child.model, child.passthrough),
                parent,
            })
        });
        let mut state = self.state.lock();
        match &made {
            Ok(mdev) => state.devices.insert(uuid, Slot::Made(Arc::clone(mdev))),
            Err(_) => state.devices.remove(&uuid),
        };
        self.made.notify_all();
        made
    }

    /// Reserves `uuid` before the parent is asked.
    fn reserve(
        &self,
        parent: &Arc<dyn MdevParent>,
        type_id: &str,
        uuid: Uuid,
    ) -> Result<(), MdevError> {
        let mut state = self.state.lock();
        if state.devices.contains_key(&uuid) {
            return Err(MdevError::Exists { uuid });
        }
        if parent.available_instances(type_id) == 0 {
            return Err(MdevError::NoInstance {
                parent: parent.name(),
                type_id: type_id.to_owned(),
            });
        }
        let name = parent.name();
        match state.parents.get(&name) {
            Some(entry) if !entry.leaving => {}
            _ => return Err(parent_gone(&name)),
        }
        state.devices.insert(uuid, Slot::Making(name));
        Ok(())
    }

    /// Removes a child: asks its user for it and waits until it is closed.
    ///
    /// # Errors
    /// [`MdevError::NotFound`]; [`StillOpen`](crate::error::BindError::StillOpen) if it is open after
    /// `patience`: the child stays; [`Gone`](crate::error::BindError::Gone) if it is being removed by
    /// another call.
    pub fn remove(&self, uuid: Uuid, patience: Duration) -> Result<(), MdevError> {
        let mdev = self.find(uuid).ok_or(MdevError::NotFound { uuid })?;
        self.vfio.remove(&mdev.device, patience)?;
        mdev.parent.remove(uuid);
        self.state.lock().devices.remove(&uuid);
        Ok(())
    }

    /// The child `uuid`.
    pub fn find(&self, uuid: Uuid) -> Option<Arc<Mdev>> {
        match self.state.lock().devices.get(&uuid) {
            Some(Slot::Made(mdev)) => Some(Arc::clone(mdev)),
            Some(Slot::Making(_)) | None => None,
        }
    }

    /// The children, by UUID.
    pub fn list(&self) -> Vec<Arc<Mdev>> {
        self.state.lock().children().cloned().collect()
    }
}

fn parent_gone(name: &str) -> MdevError {
    let parent = name.to_owned();
    MdevError::ParentGone { parent }
}

impl Inspect for MdevRegistry {
    fn inspect(&self) -> Node {
        let mut node = Node::new();
        for mdev in self.list() {
            let child = Node::new()
                .with("type", mdev.type_id.as_str())
                .with("parent", mdev.parent.name())
                .with("device", mdev.device.name());
            node.set(mdev.uuid.to_string(), child);
        }
        node
    }
}
