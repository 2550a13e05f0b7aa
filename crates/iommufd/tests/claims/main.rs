//! What the object model of `/dev/iommu` promises, each test a claim.
#![allow(unreachable_pub, clippy::unwrap_used)] // One binary of modules, helpers included.

mod accesses;
mod attaching;
mod barrier;
mod dirty;
mod machine;
mod maps;
mod objects;
mod pinning;
mod program;
mod sharing;
