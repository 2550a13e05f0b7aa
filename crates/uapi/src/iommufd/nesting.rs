//! Commands on what guests see of an IOMMU (drivers/iommu/iommufd/{viommu,hw_pagetable}.c).

use ioasid_iommufd::{HwQueueAlloc, Invalidated, ObjectId, UserArray, ViommuAlloc};

use super::{call::Call, supported};
use crate::{CallError, error::FieldError, spec::iommufd as spec};

pub(super) fn invalidate(call: &Call<'_>) -> Result<u64, CallError> {
    let mut args: spec::HwptInvalidate = call.args();
    let (done, result) = match invalidated(call, &args) {
        Ok(Invalidated { done, result }) => (done, result.map_err(CallError::from)),
        Err(error) => (0, Err(error)),
    };
    // How far it came is reported in any case.
    args.entry_num = done;
    call.reply(&args)?;
    result.map(|()| 0)
}

fn invalidated(call: &Call<'_>, args: &spec::HwptInvalidate) -> Result<Invalidated, CallError> {
    supported(FieldError::zero("reserved", args.reserved))?;
    let entries = UserArray::new(
        call.program(),
        args.data_type,
        args.data_uptr,
        args.entry_len,
        args.entry_num,
    )?;
    let id = ObjectId::from_raw(args.hwpt_id);
    Ok(call.context().hwpt_invalidate(id, &entries))
}

pub(super) fn viommu_alloc(call: &Call<'_>) -> Result<u64, CallError> {
    let mut args: spec::ViommuAlloc = call.args();
    supported(FieldError::zero("flags", args.flags))?;
    supported(FieldError::chosen("type", args.kind))?;
    let id = call.context().viommu_alloc(ViommuAlloc {
        kind: args.kind,
        device: ObjectId::from_raw(args.dev_id),
        hwpt: ObjectId::from_raw(args.hwpt_id),
        data: call.user_data(args.kind, args.data_uptr, args.data_len),
    })?;
    args.out_viommu_id = id.get();
    call.reply_new(&args, id)
}

pub(super) fn vdevice_alloc(call: &Call<'_>) -> Result<u64, CallError> {
    let mut args: spec::VdeviceAlloc = call.args();
    let id = call.context().vdevice_alloc(
        ObjectId::from_raw(args.viommu_id),
        ObjectId::from_raw(args.dev_id),
        args.virt_id,
    )?;
    args.out_vdevice_id = id.get();
    call.reply_new(&args, id)
}

pub(super) fn hw_queue_alloc(call: &Call<'_>) -> Result<u64, CallError> {
    let mut args: spec::HwQueueAlloc = call.args();
    supported(FieldError::zero("flags", args.flags))?;
    supported(FieldError::chosen("type", args.kind))?;
    let id = call.context().hw_queue_alloc(HwQueueAlloc {
        viommu: ObjectId::from_raw(args.viommu_id),
        kind: args.kind,
        index: args.index,
        iova: args.nesting_parent_iova,
        len: args.length,
    })?;
    args.out_hw_queue_id = id.get();
    call.reply_new(&args, id)
}
