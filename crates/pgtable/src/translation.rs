//! What walks and unmaps answer.

use ioasid_core::Prot;

use crate::arena::FreedTables;

/// What a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The system physical address.
    pub spa: u64,
    /// Bytes from there to the end of the leaf; at least 1.
    pub len: u64,
    /// What the mapping allows.
    pub prot: Prot,
}

/// What an unmap took out of the tree.
#[derive(Debug)]
#[must_use]
pub struct Unmapped {
    /// Bytes that were mapped.
    pub bytes: u64,
    /// Tables that are not in the tree any more, for
    /// [`PageTable::recycle`](crate::PageTable::recycle).
    pub freed: FreedTables,
}
