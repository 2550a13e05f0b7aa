//! What an ioctl needs of the program that issued it.

use std::sync::Arc;

use ioasid_core::host::{Caller, FdError};
use ioasid_iommufd::Context;

/// The program behind an ioctl: its memory and files ([`Caller`]), and those file descriptors that
/// are our own objects.
pub trait Program: Caller {
    /// The `/dev/iommu` file behind `fd`.
    ///
    /// # Errors
    /// [`FdError::NotOpen`], or [`FdError::WrongType`] if it is another kind of file.
    fn iommufd(&self, fd: i32) -> Result<Arc<Context>, FdError>;
}
