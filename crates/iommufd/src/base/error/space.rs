//! Address spaces: what is mapped, unmapped, cut, reserved and allowed.

use std::fmt;

use ioasid_core::{AddrRange, DomainId, PciAddress};
use ioasid_iommu::ReservedKind;

use crate::base::id::ObjectId;

/// What a range is reserved for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedBy {
    /// A device attached by its RID: its interrupt window and the like.
    Device {
        /// The device object.
        device: ObjectId,
        /// Where the device is.
        address: PciAddress,
        /// What the device or its IOMMU does there.
        kind: ReservedKind,
    },
    /// A page table that cannot translate the whole space.
    Domain(DomainId),
    /// A back end, for good.
    BackEnd,
}

/// A reserved range, as sentences have it.
struct Window(AddrRange, ReservedBy);

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Window(range, by) = self;
        let (start, last) = (range.start(), range.last());
        match by {
            ReservedBy::Device { address, kind, .. } => {
                let what = match kind {
                    ReservedKind::Direct | ReservedKind::DirectRelaxable => "one-to-one mapping",
                    ReservedKind::Reserved => "reserved region",
                    ReservedKind::Msi | ReservedKind::SoftwareMsi => "MSI window",
                };
                write!(f, "the {what} {start:#x}-{last:#x} of {address}")
            }
            ReservedBy::Domain(domain) => write!(
                f,
                "{start:#x}-{last:#x}, which the page table of domain {} cannot translate",
                domain.get()
            ),
            ReservedBy::BackEnd => write!(f, "{start:#x}-{last:#x}, which the IOMMU reserves"),
        }
    }
}

/// Why something was not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The length is 0 (EINVAL).
    #[error("the length of the mapping is 0")]
    Empty,
    /// The length is too close to 2^64 (EINVAL).
    #[error("a mapping of {len:#x} bytes is longer than any can be")]
    TooLong {
        /// Bytes.
        len: u64,
    },
    /// An address, offset or length does not fit the alignment of the IOAS (EINVAL).
    #[error("the {what} {value:#x} is no multiple of {alignment:#x}, the alignment of the IOAS")]
    Misaligned {
        /// Which number it is: IOVA, length, offset of the memory in its page, address.
        what: &'static str,
        /// The number.
        value: u64,
        /// What the page tables of the IOAS need, in bytes.
        alignment: u64,
    },
    /// The range passes the end of the 64-bit space (EOVERFLOW).
    #[error("{len:#x} bytes from {start:#x} pass the end of the address space")]
    Overflow {
        /// Where the range starts.
        start: u64,
        /// Bytes.
        len: u64,
    },
    /// Neither readable nor writeable was asked for (EINVAL).
    #[error("the flags allow neither READABLE nor WRITEABLE: a mapping needs one of them")]
    NoPermission,
    /// The range meets a reserved range (EINVAL).
    #[error("overlaps {}; IOAS_IOVA_RANGES lists what is free", Window(*reserved, *by))]
    Reserved {
        /// What was to be mapped.
        range: AddrRange,
        /// The range in the way.
        reserved: AddrRange,
        /// What it is reserved for.
        by: ReservedBy,
    },
    /// The range is mapped already, wholly or in part (EEXIST).
    #[error("the range {range} overlaps the mapping {mapped}: unmap that first")]
    Exists {
        /// What was to be mapped.
        range: AddrRange,
        /// The mapping in the way.
        mapped: AddrRange,
    },
    /// No free range is large enough (ENOSPC).
    #[error("no free and allowed range has {len:#x} bytes at a multiple of {alignment:#x}")]
    NoSpace {
        /// Bytes.
        len: u64,
        /// The alignment, in bytes.
        alignment: u64,
    },
    /// The source of a copy has a hole (ENOENT).
    #[error("the range {range} is not mapped as a whole, so it cannot be copied")]
    SourceHole {
        /// What was to be copied.
        range: AddrRange,
    },
    /// The pages were given read-only (EPERM).
    #[error("the pages were mapped read-only and cannot be mapped writeable")]
    ReadOnlyPages,
    /// A page table refuses: something is mapped there (EEXIST), the memory is not aligned to what
    /// it needs (EINVAL), or it cannot hold the addresses (ERANGE).
    #[error("a page table of the IOAS refuses the mapping: {0}")]
    Table(ioasid_iommu::MapError),
    /// A mapping of some IOAS comes from a process or a device, not from a file, so it cannot be
    /// handed over (EINVAL).
    #[error("a mapping of IOAS {ioas} is no file's memory and cannot change its process")]
    NotFileBacked {
        /// The IOAS.
        ioas: ObjectId,
    },
}

impl From<ioasid_iommu::MapError> for super::Error {
    fn from(error: ioasid_iommu::MapError) -> Self {
        match error {
            ioasid_iommu::MapError::NoMemory(error) => error.into(),
            error => MapError::Table(error).into(),
        }
    }
}

