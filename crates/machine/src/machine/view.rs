//! What programs see of the machine: nodes, `/sys`, and what can be handed to a VM.

use std::sync::Arc;

use ioasid_core::PciAddress;
use ioasid_vfio::{
    VfioDevice,
    mdev::{Mdev, Uuid},
};

use super::{Machine, device::MachineDevice};
use crate::sysfs::{MdevFunction, SysfsBuilder, SysfsEntry, VfioName};

/// Character device major number of the VFIO device nodes: in Linux a dynamic one, here the first
/// that Linux would give (`CHRDEV_MAJOR_DYN_EXT_START`, include/linux/fs.h).
const VFIO_MAJOR: u32 = 511;

/// A device node below `/dev/vfio/devices`.
#[derive(Clone, Debug)]
pub struct VfioNode {
    /// File name, `vfio0`.
    pub name: String,
    /// Character device number.
    pub major: u32,
    /// Character device number.
    pub minor: u32,
    /// What an open opens.
    pub device: Arc<VfioDevice>,
}

impl VfioNode {
    pub(super) fn new(device: &Arc<VfioDevice>) -> Self {
        let (name, minor) = (device.name().to_owned(), device.index());
        VfioNode {
            name,
            major: VFIO_MAJOR,
            minor,
            device: Arc::clone(device),
        }
    }

    pub(super) fn sysfs_name(&self) -> VfioName {
        VfioName {
            name: self.name.clone(),
            major: self.major,
            minor: self.minor,
        }
    }
}

/// A mediated device, for lists.
#[derive(Clone, Debug)]
pub struct MdevInfo {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its parent's name.
    pub parent: String,
    /// Its type.
    pub type_name: String,
    /// The VM that owns it.
    pub vm: Option<String>,
    /// Its node.
    pub node: VfioNode,
}

/// A device that can be handed to a VM as a whole.
#[derive(Clone, Debug)]
pub struct ExportedDevice {
    /// What it is called: its PCI address, or its UUID.
    pub name: String,
    /// The VM that owns it.
    pub vm: Option<String>,
    /// What an open opens.
    pub device: Arc<VfioDevice>,
}

impl Machine {
    /// The whole devices that a program of `vm` sees; all for `None`.
    pub(super) fn pdevs<'a>(
        &'a self,
        vm: Option<&'a str>,
    ) -> impl Iterator<Item = &'a MachineDevice> {
        self.devices.iter().filter(move |device| {
            device.vfio.is_some() && (vm.is_none() || device.section.vm.as_deref() == vm)
        })
    }

    /// The mediated devices that a program of `vm` sees; all for `None`.
    pub fn mdevs(&self, vm: Option<&str>) -> Vec<MdevInfo> {
        let owners = self.vm_of_mdev.lock().clone();
        let info = |mdev: Arc<Mdev>| MdevInfo {
            uuid: mdev.uuid(),
            parent: mdev.parent().name(),
            type_name: mdev.type_id().to_owned(),
            vm: owners.get(&mdev.uuid()).cloned(),
            node: VfioNode::new(mdev.device()),
        };
        let mdevs = self.mdevs.list().into_iter().map(info);
        mdevs
            .filter(|mdev| vm.is_none() || mdev.vm.as_deref() == vm)
            .collect()
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
        for function in self.functions(vm) {
            sysfs.pci(&function);
        }
        sysfs.finish()
    }

    /// The PCI address that the mediated device `uuid` has for programs besides its UUID.
    pub(super) fn presented(&self, uuid: Uuid) -> Option<PciAddress> {
        let mut queues = self.devices.iter().flat_map(|device| &device.section.queue);
        match queues.find(|queue| queue.uuid == Some(uuid)) {
            Some(queue) => queue.present_as,
            None => self.emulated.presented(uuid),
        }
    }
}
