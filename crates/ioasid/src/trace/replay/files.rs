//! The open files of a replay, by their numbers in the trace.

use std::{collections::HashMap, sync::Arc};

use ioasid_iommufd::{Context, EventFile, Mapped};
use ioasid_machine::Machine;
use ioasid_uapi::CallError;
use ioasid_vfio::{Container, DeviceFile, GroupFile};

/// What an open file is.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Iommufd(Arc<Context>),
    Container(Arc<Container>),
    Group(Arc<GroupFile>),
    Device(Arc<DeviceFile>),
    Events(Arc<dyn EventFile>),
    /// A file of the session alone: nothing of the machine is behind it.
    Other,
}

impl Object {
    /// Opens `node`, a path below `/dev`.
    ///
    /// # Errors
    /// What the program would see; `None` if the machine has no such node.
    pub(crate) fn open(
        machine: &Machine,
        node: &str,
        maps_regions: bool,
    ) -> Option<Result<Self, CallError>> {
        let nodes = || machine.nodes(None).into_iter();
        if node == "iommu" {
            return Some(Ok(Object::Iommufd(machine.new_context())));
        }
        let below = node.strip_prefix("vfio/")?;
        if below == "vfio" {
            return Some(Ok(Object::Container(Container::new(machine.new_context()))));
        }
        if let Some(name) = below.strip_prefix("devices/") {
            let info = nodes().find(|info| info.name == name)?;
            if maps_regions {
                info.device.set_mappable(true);
            }
            return Some(info.device.open().map(Object::Device).map_err(Into::into));
        }
        let number: u32 = below.parse().ok()?;
        let mut groups = nodes().map(|info| Arc::clone(info.device.group()));
        let group = groups.find(|group| group.number() == number)?;
        Some(group.open().map_err(Into::into).map(|file| {
            if maps_regions {
                let devices = group.devices();
                devices.iter().for_each(|device| device.set_mappable(true));
            }
            Object::Group(file)
        }))
    }

    /// The program has let go of it.
    pub(crate) fn close(&self) {
        match self {
            Object::Iommufd(context) => context.close(),
            Object::Group(file) => file.close(),
            Object::Device(file) => file.close(),
            Object::Events(file) => file.closed(),
            Object::Container(_) | Object::Other => {}
        }
    }
}

/// The open files of one program.
#[derive(Debug, Default)]
pub(crate) struct Files {
    open: HashMap<u64, Object>,
    /// What is mapped of `/dev/iommu`.
    mapped: Vec<Mapped>,
}

impl Files {
    pub(crate) fn get(&self, file: u64) -> Option<Object> {
        self.open.get(&file).cloned()
    }

    pub(crate) fn insert(&mut self, file: u64, object: Object) {
        self.open.insert(file, object);
    }

    /// Takes a file out that is closed.
    pub(crate) fn remove(&mut self, file: u64) -> Option<Object> {
        self.open.remove(&file)
    }

    /// Keeps a mapping of `/dev/iommu`.
    pub(crate) fn keep_mapped(&mut self, mapped: Mapped) {
        self.mapped.push(mapped);
    }

    /// Nothing is mapped any more.
    pub(crate) fn forget_mapped(&mut self) {
        self.mapped.clear();
    }

    /// The open device called `name`.
    pub(crate) fn device(&self, name: &str) -> Option<&Arc<DeviceFile>> {
        self.open.values().find_map(|object| match object {
            Object::Device(file) if file.device().known_as() == name => Some(file),
            _ => None,
        })
    }
}
