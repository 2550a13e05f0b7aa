//! Which pages were written.

use crate::object::ObjectId;

/// Which dirty bits to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyRequest {
    /// The page table.
    pub hwpt: ObjectId,
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub len: u64,
    /// Bytes per bit.
    pub page_size: u64,
    /// Leave the bits as they are.
    pub no_clear: bool,
}
