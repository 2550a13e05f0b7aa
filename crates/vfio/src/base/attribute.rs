//! Attributes of sysfs that programs write, as far as every device has the same causes of a refusal.

use super::error::{Error, MdevError, RegionError};

/// Why a write to an attribute of sysfs fails. The `uapi` crate has the errno of each cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttributeError {
    /// No attribute has this path, or it cannot be written (EACCES).
    #[error("no such attribute, or it cannot be written")]
    NotWritable,
    /// What is written is not what the attribute takes (EINVAL).
    #[error("what is written is not what the attribute takes")]
    Invalid,
    /// The attribute takes it in Linux, and what it does is not built (EOPNOTSUPP).
    #[error("what a write to the attribute does is not built")]
    NotBuilt,
    /// The number is larger than there can be (ERANGE).
    #[error("the number that is written is out of range")]
    OutOfRange,
    /// Something is in use (EBUSY).
    #[error("what the attribute is about is in use")]
    Busy,
    /// The device is gone (ENODEV).
    #[error("the device is gone")]
    NoDevice,
    /// Out of memory or threads (ENOMEM).
    #[error("out of memory or threads")]
    NoMemory,
    /// What VFIO says.
    #[error(transparent)]
    Vfio(#[from] Error),
}

impl From<RegionError> for AttributeError {
    fn from(error: RegionError) -> Self {
        AttributeError::Vfio(error.into())
    }
}

impl From<MdevError> for AttributeError {
    fn from(error: MdevError) -> Self {
        AttributeError::Vfio(error.into())
    }
}
