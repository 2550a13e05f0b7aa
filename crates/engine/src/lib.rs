//! Floor 4: what every software accelerator has in common, whatever its registers and descriptors.
//!
//! * [`schedule`]: the traits that a device implements. A [`Schedule`] is what one lock protects:
//!   the device's queues, and which descriptor comes next. A [`Job`] is one descriptor under way.
//! * [`pool`]: [`EnginePool`], the threads that execute jobs, and the ways a job leaves one before
//!   it is done.
//! * [`claim`]: a unit of a device (a queue, a channel) that one owner has for itself.
//! * [`driver`]: the half of a host driver that knows no registers.
//!
//! What never lives here: registers, descriptors, PCI functions, anything of one device alone.
//!
//! Invariants:
//! * An engine serves every client, so it never waits for one: jobs are resumable, no guard is held
//!   while anything could block, and a job that must wait does so off the engine.
//! * Interrupts are raised without the lock. A wait until a unit is quiet includes those that were
//!   about to be raised when its last job ended.
//! * A job's hold on its PASID goes before anything shows that the job has ended.
//! * The loop of an engine takes the lock twice for a job, and allocates nothing.
#![forbid(unsafe_code)]

pub mod claim;
pub mod driver;
pub mod pool;
mod raising;
mod run;
pub mod schedule;

pub use claim::{ChildUnit, Claim, ClaimError, Claimable};
pub use pool::{EnginePool, Locked};
pub use schedule::{Halt, Interrupt, Interrupts, Job, JobId, Place, Schedule, Wanted};
