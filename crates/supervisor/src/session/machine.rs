//! What a program tree sees of the machine: all of it, or what one VM owns.

use std::sync::Arc;

use ioasid_machine::sysfs::{CONTAINER_DEVICE, IOMMU_DEVICE, VFIO_GROUP_MAJOR};
use ioasid_vfio::VfioGroup;

use crate::{
    view::{LiveFile, MachineView, VfioNode},
    wire::{Description, NodeName, describe},
};

/// The machine, as one program tree sees it.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    pub(crate) view: Arc<dyn MachineView>,
    /// The VM that the program is limited to.
    pub(crate) vm: Option<String>,
}

impl Machine {
    fn vm(&self) -> Option<&str> {
        self.vm.as_deref()
    }

    /// What the program finds under `/dev` and `/sys` now.
    pub(crate) fn describe(&self) -> Description {
        describe(&*self.view, self.vm())
    }

    /// Entries of `/sys` whose bytes change without being written.
    pub(crate) fn live_files(&self) -> Vec<LiveFile> {
        self.view.live_files(self.vm())
    }

    /// Entries of `/sys` of which a write does something.
    pub(crate) fn attributes(&self) -> Vec<String> {
        self.view.attributes(self.vm())
    }

    /// The device node with this name.
    pub(crate) fn node(&self, name: &str) -> Option<VfioNode> {
        let mut nodes = self.view.nodes(self.vm()).into_iter();
        nodes.find(|info| info.name == *name)
    }

    /// The nodes of devices that no program has open, each with the device's name on its bus.
    pub(crate) fn free_nodes(&self) -> Vec<String> {
        let nodes = self.view.nodes(self.vm());
        let free = nodes
            .iter()
            .filter(|info| info.device.open_files() == 0 && !info.device.is_bound());
        free.map(|info| {
            format!(
                "/dev/vfio/devices/{} ({})",
                info.name,
                info.device.known_as()
            )
        })
        .collect()
    }

    /// The group with this number, if the program sees a device of it.
    pub(crate) fn group(&self, number: u32) -> Option<Arc<VfioGroup>> {
        let nodes = self.view.nodes(self.vm()).into_iter();
        let mut groups = nodes.map(|info| Arc::clone(info.device.group()));
        groups.find(|group| group.number() == number)
    }

    /// The device number of a node: major and minor.
    pub(crate) fn rdev_of(&self, name: &NodeName) -> Option<(u32, u32)> {
        match name {
            NodeName::Iommu => Some(IOMMU_DEVICE),
            NodeName::Container => Some(CONTAINER_DEVICE),
            NodeName::Group(number) => self.group(*number).map(|_| group_rdev(*number)),
            NodeName::Device(name) => self.node(name).map(|info| (info.major, info.minor)),
        }
    }
}

/// The device number of a group's node.
pub(crate) fn group_rdev(number: u32) -> (u32, u32) {
    (VFIO_GROUP_MAJOR, number)
}
