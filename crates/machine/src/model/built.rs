//! What a model gives to the machine.

use std::{any::Any, fmt, sync::Arc};

use ioasid_core::inspect::{Inspect, Node};
use ioasid_iommu::Device;
use ioasid_vfio::{
    DeviceModel,
    mdev::{MdevParent, SlotParent, Slots, Uuid},
};

/// A device that was built, with all that belongs to it.
#[derive(Debug, Default)]
pub struct Built {
    pub(crate) function: Option<(Arc<dyn Whole>, Arc<Device>)>,
    pub(crate) parent: Option<Arc<dyn Parent>>,
    pub(crate) host: Option<Arc<dyn HostDriver>>,
}

impl Built {
    /// A PCI function: `model` is its behaviour, `device` its place behind the IOMMU.
    pub fn function(model: Arc<impl Whole>, device: Arc<Device>) -> Self {
        Built {
            function: Some((model, device)),
            ..Built::default()
        }
    }

    /// A parent of emulated devices: no function.
    pub fn parent(parent: Arc<impl Parent + 'static>) -> Self {
        Built {
            parent: Some(parent),
            ..Built::default()
        }
    }

    /// The host's own driver has the device.
    #[must_use]
    pub fn driven_by(mut self, driver: Arc<impl HostDriver>) -> Self {
        self.host = Some(driver);
        self
    }

    /// Mediated devices can be made of the device.
    #[must_use]
    pub fn with_parent(mut self, parent: Arc<impl Parent + 'static>) -> Self {
        self.parent = Some(parent);
        self
    }
}

/// A whole device as the machine keeps it. Every device model that can be looked at is one; the
/// type behind it is found by [`Machine::device`](crate::Machine::device).
pub trait Whole: DeviceModel + Inspect + Any {}

impl<D: DeviceModel + Inspect + Any> Whole for D {}

/// The host's own driver of one device, with the queues that it works on. Dropping it takes the
/// driver off the device.
pub trait HostDriver: Any + Send + Sync + fmt::Debug {
    /// What there is to see of each of its queues.
    fn inspect_queues(&self) -> Vec<Node>;
}

/// A parent of mediated devices that shows its own part of them.
pub trait Parent: MdevParent {
    /// What there is to see of the child `uuid`.
    fn inspect_child(&self, uuid: Uuid) -> Option<Node> {
        let _ = uuid;
        None
    }
}

impl<D: Slots> Parent for SlotParent<D> {
    fn inspect_child(&self, uuid: Uuid) -> Option<Node> {
        self.child(uuid).map(|child| child.inspect())
    }
}
