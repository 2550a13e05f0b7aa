//! One device of the machine, as its section of the machine file says.

use std::sync::Arc;

use ioasid_core::{
    PciAddress,
    host::Spawner,
    inspect::{Inspect as _, Node},
};
use ioasid_iommu::Iommu;
use ioasid_vfio::{Passthrough, Vfio, VfioDevice};

use super::{
    error::{BuiltError, MachineError},
    mdevs::types_of,
};
use crate::{
    file::DeviceSection,
    model::{Driver, HostDriver, ModelError, Parent, Site, Whole},
    sysfs::{MdevTypeEntry, bar_base},
};

/// One device of the machine.
#[derive(Debug)]
pub(super) struct MachineDevice {
    pub(super) section: DeviceSection,
    pub(super) address: PciAddress,
    pub(super) whole: Arc<dyn Whole>,
    pub(super) group: u32,
    /// The parent of its mediated devices, if it can have some.
    pub(super) parent: Option<Arc<dyn Parent>>,
    /// The host's own driver, if that has it.
    pub(super) host: Option<Arc<dyn HostDriver>>,
    /// The node, for a device that is offered whole.
    pub(super) vfio: Option<Arc<VfioDevice>>,
}

impl MachineDevice {
    pub(super) fn build(
        section: &DeviceSection,
        iommu: &Arc<Iommu>,
        vfio: &Arc<Vfio>,
        spawner: &dyn Spawner,
    ) -> Result<Self, MachineError> {
        let Some(address) = section.address else {
            unreachable!("a checked machine file has an address for every device")
        };
        let site = Site {
            iommu,
            spawner,
            address: Some(address),
            driver: section.driver,
        };
        Self::build_at(section, address, &site, vfio)
            .map_err(|source| MachineError::Device { address, source })
    }

    fn build_at(
        section: &DeviceSection,
        address: PciAddress,
        site: &Site<'_>,
        vfio: &Arc<Vfio>,
    ) -> Result<Self, ModelError> {
        let built = section.own.build(site)?;
        let (whole, device) = built.function.ok_or(BuiltError::NoFunction)?;
        whole.function().assign_bars(bar_base(address));
        let group = device.group().id();
        let node = match (section.driver, &built.host) {
            (Driver::Host, None) => return Err(BuiltError::NoHostDriver.into()),
            (Driver::Host, Some(_)) => None,
            (Driver::Vfio, _) => Some(vfio.add(whole.clone(), Passthrough::Whole(device))),
        };
        Ok(MachineDevice {
            section: section.clone(),
            address,
            whole,
            group,
            parent: built.parent,
            host: built.host,
            vfio: node,
        })
    }

    pub(super) fn driver_name(&self) -> &'static str {
        match (self.section.driver, self.section.host_driver) {
            (Driver::Host, Some(name)) => name,
            (Driver::Host, None) | (Driver::Vfio, _) => "vfio-pci",
        }
    }

    pub(super) fn mdev_types(&self) -> Vec<MdevTypeEntry> {
        let parent = self.parent.as_deref();
        parent.map_or_else(Vec::new, types_of)
    }

    pub(super) fn inspect(&self) -> Node {
        let model = self.section.model;
        let vfio = self.vfio.as_ref();
        Node::new()
            .with("address", self.address.to_string())
            .with("model", model)
            .with("driver", self.driver_name())
            .with("vm", self.section.vm.as_deref())
            .with(model, self.whole.inspect())
            .with(
                "host_queues",
                self.host.as_ref().map(|h| h.inspect_queues()),
            )
            .with("node", vfio.map(|device| device.name()))
            .with("vfio", vfio.map(|device| device.inspect()))
    }
}
