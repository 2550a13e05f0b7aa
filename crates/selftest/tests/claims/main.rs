//! What the mock promises to the self-test, each test a claim. The kernel's own test program says
//! more; this says it without a supervisor.
#![allow(unreachable_pub, clippy::unwrap_used)] // One binary of modules, helpers included.

mod accesses;
mod devices;
mod dmabufs;
mod machine;
mod memory;
mod nesting;
