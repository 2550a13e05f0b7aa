//! The running set: IOMMU, devices, the parent's own driver, mediated devices, open contexts.
//!
//! * `running`: [`Machine`], how it is built, and what is asked of it as a whole. Each other file has
//!   one part of it, or one question that is asked of it.
//! * `device`, `emulated`, `mdevs`, `sriov`: the devices that there are. `changes`: what of them comes,
//!   goes and changes while the machine runs.
//! * `functions`, `live`: the PCI functions that programs see, and the files that follow their
//!   registers. `attribute`: the files that programs write.
//! * `view`, `node`: what programs and virtual machines can open. `inspect`, `outline`: what people can see.
//! * `injected`: failures that a test asks for.

mod attribute;
mod changes;
mod device;
mod emulated;
mod error;
mod functions;
mod injected;
mod inspect;
mod live;
mod mdevs;
mod node;
mod outline;
mod running;
mod sriov;
mod view;

pub use error::{BuiltError, MachineError};
pub use live::LiveFile;
pub use node::{ExportedDevice, MdevInfo, VfioNode};
pub use outline::Outline;
pub use running::Machine;
