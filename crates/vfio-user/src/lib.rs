//! Floor 8: a vfio-user server, for virtual machines.
#![forbid(unsafe_code)]

pub mod error;
pub mod spec;
