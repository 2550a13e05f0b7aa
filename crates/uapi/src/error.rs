//! Why a call was refused: [`CallError`], one cause with the values that its rule was about.
//!
//! A cause keeps the error of the floor that refused the call. What this floor refuses by itself is a
//! [`RequestError`] (the number, struct or descriptors of an ioctl) or a [`FileError`] (what any file can
//! be asked for). [`CallError::errno`] is what the program sees, the `Display` is one sentence for the
//! person behind it. There is no conversion from an error that does not say what it was about: a read of
//! a program's memory goes through [`crate::memory`], which adds the address.

use ioasid_core::failpoint::OutOfMemory;
use ioasid_iommufd::{
    AccessError, AllocError, AttachError, DirtyError, EventError, MapError, MmapError, ObjectError,
    OptionError, RangeError, UnmapError, UserDataError,
};
use ioasid_vfio::{AttributeError, error as vfio};

use crate::Errno;

mod file;
mod register;
mod request;

pub use file::{FileError, Operation};
pub use register::RegisterError;
pub use request::{FieldError, RequestError, Wanted};

/// Why a call of a program was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The number, struct or descriptors of an ioctl.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// What any file can be asked for: to be opened, read, written, mapped.
    #[error(transparent)]
    File(#[from] FileError),
    /// An access to a mapped register.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// What the I/O address space layer said.
    #[error(transparent)]
    Iommufd(#[from] ioasid_iommufd::Error),
    /// What a device, a group or a container said.
    #[error(transparent)]
    Vfio(#[from] ioasid_vfio::Error),
    /// A write to an attribute of sysfs.
    #[error(transparent)]
    Attribute(#[from] AttributeError),
    /// No memory for what the call makes (ENOMEM).
    #[error("there is no memory for what the call makes")]
    NoMemory,
    /// A command that a back end adds to those of Linux was refused (what the back end says).
    #[error("the back end of the command refuses it with {0}")]
    Extension(Errno),
}

impl CallError {
    /// What the program sees.
    pub fn errno(&self) -> Errno {
        self.clone().into()
    }
}

impl From<OutOfMemory> for CallError {
    fn from(_: OutOfMemory) -> Self {
        CallError::NoMemory
    }
}

/// Errors of a subject, by way of the error of their crate.
macro_rules! by_way_of {
    ($way:ty: $($error:ty),* $(,)?) => {$(
        impl From<$error> for CallError {
            fn from(error: $error) -> Self {
                <$way>::from(error).into()
            }
        }
    )*};
}

by_way_of!(ioasid_iommufd::Error:
    AccessError, AllocError, AttachError, DirtyError, EventError, MapError, MmapError, ObjectError,
    OptionError, RangeError, UnmapError, UserDataError,
);
by_way_of!(ioasid_vfio::Error:
    vfio::AttachError, vfio::BindError, vfio::ContainerError, vfio::DmaLogError, vfio::FeatureError,
    vfio::GroupError, vfio::IoeventfdError, vfio::IrqError, vfio::MapError, vfio::MdevError,
    vfio::MigrationError, vfio::RegionError, vfio::TokenError,
);
