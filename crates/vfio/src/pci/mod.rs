//! PCI functions without their registers: configuration space as VFIO shows it
//! (`drivers/vfio/pci/vfio_pci_config.c`), BARs, and interrupts.
//!
//! A device describes itself once, with a [`FunctionBuilder`]; from then on the [`Function`] knows
//! what a program may read and write. Two views of the same bytes exist: the program's, in which
//! some capabilities are unlinked (a PASID capability above all: the kernel hides it), and the
//! host's ([`Function::host_config`]), in which the device shows all that it has.

pub mod spec;

mod bars;
mod builder;
mod capabilities;
mod function;
mod intx;
mod layout;
mod master;
mod sriov;
mod vectors;
mod watch;

pub use builder::FunctionBuilder;
pub use function::{ConfigEffect, Function};
pub use intx::Intx;
pub use layout::{Bar, LayoutError, MsixError, MsixLayout, SriovLayout};
pub use vectors::Vectors;
pub use watch::FunctionWatch;
