//! Errno numbers: the only place in the project that has them.
//!
//! Every error of a lower floor says in its documentation which errno it is; here is the one table
//! that makes it true.

use std::fmt;

use ioasid_core::{
    failpoint::OutOfMemory,
    host::FdError,
    memory::{MemoryGone, PinError},
};
use ioasid_iommufd::{Error, Refusal};

/// A Linux error number, positive (`include/uapi/asm-generic/errno{-base,}.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($(#[doc = $doc:literal])* $name:ident = $value:literal;)*) => {
        impl Errno {
            $($(#[doc = $doc])* pub const $name: Errno = Errno($value);)*

            /// The kernel's name of the number, if it is one that this crate gives.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Errno::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    /// Operation not permitted.
    EPERM = 1;
    /// No such object.
    ENOENT = 2;
    /// Input/output error.
    EIO = 5;
    /// No such device or address.
    ENXIO = 6;
    /// Argument list too long: a struct has bytes that are not known, and they are not 0.
    E2BIG = 7;
    /// Bad file descriptor.
    EBADF = 9;
    /// Try again.
    EAGAIN = 11;
    /// Out of memory, or over a limit.
    ENOMEM = 12;
    /// Permission denied.
    EACCES = 13;
    /// Bad address.
    EFAULT = 14;
    /// Device or resource busy.
    EBUSY = 16;
    /// Exists already.
    EEXIST = 17;
    /// No such device.
    ENODEV = 19;
    /// Invalid argument.
    EINVAL = 22;
    /// Too many open files.
    EMFILE = 24;
    /// Not an ioctl of this file.
    ENOTTY = 25;
    /// No space left.
    ENOSPC = 28;
    /// Illegal seek.
    ESPIPE = 29;
    /// Result out of range.
    ERANGE = 34;
    /// Would deadlock.
    EDEADLK = 35;
    /// Invalid exchange.
    EBADE = 52;
    /// Value too large.
    EOVERFLOW = 75;
    /// File descriptor in bad state.
    EBADFD = 77;
    /// Too many users.
    EUSERS = 87;
    /// Message too long: the array is too short for the answer.
    EMSGSIZE = 90;
    /// Not supported.
    EOPNOTSUPP = 95;
    /// Address in use.
    EADDRINUSE = 98;
}

impl Errno {
    /// The positive number.
    pub const fn get(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Errno {}

impl From<OutOfMemory> for Errno {
    fn from(_: OutOfMemory) -> Self {
        Errno::ENOMEM
    }
}

impl From<MemoryGone> for Errno {
    fn from(_: MemoryGone) -> Self {
        Errno::EFAULT
    }
}

impl From<PinError> for Errno {
    fn from(error: PinError) -> Self {
        match error {
            PinError::Fault => Errno::EFAULT,
            PinError::NoMemory => Errno::ENOMEM,
            PinError::Revoked => Errno::ENODEV,
            _ => Errno::EINVAL,
        }
    }
}

/// Where a wrong type of file is EINVAL; the commands for which it is EBADFD say so themselves.
impl From<FdError> for Errno {
    fn from(error: FdError) -> Self {
        match error {
            FdError::NotOpen => Errno::EBADF,
            FdError::NoMemory => Errno::ENOMEM,
            FdError::NoneFree => Errno::EMFILE,
            FdError::Revoked => Errno::ENODEV,
            _ => Errno::EINVAL,
        }
    }
}

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

impl From<ioasid_vfio::Error> for Errno {
    fn from(error: ioasid_vfio::Error) -> Self {
        use ioasid_vfio::Error;
        match error {
            Error::Iommufd(error) => error.into(),
            Error::Eventfd(error) => error.into(),
            Error::Gone | Error::NoSuchUuid | Error::NoSuchDevice | Error::NoSuchBackend => {
                Errno::ENODEV
            }
            Error::GroupBusy | Error::DevicesOpen | Error::AddressesInvalid => Errno::EBUSY,
            Error::MapExists => Errno::EEXIST,
            Error::NoSuchMap => Errno::ENOENT,
            Error::TooManyMaps => Errno::ENOSPC,
            Error::TooManyLogRanges => Errno::E2BIG,
            Error::LogSpoilt => Errno::EIO,
            Error::RangeOverflow => Errno::EOVERFLOW,
            Error::NoDirtyPages => Errno::EACCES,
            Error::StillOpen => Errno::EAGAIN,
            Error::WrongToken => Errno::EACCES,
            Error::UnmaskedAlready => Errno::EBUSY,
            Error::IoeventfdExists => Errno::EEXIST,
            Error::NoIoeventfd | Error::NoHotReset => Errno::ENODEV,
            Error::TooManyIoeventfds => Errno::ENOSPC,
            Error::NoFeature => Errno::ENOTTY,
            Error::BeyondConfig => Errno::EFAULT,
            Error::MemoryDisabled | Error::NoBusMaster | Error::Device(_) => Errno::EIO,
            Error::NoSuchIrqAction => Errno::ENOTTY,
            Error::NoVectors => Errno::ERANGE,
            Error::NoUserPasid => Errno::EOPNOTSUPP,
            Error::NoSuchType => Errno::ENOENT,
            Error::UuidExists => Errno::EEXIST,
            Error::NoInstance => Errno::EUSERS,
            Error::Exhausted(_) => Errno::ENOSPC,
            Error::NotBound
            | Error::AlreadyBound
            | Error::BoundElsewhere
            | Error::NoSuchIndex
            | Error::BeyondRegion
            | Error::NotMappable
            | Error::UnneededToken
            | Error::LowPowerAlready
            | Error::NotAllOwned
            | Error::BadIrqRequest
            | Error::ContainerState
            | Error::BackendState
            | Error::BadDeviceOption
            | Error::BadMapRequest
            | Error::IovaConflict
            | Error::LogState
            | Error::BadLogRange
            | Error::BadUuid => Errno::EINVAL,
            // The enum may grow: a cause without a number yet is an invalid argument.
            _ => Errno::EINVAL,
        }
    }
}
