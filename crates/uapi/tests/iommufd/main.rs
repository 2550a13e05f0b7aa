//! The ioctls of `/dev/iommu`, as a program sees them.
#![allow(clippy::unwrap_used, reason = "these are tests")]

mod against_model;
mod backend;
mod commands;
mod container;
mod events;
mod first_stages;
mod header;
mod machine;
mod maps;
mod model;
mod nesting;
mod robustness;
mod wire;
