//! Everything that can be refused, by subject: one enum a subject, one variant a cause, with the
//! values that the rule was about.
//!
//! The errno in each doc line is what a program sees. The numbers themselves live in the `uapi`
//! crate alone, as matches without a `_` arm: an enum that gets a cause does not compile there
//! until the cause has its errno. So none of them is `#[non_exhaustive]`, and code outside can rely
//! on that:
//!
//! ```
//! use ioasid_iommufd::MmapError;
//!
//! fn errno(error: MmapError) -> i32 {
//!     match error {
//!         MmapError::NotWholePages { .. } | MmapError::Private => 22,
//!         MmapError::Executable => 1,
//!         MmapError::NoSuchOffset { .. } => 6,
//!         MmapError::NoSpace { .. } => 28,
//!     }
//! }
//! # assert_eq!(errno(MmapError::Executable), 1);
//! ```
//!
//! A mapping that lacks one cause is refused, as it is for a cause that is new:
//!
//! ```compile_fail,E0004
//! use ioasid_iommufd::MmapError;
//!
//! fn errno(error: MmapError) -> i32 {
//!     match error {
//!         MmapError::NotWholePages { .. } | MmapError::Private => 22,
//!         MmapError::NoSuchOffset { .. } => 6,
//!         MmapError::NoSpace { .. } => 28,
//!     }
//! }
//! ```

mod access;
mod alloc;
mod attach;
mod dirty;
mod event;
mod invalidate;
mod mmap;
mod object;
mod option;
mod space;
mod user;

use ioasid_core::{failpoint::OutOfMemory, memory::PinError};

pub use access::AccessError;
pub use alloc::AllocError;
pub use attach::{AttachError, Mismatch};
pub use dirty::DirtyError;
pub use event::EventError;
pub use invalidate::InvalidateError;
pub use mmap::MmapError;
pub use object::ObjectError;
pub use option::OptionError;
pub use space::{CutError, MapError, RangeError, ReservedBy, UnmapError};
pub use user::UserDataError;

/// Why a command was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The id, or the file.
    #[error(transparent)]
    Object(#[from] ObjectError),
    /// A mapping that cannot be made.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Mappings that cannot be taken away.
    #[error(transparent)]
    Unmap(#[from] UnmapError),
    /// A mapping that cannot be cut in two.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// Ranges that cannot be reserved or allowed.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// An option.
    #[error(transparent)]
    Option(#[from] OptionError),
    /// A page table, virtual IOMMU, number of a device or queue that cannot be made.
    #[error(transparent)]
    Alloc(#[from] AllocError),
    /// A device that cannot be bound or attached.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// An access object.
    #[error(transparent)]
    Access(#[from] AccessError),
    /// Dirty pages.
    #[error(transparent)]
    Dirty(#[from] DirtyError),
    /// A file of events.
    #[error(transparent)]
    Event(#[from] EventError),
    /// An entry of HWPT_INVALIDATE.
    #[error(transparent)]
    Invalidate(#[from] InvalidateError),
    /// mmap on the file.
    #[error(transparent)]
    Mmap(#[from] MmapError),
    /// Data of the program for a back end.
    #[error(transparent)]
    UserData(#[from] UserDataError),
    /// The pages cannot be pinned: the memory is not mapped with the permission that is needed
    /// (EFAULT), no memory or over a limit (ENOMEM), outside the file (EINVAL), taken back by its
    /// exporter (ENODEV).
    #[error("the pages cannot be pinned: {0}")]
    Pin(PinError),
    /// A back end's own reason.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// No memory for what the command makes (ENOMEM).
    #[error("there is no memory for what the command makes")]
    NoMemory,
}

impl From<PinError> for Error {
    fn from(error: PinError) -> Self {
        Error::Pin(error)
    }
}

impl From<OutOfMemory> for Error {
    fn from(_: OutOfMemory) -> Self {
        Error::NoMemory
    }
}

impl Error {
    /// Whether another page table of the same IOAS may still suit the device: what the kernel says
    /// by EINVAL when it tries the automatic page tables in turn.
    pub(crate) fn is_mismatch(&self) -> bool {
        match self {
            Error::Attach(error) => error.is_mismatch(),
            Error::Map(error) => error.is_mismatch(),
            Error::Refused(refusal) => *refusal == Refusal::Invalid,
            _ => false,
        }
    }

    /// Whether a mapping or an allowed range, and a range that must stay unmapped, are in each
    /// other's way.
    pub fn is_range_conflict(&self) -> bool {
        match self {
            Error::Range(error) => error.is_conflict(),
            _ => false,
        }
    }
}

/// Why a back end refuses a command, where no cause of [`Error`] says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// EINVAL.
    #[error("the IOMMU refuses the request as invalid")]
    Invalid,
    /// EIO.
    #[error("the IOMMU reports an input/output error")]
    Io,
    /// ENOENT.
    #[error("the IOMMU finds no such entry")]
    NotFound,
    /// EEXIST.
    #[error("the IOMMU has such an entry already")]
    Exists,
    /// ENOMEM.
    #[error("the IOMMU has no memory left")]
    NoMemory,
    /// EFAULT.
    #[error("the IOMMU refuses the address")]
    Fault,
}

#[cfg(test)]
mod tests {
    use std::error::Error as _;

    use ioasid_core::{AddrRange, memory::MemoryGone};
    use ioasid_iommu::ReservedKind;

    use super::*;
    use crate::base::id::ObjectId;

    fn range(start: u64, last: u64) -> AddrRange {
        AddrRange::new(start, last).unwrap()
    }

    #[test]
    fn a_refused_mapping_says_what_is_in_the_way_and_whose_it_is() {
        let error = Error::from(MapError::Reserved {
            range: range(0xfee0_0000, 0xfee0_0fff),
            reserved: range(0xfee0_0000, 0xfeef_ffff),
            by: ReservedBy::Device {
                device: ObjectId::from_raw(3),
                address: "0000:6a:01.0".parse().unwrap(),
                kind: ReservedKind::Msi,
            },
        });
        let sentence = "overlaps the MSI window 0xfee00000-0xfeefffff of 0000:6a:01.0; \
                        IOAS_IOVA_RANGES lists what is free";
        assert_eq!(error.to_string(), sentence);
    }

    #[test]
    fn an_attach_says_at_which_pasid() {
        let attached = |pasid| {
            let device = ObjectId::from_raw(3);
            AttachError::Attached { device, pasid }.to_string()
        };
        let sentence = "device 3 is attached already: detach or replace it";
        assert_eq!(attached(None), sentence);
        let sentence = "device 3 is attached at PASID 7 already: detach or replace it";
        assert_eq!(attached(Some(7)), sentence);
    }

    #[test]
    fn the_cause_below_stays_the_source() {
        let gone = MemoryGone { done: 4 };
        let error = Error::from(AccessError::MemoryGone(gone));
        let source = error.source().and_then(|source| source.downcast_ref());
        assert_eq!(source, Some(&gone));
    }
}
