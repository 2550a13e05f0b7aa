//! The tree that `ioasid inspect` shows.

use std::sync::Weak;

use ioasid_core::inspect::{Inspect, Node, Value};

use super::{device::MachineDevice, node::MdevInfo, running::Machine};

impl Machine {
    fn inspect_mdev(&self, mdev: &MdevInfo) -> Node {
        let parents = self
            .devices
            .iter()
            .filter_map(|device| device.parent.as_ref());
        let mut children = parents.filter_map(|parent| parent.inspect_child(mdev.uuid));
        let queue = children.next();
        let device = match queue {
            Some(_) => None,
            None => self.emulated.inspect_child(mdev.uuid),
        };
        Node::new()
            .with("uuid", mdev.uuid.to_string())
            .with("type", mdev.type_name.as_str())
            .with("parent", mdev.parent.as_str())
            .with("vm", mdev.vm.as_deref())
            .with("node", mdev.node.name.as_str())
            .with("queue", queue)
            .with("device", device)
            .with("vfio", mdev.node.device.inspect())
    }

    /// The parents of mediated devices with their types and free instances.
    fn inspect_mdev_types(&self) -> Vec<Node> {
        let types = self.mdev_types().into_iter().map(|entry| {
            Node::new()
                .with("parent", entry.parent)
                .with("type", entry.type_name)
                .with("description", entry.description)
                .with("available_instances", entry.available_instances)
        });
        types.collect()
    }

    /// The parents with their types, free instances and children.
    pub fn inspect_mdevs(&self) -> Node {
        let devices: Vec<Node> = self
            .mdevs(None)
            .iter()
            .map(|mdev| self.inspect_mdev(mdev))
            .collect();
        let types = self.inspect_mdev_types();
        Node::new().with("types", types).with("devices", devices)
    }
}

impl Inspect for Machine {
    fn inspect(&self) -> Node {
        let devices: Vec<Node> = self.devices.iter().map(MachineDevice::inspect).collect();
        let mdevs: Vec<Node> = self
            .mdevs(None)
            .iter()
            .map(|mdev| self.inspect_mdev(mdev))
            .collect();
        let contexts: Vec<_> = self
            .contexts
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        let contexts: Vec<Value> = contexts
            .iter()
            .map(|context| context.inspect().into())
            .collect();
        Node::new()
            .with("name", self.name.as_str())
            .with("iommu", self.iommu.inspect())
            .with("devices", devices)
            .with("mdevs", mdevs)
            .with("mdev_types", self.inspect_mdev_types())
            .with("iommufds", Value::List(contexts))
    }
}
