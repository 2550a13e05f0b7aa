//! Access objects.

use ioasid_core::{AddrRange, memory::MemoryGone};

use crate::base::id::ObjectId;

/// Why an access object was not attached, or does not reach memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AccessError {
    /// The access object is attached to no IOAS (ENOENT).
    #[error("access object {0} is attached to no IOAS")]
    NotAttached(ObjectId),
    /// The access object is attached already (EINVAL).
    #[error("access object {access} is attached to IOAS {ioas} already")]
    AlreadyAttached {
        /// The access object.
        access: ObjectId,
        /// What it is attached to.
        ioas: ObjectId,
    },
    /// The access object only copies (EINVAL).
    #[error("access object {0} copies, and cannot pin pages")]
    CopiesOnly(ObjectId),
    /// The length is 0 (EINVAL).
    #[error("the length of the access is 0")]
    Empty,
    /// The range passes the end of the 64-bit space (EOVERFLOW).
    #[error("{len:#x} bytes from {start:#x} pass the end of the address space")]
    Overflow {
        /// Where the range starts.
        start: u64,
        /// Bytes.
        len: u64,
    },
    /// An address of the range is not mapped (ENOENT).
    #[error("the range {range} is not mapped at {at:#x}")]
    NotMapped {
        /// What was to be reached.
        range: AddrRange,
        /// The first address that is not mapped.
        at: u64,
    },
    /// The mapping is about to go (EINVAL).
    #[error("the mapping {area} is being unmapped")]
    Leaving {
        /// The mapping.
        area: AddrRange,
    },
    /// The mapping is of another device's pages (EINVAL).
    #[error("the mapping {area} is of a device's pages, which software cannot use")]
    DevicePages {
        /// The mapping.
        area: AddrRange,
    },
    /// Pages to pin start or end inside a page (EINVAL).
    #[error("{len:#x} bytes at offset {offset:#x} of the memory are not whole pages")]
    PartialPage {
        /// Where they start in the memory behind the mapping.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The mapping does not allow this kind of access (EPERM).
    #[error("the mapping {area} cannot be {}", if *write { "written" } else { "read" })]
    Permission {
        /// The mapping.
        area: AddrRange,
        /// Whether it was to be written.
        write: bool,
    },
    /// The memory behind the mapping is gone (EFAULT).
    #[error("the memory behind the mapping is gone")]
    MemoryGone(#[source] MemoryGone),
}
