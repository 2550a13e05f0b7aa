//! Why a mapping was refused or a walk stopped.

use ioasid_core::failpoint::OutOfMemory;

/// Why nothing was mapped (or cut).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MapError {
    /// Something is mapped in the range already. The kernel answers EADDRINUSE from its page tables
    /// and EEXIST from the maps above them.
    #[error("an address of the range is mapped already")]
    Exists,
    /// An address or the length is not a multiple of 4 KiB, or the length is 0 (EINVAL).
    #[error("address or length is not a multiple of the page size")]
    Unaligned,
    /// The input range leaves the aperture, or the output range the 52 bits of an entry (ERANGE).
    #[error("the range leaves the addresses that the format has")]
    OutOfRange,
    /// Neither read nor write was asked for (EINVAL).
    #[error("a mapping needs read or write permission")]
    NoPermission,
    /// No memory for a table (ENOMEM).
    #[error("no memory for a table")]
    NoMemory,
}

impl From<OutOfMemory> for MapError {
    fn from(_: OutOfMemory) -> Self {
        MapError::NoMemory
    }
}

/// Why a walk found no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WalkFault {
    /// No entry is present.
    #[error("not mapped")]
    NotPresent,
    /// The entry does not allow the access.
    #[error("access not allowed")]
    Permission,
    /// The address is outside the aperture.
    #[error("address outside the aperture")]
    OutOfRange,
}
