//! The errno of each error of `ioasid-iommufd`.
//!
//! The matches have no `_` arm: a cause that is added there does not compile here until it has its
//! errno. (An example that shows it stands in the documentation of `ioasid_iommufd`'s errors.)

use ioasid_iommu::{
    AttachError as DomainError, MapError as TableError, Mismatch as DomainMismatch,
};
use ioasid_iommufd::{
    AccessError, AllocError, AttachError, CutError, DirtyError, Error, EventError, InvalidateError,
    MapError, MmapError, ObjectError, OptionError, RangeError, Refusal, UnmapError, UserDataError,
};

use super::Errno;

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        match error {
            Error::Object(error) => error.into(),
            Error::Map(error) => error.into(),
            Error::Unmap(error) => error.into(),
            Error::Cut(error) => error.into(),
            Error::Range(error) => error.into(),
            Error::Option(error) => error.into(),
            Error::Alloc(error) => error.into(),
            Error::Attach(error) => error.into(),
            Error::Access(error) => error.into(),
            Error::Dirty(error) => error.into(),
            Error::Event(error) => error.into(),
            Error::Invalidate(error) => error.into(),
            Error::Mmap(error) => error.into(),
            Error::UserData(error) => error.into(),
            Error::Pin(error) => error.into(),
            Error::Refused(refusal) => refusal.into(),
            Error::NoMemory => Errno::ENOMEM,
        }
    }
}

impl From<ObjectError> for Errno {
    fn from(error: ObjectError) -> Self {
        match error {
            ObjectError::Missing(_) => Errno::ENOENT,
            ObjectError::InUse(_) => Errno::EBUSY,
            ObjectError::NoIds => Errno::ENOSPC,
            ObjectError::Closed => Errno::ENODEV,
            ObjectError::NothingCached(_) => Errno::EINVAL,
        }
    }
}

impl From<MapError> for Errno {
    fn from(error: MapError) -> Self {
        match error {
            MapError::Empty
            | MapError::TooLong { .. }
            | MapError::Misaligned { .. }
            | MapError::NoPermission
            | MapError::Reserved { .. }
            | MapError::NotFileBacked { .. } => Errno::EINVAL,
            MapError::Overflow { .. } => Errno::EOVERFLOW,
            MapError::Exists { .. } => Errno::EEXIST,
            MapError::NoSpace { .. } => Errno::ENOSPC,
            MapError::SourceHole { .. } => Errno::ENOENT,
            MapError::ReadOnlyPages => Errno::EPERM,
            MapError::Table(error) => match error {
                TableError::Exists { .. } => Errno::EEXIST,
                TableError::Empty { .. }
                | TableError::Unaligned { .. }
                | TableError::NoPermission { .. } => Errno::EINVAL,
                TableError::OutOfRange { .. }
                | TableError::OutputOutOfRange { .. }
                | TableError::NoPageTable => Errno::ERANGE,
                TableError::NoMemory(_) => Errno::ENOMEM,
            },
        }
    }
}

impl From<UnmapError> for Errno {
    fn from(error: UnmapError) -> Self {
        match error {
            UnmapError::Empty => Errno::EINVAL,
            UnmapError::Overflow { .. } => Errno::EOVERFLOW,
            UnmapError::NotMapped { .. } | UnmapError::Cuts { .. } => Errno::ENOENT,
            UnmapError::Locked { .. } => Errno::EBUSY,
            UnmapError::StillHeld { .. } => Errno::EDEADLK,
        }
    }
}

impl From<CutError> for Errno {
    fn from(error: CutError) -> Self {
        match error {
            CutError::Changing { .. } => Errno::EBUSY,
            CutError::DevicePages { .. } => Errno::EOPNOTSUPP,
            CutError::Misaligned { .. } | CutError::InUse { .. } => Errno::EINVAL,
        }
    }
}

impl From<RangeError> for Errno {
    fn from(error: RangeError) -> Self {
        match error {
            RangeError::Empty { .. } | RangeError::Overlaps { .. } => Errno::EINVAL,
            RangeError::Mapped { .. }
            | RangeError::Allowed { .. }
            | RangeError::Reserved { .. }
            | RangeError::MisalignedAreas { .. } => Errno::EADDRINUSE,
        }
    }
}

impl From<OptionError> for Errno {
    fn from(error: OptionError) -> Self {
        match error {
            OptionError::HasObjects => Errno::EBUSY,
            OptionError::Mapped { .. } | OptionError::NoSuchValue(_) => Errno::EINVAL,
            OptionError::NoVfioIoas => Errno::ENODEV,
        }
    }
}

impl From<AllocError> for Errno {
    fn from(error: AllocError) -> Self {
        match error {
            AllocError::NotAParent(_)
            | AllocError::NoSecondStage { .. }
            | AllocError::DataLength { .. }
            | AllocError::OtherIommu { .. }
            | AllocError::BadDepth { .. }
            | AllocError::RingEmpty => Errno::EINVAL,
            AllocError::FlagsNotSupported(_)
            | AllocError::NoData
            | AllocError::NoNesting(_)
            | AllocError::TypeNotSupported(_) => Errno::EOPNOTSUPP,
            AllocError::DeviceHasNumber(_)
            | AllocError::NumberTaken { .. }
            | AllocError::QueueExists { .. } => Errno::EEXIST,
            AllocError::RingOverflow { .. } => Errno::EOVERFLOW,
            AllocError::RingInLastPage { .. } => Errno::ERANGE,
            AllocError::NotContiguous { .. } => Errno::EFAULT,
            AllocError::NoDomain => Errno::ENOSPC,
        }
    }
}

