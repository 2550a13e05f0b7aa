//! How objects go: one by one by DESTROY, and all of them with the file. Neither can fail for what
//! nothing uses.

use std::sync::{Arc, atomic::Ordering};

use crate::{
    access::AccessObject,
    context::Context,
    error::Error,
    object::{Object, ObjectId, Table},
    queue_file::Queue,
};

impl Context {
    /// DESTROY: takes an object away that nothing uses. Cannot fail otherwise.
    ///
    /// # Errors
    /// [`Error::NoObject`], [`Error::InUse`].
    pub fn destroy(&self, id: ObjectId) -> Result<(), Error> {
        // Dropped without a lock: what a back end made may hold devices, a queue an access object.
        let removed;
        let _attachments = self.attachments.lock();
        removed = self.objects.lock().remove(id)?;
        self.take_apart(&removed);
        Ok(())
    }

    /// Ends what an object held; the object is out of the table.
    fn take_apart(&self, object: &Object) {
        let put = |id: ObjectId| {
            self.objects.lock().put(id);
        };
        match object {
            Object::Ioas(ioas) => {
                self.forget_vfio_ioas(ioas.id());
                // Nothing is attached that could hold pages.
                let _ = ioas.unmap_all();
            }
            Object::Hwpt(hwpt) => {
                hwpt.release();
                hwpt.holds().for_each(put);
            }
            Object::FaultQueue(queue) => queue.flush_all(),
            Object::Viommu(viommu) => {
                self.mmap_offsets().remove(viommu.id());
                put(viommu.parent().id());
            }
            Object::Vdevice(vdevice) => {
                vdevice.release();
                put(vdevice.viommu().id());
            }
            Object::VeventQueue(queue) => {
                if let Ok(viommu) = self.viommu(queue.viommu()) {
                    viommu.forget_queue(queue.id());
                }
                put(queue.viommu());
            }
            Object::HwQueue(queue) => {
                queue.release();
                if let Some(needed) = queue.needs() {
                    put(needed);
                }
                put(queue.viommu().id());
            }
            Object::Device(_) | Object::Access(_) | Object::Foreign(_) => {}
        }
    }

    /// The last descriptor of the file is gone: every object goes, after what uses it. Devices that
    /// are still bound, access objects, open files of events and mapped pages keep them; then this
    /// happens when the last of those is gone.
    pub fn close(&self) {
        {
            let _objects = self.objects.lock();
            self.closed.store(true, Ordering::Release);
        }
        self.finish_close();
    }

    fn is_kept(&self, table: &Table) -> bool {
        let keeps = |object: &Object| match object {
            Object::Access(access) => AccessObject::keeps_file(access),
            _ => false,
        };
        !self.closed.load(Ordering::Acquire)
            || self.open_files.load(Ordering::Acquire) > 0
            || table.objects().iter().any(keeps)
    }

    pub(crate) fn finish_close(&self) {
        let foreign = {
            let mut table = self.objects.lock();
            if self.is_kept(&table) {
                return;
            }
            table.take_foreign()
        };
        // They may hold bound devices, which go with them.
        drop(foreign);
        loop {
            let gone = {
                let _attachments = self.attachments.lock();
                let gone = {
                    let mut table = self.objects.lock();
                    let is_device = |object: &Object| matches!(object, Object::Device(_));
                    if self.is_kept(&table) || table.objects().iter().any(is_device) {
                        return;
                    }
                    table.take_unused()
                };
                for object in &gone {
                    self.take_apart(object);
                }
                gone
            };
            // Without a lock: with a queue of hardware goes its access object, and then the IOAS
            // that it was attached to is not used any more.
            if gone.is_empty() {
                return;
            }
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // The order matters: domains go before the pages they point at.
        self.close();
    }
}

/// A file that keeps a context's objects.
#[derive(Debug)]
pub(crate) struct OpenFile(Arc<Context>);

impl OpenFile {
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        context.open_files.fetch_add(1, Ordering::AcqRel);
        OpenFile(Arc::clone(context))
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.0
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.0.open_files.fetch_sub(1, Ordering::AcqRel);
        self.0.finish_close();
    }
}
