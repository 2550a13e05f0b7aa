//! What differs from device model to device model: how it is built, and what the host has of one
//! that it drives itself.

use std::{fmt, sync::Arc};

use ioasid_core::{
    host::Spawner,
    inspect::{Inspect, Node},
};
use ioasid_dsa::{DsaDevice, DsaParent, HostQueue};
use ioasid_ioat::{ChannelConfig, HostChannel, IoatConfig, IoatDevice, IoatParent};
use ioasid_iommu::{Device, Iommu};
use ioasid_vfio::{
    DeviceModel,
    mdev::{MdevParent, SlotParent, Slots, Uuid},
};

use crate::file::{DeviceSection, Owner};

/// A device, whatever it is.
pub(crate) enum Whole {
    Dsa(Arc<DsaDevice>),
    Ioat(Arc<IoatDevice>),
}

impl Whole {
    /// The I/OAT device of `section`.
    pub(crate) fn ioat(
        section: &DeviceSection,
        iommu: &Iommu,
        device: Arc<Device>,
        spawner: &dyn Spawner,
    ) -> Result<Self, ioasid_ioat::Error> {
        let channels = section.queue.iter().map(|channel| ChannelConfig {
            mdev: channel.owner == Owner::Mdev,
        });
        let config = IoatConfig {
            channels: channels.collect(),
            engines: section.engines,
        };
        IoatDevice::new(iommu, device, config, spawner).map(Whole::Ioat)
    }

    /// What programs see of it.
    pub(crate) fn model(&self) -> Arc<dyn DeviceModel> {
        match self {
            Whole::Dsa(dsa) => dsa.clone(),
            Whole::Ioat(ioat) => ioat.clone(),
        }
    }

    /// The model's name in the machine file.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Whole::Dsa(_) => "dsa",
            Whole::Ioat(_) => "ioat",
        }
    }

    /// The driver that it has in Linux.
    pub(crate) const fn driver_name(&self) -> &'static str {
        match self {
            Whole::Dsa(_) => "idxd",
            Whole::Ioat(_) => "ioatdma",
        }
    }

    /// Its part of the tree of named values.
    pub(crate) fn inspect(&self) -> Node {
        match self {
            Whole::Dsa(dsa) => dsa.inspect(),
            Whole::Ioat(ioat) => ioat.inspect(),
        }
    }

    /// Puts the host's own driver on it.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) fn drive(&self, section: &DeviceSection) -> Result<HostSide, Box<dyn fmt::Display>> {
        let own = section.queue.iter().enumerate();
        let own = own.filter(|(_, queue)| queue.owner == Owner::Host);
        let own = own.map(|(index, _)| index);
        match self {
            Whole::Dsa(dsa) => {
                let driver = ioasid_dsa::HostDriver::probe(dsa).map_err(boxed)?;
                let queues = own.map(|index| driver.open_queue(index).map(Arc::new));
                Ok(HostSide {
                    queues: HostQueues::Dsa(queues.collect::<Result<_, _>>().map_err(boxed)?),
                    parent: children(DsaParent::new(dsa.clone()), section),
                    _driver: driver,
                })
            }
            Whole::Ioat(ioat) => {
                let driver = ioasid_ioat::HostDriver::probe(ioat).map_err(boxed)?;
                let channels = own.map(|index| driver.open_channel(index).map(Arc::new));
                Ok(HostSide {
                    queues: HostQueues::Ioat(channels.collect::<Result<_, _>>().map_err(boxed)?),
                    parent: children(IoatParent::new(ioat.clone()), section),
                    _driver: driver,
                })
            }
        }
    }
}

fn boxed(error: impl fmt::Display + 'static) -> Box<dyn fmt::Display> {
    Box::new(error)
}

/// Keeps the slots for the children that the machine file names.
fn children<D: Slots + 'static>(
    parent: Arc<SlotParent<D>>,
    section: &DeviceSection,
) -> Arc<dyn Children> {
    for (slot, queue) in section.queue.iter().enumerate() {
        if let Some(uuid) = queue.uuid {
            parent.keep(slot, uuid);
        }
    }
    parent
}

/// A parent of mediated devices that shows its own part of them.
pub(crate) trait Children: MdevParent {
    /// What there is to see of the child `uuid`.
    fn inspect_child(&self, uuid: Uuid) -> Option<Node>;
}

impl<D: Slots> Children for SlotParent<D> {
    fn inspect_child(&self, uuid: Uuid) -> Option<Node> {
        self.child(uuid).map(|child| child.inspect())
    }
}

/// The queues on which a host driver works.
pub(crate) enum HostQueues {
    Dsa(Vec<Arc<HostQueue>>),
    Ioat(Vec<Arc<HostChannel>>),
}

impl HostQueues {
    pub(crate) fn dsa(&self) -> &[Arc<HostQueue>] {
        match self {
            HostQueues::Dsa(queues) => queues,
            HostQueues::Ioat(_) => &[],
        }
    }

    pub(crate) fn ioat(&self) -> &[Arc<HostChannel>] {
        match self {
            HostQueues::Dsa(_) => &[],
            HostQueues::Ioat(channels) => channels,
        }
    }

    pub(crate) fn inspect(&self) -> Vec<Node> {
        match self {
            HostQueues::Dsa(queues) => queues.iter().map(|queue| queue.inspect()).collect(),
            HostQueues::Ioat(channels) => channels.iter().map(|one| one.inspect()).collect(),
        }
    }
}

/// A device that its own driver holds: the queues it works on, and the children of the others.
pub(crate) struct HostSide {
    pub(crate) queues: HostQueues,
    pub(crate) parent: Arc<dyn Children>,
    // Goes last: the queues are the driver's.
    _driver: Arc<dyn Send + Sync>,
}
