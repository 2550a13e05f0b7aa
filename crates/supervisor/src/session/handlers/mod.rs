//! One function for each intercepted call: what it does to files and paths of the machine.

pub(crate) mod descriptors;
pub(crate) mod ioctl;
mod ioctl_caller;
pub(crate) mod kvm;
pub(crate) mod list;
pub(crate) mod mmap;
pub(crate) mod mount;
pub(crate) mod open;
pub(crate) mod path;
mod recorded;
pub(crate) mod register;
pub(crate) mod regular;
pub(crate) mod stat;
mod stat_layout;
pub(crate) mod statfs;
mod status;
pub(crate) mod transfer;
