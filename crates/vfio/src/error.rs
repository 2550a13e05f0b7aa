//! What can go wrong, one variant per cause. The errno of each is in its doc line; the numbers
//! themselves are known one floor higher alone.

use ioasid_core::host::FdError;

/// Why an operation on a VFIO device failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file is not bound to an iommufd context (EINVAL).
    #[error("the device file is not bound")]
    NotBound,
    /// This file is bound already (EINVAL).
    #[error("the device file is bound already")]
    AlreadyBound,
    /// The device is bound through another open file (EINVAL).
    #[error("the device is bound through another file")]
    BoundElsewhere,
    /// The device is gone, or going (ENODEV).
    #[error("the device is gone")]
    Gone,
    /// Users still hold the device after the time that they were given (EAGAIN).
    #[error("the device is still open")]
    StillOpen,
    /// No region or interrupt with this index, or nothing behind it (EINVAL).
    #[error("no such region or interrupt index")]
    NoSuchIndex,
    /// The offset lies at or beyond the end of the region (EINVAL).
    #[error("the offset is beyond the end of the region")]
    BeyondRegion,
    /// A configuration space access passes its end; nothing was done (EFAULT).
    #[error("the access passes the end of configuration space")]
    BeyondConfig,
    /// The memory of the device does not answer: `PCI_COMMAND.MEM` is 0 or it sleeps (EIO).
    #[error("the device's memory is disabled")]
    MemoryDisabled,
    /// The range of the file cannot be mapped, or not so (EINVAL).
    #[error("no such range can be mapped")]
    NotMappable,
    /// The interrupt request contradicts itself or the state of the index (EINVAL).
    #[error("the interrupt request does not fit the index or its state")]
    BadIrqRequest,
    /// The index does not know the action (ENOTTY).
    #[error("the interrupt index has no such action")]
    NoSuchIrqAction,
    /// No vector was asked for (ERANGE).
    #[error("no interrupt vector was asked for")]
    NoVectors,
    /// A file descriptor of the program is of no use here: EBADF if it is not open, EINVAL if it
    /// is not an eventfd.
    #[error("eventfd: {0}")]
    Eventfd(FdError),
    /// A PASID of the user's choice on a device that has none to choose, an mdev (EOPNOTSUPP).
    #[error("the device takes no PASID of the user's choice")]
    NoUserPasid,
    /// The text is not a UUID as `create` wants it (EINVAL).
    #[error("not a UUID")]
    BadUuid,
    /// The parent has no such mdev type (ENOENT: there is no such directory).
    #[error("no such mdev type")]
    NoSuchType,
    /// A device with this UUID exists, under whichever parent (EEXIST).
    #[error("a device with this UUID exists")]
    UuidExists,
    /// No instance of the type is left (EUSERS).
    #[error("no instance of the type is left")]
    NoInstance,
    /// No device has this UUID (ENODEV).
    #[error("no device with this UUID")]
    NoSuchUuid,
    /// Nothing is left of a finite resource, for instance PASIDs (ENOSPC).
    #[error("{0} are exhausted")]
    Exhausted(&'static str),
    /// The device model refused (EIO).
    #[error("the device refused: {0}")]
    Device(&'static str),
    /// What the I/O address space layer said.
    #[error(transparent)]
    Iommufd(#[from] ioasid_iommufd::Error),
}

/// `Result` with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;
