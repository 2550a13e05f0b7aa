//! The errno of each error of `ioasid-core`. No `_` arm: a new cause does not compile without one.

use ioasid_core::{
    failpoint::OutOfMemory,
    host::FdError,
    memory::{MemoryGone, PinError},
};

use super::Errno;

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
            PinError::OutOfRange => Errno::EINVAL,
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
            FdError::WrongType | FdError::BeyondEnd | FdError::OutsideBuffer => Errno::EINVAL,
        }
    }
}
