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
    /// The function must not issue requests: `PCI_COMMAND.MASTER` is 0 or it sleeps (EIO).
    #[error("bus mastering is off, or the device sleeps")]
    NoBusMaster,
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
    /// The group's file is open, so a device of it cannot be bound on its own; or the other way
    /// round (EBUSY).
    #[error("the group is in use in another way")]
    GroupBusy,
    /// A container is set already, or none is set (EINVAL).
    #[error("the group has a container already, or has none")]
    ContainerState,
    /// Devices of the group are open (EBUSY).
    #[error("devices of the group are open")]
    DevicesOpen,
    /// No device of the group has this name (ENODEV).
    #[error("no device of the group has this name")]
    NoSuchDevice,
    /// An option behind a device's name is unknown, is there twice or is not well formed (EINVAL).
    #[error("bad option behind the name of a device")]
    BadDeviceOption,
    /// The container has no IOMMU backend yet, or has one, or no group (EINVAL).
    #[error("the container has no IOMMU backend, or cannot be given one now")]
    BackendState,
    /// No IOMMU backend is of this type (ENODEV).
    #[error("no IOMMU backend of this type")]
    NoSuchBackend,
    /// A mapping overlaps (EEXIST).
    #[error("a mapping overlaps")]
    MapExists,
    /// No mapping there (ENOENT).
    #[error("nothing is mapped there")]
    NoSuchMap,
    /// The container has as many mappings as it may have (ENOSPC).
    #[error("the container has as many mappings as it may have")]
    TooManyMaps,
    /// Flags, size or alignment of a container's mapping do not fit (EINVAL).
    #[error("flags, size or alignment do not fit")]
    BadMapRequest,
    /// A range passes the end of all addresses (EOVERFLOW).
    #[error("the range passes the end of all addresses")]
    RangeOverflow,
    /// The group cannot be used with what is mapped: an address range of its own is in the way
    /// (EINVAL).
    #[error("a mapping lies where the group has no room for one")]
    IovaConflict,
    /// Addresses of the program are invalid for the time being, or cannot be made so (EBUSY).
    #[error("the program's addresses are, or cannot be made, invalid")]
    AddressesInvalid,
    /// Version 1 of the type 1 IOMMU tracks no dirty pages (EACCES).
    #[error("version 1 tracks no dirty pages")]
    NoDirtyPages,
    /// A VF token is needed, or it is not this one (EACCES).
    #[error("the VF token is missing or wrong")]
    WrongToken,
    /// A VF token was given where none is needed (EINVAL).
    #[error("a VF token is given for no reason")]
    UnneededToken,
    /// An eventfd unmasks the wired interrupt already (EBUSY).
    #[error("an eventfd unmasks the interrupt already")]
    UnmaskedAlready,
    /// A store for these eventfd signals is there already (EEXIST).
    #[error("there is such an ioeventfd already")]
    IoeventfdExists,
    /// No store for these eventfd signals is there (ENODEV).
    #[error("there is no such ioeventfd")]
    NoIoeventfd,
    /// The device has as many ioeventfds as it may have (ENOSPC).
    #[error("the device has as many ioeventfds as it may have")]
    TooManyIoeventfds,
    /// The device has no such feature (ENOTTY).
    #[error("the device has no such feature")]
    NoFeature,
    /// The program has let the device into low power already (EINVAL).
    #[error("the device may sleep already")]
    LowPowerAlready,
    /// The device cannot be reset by way of its slot or bus (ENODEV).
    #[error("no slot or bus can be reset")]
    NoHotReset,
    /// Not every device that the reset concerns is the program's (EINVAL).
    #[error("the reset concerns a device of somebody else's")]
    NotAllOwned,
    /// The device cannot go to this migration state, or the request needs another one (EINVAL).
    #[error("not in this migration state, or no way there")]
    BadMigrationState,
    /// The bytes are no saved state of such a device (EINVAL).
    #[error("no saved state of such a device")]
    BadDeviceState,
    /// A log of DMA is under way already, or none is (EINVAL).
    #[error("DMA is logged already, or is not")]
    LogState,
    /// A range of a log is empty, is not whole pages, overlaps another one or is not watched, or a
    /// page has a size that it cannot have (EINVAL).
    #[error("a range or page size that a log of DMA cannot have")]
    BadLogRange,
    /// More ranges than a log can have (E2BIG).
    #[error("more ranges than a log of DMA can have")]
    TooManyLogRanges,
    /// The device has written more than its log has room for (EIO).
    #[error("the log of DMA was too small: all memory counts as written")]
    LogSpoilt,
    /// What the I/O address space layer said.
    #[error(transparent)]
    Iommufd(#[from] ioasid_iommufd::Error),
}

/// `Result` with this crate's error.
pub type Result<T> = std::result::Result<T, Error>;
