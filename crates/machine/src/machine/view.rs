//! What programs see of the machine: nodes, `/sys`, and what can be handed to a VM.

use std::sync::Arc;

use super::{
    device::MachineDevice,
    node::{ExportedDevice, MdevInfo, VfioNode},
    running::Machine,
};
use crate::sysfs::{MdevFunction, SysfsBuilder, SysfsEntry};

impl Machine {
    /// The whole devices that a program of `vm` sees; all for `None`.
    pub(super) fn pdevs<'a>(
        &'a self,
        vm: Option<&'a str>,
    ) -> impl Iterator<Item = &'a MachineDevice> {
        self.devices.iter().filter(move |device| {
            self.is_there(device) && (vm.is_none() || device.section.vm.as_deref() == vm)
        })
    }

    /// Whether programs can have the device: it is theirs, and was not taken away.
    pub(super) fn is_there(&self, device: &MachineDevice) -> bool {
        let node = device.vfio.as_ref();
        node.is_some_and(|node| !self.removed.lock().contains(node.name()))
    }

    /// The mediated devices that a program of `vm` sees; all for `None`.
    pub fn mdevs(&self, vm: Option<&str>) -> Vec<MdevInfo> {
        self.mdevs.of(vm)
    }

    /// The device nodes that a program of `vm` sees; all for `None`.
    pub fn nodes(&self, vm: Option<&str>) -> Vec<VfioNode> {
        let pdevs = self
            .pdevs(vm)
            .filter_map(|device| device.vfio.as_ref())
            .map(VfioNode::new);
        let virtual_functions = self.shown_virtual_functions(vm).into_iter();
        pdevs
            .chain(virtual_functions.map(|function| VfioNode::new(&function.node)))
            .chain(self.mdevs(vm).into_iter().map(|mdev| mdev.node))
            .collect()
    }

    /// The whole devices and the mediated ones, by names that do not depend on the order in which they
    /// came.
    pub fn exports(&self) -> Vec<ExportedDevice> {
        let pdevs = self.pdevs(None).filter_map(|device| {
            Some(ExportedDevice {
                name: device.address.to_string(),
                vm: device.section.vm.clone(),
                device: Arc::clone(device.vfio.as_ref()?),
            })
        });
        let mdevs = self.mdevs(None).into_iter().map(|mdev| ExportedDevice {
            name: mdev.uuid.to_string(),
            vm: mdev.vm,
            device: mdev.node.device,
        });
        pdevs.chain(mdevs).collect()
    }

    /// What is added to the `/sys` of a program of `vm`.
    pub fn sysfs(&self, vm: Option<&str>) -> Vec<SysfsEntry> {
        let mut sysfs = SysfsBuilder::new();
        for unit in self.units() {
            sysfs.iommu(unit);
        }
        let mdevs = self.mdevs(vm);
        for entry in self.mdev_types() {
            if vm.is_none() || mdevs.iter().any(|mdev| mdev.parent == entry.parent) {
                sysfs.mdev_type(&entry);
            }
        }
        for mdev in mdevs {
            sysfs.mdev(&MdevFunction {
                uuid: mdev.uuid.to_string(),
                parent: mdev.parent,
                type_name: mdev.type_name,
                group: mdev.node.device.group_number(),
                vfio: mdev.node.sysfs_name(),
            });
        }
        for shown in self.functions(vm) {
            sysfs.pci(&shown.function);
        }
        sysfs.finish()
    }
}
