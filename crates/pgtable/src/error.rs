//! Why a mapping was refused or a walk stopped.

use ioasid_core::{AddrRange, failpoint::OutOfMemory};

/// Why nothing was mapped (or cut).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// Something is mapped in the range already. The kernel answers EADDRINUSE from its page tables
    /// and EEXIST from the maps above them.
    #[error("an address of {range} is mapped already: unmap it first")]
    Exists {
        /// The input addresses that were asked for.
        range: AddrRange,
    },
    /// The length is 0 (EINVAL).
    #[error("a mapping of 0 bytes at {iova:#x}")]
    Empty {
        /// The input address that was asked for.
        iova: u64,
    },
    /// An address or the length is not a multiple of the smallest leaf (EINVAL).
    #[error("{value:#x} is not a multiple of the page size {page_size:#x}")]
    Unaligned {
        /// The address or length.
        value: u64,
        /// The smallest leaf of the table, in bytes.
        page_size: u64,
    },
    /// The input range leaves the aperture (ERANGE).
    #[error("{len:#x} bytes from {iova:#x} leave {aperture}, the addresses of the page table")]
    OutOfRange {
        /// The input address that was asked for.
        iova: u64,
        /// Its length in bytes.
        len: u64,
        /// The input addresses that can be mapped.
        aperture: AddrRange,
    },
    /// The output range leaves the addresses that an entry has room for (ERANGE).
    #[error("{len:#x} bytes from system physical address {spa:#x} need more than {bits} bits")]
    OutputOutOfRange {
        /// The system physical address that was asked for.
        spa: u64,
        /// Its length in bytes.
        len: u64,
        /// Bits of an output address.
        bits: u32,
    },
    /// Neither read nor write was asked for (EINVAL).
    #[error("the mapping at {iova:#x} needs read or write permission")]
    NoPermission {
        /// The input address that was asked for.
        iova: u64,
    },
    /// The domain is blocked or an identity: it has no page table (ERANGE).
    #[error("the domain has no page table to map in")]
    NoPageTable,
    /// No memory for a table (ENOMEM).
    #[error("no memory for a table")]
    NoMemory(#[from] OutOfMemory),
}

/// Why a walk found no translation. Without values, since every DMA passes by here: the caller knows
/// the address and the access, and puts them into its fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
