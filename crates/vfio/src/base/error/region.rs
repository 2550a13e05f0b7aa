//! Accesses to regions, and their mappings.

use std::time::Duration;

/// Why an access to a region, or a mapping of one, is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegionError {
    /// No region has this index (EINVAL).
    #[error("there is no region {index}")]
    NoSuchIndex {
        /// The index.
        index: u32,
    },
    /// Nothing is behind the region (EINVAL).
    #[error("the device has nothing behind region {index}")]
    Absent {
        /// The index.
        index: u32,
    },
    /// The offset lies at or beyond the end of the region (EINVAL).
    #[error("offset {offset:#x} is beyond the end of region {index}, which has {size:#x} bytes")]
    BeyondEnd {
        /// The index.
        index: u32,
        /// Offset in the region.
        offset: u64,
        /// Bytes of the region.
        size: u64,
    },
    /// An access passes the end of configuration space; nothing was done (EFAULT).
    #[error("{len} bytes at {offset:#x} pass the end of configuration space at {size:#x}")]
    BeyondConfig {
        /// Offset in configuration space.
        offset: u64,
        /// Bytes of the access.
        len: u64,
        /// Bytes of configuration space.
        size: u64,
    },
    /// `PCI_COMMAND.MEM` is 0, or the function is not in D0 (EIO).
    #[error("the device's memory is disabled: PCI_COMMAND.MEM is 0 or the device is not in D0")]
    MemoryDisabled,
    /// The program has let the device sleep, and accesses a mapping (EIO).
    #[error("the device may be asleep: mappings of its memory do not answer")]
    Asleep,
    /// The device has not answered DMA of another one (EIO).
    #[error("the device has not answered for {} ms", waited.as_millis())]
    NoAnswer {
        /// How long was waited.
        waited: Duration,
    },
    /// The function must not issue requests: `PCI_COMMAND.MASTER` is 0 or it is not in D0 (EIO).
    #[error("bus mastering is off: PCI_COMMAND.MASTER is 0 or the device is not in D0")]
    NoBusMaster,
    /// A mapping is private, or of a file that is open for reading alone (EINVAL).
    #[error("registers can only be mapped shared, from a file that is open for writing")]
    PrivateMapping,
    /// The range of a mapping does not begin at a page or is not inside of what can be mapped (EINVAL).
    #[error(
        "{len:#x} bytes at the file offset {offset:#x} cannot be mapped: GET_REGION_INFO says what can"
    )]
    NotMappable {
        /// File offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// An access to a mapping lies outside of what can be mapped (EINVAL).
    #[error("{len} bytes at the file offset {offset:#x} are outside of what can be mapped")]
    NotMapped {
        /// File offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
}
