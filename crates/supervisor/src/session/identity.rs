//! What a file is known by.

/// Device and inode number.
pub(crate) type Identity = (u64, u64);
