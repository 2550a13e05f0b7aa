//! Starting hardware queues (drivers/iommu/iommufd/viommu.c).

use std::sync::Arc;

use ioasid_core::{AddrRange, memory::PAGE_SIZE};

use crate::{
    base::{
        error::{AllocError, Error},
        id::ObjectId,
    },
    file::{object::Object, table::Objects},
    hardware::{
        hw::HwQueueConfig,
        hw_queue::{HwQueue, HwQueueAlloc, Ring},
    },
    space::{
        access::{AccessKind, AccessObject},
        ioas::AttachedAccess,
    },
};

/// Starts a queue in memory of the guest.
pub(super) fn alloc(objects: &Arc<Objects>, args: HwQueueAlloc) -> Result<ObjectId, Error> {
    if args.len == 0 {
        return Err(AllocError::RingEmpty.into());
    }
    let HwQueueAlloc { iova, len, .. } = args;
    let overflow = AllocError::RingOverflow { iova, len };
    iova.checked_add(len - 1).ok_or(overflow)?;
    // Used from here on, so that it is still there when the queue is.
    let (viommu, used) = objects.use_viommu(args.viommu)?;
    let ops = viommu.ops();
    if !ops.supports_hw_queue(args.kind) {
        return Err(AllocError::TypeNotSupported(args.kind).into());
    }
    let id = objects.reserve_open()?;
    let offset = iova % PAGE_SIZE;
    let bytes = len.checked_add(offset);
    let bytes = bytes.and_then(|bytes| bytes.checked_next_multiple_of(PAGE_SIZE));
    let bytes = bytes.ok_or(AllocError::RingInLastPage { iova, len })?;
    let access_id = objects.reserve_open()?;
    let access = AccessObject::new(access_id.id(), AccessKind::Locks);
    let (ioas, ioas_used) = objects.use_ioas(viommu.parent().ioas().id())?;
    let attached = AttachedAccess::new(Arc::clone(&ioas), &access)?;
    let range = AddrRange::from_len(iova - offset, bytes).ok_or(overflow)?;
    let pinned = ioas.pin(range, false, access.locks())?;
    let pieces = pinned.pieces();
    let [(spa, _)] = pieces.as_slice() else {
        return Err(AllocError::NotContiguous {
            iova,
            pieces: pieces.len(),
        }
        .into());
    };
    let config = HwQueueConfig {
        id: id.id(),
        kind: args.kind,
        index: args.index,
        iova,
        len,
        spa: spa + offset,
    };
    let needs = ops.init_hw_queue(&config)?;
    let mut uses = vec![used];
    // The back end names a queue that it was asked to start before.
    uses.extend(needs.and_then(|needs| objects.use_of(needs).ok()));
    let access_object = access.id();
    uses.push(access_id.name_used(Object::Access(access), Vec::new()));
    let ring = Ring {
        _pinned: pinned,
        _attached: attached,
        _ioas: ioas_used,
    };
    let queue = HwQueue::new(config, Arc::clone(&viommu), access_object, ring);
    Ok(id.name(Object::HwQueue(queue), uses))
}
