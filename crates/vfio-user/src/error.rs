//! What can go wrong with a command, by subject; each cause says the values that its rule is about. The
//! errno of each is in its doc line; the numbers of other crates' errors come from
//! [`ioasid_uapi::errno`].

use std::sync::Arc;

use ioasid_core::{AddrRange, host::FdError};
use ioasid_uapi::{CallError, Errno, error::RequestError};
use ioasid_vfio::error::{BindError, DmaLogError, FeatureError, MigrationError, RegionError};

/// Why a command failed: its reply carries the errno.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The message is not one that the protocol has.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The VM's memory cannot be mapped or unmapped so.
    #[error(transparent)]
    Map(#[from] MapError),
    /// What the device said.
    #[error(transparent)]
    Device(#[from] ioasid_vfio::Error),
    /// What the address space said.
    #[error(transparent)]
    Space(#[from] ioasid_iommufd::Error),
    /// A descriptor that came along cannot be used.
    #[error("a descriptor of the message cannot be used")]
    Descriptor(#[from] FdError),
    /// What the ioctl said that the command stands for.
    #[error("the ioctl of this command: {0}")]
    Ioctl(CallError),
}

impl From<CallError> for Error {
    fn from(error: CallError) -> Self {
        Error::Ioctl(error)
    }
}

/// What is wrong with a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// The payload, or a size that it says, does not fit the command (EINVAL).
    #[error("{bytes} bytes do not fit the command, which needs {needed}")]
    Size {
        /// Bytes that there are.
        bytes: usize,
        /// Bytes that the command has, or has at least.
        needed: usize,
    },
    /// The message is longer than any can be (EMSGSIZE).
    #[error("{bytes} bytes are too many: {limit} at most")]
    TooLong {
        /// Bytes of the message, or of its text.
        bytes: usize,
        /// The most.
        limit: usize,
    },
    /// A field has a value that it cannot have (EINVAL).
    #[error("the field {field} cannot be {value:#x}")]
    Field {
        /// Its name in the protocol.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// More bytes than one access moves (EINVAL).
    #[error("{bytes} bytes are more than one access moves: {limit} at most")]
    TooMuch {
        /// Bytes asked for.
        bytes: u64,
        /// The most.
        limit: u64,
    },
    /// An access passes the end of its region (EINVAL).
    #[error("the access passes the end of its region: {done} of {bytes} bytes are in it")]
    BeyondRegion {
        /// Bytes of the access.
        bytes: usize,
        /// Bytes in the region.
        done: usize,
    },
    /// Not the number of descriptors that the command has (EINVAL).
    #[error("{given} descriptors came along, and the command has {expected}")]
    Descriptors {
        /// Descriptors that came.
        given: usize,
        /// Descriptors that the command has.
        expected: usize,
    },
    /// More descriptors came than a message may bring (EINVAL).
    #[error("more descriptors came along than the {limit} that a message may bring")]
    TooManyDescriptors {
        /// The most.
        limit: usize,
    },
    /// The major version is another one (EINVAL).
    #[error("the protocol's major version {major} is not spoken here")]
    Version {
        /// The client's.
        major: u16,
    },
    /// The text of VERSION is not the JSON that it has to be (EINVAL).
    #[error("the text of VERSION is not what it has to be")]
    Json(#[source] JsonError),
    /// The first message was no VERSION, or a later one was (EINVAL).
    #[error("VERSION is the first message, and only that")]
    OutOfTurn,
    /// No such command, or none that a client sends (ENOTTY).
    #[error("there is no command {number} that a client sends")]
    Command {
        /// Its number.
        number: u16,
    },
}

/// Why memory of a VM is not mapped or unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The flags do not go together, or with a descriptor (EINVAL).
    #[error("the flags {flags:#x} do not go together, or not with the descriptor that came along")]
    Flags {
        /// The flags.
        flags: u32,
    },
    /// The range is empty, or passes the end of all addresses (EINVAL).
    #[error("{size:#x} bytes from {address:#x} are no range")]
    Range {
        /// First address.
        address: u64,
        /// Bytes.
        size: u64,
    },
    /// DMA never reaches a part of the range (EINVAL).
    #[error("the range {range} overlaps the interrupt window {window}")]
    Reserved {
        /// The range.
        range: AddrRange,
        /// What is reserved.
        window: AddrRange,
    },
    /// The connection has as many mappings as it may have (ENOSPC).
    #[error("the connection has {limit} mappings, as many as it may have")]
    TooMany {
        /// The most.
        limit: usize,
    },
    /// The connection has mapped some of the range already (EEXIST).
    #[error("some of {range} is mapped by this connection already")]
    Exists {
        /// The range.
        range: AddrRange,
    },
    /// Another device of the same VM has mapped something else there (EEXIST).
    #[error("another device of the VM has mapped something else in {range}")]
    Different {
        /// The range.
        range: AddrRange,
    },
    /// Only a part of a mapping would be removed (EINVAL).
    #[error("the range {range} cuts the mapping {mapping}, which can only be removed whole")]
    Cuts {
        /// The range.
        range: AddrRange,
        /// The mapping.
        mapping: AddrRange,
    },
    /// Dirty pages are not reported with an unmap (EOPNOTSUPP).
    #[error("dirty pages are not reported with an unmap")]
    NoDirtyPages,
    /// The connection has left the VM (EINVAL).
    #[error("the connection has left the VM")]
    Left,
}

/// What the JSON reader says. Two are equal if they are about the same place of a text.
#[derive(Clone, Debug, thiserror::Error)]
#[error(transparent)]
pub struct JsonError(#[from] Arc<serde_json::Error>);

impl From<serde_json::Error> for JsonError {
    fn from(error: serde_json::Error) -> Self {
        JsonError(Arc::new(error))
    }
}

impl PartialEq for JsonError {
    fn eq(&self, other: &Self) -> bool {
        let place = |error: &serde_json::Error| (error.line(), error.column(), error.classify());
        place(&self.0) == place(&other.0)
    }
}

impl Eq for JsonError {}

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        match error {
            Error::Message(error) => error.into(),
            Error::Map(error) => error.into(),
            Error::Device(error) => error.into(),
            Error::Space(error) => error.into(),
            Error::Descriptor(error) => error.into(),
            Error::Ioctl(error) => error.into(),
        }
    }
}

impl From<MessageError> for Errno {
    fn from(error: MessageError) -> Self {
        match error {
            MessageError::Size { .. }
            | MessageError::Field { .. }
            | MessageError::TooMuch { .. }
            | MessageError::BeyondRegion { .. }
            | MessageError::Descriptors { .. }
            | MessageError::TooManyDescriptors { .. }
            | MessageError::Version { .. }
            | MessageError::Json(_)
            | MessageError::OutOfTurn => Errno::EINVAL,
            MessageError::TooLong { .. } => Errno::EMSGSIZE,
            MessageError::Command { .. } => Errno::ENOTTY,
        }
    }
}

impl From<MapError> for Errno {
    fn from(error: MapError) -> Self {
        match error {
            MapError::Flags { .. }
            | MapError::Range { .. }
            | MapError::Reserved { .. }
            | MapError::Cuts { .. }
            | MapError::Left => Errno::EINVAL,
            MapError::TooMany { .. } => Errno::ENOSPC,
            MapError::Exists { .. } | MapError::Different { .. } => Errno::EEXIST,
            MapError::NoDirtyPages => Errno::EOPNOTSUPP,
        }
    }
}

macro_rules! of_the_device {
    ($($error:ty),*) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Self {
                Error::Device(error.into())
            }
        })*
    };
}

of_the_device!(
    BindError,
    RegionError,
    FeatureError,
    MigrationError,
    DmaLogError
);

impl From<RequestError> for Error {
    fn from(error: RequestError) -> Self {
        Error::Ioctl(error.into())
    }
}

/// `Result` with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
