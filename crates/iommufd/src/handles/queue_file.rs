//! The file of a queue: what a program holds of a fault queue, and of the events of a virtual
//! IOMMU.
//!
//! As long as it is open it uses the queue's object and the context.

use std::sync::Arc;

use ioasid_core::sync::Mutex;

use crate::{
    base::{
        error::Error,
        event::{EventFile, Notify},
        id::Use,
        queue::Queue,
    },
    file::context::{Context, OpenFile},
};

/// The file.
#[derive(Debug)]
pub(crate) struct QueueFile<Q: Queue> {
    queue: Arc<Q>,
    /// The use of the queue ends before that of the context.
    open: Mutex<Option<(Use, OpenFile)>>,
}

impl<Q: Queue> QueueFile<Q> {
    /// The file of `queue`, which `used` keeps.
    pub(crate) fn new(context: &Arc<Context>, queue: Arc<Q>, used: Use) -> Arc<Self> {
        Arc::new(QueueFile {
            queue,
            open: Mutex::new(Some((used, OpenFile::new(context)))),
        })
    }
}

impl<Q: Queue> EventFile for QueueFile<Q> {
    fn read(&self, count: usize) -> Result<Vec<u8>, Error> {
        let bytes = self.queue.read(count)?;
        if !bytes.is_empty() {
            self.queue.listener().notify();
        }
        Ok(bytes)
    }

    fn write(&self, bytes: &[u8]) -> Result<usize, Error> {
        self.queue.write(bytes)
    }

    fn is_readable(&self) -> bool {
        self.queue.is_readable()
    }

    fn set_notify(&self, notify: Notify) {
        self.queue.listener().set(notify);
    }

    fn closed(&self) {
        let open = self.open.lock().take();
        drop(open);
    }

    fn is_writable(&self) -> bool {
        Q::TAKES_ANSWERS
    }

    fn name(&self) -> &'static str {
        Q::NAME
    }
}

impl<Q: Queue> Drop for QueueFile<Q> {
    fn drop(&mut self) {
        self.closed();
    }
}
