//! Floor 5: the educational device (1234:11e8), as a whole PCI function that does DMA behind the
//! IOMMU, and as an *emulated* mediated device: software that copies, with no DMA of its own, no PASID
//! and no domain.
//!
//! The device is QEMU's, as its specification describes it (`docs/specs/edu.rst`), so that the drivers
//! that people write to learn with it work here too. The two forms are one device but for how it
//! reaches memory:
//! * a whole one through an [`ioasid_iommu::DmaPort`], as the hardware would: what the IOMMU refuses is
//!   a fault of the device;
//! * an emulated one through [`EmulatedDma`](ioasid_vfio::EmulatedDma), an access object of the
//!   program's IOAS, as the kernel's sample devices do (`samples/vfio-mdev`).
//!
//! * [`spec`]: the registers. No behaviour.
//! * [`Edu`]: one device: registers, and the thread that computes and copies.
//! * [`EduParent`]: makes and removes emulated ones by UUID.
//!
//! What never lives here: page tables, PASIDs.
//!
//! Invariants:
//! * A register access never waits for memory: the device's own thread copies.
//! * When a reset is done, no copy of the time before is under way.
//!
//! # Capabilities
//! | | |
//! |---|---|
//! | registers | all of the specification, 4 bytes wide, those from 0x80 on also 8 |
//! | DMA addresses | a whole device: 28 bits, or what `dma_mask` says; an emulated one: 64 |
//! | interrupts | INTx, MSI with one vector |
//!
//! A transfer that leaves the device's buffer moves nothing. One for which memory is missing stops
//! there. Both end as any other: the device has no register that reports it. The IOMMU's fault log
//! has what a whole device was refused.
#![forbid(unsafe_code)]

mod device;
mod memory;
mod migration;
mod parent;
pub mod spec;

pub use device::{Edu, EduError};
pub use parent::{EduParent, INSTANCES, TYPE_EDU};
