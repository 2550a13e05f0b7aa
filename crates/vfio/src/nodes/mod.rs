//! What programs open: devices and groups, and the list of them.

pub(crate) mod device;
pub(crate) mod file;
pub mod group;
mod name;
pub(crate) mod vfio;
