//! What is held outside of the object table and keeps the file: bound devices, access objects,
//! files of queues, and memory that a program has mapped.

pub(crate) mod access;
pub(crate) mod bound_device;
pub(crate) mod mapped;
pub(crate) mod queue_file;
