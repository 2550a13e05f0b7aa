//! What an ioctl needs of the program that issued it.

use std::sync::Arc;

use ioasid_core::host::{Caller, FdError};
use ioasid_iommufd::{Context, EventFile};

/// The program behind an ioctl: its memory and files ([`Caller`]), and those file descriptors that
/// are our own objects.
pub trait Program: Caller {
    /// The `/dev/iommu` file behind `fd`.
    ///
    /// # Errors
    /// [`FdError::NotOpen`], or [`FdError::WrongType`] if it is another kind of file.
    fn iommufd(&self, fd: i32) -> Result<Arc<Context>, FdError>;

    /// The file behind a descriptor that [`Program::install_event_file`] gave.
    ///
    /// # Errors
    /// [`FdError::NotOpen`], or [`FdError::WrongType`] if it is another kind of file. A program that
    /// can be given no descriptors, the default, has none.
    fn event_file(&self, fd: i32) -> Result<Arc<dyn EventFile>, FdError> {
        let _ = fd;
        Err(FdError::WrongType)
    }

    /// Gives the program a new descriptor, open for reading and writing, whose reads, writes and
    /// readiness are `file`'s; closed on exec if `cloexec`. When the last copy of it is gone,
    /// [`EventFile::closed`] is called.
    ///
    /// # Errors
    /// [`FdError::NoneFree`], [`FdError::NoMemory`]. A program that can be given no descriptors, the
    /// default, has none free.
    fn install_event_file(&self, file: Arc<dyn EventFile>, cloexec: bool) -> Result<i32, FdError> {
        let _ = (file, cloexec);
        Err(FdError::NoneFree)
    }
}
