//! What can go wrong with a command, one variant per cause; the errno of each comes from
//! [`ioasid_uapi::errno`].

use ioasid_core::{host::FdError, memory::PinError};
use ioasid_uapi::Errno;

/// Why a command failed: what its reply says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The payload is shorter or longer than the command has it (EINVAL).
    #[error("the payload has the wrong size")]
    Size,
    /// The message is longer than any that there is (EMSGSIZE).
    #[error("the message is too long")]
    TooLong,
    /// A field has a value that it cannot have (EINVAL).
    #[error("a field has a value that it cannot have")]
    Value,
    /// More bytes than one access moves (EINVAL).
    #[error("more bytes than one access moves")]
    TooMuch,
    /// Not the number of descriptors that the command has (EINVAL).
    #[error("not the number of descriptors that the command has")]
    Descriptors,
    /// The version is another one (EINVAL).
    #[error("another protocol version")]
    Version,
    /// The first message was no VERSION, or a later one was (EINVAL).
    #[error("VERSION is the first message, and only that")]
    OutOfTurn,
    /// No such command, or none that a client sends (ENOTTY).
    #[error("no such command")]
    Command,
    /// The connection has mapped some of the range already (EEXIST).
    #[error("the range is mapped already")]
    Mapped,
    /// Another device of the same VM has mapped something else there (EEXIST).
    #[error("another device of the VM has mapped something else there")]
    MappedDifferently,
    /// Only a part of a mapping would go (EINVAL).
    #[error("a mapping can only be removed whole")]
    Cuts,
    /// The connection has as many mappings as it may have (ENOSPC).
    #[error("too many mappings")]
    TooManyMaps,
    /// Part of what can be asked for is not there (EOPNOTSUPP).
    #[error("not supported")]
    NotSupported,
    /// What the device or its address space said.
    #[error("{0}")]
    Refused(Errno),
}

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        match error {
            Error::Size
            | Error::Value
            | Error::TooMuch
            | Error::Descriptors
            | Error::Version
            | Error::OutOfTurn
            | Error::Cuts => Errno::EINVAL,
            Error::TooLong => Errno::EMSGSIZE,
            Error::Command => Errno::ENOTTY,
            Error::Mapped | Error::MappedDifferently => Errno::EEXIST,
            Error::TooManyMaps => Errno::ENOSPC,
            Error::NotSupported => Errno::EOPNOTSUPP,
            Error::Refused(errno) => errno,
        }
    }
}

impl From<Errno> for Error {
    fn from(errno: Errno) -> Self {
        Error::Refused(errno)
    }
}

macro_rules! refused {
    ($($error:ty),*) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Error::Refused(error.into())
            }
        })*
    };
}

refused!(
    ioasid_vfio::Error,
    ioasid_vfio::error::BindError,
    ioasid_vfio::error::RegionError,
    ioasid_vfio::error::MigrationError,
    ioasid_vfio::error::DmaLogError
);

impl From<ioasid_iommufd::Error> for Error {
    fn from(error: ioasid_iommufd::Error) -> Self {
        Error::Refused(error.into())
    }
}

impl From<FdError> for Error {
    fn from(error: FdError) -> Self {
        Error::Refused(error.into())
    }
}

impl From<PinError> for Error {
    fn from(error: PinError) -> Self {
        Error::Refused(error.into())
    }
}

/// `Result` with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;
