//! Dirty pages.

use ioasid_core::AddrRange;

use crate::base::id::ObjectId;

/// Why dirty pages are not tracked or cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DirtyError {
    /// Dirty tracking was not asked for when the page table was made (EOPNOTSUPP).
    #[error("page table {0} was made without dirty tracking")]
    NotSupported(ObjectId),
    /// Dirty tracking is off (EINVAL).
    #[error("dirty tracking is off for page table {0}")]
    Off(ObjectId),
    /// The range passes the end of the 64-bit space (EOVERFLOW).
    #[error("{len:#x} bytes from {iova:#x} pass the end of the address space")]
    Overflow {
        /// First IOVA.
        iova: u64,
        /// Bytes.
        len: u64,
    },
    /// The range has no byte (EINVAL).
    #[error("the range is empty")]
    Empty,
    /// The range is not aligned to the IOAS or to the bits of the bitmap (EINVAL).
    #[error("{iova:#x} or its end {len:#x} bytes later is no multiple of {alignment:#x}")]
    Misaligned {
        /// First IOVA.
        iova: u64,
        /// Bytes.
        len: u64,
        /// What is needed, in bytes.
        alignment: u64,
    },
    /// The range is not wholly mapped (EINVAL).
    #[error("the range {range} is not wholly mapped")]
    NotMapped {
        /// The range.
        range: AddrRange,
    },
}
