//! The file of a queue: what a program holds of a fault queue, and of the events of a virtual IOMMU.
//!
//! As long as it is open it uses the queue's object and the context.

use std::{
    fmt::{self, Debug},
    sync::Arc,
};

use ioasid_core::sync::Mutex;

use crate::{
    context::Context,
    error::Error,
    event::{EventFile, Notify},
    object::ObjectId,
    teardown::OpenFile,
};

/// A queue that a program reads through a file.
pub(crate) trait Queue: Send + Sync + Debug + 'static {
    /// The kernel's name of its files.
    const NAME: &'static str;
    /// Whether it takes answers.
    const TAKES_ANSWERS: bool = false;

    fn id(&self) -> ObjectId;

    /// Rings when the queue becomes readable or stops being so.
    fn bell(&self) -> &Bell;

    /// As [`EventFile::read`].
    fn read(&self, count: usize) -> Result<Vec<u8>, Error>;

    /// As [`EventFile::write`].
    fn write(&self, _answers: &[u8]) -> Result<usize, Error> {
        Err(Error::NotWritable)
    }

    /// As [`EventFile::is_readable`].
    fn is_readable(&self) -> bool;
}

/// Whom to tell of a change, once somebody wants to know.
#[derive(Default)]
pub(crate) struct Bell(Mutex<Option<Notify>>);

impl Bell {
    pub(crate) fn ring(&self) {
        let notify = self.0.lock().clone();
        if let Some(notify) = notify {
            notify();
        }
    }
}

impl Debug for Bell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let heard = self.0.lock().is_some();
        f.debug_struct("Bell").field("heard", &heard).finish()
    }
}

/// The file.
#[derive(Debug)]
pub(crate) struct QueueFile<Q: Queue> {
    queue: Arc<Q>,
    open: Mutex<Option<OpenFile>>,
}

impl<Q: Queue> QueueFile<Q> {
    /// The caller has counted the file as a user of the queue.
    pub(crate) fn new(context: &Arc<Context>, queue: Arc<Q>) -> Arc<Self> {
        Arc::new(QueueFile {
            queue,
            open: Mutex::new(Some(OpenFile::new(context))),
        })
    }
}

impl<Q: Queue> EventFile for QueueFile<Q> {
    fn read(&self, count: usize) -> Result<Vec<u8>, Error> {
        let bytes = self.queue.read(count)?;
        if !bytes.is_empty() {
            self.queue.bell().ring();
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
        *self.queue.bell().0.lock() = Some(notify);
    }

    fn closed(&self) {
        let open = self.open.lock().take();
        if let Some(open) = open {
            open.context().objects.lock().put(self.queue.id());
        }
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
