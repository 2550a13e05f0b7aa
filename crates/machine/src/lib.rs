//! Floor 6: a machine file becomes a running machine.
//!
//! A [`Machine`] is one IOMMU with its devices, queues and mediated devices, and everything that
//! programs can open on it. It makes no system call: where programs come from, and how they reach
//! it, is the business of the floors above. Its state can be looked at through
//! [`ioasid_core::inspect`]: each floor below shows its own part, this one puts them together.
//!
//! Floors inside, from the lowest:
//!
//! * [`sysfs`]: what programs find below `/sys`, as plain data.
//! * [`model`]: what a device model is to a machine, and the registry of them; [`models`]: those that
//!   the project brings along. A program adds its own, see [`model::Model`].
//! * [`mod@file`]: the machine file and device strings.
//! * [`machine`]: the running set.

#![forbid(unsafe_code)]

pub mod file;
pub mod machine;
pub mod model;
pub mod models;
pub mod sysfs;

pub use file::{DEFAULT_MACHINE, MachineFile, MachineFileError};
pub use ioasid_vfio::AttributeError;
pub use machine::{ExportedDevice, LiveFile, Machine, MachineError, MdevInfo, VfioNode};
pub use model::{Model, Models};
