//! Options of a file and of an IOAS.

use crate::base::id::ObjectId;

/// Why an option has no value, or cannot have this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// An option can be set only before the first object is made (EBUSY).
    #[error("the option can be set only while the file has no objects")]
    HasObjects,
    /// Large pages cannot be turned off once mappings are in a page table (EINVAL).
    #[error("IOAS {ioas} has mappings in a page table, so its large pages cannot be turned off")]
    Mapped {
        /// The IOAS.
        ioas: ObjectId,
    },
    /// An option has no such value (EINVAL).
    #[error("the option cannot be {0:#x}")]
    NoSuchValue(u64),
    /// No IOAS was chosen for the VFIO commands (ENODEV).
    #[error("no IOAS is set for the VFIO commands")]
    NoVfioIoas,
}
