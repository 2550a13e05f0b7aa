//! The ioctls of `/dev/iommu`, as a program sees them.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod backend;
mod commands;
mod container;
mod events;
mod header;
mod machine;
mod maps;
mod nesting;
mod robustness;
mod wire;
