//! The files that stand for the machine's entries of `/dev` and `/sys`.

pub(crate) mod placeholder;
pub(crate) mod sysfs_tree;
