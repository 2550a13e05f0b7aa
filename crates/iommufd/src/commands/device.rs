//! Binding devices (drivers/iommu/iommufd/device.c).

use std::sync::Arc;

use ioasid_core::Pasid;
use ioasid_iommu::{Device, FaultSink, OwnershipError};

use crate::{
    base::error::{AttachError, Error},
    file::context::Context,
    handles::bound_device::BoundDevice,
    hardware::{device::DeviceObject, hw::HwOps, software::SoftwareIommu},
};

/// Binds a whole device, whose group the file owns from now on.
pub(super) fn bind_whole(
    context: &Arc<Context>,
    device: &Arc<Device>,
    faults: Arc<dyn FaultSink>,
    ops: Arc<dyn HwOps>,
) -> Result<BoundDevice, Error> {
    let ownership = device.group().claim_dma_owner(context.owner());
    let ownership = ownership.map_err(|error| match error {
        OwnershipError::OtherOwner { .. } | OwnershipError::DriverInUse { .. } => {
            AttachError::NotOwner(error).into()
        }
        OwnershipError::NoMemory(error) => Error::from(error),
        OwnershipError::Attached { .. }
        | OwnershipError::Owned { .. }
        | OwnershipError::NoDevice { .. }
        | OwnershipError::NoDomain(_) => AttachError::GroupBusy(error).into(),
    })?;
    BoundDevice::new(context, |id| {
        DeviceObject::new(id, Arc::clone(device), None, Some(ownership), faults, ops)
    })
}

/// Binds a default-PASID child of a device.
pub(super) fn bind_child(
    context: &Arc<Context>,
    device: &Arc<Device>,
    pasid: Pasid,
    faults: Arc<dyn FaultSink>,
) -> Result<BoundDevice, Error> {
    if pasid.get() >= device.max_pasids() {
        return Err(AttachError::NoSuchPasid {
            pasid: pasid.get(),
            max_pasids: device.max_pasids(),
        }
        .into());
    }
    let ops = SoftwareIommu::new(device);
    BoundDevice::new(context, |id| {
        DeviceObject::new(id, Arc::clone(device), Some(pasid), None, faults, ops)
    })
}
