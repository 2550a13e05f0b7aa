//! Floor 5: a software Intel DSA (8086:0b25): a device that copies, fills and compares memory, with
//! several work queues, each of which can belong to another owner.
//!
//! * [`spec`]: the hardware interface as types. No behaviour.
//! * [`DsaDevice`]: the whole device, as its own driver or a program with the whole device sees it.
//! * [`DsaChild`]: one queue as a device of its own, with a default PASID; [`DsaParent`] makes and
//!   removes them by UUID.
//! * [`SharedChild`]: one user's part of a [`SharedQueue`], with PASID numbers of that user's own.
//! * [`driver`]: the parent's own driver, through registers, portals and the DMA API.
//!
//! Inside, from the lowest folder:
//!
//! * `exec`: one descriptor under way, a resumable state machine that moves bytes step by step.
//! * `function`: the PCI function of one owner, with that owner's registers, errors, interrupts and
//!   event log.
//! * `queues`: what one lock protects. A store to a portal puts a descriptor into a queue; an engine
//!   ([`ioasid_engine`]) takes it from the schedule as a job and executes it through a guarded DMA
//!   port; commands wait for descriptors to end.
//! * `devices`: the whole device, the children that are a queue each, and those that share one.
//!
//! What never lives here: page tables, attachments, anything that knows which address space a PASID
//! leads to. The device gives its DMA a PASID, and that is all.
//!
//! Invariants:
//! * Descriptors complete on engines (or on their client's worker), never inside the portal store.
//! * An engine never waits for a client: no guard is held while anything could block, descriptors
//!   are resumable, and one that must wait does so off the engine.
//! * The PASID of a dedicated queue comes from its configuration; what a descriptor claims is
//!   ignored. That of a shared queue comes from the descriptor, where the processor puts it; of a child,
//!   it is the one that was leased for that number. A PASID stays in use as long as a descriptor that was accepted with it exists.
//! * When a drain, an abort, a disable or a reset is done, no descriptor that it concerns touches
//!   memory any more.
//! * While a queue is paused for a migration, no descriptor of it goes on and no interrupt comes.
//! * A completion record is written before its interrupt, and its status byte after all others.
//!
//! # Capabilities
//! | | whole device | child |
//! |---|---|---|
//! | queues | 1 to 32, dedicated or shared | 1, dedicated |
//! | groups, engines | as many as engines, 1 to 16 | 1, 1 (shown; it shares its parent's) |
//! | transfer, batch | 2 MiB, 1024 descriptors | the same |
//! | operations | No-op, Batch, Drain, Memory Move, Fill, Compare, Compare Pattern, Dualcast, CRC, Copy with CRC, Cache Flush | the same |
//! | Block On Fault | if the device can request pages | the same |
//! | commands | 1 to 12 | 1 to 10, on its own queue |
//! | errors | SWERR, event log | its own |
//! | translations | kept by the engines (ATS), queues may turn that off | the same, always |
//! | interrupt handles | MSI-X vectors, one per queue and one for errors and commands | two MSI-X vectors |
//! | configurable | yes | no |
//!
//! Not there: delta records, DIF, translation fetch, the interrupt message store, performance
//! monitoring, drain readback, read-buffer limits (kept, without effect), occupancy interrupts,
//! per-queue operation masks, batch continuation.
#![forbid(unsafe_code)]

mod config;
mod devices;
pub mod driver;
mod exec;
mod function;
mod queues;
pub mod spec;

pub use config::{
    ConfigError, DsaConfig, Error, MAX_BATCH_SHIFT, MAX_ENGINES, MAX_QUEUE_SIZE, MAX_QUEUES,
    MAX_TRANSFER_SHIFT, QueueConfig, QueueType, Role,
};
pub use devices::child::DsaChild;
pub use devices::claim::QueueClaim;
pub use devices::device::DsaDevice;
pub use devices::mdev::{DsaParent, TYPE_1DWQ};
pub use devices::shared::{SharedChild, SharedQueue, VirtualPasidError};
pub use driver::{DriverError, HostDriver, HostQueue};
