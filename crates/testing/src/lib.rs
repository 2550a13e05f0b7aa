//! What the tests of several crates share: machines as functions, memory that is mapped for a device,
//! bytes to compare, and waiting.
//!
//! Everything here panics where a test would: it is a dev-dependency alone.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod area;
mod irq;
mod machine;
mod pattern;
mod wait;

pub use area::Area;
pub use irq::SlowIrq;
pub use machine::{MDEVS, add_device, new_domain, new_iommu, parent, two_vms, whole};
pub use pattern::pattern;
pub use wait::{PATIENCE, eventually};
