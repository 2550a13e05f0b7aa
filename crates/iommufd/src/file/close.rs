//! How objects go: one by one by DESTROY, and all of them with the file. Neither can fail for what
//! nothing uses.

use super::{
    context::Context,
    object::Object,
    table::{Removed, Table},
};
use crate::base::{error::Error, id::ObjectId, queue::Queue};

/// Takes an object away that nothing uses.
pub(crate) fn destroy(context: &Context, id: ObjectId) -> Result<(), Error> {
    // Dropped without a lock: what a back end made may hold devices.
    let _object;
    let _attachments = context.attachments.lock();
    let removed = context.objects().lock().remove(id)?;
    _object = take_apart(context, removed);
    Ok(())
}

/// Takes away what a device has on a virtual IOMMU: its number there goes before the device. The id
/// of that object stays taken.
pub(crate) fn retire_vdevice(context: &Context, vdevice: ObjectId) {
    let removed = context.objects().lock().retire(vdevice);
    if let Some(removed) = removed {
        take_apart(context, removed);
    }
}

/// Ends what an object held, and then its uses of others. Called with the lock of attachments held;
/// the object is to be dropped without it.
fn take_apart(context: &Context, removed: Removed) -> Object {
    let Removed { object, uses } = removed;
    match &object {
        Object::Ioas(ioas) => {
            let mut options = context.options.lock();
            if options.vfio_ioas == Some(ioas.id()) {
                options.vfio_ioas = None;
            }
            drop(options);
            // Nothing is attached that could hold pages.
            let _ = ioas.unmap_all();
        }
        Object::Hwpt(hwpt) => hwpt.release(),
        Object::FaultQueue(queue) => queue.flush_all(),
        Object::Viommu(viommu) => context.mmap_offsets().remove(viommu.id()),
        Object::Vdevice(vdevice) => vdevice.release(),
        Object::VeventQueue(queue) => {
            if let Ok(viommu) = context.objects().viommu(queue.viommu()) {
                viommu.forget_queue(queue.id());
            }
        }
        Object::HwQueue(queue) => {
            queue.release();
            context.objects().forget(queue.access());
        }
        Object::Device(_) | Object::Access(_) | Object::Foreign(_) => {}
    }
    drop(uses);
    object
}

/// Whether the file is open, or something outside of it keeps it.
fn is_kept(context: &Context, table: &Table) -> bool {
    let keeps = |object: &Object| match object {
        Object::Access(access) => access.keeps_file(),
        _ => false,
    };
    !table.closed || context.has_open_files() || table.objects().iter().any(keeps)
}

/// Takes everything apart if the file is closed and nothing keeps it.
pub(crate) fn finish(context: &Context) {
    let foreign = {
        let mut table = context.objects().lock();
        if is_kept(context, &table) {
            return;
        }
        table.take_unused(|object| matches!(object, Object::Foreign(_)))
    };
    // They may hold bound devices, which go with them.
    drop(foreign);
    loop {
        let gone: Vec<Object> = {
            let _attachments = context.attachments.lock();
            let gone = {
                let mut table = context.objects().lock();
                let is_device = |object: &Object| matches!(object, Object::Device(_));
                if is_kept(context, &table) || table.objects().iter().any(is_device) {
                    return;
                }
                table.take_unused(|_| true)
            };
            let gone = gone.into_iter();
            gone.map(|removed| take_apart(context, removed)).collect()
        };
        if gone.is_empty() {
            return;
        }
    }
}
