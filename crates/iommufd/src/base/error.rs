//! Everything that can be refused, one variant per cause. The errno in each doc line is what a
//! program sees; the numbers themselves live in the `uapi` crate.

use ioasid_core::{
    failpoint::OutOfMemory,
    memory::{PAGE_SIZE, PinError},
};
use ioasid_iommu::{AttachError, MapError};

use super::id::ObjectId;

/// Why a command was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The id names no object, or one of another type (ENOENT).
    #[error("object {0} does not exist, or has another type")]
    NoObject(ObjectId),
    /// The page table that HWPT_ALLOC is to build on does not exist, or cannot be built on (EINVAL).
    #[error("object {0} is nothing to build a page table on")]
    NotAParent(ObjectId),
    /// ATTACH names an object that is neither an IOAS nor a page table (EINVAL).
    #[error("object {0} is neither an IOAS nor a page table")]
    NotAttachable(ObjectId),
    /// Other objects or attachments use it (EBUSY).
    #[error("object {0} is in use")]
    InUse(ObjectId),
    /// An option can be set only before the first object is made (EBUSY).
    #[error("there are objects already")]
    HasObjects,
    /// No object id is left (ENOSPC).
    #[error("no object id is left")]
    NoIds,
    /// The context is closed (ENODEV).
    #[error("the file is closed")]
    Closed,
    /// No memory for what the command makes (ENOMEM).
    #[error("out of memory")]
    NoMemory,

    /// A length is 0 where something must be mapped or unmapped (EINVAL).
    #[error("the length is 0")]
    Empty,
    /// An address or length does not fit the alignment of the IOAS (EINVAL).
    #[error("not aligned to {alignment:#x}")]
    Misaligned {
        /// What the page tables of the IOAS need, in bytes.
        alignment: u64,
    },
    /// A range passes the end of the 64-bit space (EOVERFLOW).
    #[error("the range wraps")]
    Overflow,
    /// Neither readable nor writeable was asked for (EINVAL).
    #[error("a mapping needs at least one permission")]
    NoPermission,
    /// The range meets a reserved range (EINVAL).
    #[error("the range is reserved")]
    Reserved,
    /// The range is mapped already (EEXIST).
    #[error("the range is mapped already")]
    Mapped,
    /// No free range is large enough (ENOSPC).
    #[error("no free range is large enough")]
    NoSpace,
    /// The range is not mapped, or its edge cuts a mapping (ENOENT).
    #[error("the range is not mapped, or cuts a mapping")]
    NotMapped,
    /// The pages were given read-only (EPERM).
    #[error("the pages were mapped read-only")]
    ReadOnlyPages,
    /// The pages could not be had: the memory is not mapped with the permission that is needed
    /// (EFAULT), no memory or over a limit (ENOMEM), outside the file (EINVAL).
    #[error("the pages cannot be had: {0}")]
    Pin(#[from] PinError),
    /// An address that the page table cannot hold (ERANGE).
    #[error("the page table cannot hold these addresses")]
    OutsideTable,
    /// Hardware owns the pages of a mapping: its queue goes first (EBUSY).
    #[error("the pages belong to a queue of hardware")]
    AreaLocked,
    /// An access object does not let go of pages that are to be unmapped (EDEADLOCK).
    #[error("an access object does not let go of the pages")]
    StillHeld,
    /// An access object cannot use these pages: they are about to go, start or end inside a page, or
    /// belong to another device (EINVAL).
    #[error("the pages cannot be used through an access object")]
    NotAccessible,
    /// The access object is attached to no IOAS (ENOENT).
    #[error("the access object is attached to no IOAS")]
    NotAttached,
    /// The access object is attached already (EINVAL).
    #[error("the access object is attached already")]
    AlreadyAttached,
    /// The exporter of a dma-buf has taken it back (ENODEV).
    #[error("the memory has been taken back by its exporter")]
    Revoked,
    /// A list of ranges overlaps itself or has a range whose start is not below its last (EINVAL).
    #[error("the ranges overlap or are empty")]
    BadRanges,
    /// A mapping or an allowed range stands where the device or page table needs a reserved range,
    /// or mappings are not aligned as the page table needs (EADDRINUSE).
    #[error("mappings or allowed ranges are in the way")]
    AddressInUse,
    /// The mapping is about to go (EBUSY).
    #[error("the mapping is about to go")]
    Changing,
    /// Mappings of a device's pages cannot be cut (EOPNOTSUPP).
    #[error("mappings of a device's pages cannot be cut")]
    CannotCut,
    /// Large pages cannot be turned off once mappings are in a page table, and mappings with large
    /// pages or users cannot be cut (EINVAL).
    #[error("mappings are in use already")]
    TooLate,
    /// An option has no such value (EINVAL).
    #[error("no such value for this option")]
    BadValue,

    /// A flag that is unknown, or that this device or its IOMMU does not support (EOPNOTSUPP).
    #[error("the flags are not supported")]
    FlagsNotSupported,
    /// A type of data, page table, virtual IOMMU, event or queue that the device's IOMMU does not have
    /// (EOPNOTSUPP).
    #[error("the IOMMU has nothing of this type")]
    TypeNotSupported,
    /// Data for the page table is missing, or there where it must not be (EINVAL).
    #[error("the type and length of the page table's data contradict each other")]
    BadData,
    /// Data for a back end is of another type, too short or too long (EINVAL).
    #[error("the data has the wrong type or length")]
    BadUserData,
    /// An entry for a back end has bytes that it does not know, and they are not 0 (E2BIG).
    #[error("the data has bytes that mean nothing")]
    UserDataTooLong,
    /// The program's memory is not there (EFAULT).
    #[error("the program's memory is not there")]
    UserMemory,
    /// A back end's own reason.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The device has a number on a virtual IOMMU, the number is taken, or there is a queue for these
    /// events (EEXIST).
    #[error("there is one already")]
    Exists,
    /// The device is behind another IOMMU than the virtual one (EINVAL).
    #[error("the device is behind another IOMMU")]
    OtherIommu,
    /// Only nested page tables and virtual IOMMUs cache what a program can invalidate (EINVAL).
    #[error("nothing is cached for programs there")]
    NothingCached,
    /// A queue of events for none or for more than 2^19 (EINVAL).
    #[error("no queue holds as many events")]
    BadDepth,
    /// The pages of a hardware queue are not neighbours (EFAULT).
    #[error("the pages are not contiguous")]
    NotContiguous,
    /// Only whole shared pages of the file can be mapped (EINVAL).
    #[error("only whole shared pages can be mapped")]
    BadMapping,
    /// Nothing of the file can be executed (EPERM).
    #[error("nothing here can be executed")]
    Executable,
    /// Nothing to map starts there, or it has another length (ENXIO).
    #[error("there is nothing to map at this offset")]
    NoSuchOffset,

    /// A driver, or another file, owns the DMA of the device's group (EPERM).
    #[error("somebody else owns the DMA of the device's group")]
    NotOwner,
    /// The device, or its group, is busy (EBUSY).
    #[error("the device is busy")]
    DeviceBusy,
    /// A replace where nothing is attached (EINVAL).
    #[error("nothing is attached that could be replaced")]
    NothingToReplace,
    /// The page table does not fit the device: format, address width, dirty tracking (EINVAL).
    #[error("the page table does not fit the device")]
    Incompatible,
    /// The device's group is attached to another page table (EINVAL).
    #[error("the device's group is attached to another page table")]
    GroupElsewhere,
    /// PASIDs need page tables made for them, at the device itself too (EINVAL).
    #[error("the page table was not made for use with PASIDs")]
    NotForPasids,
    /// The PASID is 0 or beyond what the device has (EINVAL).
    #[error("the device has no such PASID")]
    NoSuchPasid,
    /// The PASID is 2^31 or more: no number of this kind is ever handed out (ENOSPC).
    #[error("the PASID is out of the range of numbers")]
    PasidSpace,
    /// Programs cannot choose PASIDs at this device (EOPNOTSUPP).
    #[error("the device has no PASIDs for programs")]
    NoPasids,

    /// Dirty tracking was not asked for when the page table was made (EOPNOTSUPP).
    #[error("the page table was made without dirty tracking")]
    NoDirtyTracking,
    /// Dirty tracking is off, or the range is not wholly mapped, or not aligned (EINVAL).
    #[error("no dirty bits can be read there")]
    NoDirtyBits,
    /// A read or write whose length is no multiple of a record (ESPIPE).
    #[error("the length is not one of whole records")]
    PartialRecord,
    /// The buffer of a read is too short for the first event (EINVAL).
    #[error("the first event does not fit the buffer")]
    ReadTooShort,
    /// An answer names no fault that waits for one, or is none that there is (EINVAL).
    #[error("the answer fits no fault")]
    BadAnswer,
    /// This kind of file has no events (EINVAL).
    #[error("nothing can be read from this file")]
    NotReadable,
    /// This kind of file takes no answers (EINVAL).
    #[error("nothing can be written to this file")]
    NotWritable,

    /// A read of a file that is open for writing alone, or the other way round (EBADF).
    #[error("the file is not open for that")]
    WrongMode,
    /// A mapping comes from a process, not from a file (EINVAL).
    #[error("a mapping belongs to the process")]
    NotFileBacked,
    /// No IOAS was chosen for the VFIO commands (ENODEV).
    #[error("no IOAS is set for VFIO")]
    NoVfioIoas,
}

