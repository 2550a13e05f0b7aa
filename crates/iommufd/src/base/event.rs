//! Files of events: what a fault queue or an event queue of a vIOMMU looks like to a program.

use std::{any::Any, fmt::Debug, sync::Arc};

use ioasid_core::{host::FdError, memory::PageSource};

use super::error::Error;

/// Called when an [`EventFile`] becomes readable or stops being so. Must not block and must not
/// call the file back.
pub type Notify = Arc<dyn Fn() + Send + Sync>;

/// A file that a program reads events from, and may write answers to.
///
/// Nothing here blocks: a read of an empty file gives no bytes. The code that gives the program a
/// descriptor keeps this, reads and writes for it, and says when the last copy of the descriptor is
/// gone.
pub trait EventFile: Any + Send + Sync + Debug {
    /// Takes whole events of at most `count` bytes together.
    ///
    /// # Errors
    /// [`PartialRecord`](crate::EventError::PartialRecord),
    /// [`ReadTooShort`](crate::EventError::ReadTooShort): nothing was taken.
    /// [`NotReadable`](crate::EventError::NotReadable) if
    /// this kind of file has no events.
    fn read(&self, count: usize) -> Result<Vec<u8>, Error>;

    /// Takes answers; returns the bytes of those that were good, up to the first that was not.
    ///
    /// # Errors
    /// [`PartialRecord`](crate::EventError::PartialRecord),
    /// [`NoSuchAnswer`](crate::EventError::NoSuchAnswer) or
    /// [`NoSuchFault`](crate::EventError::NoSuchFault) if the first is not good,
    /// [`NotWritable`](crate::EventError::NotWritable) if this kind of file takes no answers.
    fn write(&self, bytes: &[u8]) -> Result<usize, Error>;

    /// Whether a read would give an event.
    fn is_readable(&self) -> bool;

    /// Calls `notify` on every change of [`EventFile::is_readable`] from now on, in place of what
    /// was called before.
    fn set_notify(&self, notify: Notify);

    /// The last descriptor is gone: the object behind the file can be destroyed now. Calling it
    /// twice does nothing.
    fn closed(&self);

    /// Whether [`EventFile::write`] can succeed: poll reports this file writable.
    fn is_writable(&self) -> bool {
        false
    }

    /// `len` bytes from `start` of the file's memory, for IOAS_MAP_FILE: a dma-buf has some.
    ///
    /// # Errors
    /// [`FdError::WrongType`] if this kind of file has none, the default;
    /// [`FdError::OutsideBuffer`], [`FdError::Revoked`].
    fn pages(&self, start: u64, len: u64) -> Result<Arc<dyn PageSource>, FdError> {
        let _ = (start, len);
        Err(FdError::WrongType)
    }

    /// The kernel's name of such files, as `/proc/PID/fd` shows it.
    fn name(&self) -> &'static str {
        "iommufd-event"
    }
}
