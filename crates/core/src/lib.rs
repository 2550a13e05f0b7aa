//! Floor 0 of the house: what every other floor stands on, and nothing that knows about devices.
//!
//! * [`range`]: address ranges as (start, inclusive last), because an IOVA can reach 2^64-1.
//! * [`id`]: PCI addresses, PASIDs and the other numbers that name things.
//! * [`grace`]: the in-flight marker and the barrier that waits for it; cells that readers load
//!   without a lock while such a marker is published.
//! * [`memory`]: bytes that a peer may change at any moment, and the traits that give them.
//! * [`spa`]: the system physical address space: registered ranges, one flat lookup.
//! * [`failpoint`]: allocations that can be made to fail, to show that nothing is left behind.
//! * [`heap`]: bytes that a thread has allocated, counted for tests and benchmarks.
//! * [`host`]: traits that an operating system (or a test) implements: interrupt sinks, workers.
//! * [`inject`]: failures that a test asks for.
//! * [`inspect`]: the tree of named values that each floor fills for itself.
//! * [`observe`]: what a machine does, told to one observer as it happens.
//! * [`regmap`]: register files: which registers an access of any width touches.
//! * [`statistics`]: what a driver counts of its jobs, and how long they took.
//! * [`sync`]: locks, atomics and threads, replaceable by a model checker's. [`lock_order`]: in which
//!   order locks are taken, checked in debug builds.
//!
//! No system call is made here, and no page-table format is known. `unsafe` is argued in each module
//! that has it: [`grace`] (cells read without a lock), [`memory`] and [`spa`] (raw bytes), [`heap`]
//! (an allocator).

pub mod access;
pub mod failpoint;
pub mod grace;
pub mod heap;
pub mod host;
pub mod id;
pub mod inject;
pub mod inspect;
pub mod lock_order;
pub mod memory;
pub mod observe;
pub mod range;
pub mod regmap;
pub mod spa;
pub mod statistics;
pub mod sync;

pub use access::{Access, Prot};
pub use id::{DomainId, Pasid, PciAddress, Rid};
pub use range::AddrRange;
