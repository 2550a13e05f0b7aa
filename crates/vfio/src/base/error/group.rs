//! Groups.

use super::mdev::UuidError;

/// Why an operation on a group is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// The group has no device any more (ENODEV).
    #[error("group {group} has no device any more")]
    Gone {
        /// Its number.
        group: u32,
    },
    /// The group's file is open: it cannot be opened again, and no device of it can be bound through a
    /// file of its own (EBUSY).
    #[error("group {group} is open: its devices are used through it alone, by whoever has it")]
    Open {
        /// Its number.
        group: u32,
    },
    /// Devices of the group are bound through files of their own (EBUSY).
    #[error(
        "group {group} cannot be opened: {devices} devices of it are bound through files of their own"
    )]
    DevicesBound {
        /// Its number.
        group: u32,
        /// Devices that are bound.
        devices: usize,
    },
    /// The group has a container already (EINVAL).
    #[error("group {group} has a container already")]
    ContainerSet {
        /// Its number.
        group: u32,
    },
    /// The group has no container (EINVAL).
    #[error("group {group} has no container: VFIO_GROUP_SET_CONTAINER first")]
    NoContainer {
        /// Its number.
        group: u32,
    },
    /// Devices of the group are open by its container (EBUSY).
    #[error("group {group} cannot leave its container: {devices} devices of it are open")]
    DevicesOpen {
        /// Its number.
        group: u32,
        /// Devices that are open.
        devices: usize,
    },
    /// No device of the group has this name (ENODEV).
    #[error("group {group} has no device {name:?}")]
    NoSuchDevice {
        /// Its number.
        group: u32,
        /// The name.
        name: String,
    },
    /// The options behind the name of a device are not well formed (EINVAL).
    #[error(transparent)]
    DeviceName(#[from] DeviceNameError),
}

/// What is wrong with the options behind the name of a device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceNameError {
    /// An option is unknown, or there twice (EINVAL).
    #[error("{text:?} behind the name of a device is no option, or one that is there already")]
    Option {
        /// The text from there on.
        text: String,
    },
    /// The token is no UUID (EINVAL).
    #[error("the VF token behind the name of a device is no UUID: {0}")]
    Token(UuidError),
}
