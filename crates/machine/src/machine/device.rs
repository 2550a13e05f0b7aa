//! One device of the machine, as its section of the machine file says.

use std::{fmt, sync::Arc};

use ioasid_core::{
    PciAddress,
    host::Spawner,
    inspect::{Inspect, Node},
};
use ioasid_dsa::{DsaConfig, DsaDevice, MAX_TRANSFER_SHIFT, QueueConfig, Role};
use ioasid_iommu::{DeviceConfig, Iommu};
use ioasid_vfio::{Passthrough, Vfio, VfioDevice, mdev::MdevRegistry};

use super::MachineError;
use crate::{
    file::{DeviceSection, Driver, Model, Owner},
    model::{HostSide, Whole},
    sysfs::{MdevTypeEntry, bar_base},
};

/// PASIDs that one device can use, as a power of two.
const PASID_BITS: u8 = 20;

/// One device of the machine.
pub(super) struct MachineDevice {
    pub(super) section: DeviceSection,
    pub(super) address: PciAddress,
    pub(super) whole: Whole,
    pub(super) group: u32,
    /// What the host has of a device that it drives.
    pub(super) host: Option<HostSide>,
    /// The node, for a device that is offered whole.
    pub(super) vfio: Option<Arc<VfioDevice>>,
}

impl MachineDevice {
    pub(super) fn build(
        section: &DeviceSection,
        iommu: &Arc<Iommu>,
        vfio: &Arc<Vfio>,
        mdevs: &MdevRegistry,
        spawner: &dyn Spawner,
    ) -> Result<Self, MachineError> {
        let Some(address) = section.address else {
            unreachable!("a checked machine file has an address for every device")
        };
        let failed = |cause: &dyn fmt::Display| MachineError::Device {
            address,
            cause: cause.to_string(),
        };
        let config = DeviceConfig {
            pasid_bits: PASID_BITS,
            // As a Sapphire Rapids shows: `PASIDCap: Exec- Priv+`.
            pasid_privileged: section.model == Model::Dsa,
            format: iommu.config().format,
            dirty: true,
            // An I/OAT descriptor has no way to wait for a page.
            page_requests: section.model == Model::Dsa,
            ..DeviceConfig::new(address)
        };
        let device = iommu.add_device(config).map_err(|error| failed(&error))?;
        let group = device.group().id();
        let whole = match section.model {
            Model::Dsa => {
                let queues = section.queue.iter().map(|queue| QueueConfig {
                    size: u16::try_from(queue.size).unwrap_or(u16::MAX),
                    mdev: queue.owner == Owner::Mdev,
                });
                let config = DsaConfig {
                    queues: queues.collect(),
                    engines: section.engines,
                    device_tlb: true,
                    max_transfer_shift: section
                        .max_transfer
                        .map_or(MAX_TRANSFER_SHIFT, |bytes| bytes.ilog2() as u8),
                    role: match section.vfs {
                        0 => Role::Alone,
                        total => Role::Physical { total },
                    },
                };
                DsaDevice::new(iommu, device.clone(), config, spawner)
                    .map(Whole::Dsa)
                    .map_err(|error| failed(&error))?
            }
            Model::Ioat => Whole::ioat(section, iommu, device.clone(), spawner)
                .map_err(|error| failed(&error))?,
        };
        whole.model().function().assign_bars(bar_base(address));
        let (mut host, mut node) = (None, None);
        match section.driver {
            Driver::Host => {
                let side = whole.drive(section).map_err(|error| failed(&*error))?;
                mdevs.add_parent(side.parent.clone());
                host = Some(side);
            }
            Driver::Vfio => node = Some(vfio.add(whole.model(), Passthrough::Whole(device))),
        }
        Ok(MachineDevice {
            section: section.clone(),
            address,
            whole,
            group,
            host,
            vfio: node,
        })
    }

    pub(super) fn driver_name(&self) -> &'static str {
        match self.section.driver {
            Driver::Host => self.whole.driver_name(),
            Driver::Vfio => "vfio-pci",
        }
    }

    pub(super) fn mdev_types(&self) -> Vec<MdevTypeEntry> {
        let Some(host) = &self.host else {
            return Vec::new();
        };
        let types = host.parent.types().into_iter();
        types
            .map(|offered| MdevTypeEntry {
                parent: self.address.to_string(),
                available_instances: host.parent.available_instances(&offered.id),
                description: offered.description.unwrap_or(offered.name),
                type_name: offered.id,
            })
            .collect()
    }

    pub(super) fn inspect(&self) -> Node {
        let mut node = Node::new()
            .with("address", self.address.to_string())
            .with("model", self.whole.name())
            .with("driver", self.driver_name())
            .with("vm", self.section.vm.as_deref().unwrap_or("-"))
            .with(self.whole.name(), self.whole.inspect());
        if let Some(host) = &self.host {
            node.set("host_queues", host.queues.inspect());
        }
        if let Some(device) = &self.vfio {
            node.set("node", device.name())
                .set("vfio", device.inspect());
        }
        node
    }
}
