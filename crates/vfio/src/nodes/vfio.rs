//! The VFIO devices of one machine.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ioasid_core::{
    inspect::{Inspect, Node},
    sync::Mutex,
};
use ioasid_iommu::Iommu;

use super::{device::VfioDevice, group::VfioGroup};
use crate::{
    base::error::BindError,
    model::{DeviceModel, Passthrough},
};

/// The VFIO devices of one machine: gives them their numbers.
#[derive(Debug)]
pub struct Vfio {
    iommu: Arc<Iommu>,
    devices: Mutex<BTreeMap<u32, Arc<VfioDevice>>>,
}

impl Vfio {
    /// No devices, for the machine of `iommu`.
    pub fn new(iommu: &Arc<Iommu>) -> Arc<Self> {
        Arc::new(Vfio {
            iommu: Arc::clone(iommu),
            devices: Mutex::default(),
        })
    }

    /// Offers a device to programs under the lowest free number. A child gets an IOMMU group of its
    /// own, so that its group number is not its parent's.
    /// The name of a whole device on its bus is its PCI address; a child has none.
    pub fn add(&self, model: Arc<dyn DeviceModel>, passthrough: Passthrough) -> Arc<VfioDevice> {
        let name = match &passthrough {
            Passthrough::Whole(device) => device.address().to_string(),
            Passthrough::Child(_) | Passthrough::Emulated(_) => String::new(),
        };
        self.add_named(name, model, passthrough)
    }

    /// As [`Vfio::add`], of a device with the name `name` on its bus.
    pub fn add_named(
        &self,
        name: String,
        model: Arc<dyn DeviceModel>,
        passthrough: Passthrough,
    ) -> Arc<VfioDevice> {
        let group = match &passthrough {
            Passthrough::Whole(device) => Arc::clone(device.group()),
            Passthrough::Child(_) | Passthrough::Emulated(_) => self.iommu.add_group(),
        };
        let mut devices = self.devices.lock();
        let mut groups = devices.values().map(|device| device.group());
        let known = groups.find(|known| known.number() == group.id()).cloned();
        let group = known.unwrap_or_else(|| VfioGroup::new(group));
        let index = (0..).zip(devices.keys()).find(|(free, used)| free != *used);
        let index = index.map_or(devices.len() as u32, |(free, _)| free);
        let watch = self.iommu.watch();
        let device = VfioDevice::new(index, name, Arc::clone(&group), model, passthrough, watch);
        devices.insert(index, Arc::clone(&device));
        drop(devices);
        group.add(&device);
        device
    }

    /// The devices, by number.
    pub fn devices(&self) -> Vec<Arc<VfioDevice>> {
        self.devices.lock().values().cloned().collect()
    }

    /// The groups, by number.
    pub fn groups(&self) -> Vec<Arc<VfioGroup>> {
        let devices = self.devices.lock();
        let groups = devices.values().map(|device| device.group());
        let groups: BTreeMap<_, _> = groups.map(|group| (group.number(), group)).collect();
        groups.into_values().cloned().collect()
    }

    /// The group with this number.
    pub fn group(&self, number: u32) -> Option<Arc<VfioGroup>> {
        let mut groups = self.groups().into_iter();
        groups.find(|group| group.number() == number)
    }

    /// The device called `name` (`vfio7`).
    pub fn find(&self, name: &str) -> Option<Arc<VfioDevice>> {
        let devices = self.devices.lock();
        devices
            .values()
            .find(|device| device.name() == name)
            .cloned()
    }

    /// Takes `device` away from programs: asks its user for it and waits until every file of it is
    /// closed. New opens fail meanwhile.
    ///
    /// # Errors
    /// [`BindError::StillOpen`] if a file is open after `patience`: the device stays, and can be opened
    /// again. [`BindError::Gone`] if it is not one of these devices, or is being removed already.
    pub fn remove(&self, device: &Arc<VfioDevice>, patience: Duration) -> Result<(), BindError> {
        device.withdraw(patience)?;
        let mut devices = self.devices.lock();
        match devices.get(&device.index()) {
            Some(found) if Arc::ptr_eq(found, device) => {
                devices.remove(&device.index());
                drop(devices);
                device.group().remove(device);
                Ok(())
            }
            _ => Err(BindError::Gone),
        }
    }
}

impl Inspect for Vfio {
    fn inspect(&self) -> Node {
        let mut node = Node::new();
        for device in self.devices() {
            node.set(device.name(), device.inspect());
        }
        node
    }
}
