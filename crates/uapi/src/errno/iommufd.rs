//! The errno of each error of `ioasid-iommufd`.

use ioasid_iommufd::{Error, Refusal};

use super::Errno;

impl From<Refusal> for Errno {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Io => Errno::EIO,
            Refusal::NotFound => Errno::ENOENT,
            Refusal::Exists => Errno::EEXIST,
            Refusal::NoMemory => Errno::ENOMEM,
            Refusal::Fault => Errno::EFAULT,
            // The enum may grow: a cause without a number yet is an invalid argument.
            _ => Errno::EINVAL,
        }
    }
}

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        match error {
            Error::NoObject(_) | Error::NotMapped | Error::NotAttached => Errno::ENOENT,
            Error::InUse(_)
            | Error::DeviceBusy
            | Error::HasObjects
            | Error::AreaLocked
            | Error::Changing => Errno::EBUSY,
            Error::NoIds | Error::NoSpace | Error::PasidSpace => Errno::ENOSPC,
            Error::Overflow => Errno::EOVERFLOW,
            Error::OutsideTable => Errno::ERANGE,
            Error::Mapped | Error::Exists => Errno::EEXIST,
            Error::ReadOnlyPages | Error::NotOwner | Error::Executable => Errno::EPERM,
            Error::NoMemory => Errno::ENOMEM,
            Error::Pin(error) => error.into(),
            Error::Refused(refusal) => refusal.into(),
            Error::UserMemory | Error::NotContiguous => Errno::EFAULT,
            Error::UserDataTooLong => Errno::E2BIG,
            Error::NoSuchOffset => Errno::ENXIO,
            Error::AddressInUse => Errno::EADDRINUSE,
            Error::FlagsNotSupported
            | Error::TypeNotSupported
            | Error::CannotCut
            | Error::NoPasids
            | Error::NoDirtyTracking => Errno::EOPNOTSUPP,
            Error::NoVfioIoas | Error::Closed | Error::Revoked => Errno::ENODEV,
            Error::StillHeld => Errno::EDEADLK,
            Error::PartialRecord => Errno::ESPIPE,
            Error::WrongMode => Errno::EBADF,
            Error::NotAParent(_)
            | Error::NotAttachable(_)
            | Error::Empty
            | Error::Misaligned { .. }
            | Error::NoPermission
            | Error::Reserved
            | Error::BadRanges
            | Error::TooLate
            | Error::BadValue
            | Error::BadData
            | Error::Incompatible
            | Error::GroupElsewhere
            | Error::NotForPasids
            | Error::NoSuchPasid
            | Error::NoDirtyBits
            | Error::NotAccessible
            | Error::AlreadyAttached
            | Error::BadUserData
            | Error::OtherIommu
            | Error::NothingCached
            | Error::BadDepth
            | Error::BadMapping
            | Error::NothingToReplace
            | Error::ReadTooShort
            | Error::NotReadable
            | Error::BadAnswer
            | Error::NotWritable
            | Error::NotFileBacked => Errno::EINVAL,
            // The enum may grow: a cause without a number yet is an invalid argument.
            _ => Errno::EINVAL,
        }
    }
}
