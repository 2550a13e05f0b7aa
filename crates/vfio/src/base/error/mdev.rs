//! Mediated devices.

use std::{fmt, sync::Arc};

use super::BindError;
use crate::base::uuid::Uuid;

/// Why a mediated device, or its parent, is not made or removed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MdevError {
    /// The text is not a UUID as `create` wants it (EINVAL).
    #[error(transparent)]
    Uuid(#[from] UuidError),
    /// The parent has no such type, or there is no such parent (ENOENT: there is no such directory).
    #[error("{parent} has no mediated devices of type {type_id:?}")]
    NoSuchType {
        /// Name of the parent.
        parent: String,
        /// The type asked for.
        type_id: String,
    },
    /// A device with this UUID exists, under whichever parent (EEXIST).
    #[error("a mediated device {uuid} exists")]
    Exists {
        /// Its UUID.
        uuid: Uuid,
    },
    /// No instance of the type is left (EUSERS).
    #[error("{parent} has no instance of type {type_id:?} left")]
    NoInstance {
        /// Name of the parent.
        parent: String,
        /// The type.
        type_id: String,
    },
    /// No device has this UUID (ENODEV).
    #[error("there is no mediated device {uuid}")]
    NotFound {
        /// The UUID.
        uuid: Uuid,
    },
    /// The parent is gone, or being removed (ENODEV).
    #[error("{parent} is gone, or is being removed")]
    ParentGone {
        /// Its name.
        parent: String,
    },
    /// A child cannot be removed.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The device model refused (EIO).
    #[error("the device makes no mediated device: {0}")]
    Device(DeviceError),
}

/// Why a text is no UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UuidError {
    /// The text has another length (EINVAL).
    #[error("a UUID has 36 characters, not {0}")]
    Length(usize),
    /// A character is neither a hexadecimal digit nor a hyphen in its place (EINVAL).
    #[error("character {0} of a UUID is neither a hexadecimal digit nor a hyphen in its place")]
    Character(usize),
}

/// What a device model says, whose errors this crate does not know. Two are equal if they are the same
/// one.
#[derive(Clone)]
pub struct DeviceError(Arc<dyn std::error::Error + Send + Sync>);

impl DeviceError {
    /// From the model's own error.
    pub fn new(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        DeviceError(Arc::new(error))
    }
}

impl PartialEq for DeviceError {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for DeviceError {}

impl std::error::Error for DeviceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source()
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}
