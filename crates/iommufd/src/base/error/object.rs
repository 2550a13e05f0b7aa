//! Objects by their ids.

use crate::base::id::ObjectId;

/// Why an id, or the file itself, is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ObjectError {
    /// The id names no object, or one of another type (ENOENT).
    #[error("object {0} does not exist, or has another type")]
    Missing(ObjectId),
    /// Other objects, attachments or open files use it (EBUSY).
    #[error("object {0} is in use")]
    InUse(ObjectId),
    /// No object id is left (ENOSPC).
    #[error("no object id is left")]
    NoIds,
    /// The context is closed (ENODEV).
    #[error("the file is closed")]
    Closed,
    /// Only nested page tables and virtual IOMMUs cache what a program can invalidate (EINVAL).
    #[error("object {0} is no nested page table or virtual IOMMU, so nothing of it is cached")]
    NothingCached(ObjectId),
}
