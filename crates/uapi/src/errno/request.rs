//! The errno of what this crate refuses by itself, and of every [`CallError`].

use super::Errno;
use crate::error::{CallError, FileError, Operation, RegisterError, RequestError};

impl From<CallError> for Errno {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Request(error) => error.into(),
            CallError::File(error) => error.into(),
            CallError::Register(error) => error.into(),
            CallError::Iommufd(error) => error.into(),
            CallError::Vfio(error) => error.into(),
            CallError::Attribute(error) => error.into(),
            CallError::NoMemory => Errno::ENOMEM,
            CallError::Extension(errno) => errno,
        }
    }
}

impl From<RequestError> for Errno {
    fn from(error: RequestError) -> Self {
        match error {
            RequestError::UnknownCommand { .. }
            | RequestError::OtherRequest { .. }
            | RequestError::OpenedByGroup { .. }
            | RequestError::UnknownFeature { .. }
            | RequestError::NoHandler(_) => Errno::ENOTTY,
            RequestError::NotSupported(_) => Errno::EOPNOTSUPP,
            RequestError::Invalid(_)
            | RequestError::TooSmall { .. }
            | RequestError::NameTooLong { .. }
            | RequestError::BitmapAddress { .. }
            | RequestError::BitmapSize { .. }
            | RequestError::FeatureWay { .. }
            | RequestError::NoPrecopy => Errno::EINVAL,
            RequestError::UnknownBytes { .. } => Errno::E2BIG,
            RequestError::Unreadable { .. }
            | RequestError::Unwritable { .. }
            | RequestError::BeyondMemory { .. } => Errno::EFAULT,
            RequestError::Pages { error, .. } => error.into(),
            RequestError::FilePages { error, .. }
            | RequestError::Descriptor { error, .. }
            | RequestError::NoDescriptor(error) => error.into(),
            RequestError::WrongFile { .. } => Errno::EBADFD,
            RequestError::NoRoom { .. } => Errno::EMSGSIZE,
            RequestError::TooManyRanges { .. } => Errno::ENOMEM,
            RequestError::LastAddress { .. } => Errno::EOVERFLOW,
            RequestError::NoHotReset => Errno::ENODEV,
        }
    }
}

impl From<RegisterError> for Errno {
    fn from(error: RegisterError) -> Self {
        match error {
            RegisterError::NotMapped { .. } | RegisterError::Instruction { .. } => Errno::EFAULT,
            RegisterError::Malformed { .. } => Errno::EINVAL,
            RegisterError::NoNode => Errno::ENOENT,
            RegisterError::NotWatched => Errno::ENODEV,
            RegisterError::HasPage => Errno::EBUSY,
            RegisterError::TooManyPages { .. } => Errno::ENOSPC,
            RegisterError::MemoryClosed => Errno::EPERM,
        }
    }
}

impl From<FileError> for Errno {
    fn from(error: FileError) -> Self {
        match error {
            FileError::Gone { .. } => Errno::ENODEV,
            FileError::NoOperation { operation } => match operation {
                Operation::Ioctl => Errno::ENOTTY,
                Operation::Map => Errno::ENODEV,
                Operation::Seek => Errno::ESPIPE,
                Operation::Read
                | Operation::Write
                | Operation::Seal
                | Operation::Truncate
                | Operation::Sync
                | Operation::Allocate => Errno::EINVAL,
            },
            FileError::NoExtents { in_sys: true }
            | FileError::FlagsNotSupported { .. }
            | FileError::AttributeNotBuilt { .. } => Errno::EOPNOTSUPP,
            FileError::NoExtents { in_sys: false } => Errno::ENODEV,
            FileError::NotOpenFor { operation } => match operation {
                Operation::Map => Errno::EACCES,
                Operation::Seal => Errno::EPERM,
                Operation::Ioctl
                | Operation::Read
                | Operation::Write
                | Operation::Seek
                | Operation::Truncate
                | Operation::Sync
                | Operation::Allocate => Errno::EBADF,
            },
            FileError::NoOffsets => Errno::ESPIPE,
            FileError::BadOffset { .. }
            | FileError::BadWhence { .. }
            | FileError::BadVector { .. }
            | FileError::MappingOff
            | FileError::BadText { .. } => Errno::EINVAL,
            FileError::Lockdown => Errno::EPERM,
            FileError::AttributeMode { .. } => Errno::EACCES,
            FileError::NoSuchNode { .. } => Errno::ENOENT,
            FileError::NoNode => Errno::ENXIO,
            FileError::NoThread { .. } => Errno::ENOENT,
            FileError::Closed { .. } => Errno::EBADF,
            FileError::NoNumber => Errno::EMFILE,
            FileError::NoResource => Errno::ENOMEM,
            FileError::HostFailed => Errno::EIO,
        }
    }
}
