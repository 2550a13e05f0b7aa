//! The errno of each error of `ioasid-vfio`. Each cause is named here: a new one does not compile
//! without its number.

use ioasid_vfio::{
    AttributeError, Error,
    error::{
        AttachError, BindError, ContainerError, DeviceNameError, DmaLogError, FeatureError,
        GroupError, IoeventfdError, IrqError, MapError, MdevError, MigrationError, RegionError,
        TokenError, UuidError,
    },
};

use super::Errno;

impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        match error {
            Error::Bind(error) => error.into(),
            Error::Token(error) => error.into(),
            Error::Attach(error) => error.into(),
            Error::Region(error) => error.into(),
            Error::Irq(error) => error.into(),
            Error::Feature(error) => error.into(),
            Error::Ioeventfd(error) => error.into(),
            Error::Migration(error) => error.into(),
            Error::DmaLog(error) => error.into(),
            Error::Group(error) => error.into(),
            Error::Container(error) => error.into(),
            Error::Map(error) => error.into(),
            Error::Mdev(error) => error.into(),
            Error::Iommufd(error) => error.into(),
        }
    }
}

impl From<BindError> for Errno {
    fn from(error: BindError) -> Self {
        match error {
            BindError::NotBound | BindError::AlreadyBound | BindError::BoundElsewhere => {
                Errno::EINVAL
            }
            BindError::Gone => Errno::ENODEV,
            BindError::StillOpen { .. } => Errno::EAGAIN,
            BindError::NoPasid(_) | BindError::PasidTooLarge { .. } => Errno::ENOSPC,
        }
    }
}

impl From<TokenError> for Errno {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Missing | TokenError::Wrong => Errno::EACCES,
            TokenError::Unneeded => Errno::EINVAL,
        }
    }
}

impl From<AttachError> for Errno {
    fn from(error: AttachError) -> Self {
        match error {
            AttachError::NoUserPasids => Errno::EOPNOTSUPP,
        }
    }
}

impl From<RegionError> for Errno {
    fn from(error: RegionError) -> Self {
        match error {
            RegionError::NoSuchIndex { .. }
            | RegionError::Absent { .. }
            | RegionError::BeyondEnd { .. }
            | RegionError::PrivateMapping
            | RegionError::NotMappable { .. }
            | RegionError::NotMapped { .. } => Errno::EINVAL,
            RegionError::BeyondConfig { .. } => Errno::EFAULT,
            RegionError::MemoryDisabled
            | RegionError::Asleep
            | RegionError::NoAnswer { .. }
            | RegionError::NoBusMaster => Errno::EIO,
        }
    }
}

impl From<IrqError> for Errno {
    fn from(error: IrqError) -> Self {
        match error {
            IrqError::NoSuchIndex { .. }
            | IrqError::Absent { .. }
            | IrqError::NoSuchVectors { .. }
            | IrqError::DataCount { .. }
            | IrqError::OtherEnabled { .. }
            | IrqError::NotEnabled { .. }
            | IrqError::NotOneVector { .. }
            | IrqError::Asleep { .. }
            | IrqError::BeyondEnabled { .. }
            | IrqError::NoEventfd { .. } => Errno::EINVAL,
            IrqError::NoSuchAction { .. } => Errno::ENOTTY,
            IrqError::NoVectors { .. } => Errno::ERANGE,
            IrqError::Eventfd { error, .. } => error.into(),
            IrqError::UnmaskedAlready => Errno::EBUSY,
        }
    }
}

impl From<FeatureError> for Errno {
    fn from(error: FeatureError) -> Self {
        match error {
            FeatureError::Absent(_) => Errno::ENOTTY,
            FeatureError::LowPowerAlready => Errno::EINVAL,
        }
    }
}

impl From<IoeventfdError> for Errno {
    fn from(error: IoeventfdError) -> Self {
        match error {
            IoeventfdError::NoRegister { .. } => Errno::EINVAL,
            IoeventfdError::Exists { .. } => Errno::EEXIST,
            IoeventfdError::NotFound { .. } => Errno::ENODEV,
            IoeventfdError::TooMany { .. } => Errno::ENOSPC,
            IoeventfdError::Eventfd(error) => error.into(),
        }
    }
}

