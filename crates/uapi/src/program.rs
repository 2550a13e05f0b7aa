//! What an ioctl needs of the program that issued it.

use std::sync::Arc;

use ioasid_core::{
    host::{Caller, FdError},
    memory::{PageSource, PinError},
};
use ioasid_iommufd::{Context, EventFile};
use ioasid_vfio::{ContainerFile, DeviceFile};

/// The program behind an ioctl: its memory and files ([`Caller`]), and those file descriptors that
/// are our own objects.
pub trait Program: Caller {
    /// The `/dev/iommu` file behind `fd`.
    ///
    /// # Errors
    /// [`FdError::NotOpen`], or [`FdError::WrongType`] if it is another kind of file.
    fn iommufd(&self, fd: i32) -> Result<Arc<Context>, FdError>;

    /// The container, or `/dev/iommu` file in its place, behind `fd`.
    ///
    /// # Errors
    /// [`FdError::NotOpen`], or [`FdError::WrongType`] if it is another kind of file. By default only
    /// what [`Program::iommufd`] knows.
    fn container(&self, fd: i32) -> Result<ContainerFile, FdError> {
        self.iommufd(fd).map(ContainerFile::Iommufd)
    }

    /// Gives the program a new descriptor of an open device, closed on exec. When the last copy of it
    /// is gone, [`DeviceFile::close`] is called.
    ///
    /// # Errors
    /// [`FdError::NoneFree`], [`FdError::NoMemory`]. A program that can be given no descriptors, the
    /// default, has none free.
    fn install_device_file(&self, file: Arc<DeviceFile>) -> Result<i32, FdError> {
        let _ = file;
        Err(FdError::NoneFree)
    }

    /// [`Caller::pages`], for DMA that may reach registers of devices: an address where the program
    /// has mapped a BAR is one too.
    ///
    /// # Errors
    /// As [`Caller::pages`].
    fn pages_or_registers(&self, address: u64, len: u64) -> Result<Arc<dyn PageSource>, PinError> {
        self.pages(address, len)
    }

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
