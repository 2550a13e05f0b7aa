//! The errno of each error of `ioasid-vfio`.

use ioasid_vfio::{AttributeError, Error};

use super::Errno;

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
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

impl From<AttributeError> for Errno {
    fn from(error: AttributeError) -> Self {
        match error {
            AttributeError::Vfio(error) => error.into(),
            AttributeError::NotWritable => Errno::EACCES,
            AttributeError::Invalid => Errno::EINVAL,
            AttributeError::NotBuilt => Errno::EOPNOTSUPP,
            AttributeError::OutOfRange => Errno::ERANGE,
            AttributeError::Busy => Errno::EBUSY,
            AttributeError::NoDevice => Errno::ENODEV,
            AttributeError::NoMemory => Errno::ENOMEM,
        }
    }
}
