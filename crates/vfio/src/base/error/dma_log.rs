//! The log of what a device writes.

use ioasid_core::AddrRange;

/// Why a log of DMA, or a report of it, is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaLogError {
    /// A log is under way (EINVAL).
    #[error("the device's DMA is logged already")]
    Started,
    /// No log is under way (EINVAL).
    #[error("the device's DMA is not logged")]
    NotStarted,
    /// The size of a page is one that it cannot have (EINVAL).
    #[error("{bytes:#x} bytes are no size of a page of the log")]
    PageSize {
        /// Bytes of a page.
        bytes: u64,
    },
    /// There is no range to log (EINVAL).
    #[error("no range is given to log")]
    NoRange,
    /// A range is not whole pages (EINVAL).
    #[error("{length:#x} bytes from {iova:#x} are not whole pages of {page_size:#x} bytes")]
    Misaligned {
        /// First address.
        iova: u64,
        /// Bytes.
        length: u64,
        /// Bytes of a page.
        page_size: u64,
    },
    /// A range is empty (EINVAL).
    #[error("the range at {iova:#x} is empty")]
    Empty {
        /// First address.
        iova: u64,
    },
    /// A range reaches the end of all addresses (EOVERFLOW).
    #[error("{length:#x} bytes from {iova:#x} reach the end of all addresses")]
    Overflow {
        /// First address.
        iova: u64,
        /// Bytes.
        length: u64,
    },
    /// A range overlaps another one (EINVAL).
    #[error("the range {range} overlaps {other}")]
    Overlaps {
        /// The range.
        range: AddrRange,
        /// The one before it.
        other: AddrRange,
    },
    /// More ranges than a log can have (E2BIG).
    #[error("a log has {limit} ranges at most")]
    TooManyRanges {
        /// The most.
        limit: u32,
    },
    /// Not all of the range of a report is logged (EINVAL).
    #[error("not all of {range} is logged")]
    NotLogged {
        /// The range.
        range: AddrRange,
    },
    /// The device has written more than its log has room for: all memory counts as written (EIO).
    #[error("the device has written more than its log has room for: all memory counts as written")]
    Overrun,
}
