//! Why a device could not be added or removed.

use ioasid_core::{DomainId, PciAddress, failpoint::OutOfMemory};

use crate::base::source_id::SourceId;

/// Why a device could not be added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// There is a device at this address (EEXIST).
    #[error("there is a device at {0} already")]
    Exists(PciAddress),
    /// PASIDs are at most 20 bits wide (EINVAL).
    #[error("{device} would have PASIDs of {bits} bits: the limit is 20")]
    PasidBits {
        /// The device.
        device: PciAddress,
        /// The width that was asked for.
        bits: u8,
    },
    /// The group is attached or owned, so it cannot take a device in (EBUSY).
    #[error("group {group} is attached or in use and takes no further device")]
    GroupInUse {
        /// The group.
        group: u32,
    },
    /// The device's driver or an owner uses it (EBUSY).
    #[error("{device} is in use by its driver or by an owner of its group")]
    InUse {
        /// The device.
        device: PciAddress,
    },
    /// A domain is attached to the device (EBUSY).
    #[error("{at} is attached to domain {domain}: detach it first")]
    Attached {
        /// The source.
        at: SourceId,
        /// What is attached.
        domain: DomainId,
    },
    /// The machine has no such device (ENODEV).
    #[error("the machine has no device {0}")]
    NoDevice(PciAddress),
    /// No memory for the device (ENOMEM).
    #[error("no memory for a device")]
    NoMemory(#[from] OutOfMemory),
}
