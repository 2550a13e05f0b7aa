//! HWPT_INVALIDATE.

/// Why an entry of HWPT_INVALIDATE was not carried out; those before it were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidateError {
    /// An unknown flag, or a reserved field that is not 0 (EOPNOTSUPP).
    #[error(
        "entry {index} has the flags {flags:#x} and the reserved field {reserved:#x}: known is the flag 0x1"
    )]
    NotSupported {
        /// The entry, counted from 0.
        index: u32,
        /// Its flags.
        flags: u32,
        /// Its reserved field.
        reserved: u32,
    },
    /// An address inside a page, or all pages from another address than 0 (EINVAL).
    #[error(
        "entry {index} is {pages:#x} pages from {address:#x}: it must start at a page, and all pages at 0"
    )]
    BadRange {
        /// The entry, counted from 0.
        index: u32,
        /// Its address.
        address: u64,
        /// How many pages of 4 KiB.
        pages: u64,
    },
}