impl From<OutOfMemory> for Error {
    fn from(_: OutOfMemory) -> Self {
        Error::NoMemory
    }
}

impl From<MapError> for Error {
    fn from(error: MapError) -> Self {
        match error {
            MapError::Exists { .. } => Error::Mapped,
            MapError::Empty { .. } | MapError::Unaligned { .. } => Error::Misaligned {
                alignment: PAGE_SIZE,
            },
            MapError::NoPermission { .. } => Error::NoPermission,
            MapError::NoMemory(_) => Error::NoMemory,
            MapError::OutOfRange { .. }
            | MapError::OutputOutOfRange { .. }
            | MapError::NoPageTable => Error::OutsideTable,
        }
    }
}

impl From<AttachError> for Error {
    fn from(error: AttachError) -> Self {
        match error {
            // A device without PASIDs has a limit of 0: any PASID is beyond it.
            AttachError::NoPasidSupport { .. } | AttachError::PasidRange { .. } => {
                Error::NoSuchPasid
            }
            AttachError::Attached { .. }
            | AttachError::DriverInUse { .. }
            | AttachError::Resetting { .. } => Error::DeviceBusy,
            AttachError::NoMemory(_) => Error::NoMemory,
            AttachError::NotSingleton { .. }
            | AttachError::NotAttached { .. }
            | AttachError::Incompatible(_) => Error::Incompatible,
        }
    }
}

/// Why a back end refuses a command, where no cause of [`Error`] says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// EINVAL.
    #[error("refused: invalid")]
    Invalid,
    /// EIO.
    #[error("refused: input/output error")]
    Io,
    /// ENOENT.
    #[error("refused: not found")]
    NotFound,
    /// EEXIST.
    #[error("refused: exists")]
    Exists,
    /// ENOMEM.
    #[error("refused: no memory")]
    NoMemory,
    /// EFAULT.
    #[error("refused: bad address")]
    Fault,
}

impl Error {
    /// Whether another page table of the same IOAS may still suit the device: what the kernel tells
    /// by EINVAL when it tries the automatic page tables in turn.
    pub(crate) fn is_mismatch(self) -> bool {
        matches!(
            self,
            Error::Incompatible
                | Error::GroupElsewhere
                | Error::NotForPasids
                | Error::NoSuchPasid
                | Error::Misaligned { .. }
                | Error::Refused(Refusal::Invalid)
        )
    }
}
