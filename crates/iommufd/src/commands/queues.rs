//! Queues of events and the files to read them with (drivers/iommu/iommufd/eventq.c).

use std::sync::Arc;

use crate::{
    base::{
        error::{AllocError, Error},
        event::EventFile,
        id::ObjectId,
    },
    file::{context::Context, object::Object},
    handles::queue_file::QueueFile,
    hardware::{fault::FaultQueue, vevent::VeventQueue, viommu::VeventqAlloc},
};

/// A fault queue and its file.
pub(super) fn alloc_faults(
    context: &Arc<Context>,
) -> Result<(ObjectId, Arc<dyn EventFile>), Error> {
    let reserved = context.objects().reserve_open()?;
    let id = reserved.id();
    let queue = FaultQueue::new(id);
    let used = reserved.name_used(Object::FaultQueue(Arc::clone(&queue)), Vec::new());
    Ok((id, QueueFile::new(context, queue, used)))
}

/// A queue of events of a virtual IOMMU and its file.
pub(super) fn alloc_vevents(
    context: &Arc<Context>,
    args: VeventqAlloc,
) -> Result<(ObjectId, Arc<dyn EventFile>), Error> {
    if !(1..=VeventQueue::MAX_DEPTH).contains(&args.depth) {
        return Err(AllocError::BadDepth {
            depth: args.depth,
            max: VeventQueue::MAX_DEPTH,
        }
        .into());
    }
    let _attachments = context.attachments.lock();
    let (viommu, viommu_used) = context.objects().use_viommu(args.viommu)?;
    context.objects().check_open()?;
    let mut queues = viommu.queues.lock();
    if queues.contains_key(&args.kind) {
        return Err(AllocError::QueueExists {
            viommu: viommu.id(),
            kind: args.kind,
        }
        .into());
    }
    let reserved = context.objects().reserve_open()?;
    let id = reserved.id();
    let queue = VeventQueue::new(id, viommu.id(), args.depth);
    queues.insert(args.kind, Arc::clone(&queue));
    let object = Object::VeventQueue(Arc::clone(&queue));
    let used = reserved.name_used(object, vec![viommu_used]);
    Ok((id, QueueFile::new(context, queue, used)))
}
