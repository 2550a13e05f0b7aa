//! Dirty tracking commands (drivers/iommu/iommufd/{hw_pagetable,iova_bitmap}.c).

use ioasid_core::AddrRange;
use ioasid_iommufd::{DirtyRequest, ObjectId};

use super::{call::Call, supported};
use crate::{CallError, bitmap::Bitmap, error::FieldError, fields::names, spec::iommufd as spec};

pub(super) fn set_tracking(call: &Call<'_>) -> Result<u64, CallError> {
    let args: spec::HwptSetDirtyTracking = call.args();
    supported(FieldError::flags(
        "flags",
        args.flags,
        names::DIRTY_TRACKING,
    ))?;
    let on = args.flags & spec::DIRTY_TRACKING_ENABLE != 0;
    call.context()
        .hwpt_set_dirty_tracking(ObjectId::from_raw(args.hwpt_id), on)?;
    Ok(0)
}

pub(super) fn get_bitmap(call: &Call<'_>) -> Result<u64, CallError> {
    let args: spec::HwptGetDirtyBitmap = call.args();
    supported(FieldError::flags("flags", args.flags, names::DIRTY_BITMAP))?;
    supported(FieldError::zero("reserved", args.reserved))?;
    let request = DirtyRequest {
        hwpt: ObjectId::from_raw(args.hwpt_id),
        iova: args.iova,
        len: args.length,
        page_size: args.page_size,
        no_clear: args.flags & spec::DIRTY_BITMAP_NO_CLEAR != 0,
    };
    // The program's memory may block: it is touched when the page table's locks are free again.
    let mut dirty: Vec<AddrRange> = Vec::new();
    call.context()
        .hwpt_get_dirty(request, &mut |range| match dirty.last_mut() {
            Some(last) if last.last().checked_add(1) == Some(range.start()) => {
                if let Some(joined) = AddrRange::new(last.start(), range.last()) {
                    *last = joined;
                }
            }
            _ => dirty.push(range),
        })?;
    dirty.sort_unstable();
    let mut bitmap = Bitmap::new(call.program(), args.data, args.iova, args.page_size);
    for range in dirty {
        bitmap.set(range)?;
    }
    bitmap.flush()?;
    Ok(0)
}
