//! What an id of the object table stands for.

use std::{any::Any, fmt, sync::Arc};

use crate::{
    hardware::{
        device::DeviceObject, fault::FaultQueue, hw_queue::HwQueue, hwpt::Hwpt, vdevice::Vdevice,
        vevent::VeventQueue, viommu::Viommu,
    },
    space::{access::AccessObject, ioas::Ioas},
};

/// An object that a back end keeps in the object table: it has an id, and goes by DESTROY or with
/// the file, like every other object. What it is, is the back end's business. When it is taken out
/// of the table it is dropped, with no lock held: it may hold bound devices.
pub trait ForeignObject: Any + Send + Sync + fmt::Debug {}

/// What an id stands for.
#[derive(Clone, Debug)]
pub(crate) enum Object {
    Ioas(Arc<Ioas>),
    Hwpt(Arc<Hwpt>),
    Device(Arc<DeviceObject>),
    Access(Arc<AccessObject>),
    FaultQueue(Arc<FaultQueue>),
    Viommu(Arc<Viommu>),
    Vdevice(Arc<Vdevice>),
    VeventQueue(Arc<VeventQueue>),
    HwQueue(Arc<HwQueue>),
    Foreign(Arc<dyn ForeignObject>),
}
