//! Queues of events that programs read through a file of their own.

use std::fmt::{self, Debug};

use ioasid_core::sync::Mutex;

use super::{
    error::{Error, EventError},
    event::Notify,
    id::ObjectId,
};

/// A queue that a program reads through a file.
pub(crate) trait Queue: Send + Sync + Debug + 'static {
    /// The kernel's name of its files.
    const NAME: &'static str;
    /// Whether it takes answers.
    const TAKES_ANSWERS: bool = false;

    fn id(&self) -> ObjectId;

    /// Notified when the queue becomes readable or stops being so.
    fn listener(&self) -> &Listener;

    /// As [`EventFile::read`](super::event::EventFile::read).
    fn read(&self, count: usize) -> Result<Vec<u8>, Error>;

    /// As [`EventFile::write`](super::event::EventFile::write).
    fn write(&self, _answers: &[u8]) -> Result<usize, Error> {
        Err(EventError::NotWritable.into())
    }

    /// As [`EventFile::is_readable`](super::event::EventFile::is_readable).
    fn is_readable(&self) -> bool;
}

/// What is called on a change of a queue, once something listens.
#[derive(Default)]
pub(crate) struct Listener(Mutex<Option<Notify>>);

impl Listener {
    pub(crate) fn set(&self, notify: Notify) {
        *self.0.lock() = Some(notify);
    }

    pub(crate) fn notify(&self) {
        let notify = self.0.lock().clone();
        if let Some(notify) = notify {
            notify();
        }
    }
}

impl Debug for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.0.lock().is_some();
        f.debug_struct("Listener").field("set", &set).finish()
    }
}
