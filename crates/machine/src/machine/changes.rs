//! What changes while a machine runs, and who sees it: virtual functions, mediated devices that programs
//! make, and the names that attributes of sysfs go by.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use ioasid_core::PciAddress;
use ioasid_vfio::{VfioDevice, mdev::Uuid, pci::Function};

use super::{
    Machine, VfioNode,
    device::{MachineDevice, bar_sizes},
};
use crate::{
    attribute::AttributeError,
    sriov::VirtualFunction,
    sysfs::{MdevTypeEntry, PciFunction, Sriov, SysfsBuilder},
};

impl Machine {
    /// A number that grows with every change of what programs see: devices that come and go.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn has_changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// The devices that a program of `vm` sees whole, virtual functions too, and whether they are
    /// physical functions.
    pub(crate) fn whole_devices(&self, vm: Option<&str>) -> Vec<(PciAddress, bool)> {
        let pdevs = self.pdevs(vm);
        let pdevs = pdevs.map(|device| (device.address, device.section.vfs > 0));
        let virtual_functions = self.shown_virtual_functions(vm).into_iter();
        pdevs
            .chain(virtual_functions.map(|function| (function.address, false)))
            .collect()
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
            .set(iommu, vfio, &physical, address, count)
    }

    pub(crate) fn set_driver_override(&self, address: PciAddress, driver: &str) {
        let mut overrides = self.driver_overrides.lock();
        match driver {
            "" => overrides.remove(&address),
            driver => overrides.insert(address, driver.to_owned()),
        };
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

    /// What a device shows beyond a plain function.
    pub(super) fn show_more(&self, sysfs: &mut SysfsBuilder, device: &MachineDevice) {
        let address = device.address;
        if let Some(driver) = self.driver_overrides.lock().get(&address) {
            sysfs.driver_override(address, driver);
        }
        let function = device.vfio.as_ref().map(|node| node.model().function());
        if let Some(layout) = function.and_then(Function::sriov) {
            let all = self.virtual_functions.all().into_iter();
            let own = all.filter(|function| function.physical == address);
            sysfs.physical_function(
                address,
                &Sriov {
                    total: layout.total,
                    offset: layout.offset,
                    stride: layout.stride,
                    device: layout.device,
                    virtual_functions: own.map(|function| function.address).collect(),
                },
            );
        }
    }
}

/// A virtual function as sysfs shows it: its ids are those that it works as.
pub(super) fn virtual_function(function: &VirtualFunction) -> PciFunction {
    let model = function.node.model().function();
    let mut config = model.host_config();
    let (vendor, device) = model.ids();
    if let Some((ids, _)) = config.split_first_chunk_mut::<4>() {
        *ids = (u32::from(device) << 16 | u32::from(vendor)).to_le_bytes();
    }
    PciFunction {
        address: function.address,
        config,
        bars: bar_sizes(model),
        driver: "vfio-pci",
        group: function.node.group_number(),
        vfio: Some(VfioNode::new(&function.node).sysfs_name()),
    }
}
