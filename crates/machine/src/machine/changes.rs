//! What changes while a machine runs, and which programs see it: virtual functions, types of mediated
//! devices, and values that attributes of sysfs keep.

use std::sync::atomic::Ordering;

use ioasid_core::PciAddress;
use ioasid_vfio::AttributeError;

use super::{device::MachineDevice, running::Machine, sriov::VirtualFunction};
use crate::sysfs::MdevTypeEntry;

impl Machine {
    /// A number that grows with every change of what programs see: devices that come and go.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn has_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
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
    pub(super) fn shown_mdev_types(&self, vm: Option<&str>) -> Vec<(String, String)> {
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

    /// Gives the physical function at `address` `count` virtual ones.
    pub(super) fn set_virtual_functions(
        &self,
        address: PciAddress,
        count: u16,
    ) -> Result<(), AttributeError> {
        let mut devices = self.devices.iter();
        let physical = devices.find(|device| device.address == address);
        let physical = physical.ok_or(AttributeError::NoDevice)?;
        self.virtual_functions
            .set(&self.iommu, &self.vfio, physical, count)?;
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
    pub(super) fn keep(&self, address: PciAddress, name: &'static str, value: Option<String>) {
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
}
