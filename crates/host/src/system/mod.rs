//! What takes no client: file systems, copies that survive a fault, and this process itself.

pub(crate) mod confine;
pub(crate) mod copy;
pub(crate) mod file_id;
pub(crate) mod filesystem;
pub mod service;
