//! Features that a device may have: low power, ioeventfds, migration.

use ioasid_core::host::FdError;

use crate::base::{
    abi::{Feature, MigrationState},
    saved::StateError,
};

/// Why a feature is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeatureError {
    /// The device has no such feature (ENOTTY).
    #[error("the device has no {0}")]
    Absent(Feature),
    /// The program has let the device into low power already (EINVAL).
    #[error("the device may sleep already")]
    LowPowerAlready,
}

/// Why a store by an eventfd is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoeventfdError {
    /// The store has 8 bytes, or is not inside a BAR, or on the MSI-X table (EINVAL).
    #[error(
        "{size} bytes at the file offset {offset:#x} are no store that an eventfd can make: 1, 2 or 4 \
         bytes in a BAR and not on the MSI-X table"
    )]
    NoRegister {
        /// File offset.
        offset: u64,
        /// Bytes.
        size: u8,
    },
    /// Such a store is there already (EEXIST).
    #[error("an eventfd makes this store at the file offset {offset:#x} already")]
    Exists {
        /// File offset.
        offset: u64,
    },
    /// No such store is there (ENODEV).
    #[error("no eventfd makes this store at the file offset {offset:#x}")]
    NotFound {
        /// File offset.
        offset: u64,
    },
    /// The device has as many as it may have (ENOSPC).
    #[error("the device has {limit} ioeventfds, as many as it may have")]
    TooMany {
        /// The most that it may have.
        limit: usize,
    },
    /// A file descriptor of the program is no eventfd: EBADF if it is not open, EINVAL if it is another
    /// kind of file.
    #[error("the descriptor is no eventfd: {0}")]
    Eventfd(FdError),
}

/// Why a migration does not go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MigrationError {
    /// No state that can be asked for has this number (EINVAL).
    #[error("a device cannot be taken to migration state {number}")]
    NoSuchState {
        /// The number in `enum vfio_device_mig_state`.
        number: u32,
    },
    /// A device in state ERROR goes nowhere without a reset (EINVAL).
    #[error("the device is in migration state ERROR: only a reset ends that, not a change to {to}")]
    InError {
        /// The state asked for.
        to: MigrationState,
    },
    /// The request needs another state (EINVAL).
    #[error("the device is in migration state {is}, and this needs {needed}")]
    OtherState {
        /// The state of the device.
        is: MigrationState,
        /// The state that is needed.
        needed: MigrationState,
    },
    /// The bytes are no saved state of such a device, which is in state ERROR now (EINVAL).
    #[error("the bytes are no saved state of such a device")]
    BadState(#[from] StateError),
    /// A saved state is larger than one can be (ENOSPC).
    #[error("a saved state of {size} bytes is too large: {limit} at most")]
    TooLarge {
        /// Bytes of it.
        size: usize,
        /// Most bytes of a state.
        limit: usize,
    },
}
