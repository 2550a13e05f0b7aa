//! Virtual IOMMUs and their devices (drivers/iommu/iommufd/viommu.c).

use std::sync::Arc;

use ioasid_core::failpoint;

use crate::{
    base::{
        error::{AllocError, Error},
        id::ObjectId,
    },
    file::{context::Context, object::Object, table::Objects},
    hardware::{
        hw::ViommuRequest,
        mmap::MmapSpace,
        vdevice::Vdevice,
        viommu::{Viommu, ViommuAlloc},
    },
};

/// A virtual IOMMU on a page table.
pub(super) fn alloc(context: &Context, args: ViommuAlloc<'_>) -> Result<ObjectId, Error> {
    let _attachments = context.attachments.lock();
    let objects = context.objects();
    let device = objects.device(args.device)?;
    if !device.ops().supports_viommu(args.kind) {
        return Err(AllocError::TypeNotSupported(args.kind).into());
    }
    let parent = objects.hwpt(args.hwpt)?;
    let Some(table) = parent.nest_parent() else {
        return Err(AllocError::NotAParent(args.hwpt).into());
    };
    let used = objects.use_of(parent.id())?;
    let id = objects.reserve_open()?;
    let ops = device.ops().init_viommu(&ViommuRequest {
        kind: args.kind,
        parent: table.domain().domain(),
        data: Some(args.data).filter(|data| !data.is_empty()),
        mmap: &MmapSpace {
            offsets: context.mmap_offsets(),
            owner: id.id(),
        },
    });
    let ops = ops.inspect_err(|_| context.mmap_offsets().remove(id.id()))?;
    let viommu = Viommu::new(
        id.id(),
        args.kind,
        device.ops().instance(),
        Arc::clone(table),
        ops,
    );
    Ok(id.name(Object::Viommu(viommu), vec![used]))
}

/// A device is `virt_id` on a virtual IOMMU from now on. The lock of attachments is held.
pub(super) fn alloc_vdevice(
    objects: &Arc<Objects>,
    viommu: ObjectId,
    device: ObjectId,
    virt_id: u64,
) -> Result<ObjectId, Error> {
    let (viommu, used) = objects.use_viommu(viommu)?;
    let device = objects.device(device)?;
    if device.ops().instance() != viommu.instance() {
        return Err(AllocError::OtherIommu {
            device: device.id(),
            viommu: viommu.id(),
        }
        .into());
    }
    if device.virt_id().is_some() {
        return Err(AllocError::DeviceHasNumber(device.id()).into());
    }
    let id = objects.reserve()?;
    let mut devices = viommu.devices.lock();
    if devices.contains_key(&virt_id) {
        return Err(AllocError::NumberTaken {
            viommu: viommu.id(),
            number: virt_id,
        }
        .into());
    }
    failpoint::allocation()?;
    devices.insert(virt_id, Arc::clone(device.ops()));
    drop(devices);
    let vdevice = Vdevice::new(id.id(), virt_id, viommu, device);
    Ok(id.name(Object::Vdevice(vdevice), vec![used]))
}
