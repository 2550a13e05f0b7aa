//! Floor 5: the educational device (1234:11e8) as an *emulated* mediated device: software that
//! copies, with no DMA of its own, no PASID and no domain.
//!
//! The device is QEMU's, as its specification describes it, so that the drivers that people write
//! to learn with it work here too. What is special is how it reaches memory: through
//! [`EmulatedDma`](ioasid_vfio::EmulatedDma), an access object of the program's IOAS, as the
//! kernel's sample devices do (`samples/vfio-mdev`).
//!
//! * [`spec`]: the registers. No behaviour.
//! * [`Edu`]: one device: registers, and the thread that computes and copies.
//! * [`EduParent`]: makes and removes them by UUID.
//!
//! What never lives here: page tables, PASIDs, anything of an IOMMU.
//!
//! Invariants:
//! * A register access never waits for memory: the device's own thread copies.
//! * When a reset is done, no copy of the time before is under way.
//!
//! # Capabilities
//! | | |
//! |---|---|
//! | registers | all of the specification, 4 bytes wide, those from 0x80 on also 8 |
//! | DMA addresses | 64 bits |
//! | interrupts | INTx, MSI with one vector |
//!
//! Not there: the DMA mask of 28 bits (a property of QEMU's device). A transfer that leaves the
//! device's buffer, or for which memory is missing, moves nothing and ends as any other: the device
//! has no register that reports it.
#![forbid(unsafe_code)]

mod device;
mod migration;
mod parent;
pub mod spec;

pub use device::{Edu, EduError};
pub use parent::{EduParent, INSTANCES, TYPE_EDU};