impl From<MigrationError> for Errno {
    fn from(error: MigrationError) -> Self {
        match error {
            MigrationError::NoSuchState { .. }
            | MigrationError::InError { .. }
            | MigrationError::OtherState { .. }
            | MigrationError::BadState(_) => Errno::EINVAL,
            MigrationError::TooLarge { .. } => Errno::ENOSPC,
        }
    }
}

impl From<DmaLogError> for Errno {
    fn from(error: DmaLogError) -> Self {
        match error {
            DmaLogError::Started
            | DmaLogError::NotStarted
            | DmaLogError::PageSize { .. }
            | DmaLogError::NoRange
            | DmaLogError::Misaligned { .. }
            | DmaLogError::Empty { .. }
            | DmaLogError::Overlaps { .. }
            | DmaLogError::NotLogged { .. } => Errno::EINVAL,
            DmaLogError::Overflow { .. } => Errno::EOVERFLOW,
            DmaLogError::TooManyRanges { .. } => Errno::E2BIG,
            DmaLogError::Overrun => Errno::EIO,
        }
    }
}

impl From<GroupError> for Errno {
    fn from(error: GroupError) -> Self {
        match error {
            GroupError::Gone { .. } | GroupError::NoSuchDevice { .. } => Errno::ENODEV,
            GroupError::Open { .. }
            | GroupError::DevicesBound { .. }
            | GroupError::DevicesOpen { .. } => Errno::EBUSY,
            GroupError::ContainerSet { .. } | GroupError::NoContainer { .. } => Errno::EINVAL,
            GroupError::DeviceName(error) => error.into(),
        }
    }
}

impl From<DeviceNameError> for Errno {
    fn from(error: DeviceNameError) -> Self {
        match error {
            DeviceNameError::Option { .. } => Errno::EINVAL,
            DeviceNameError::Token(error) => error.into(),
        }
    }
}

impl From<ContainerError> for Errno {
    fn from(error: ContainerError) -> Self {
        match error {
            ContainerError::NoGroup
            | ContainerError::NoBackend
            | ContainerError::BackendSet
            | ContainerError::ReservedMapped(_) => Errno::EINVAL,
            ContainerError::NoSuchBackend => Errno::ENODEV,
            ContainerError::AddressesInvalid { .. } | ContainerError::AddressesNeeded => {
                Errno::EBUSY
            }
        }
    }
}

impl From<MapError> for Errno {
    fn from(error: MapError) -> Self {
        match error {
            MapError::Empty { .. }
            | MapError::Permissions
            | MapError::Misaligned { .. }
            | MapError::NotInvalid { .. }
            | MapError::AlreadyInvalid { .. }
            | MapError::RangeWithAll
            | MapError::Cuts { .. }
            | MapError::NotTracking
            | MapError::BitmapUnit { .. }
            | MapError::TooLargeForBitmap { .. } => Errno::EINVAL,
            MapError::Overflow { .. } => Errno::EOVERFLOW,
            MapError::Exists { .. } => Errno::EEXIST,
            MapError::NotFound { .. } => Errno::ENOENT,
            MapError::TooMany { .. } => Errno::ENOSPC,
            MapError::NoDirtyPages => Errno::EACCES,
        }
    }
}

impl From<MdevError> for Errno {
    fn from(error: MdevError) -> Self {
        match error {
            MdevError::Uuid(error) => error.into(),
            MdevError::NoSuchType { .. } => Errno::ENOENT,
            MdevError::Exists { .. } => Errno::EEXIST,
            MdevError::NoInstance { .. } => Errno::EUSERS,
            MdevError::NotFound { .. } | MdevError::ParentGone { .. } => Errno::ENODEV,
            MdevError::Bind(error) => error.into(),
            MdevError::Device(_) => Errno::EIO,
        }
    }
}

impl From<UuidError> for Errno {
    fn from(error: UuidError) -> Self {
        match error {
            UuidError::Length(_) | UuidError::Character(_) => Errno::EINVAL,
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
