//! Data of a program for a back end.

use ioasid_core::memory::MemoryGone;

/// Why data of a program was not taken or given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UserDataError {
    /// Data of another type (EINVAL).
    #[error("the data is of the type {kind}, not {wanted}")]
    WrongType {
        /// What the program says.
        kind: u32,
        /// What is needed.
        wanted: u32,
    },
    /// Too short or too long (EINVAL).
    #[error("the data has {len} bytes, not {min} to {max}")]
    Length {
        /// Bytes that the program has.
        len: usize,
        /// The fewest.
        min: usize,
        /// The most.
        max: usize,
    },
    /// An array without address, with entries too long or with too many entries (EINVAL).
    #[error("an array of {entries} entries of {entry_len} bytes cannot be at {address:#x}")]
    BadArray {
        /// Where it is in the program.
        address: u64,
        /// Bytes of an entry.
        entry_len: u32,
        /// Entries.
        entries: u32,
    },
    /// An entry that the array does not have (EINVAL).
    #[error("the array has {entries} entries, and none with the index {index}")]
    NoSuchEntry {
        /// The index.
        index: u32,
        /// Entries.
        entries: u32,
    },
    /// An entry has bytes that the back end does not know, and they are not 0 (E2BIG).
    #[error("the data has bytes beyond the first {known} that are not 0")]
    UnknownBytes {
        /// Bytes that are known.
        known: usize,
    },
    /// An entry has a value that the back end does not know (EINVAL).
    #[error("the data has a value that it cannot have")]
    BadValue,
    /// The program's memory is not there (EFAULT).
    #[error("the program's memory at {address:#x} is not there")]
    Unreadable {
        /// The address.
        address: u64,
        /// What the memory said.
        source: MemoryGone,
    },
    /// An entry's address is beyond the 64-bit space (EFAULT).
    #[error("entry {index} is beyond the end of all addresses")]
    BeyondMemory {
        /// The entry.
        index: u32,
    },
}
