//! What changes while a machine runs, and who sees it: virtual functions, mediated devices that programs
//! make, and the names that attributes of sysfs go by.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ioasid_core::PciAddress;
use ioasid_vfio::{VfioDevice, mdev::Uuid};

use super::{Machine, device::MachineDevice};
use crate::{attribute::AttributeError, sriov::VirtualFunction, sysfs::MdevTypeEntry};

impl Machine {
    /// A number that grows with every change of what programs see: devices that come and go.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn has_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// The node of the device at `address`, if that is offered whole.
    pub(crate) fn whole_device(&self, address: PciAddress) -> Option<Arc<VfioDevice>> {
        let mut devices = self.devices.iter();
        let device = devices.find(|device| device.address == address);
        let node = device.and_then(|device| device.vfio.clone());
        let virtual_functions = self.virtual_functions.all();
        let mut virtual_functions = virtual_functions.into_iter();
        node.or_else(|| Some(virtual_functions.find(|vf| vf.address == address)?.node))
    }

    /// The virtual functions that a program of `vm` sees: those of the physical ones that it sees.
    pub(super) fn shown_virtual_functions(&self, vm: Option<&str>) -> Vec<VirtualFunction> {
        let mut all = self.virtual_functions.all();
        all.retain(|function| {
            let mut pdevs = self.pdevs(vm);
            pdevs.any(|device| device.address == function.physical)
        });
        all
    }

    /// Parents with the types that a program of `vm` sees.
    pub(crate) fn shown_mdev_types(&self, vm: Option<&str>) -> Vec<(String, String)> {
        let mdevs = self.mdevs(vm);
        let is_shown = |entry: &MdevTypeEntry| {
            vm.is_none() || mdevs.iter().any(|mdev| mdev.parent == entry.parent)
        };
        let types = self.mdev_types().into_iter().filter(is_shown);
        types.map(|entry| (entry.parent, entry.type_name)).collect()
    }

    /// All types of all parents.
    pub(super) fn mdev_types(&self) -> Vec<MdevTypeEntry> {
        let types = self.devices.iter().flat_map(MachineDevice::mdev_types);
        types.chain(self.emulated.types()).collect()
    }

    /// Gives the physical function at `address` so many virtual ones.
    pub(crate) fn set_virtual_functions(
        &self,
        address: PciAddress,
        count: u16,
    ) -> Result<(), AttributeError> {
        let physical = self.whole_device(address);
        let physical = physical.ok_or(AttributeError::NoDevice)?;
        let (iommu, vfio) = (&self.iommu, &self.vfio);
        self.virtual_functions
            .set(iommu, vfio, &physical, address, count)?;
        let left = self.virtual_functions.all();
        let is_there = |address: PciAddress| {
            self.devices.iter().any(|device| device.address == address)
                || left.iter().any(|function| function.address == address)
        };
        // A new one shows nothing of what was written to the old one.
        self.kept.lock().retain(|(of, _), _| is_there(*of));
        Ok(())
    }

    /// Keeps `value` for an attribute that shows what was written to it; without one, the attribute is as
    /// at first.
    pub(crate) fn keep(&self, address: PciAddress, name: &'static str, value: Option<String>) {
        let mut kept = self.kept.lock();
        match value {
            None => kept.remove(&(address, name)),
            Some(value) => kept.insert((address, name), value),
        };
    }

    /// What is kept of a function, by the names of attributes.
    pub(super) fn kept_of(&self, address: PciAddress) -> Vec<(&'static str, String)> {
        let kept = self.kept.lock();
        let own = kept.iter().filter(|((of, _), _)| *of == address);
        own.map(|((_, name), value)| (*name, value.clone()))
            .collect()
    }

    pub(crate) fn create_mdev_of(
        &self,
        parent: &str,
        type_name: &str,
        text: &[u8],
        vm: Option<&str>,
    ) -> Result<(), ioasid_vfio::Error> {
        let mdev = self.mdevs.create(parent, type_name, text)?;
        if let Some(vm) = vm {
            let mut owners = self.vm_of_mdev.lock();
            owners.insert(mdev.uuid(), vm.to_owned());
        }
        Ok(())
    }

    pub(crate) fn remove_mdev_of(
        &self,
        uuid: Uuid,
        patience: Duration,
    ) -> Result<(), ioasid_vfio::Error> {
        self.mdevs.remove(uuid, patience)?;
        self.vm_of_mdev.lock().remove(&uuid);
        Ok(())
    }
}
