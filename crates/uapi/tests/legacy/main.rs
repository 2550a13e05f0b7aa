//! The ioctls of a VFIO group and of a container, as a program sees them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../common/mod.rs"]
mod common;
mod container;
mod group;
mod machine;
mod robustness;