impl From<AttachError> for Errno {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::NotAttachable(_)
            | AttachError::NothingToReplace { .. }
            | AttachError::Incompatible(_)
            | AttachError::GroupElsewhere { .. }
            | AttachError::NotForPasids { .. }
            | AttachError::NoSuchPasid { .. } => Errno::EINVAL,
            AttachError::NotOwner(_) => Errno::EPERM,
            AttachError::GroupBusy(_) | AttachError::Attached { .. } => Errno::EBUSY,
            AttachError::Iommu(error) => match error {
                DomainError::Incompatible(DomainMismatch::PageRequests { .. }) => Errno::ENODEV,
                // A device without PASIDs has a limit of 0: any PASID is beyond it.
                DomainError::NoPasidSupport { .. }
                | DomainError::PasidRange { .. }
                | DomainError::NotSingleton { .. }
                | DomainError::NotAttached { .. }
                | DomainError::Incompatible(
                    DomainMismatch::Format { .. } | DomainMismatch::DirtyTracking { .. },
                ) => Errno::EINVAL,
                DomainError::Attached { .. }
                | DomainError::DriverInUse { .. }
                | DomainError::Resetting { .. } => Errno::EBUSY,
                DomainError::NoMemory(_) => Errno::ENOMEM,
            },
            AttachError::NoPageRequests(_) => Errno::ENODEV,
            AttachError::PasidSpace(_) => Errno::ENOSPC,
            AttachError::NoPasids(_) => Errno::EOPNOTSUPP,
        }
    }
}

impl From<AccessError> for Errno {
    fn from(error: AccessError) -> Self {
        match error {
            AccessError::NotAttached(_) | AccessError::NotMapped { .. } => Errno::ENOENT,
            AccessError::AlreadyAttached { .. }
            | AccessError::CopiesOnly(_)
            | AccessError::Empty
            | AccessError::Leaving { .. }
            | AccessError::DevicePages { .. }
            | AccessError::PartialPage { .. } => Errno::EINVAL,
            AccessError::Overflow { .. } => Errno::EOVERFLOW,
            AccessError::Permission { .. } => Errno::EPERM,
            AccessError::MemoryGone(gone) => gone.into(),
        }
    }
}

impl From<DirtyError> for Errno {
    fn from(error: DirtyError) -> Self {
        match error {
            DirtyError::NotSupported(_) => Errno::EOPNOTSUPP,
            DirtyError::Off(_)
            | DirtyError::Empty
            | DirtyError::Misaligned { .. }
            | DirtyError::NotMapped { .. } => Errno::EINVAL,
            DirtyError::Overflow { .. } => Errno::EOVERFLOW,
        }
    }
}

impl From<EventError> for Errno {
    fn from(error: EventError) -> Self {
        match error {
            EventError::PartialRecord { .. } => Errno::ESPIPE,
            EventError::ReadTooShort { .. }
            | EventError::NoSuchFault(_)
            | EventError::NoSuchAnswer(_)
            | EventError::NotReadable
            | EventError::NotWritable => Errno::EINVAL,
            EventError::WrongMode => Errno::EBADF,
        }
    }
}

impl From<InvalidateError> for Errno {
    fn from(error: InvalidateError) -> Self {
        match error {
            InvalidateError::NotSupported { .. } => Errno::EOPNOTSUPP,
            InvalidateError::BadRange { .. } => Errno::EINVAL,
        }
    }
}

impl From<MmapError> for Errno {
    fn from(error: MmapError) -> Self {
        match error {
            MmapError::NotWholePages { .. } | MmapError::Private => Errno::EINVAL,
            MmapError::Executable => Errno::EPERM,
            MmapError::NoSuchOffset { .. } => Errno::ENXIO,
            MmapError::NoSpace { .. } => Errno::ENOSPC,
        }
    }
}

impl From<UserDataError> for Errno {
    fn from(error: UserDataError) -> Self {
        match error {
            UserDataError::WrongType { .. }
            | UserDataError::Length { .. }
            | UserDataError::BadArray { .. }
            | UserDataError::NoSuchEntry { .. }
            | UserDataError::BadValue => Errno::EINVAL,
            UserDataError::UnknownBytes { .. } => Errno::E2BIG,
            UserDataError::Unreadable { .. } | UserDataError::BeyondMemory { .. } => Errno::EFAULT,
        }
    }
}

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Invalid => Errno::EINVAL,
            Refusal::Io => Errno::EIO,
            Refusal::NotFound => Errno::ENOENT,
            Refusal::Exists => Errno::EEXIST,
            Refusal::NoMemory => Errno::ENOMEM,
            Refusal::Fault => Errno::EFAULT,
        }
    }
}
