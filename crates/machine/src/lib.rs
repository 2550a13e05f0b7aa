//! Floor 6: a machine file becomes a running machine.
//!
//! A [`Machine`] is one IOMMU with its devices, queues and mediated devices, and everything that
//! programs can open on it. It makes no system call: where programs come from, and how they reach
//! it, is the business of the floors above. Whoever holds the machine can look at it through
//! [`ioasid_core::inspect`]: each floor below shows its own part, this one puts them together.
//!
//! * [`mod@file`]: the machine file and device strings.
//! * [`machine`]: the running set.
//! * [`sysfs`]: what programs find below `/sys`; [`attribute`]: what they can write there.

#![forbid(unsafe_code)]

pub mod attribute;
mod emulated;
pub mod file;
mod live;
pub mod machine;
mod model;
mod sriov;
pub mod sysfs;

pub use attribute::AttributeError;
pub use file::{MachineFile, MachineFileError};
pub use live::LiveFile;
pub use machine::{ExportedDevice, Machine, MachineError, MdevInfo, VfioNode};
