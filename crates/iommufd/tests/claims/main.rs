//! What the object model of `/dev/iommu` promises, each test a claim.
#![allow(unreachable_pub, clippy::unwrap_used)] // One binary of modules, helpers included.

mod accesses;
mod attaching;
mod backend;
mod barrier;
mod cutting;
mod dirty;
mod failing;
mod faults;
mod locked;
mod machine;
mod maps;
mod nesting;
mod objects;
mod pinning;
mod program;
mod sharing;
