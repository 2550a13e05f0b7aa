//! The ioctls of `/dev/iommu`, as a program sees them.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod commands;
mod header;
mod machine;
mod maps;
mod robustness;
mod wire;