impl MapError {
    /// As [`Error::is_mismatch`](super::Error).
    pub(super) fn is_mismatch(&self) -> bool {
        use ioasid_iommu::MapError as TableError;
        matches!(
            self,
            MapError::Table(TableError::Empty { .. } | TableError::Unaligned { .. })
        )
    }
}

/// Why mappings were not, or not all, taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnmapError {
    /// The length is 0 (EINVAL).
    #[error("the length to unmap is 0")]
    Empty,
    /// The range passes the end of the 64-bit space (EOVERFLOW).
    #[error("{len:#x} bytes from {start:#x} pass the end of the address space")]
    Overflow {
        /// Where the range starts.
        start: u64,
        /// Bytes.
        len: u64,
    },
    /// Nothing is mapped in the range (ENOENT).
    #[error("nothing is mapped in the range {range}")]
    NotMapped {
        /// What was to be unmapped.
        range: AddrRange,
    },
    /// An edge of the range cuts a mapping (ENOENT).
    #[error("the range {range} cuts the mapping {area}")]
    Cuts {
        /// What was to be unmapped.
        range: AddrRange,
        /// The mapping.
        area: AddrRange,
    },
    /// Hardware owns the pages of a mapping: its queue goes first (EBUSY).
    #[error("a hardware queue owns the pages of the mapping {area}")]
    Locked {
        /// The mapping.
        area: AddrRange,
    },
    /// An access object does not release pages that are to be unmapped (EDEADLOCK).
    #[error("an access object does not release the pages of the mapping {area}")]
    StillHeld {
        /// The mapping.
        area: AddrRange,
    },
}

/// Why a mapping was not cut in two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// The mapping is about to go (EBUSY).
    #[error("the mapping {area} is being unmapped")]
    Changing {
        /// The mapping.
        area: AddrRange,
    },
    /// Mappings of a device's pages cannot be cut (EOPNOTSUPP).
    #[error("the mapping {area} is of a device's pages and cannot be cut")]
    DevicePages {
        /// The mapping.
        area: AddrRange,
    },
    /// A part would not be aligned as the IOAS needs (EINVAL).
    #[error(
        "a cut of the mapping {area} after {last:#x} does not fit the alignment {alignment:#x}"
    )]
    Misaligned {
        /// The mapping.
        area: AddrRange,
        /// The last address of its first part.
        last: u64,
        /// What the page tables of the IOAS need, in bytes.
        alignment: u64,
    },
    /// An access object uses the mapping, or it is in a page table with leaves that may be large
    /// (EINVAL).
    #[error("the mapping {area} is in use, or may have large pages, and cannot be cut")]
    InUse {
        /// The mapping.
        area: AddrRange,
    },
}

/// Why ranges cannot be reserved or allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// A range to allow does not start below its last address (EINVAL).
    #[error("an allowed range must start below its last address, not {start:#x} to {last:#x}")]
    Empty {
        /// Its start.
        start: u64,
        /// Its last address.
        last: u64,
    },
    /// Two ranges to allow overlap (EINVAL).
    #[error("the allowed range {range} overlaps another one")]
    Overlaps {
        /// One of them.
        range: AddrRange,
    },
    /// A mapping stands where a range must stay unmapped (EADDRINUSE).
    #[error("{area} is mapped and overlaps {}: unmap it first", Window(*reserved, *by))]
    Mapped {
        /// The range to reserve.
        reserved: AddrRange,
        /// The mapping in the way.
        area: AddrRange,
        /// What needs the range.
        by: ReservedBy,
    },
    /// A range that must stay unmapped was promised to stay mappable (EADDRINUSE).
    #[error("an allowed range of the IOAS overlaps {}", Window(*reserved, *by))]
    Allowed {
        /// The range to reserve.
        reserved: AddrRange,
        /// What needs it.
        by: ReservedBy,
    },
    /// A range to allow is reserved (EADDRINUSE).
    #[error("the range {range} cannot be allowed: a part of it is reserved")]
    Reserved {
        /// The range to allow.
        range: AddrRange,
    },
    /// Mappings are not aligned as a page table, an access object or pages without large leaves
    /// need (EADDRINUSE).
    #[error("a mapping of the IOAS is not aligned to {alignment:#x}, as is needed now")]
    MisalignedAreas {
        /// What is needed, in bytes.
        alignment: u64,
    },
}

impl RangeError {
    /// Whether mappings or allowed ranges and reserved ranges are in each other's way, or mappings
    /// are not aligned as is needed.
    pub(super) fn is_conflict(&self) -> bool {
        match self {
            RangeError::Mapped { .. }
            | RangeError::Allowed { .. }
            | RangeError::Reserved { .. }
            | RangeError::MisalignedAreas { .. } => true,
            RangeError::Empty { .. } | RangeError::Overlaps { .. } => false,
        }
    }
}
