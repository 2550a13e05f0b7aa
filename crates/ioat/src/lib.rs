//! Floor 5: a software Intel I/OAT (CBDMA, 8086:2021): a device that copies, fills and adds up
//! memory by chains of descriptors, with several channels, each of which can belong to another
//! owner. Stock drivers need no special store instruction for it.
//!
//! * [`spec`]: the hardware interface as types. No behaviour.
//! * [`IoatDevice`]: the whole device, as its own driver or a program with the whole device sees
//!   it.
//! * [`IoatChild`]: one channel as a device of its own, with a default PASID; [`IoatParent`] makes
//!   and removes them by UUID.
//! * [`driver`]: the parent's own driver, through registers, descriptors and the DMA API.
//!
//! Inside, `channel` is the state of a channel: registers, chain, what is under way. An engine
//! ([`ioasid_engine`]) takes one descriptor of it after another from the `schedule` as a `job` and
//! `exec`utes it, step by step, through a guarded DMA port; an `endpoint` is the PCI function of
//! one owner, with that owner's interrupts.
//!
//! What never lives here: page tables, attachments, anything that knows which address space a PASID
//! leads to. The device gives its DMA a PASID, and that is all.
//!
//! Invariants:
//! * Descriptors of a channel are done one after the other, on engines (or on their client's
//!   worker), never inside the store to the doorbell.
//! * An engine never waits for a client: no guard is held while anything could block, descriptors
//!   are resumable, and one that must wait does so off the engine.
//! * The PASID of a channel is its owner's; no register or descriptor names one. It stays in use as
//!   long as a descriptor that was begun with it exists.
//! * When a reset is done, no descriptor of the time before touches memory any more.
//! * While a channel is paused for a migration, nothing of it goes on and no interrupt comes.
//! * A descriptor's bytes are written before its completion word, and that before its interrupt.
//!   A program that sees the word in memory that does not block sees the registers that go with it,
//!   and the other way round.
//!
//! # Capabilities
//! | | whole device | child |
//! |---|---|---|
//! | channels | 1 to 16 | 1 |
//! | transfer | 256 KiB | the same |
//! | operations | copy, fill, null, XOR and P+Q of up to 8 sources with their checks | the same |
//! | version | 3.3 | the same |
//! | interrupts | one MSI-X vector per channel, or vector 0 for all | one MSI-X vector |
//! | commands | reset, suspend, resume | the same |
//!
//! Not there: page breaks, CRC and marker operations, P+Q update, 16 sources, error status in the
//! descriptor, descriptor prefetch, interrupt coalescing, direct cache access, MSI and INTx. An
//! interrupt that comes while interrupts of its channel are off is kept, and raised when they are
//! rearmed. A channel that an error has halted takes a chain address once the error is cleared.
#![forbid(unsafe_code)]

mod channel;
mod child;
mod claim;
mod config;
mod device;
pub mod driver;
mod endpoint;
mod exec;
mod job;
mod migration;
mod registers;
mod schedule;
pub mod spec;

pub use child::{IoatChild, IoatParent, TYPE_1CHAN};
pub use claim::ChannelClaim;
pub use config::{
    ChannelConfig, ChannelOwner, ConfigError, Error, IoatConfig, MAX_CHANNELS, MAX_ENGINES,
    MAX_TRANSFER_SHIFT,
};
pub use device::IoatDevice;
pub use driver::{DriverError, HostChannel, HostDriver};
