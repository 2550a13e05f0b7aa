//! Executing descriptors: resumable state machines that move bytes through a [`DmaGuard`] and never
//! wait.
//!
//! A step runs under one guard until the descriptor is done or a [`Halt`] says why it cannot go on
//! there. Nothing that could block happens inside a step: interrupts and errors are collected in
//! [`Effects`] and delivered by whoever dropped the guard.

mod batch;
mod crc;
mod ending;
mod operation;
mod saved;

use std::sync::Arc;

use ioasid_core::host::Worker;
use ioasid_iommu::{DmaGuard, Fault, Stop};

use crate::spec::{Descriptor, Event, Opcode};

use self::{batch::Batch, operation::Operation};

/// Why a step ended before its descriptor did. It is resumed by another step.
#[derive(Debug)]
pub(crate) enum Halt {
    /// The guard has moved as many bytes as it may: take a new one.
    Budget,
    /// The owner's function must not issue requests: go on when it may.
    Withheld,
    /// Memory that may block: go on on this worker.
    Remote(Arc<dyn Worker>),
    /// The descriptor wants to wait until this page fault has been handled.
    Page(Fault),
}

/// What steps cause outside of memory, in order.
#[derive(Debug, Default)]
pub(crate) struct Effects {
    /// MSI-X vectors to raise, checked.
    pub(crate) interrupts: Vec<u16>,
    /// Errors without a completion record.
    pub(crate) errors: Vec<Event>,
    /// Bytes moved.
    pub(crate) bytes: u64,
    /// Descriptors that ended, those of batches included.
    pub(crate) ended: u64,
    /// Of them, those that did not succeed.
    pub(crate) failed: u64,
    /// Page faults that ended a descriptor or hit its completion record.
    pub(crate) faults: u64,
}

impl Effects {
    /// Adds the counts of another step.
    pub(crate) const fn add(&mut self, other: &Effects) {
        self.bytes += other.bytes;
        self.ended += other.ended;
        self.failed += other.failed;
        self.faults += other.faults;
    }
}

/// What the queue allows a descriptor.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Terms {
    /// Largest transfer in bytes.
    pub(crate) max_transfer: u64,
    /// Largest batch in descriptors.
    pub(crate) max_batch: u64,
    /// Block On Fault may be set.
    pub(crate) block_on_fault: bool,
    /// Pages are requested; otherwise a descriptor that would wait for one ends with the fault.
    pub(crate) page_requests: bool,
    /// MSI-X vectors of the client's device that its descriptors may name, as bits.
    pub(crate) vectors: u64,
    /// The queue is shared: PASID and privilege are those that the processor put into the descriptor.
    pub(crate) shared: bool,
    /// Privileged descriptors are allowed in a shared queue.
    pub(crate) privileged: bool,
    /// One past the largest PASID of the device.
    pub(crate) max_pasids: u32,
    /// Translations that the device keeps may be used.
    pub(crate) ats: bool,
}

impl Terms {
    /// Whether an interrupt handle is one of the client's.
    pub(crate) fn permits(&self, handle: u16) -> bool {
        self.vectors
            .checked_shr(handle.into())
            .is_some_and(|vectors| vectors & 1 == 1)
    }
}

#[cfg(test)]
impl Terms {
    /// Terms that allow nothing special, for tests of the parts.
    pub(crate) const fn for_tests() -> Self {
        Terms {
            max_transfer: 1,
            max_batch: 2,
            block_on_fault: false,
            page_requests: false,
            vectors: 1,
            shared: false,
            privileged: true,
            max_pasids: 1 << 20,
            ats: true,
        }
    }
}

/// One descriptor as a client submitted it, perhaps a batch.
#[derive(Debug)]
pub(crate) enum Execution {
    /// A descriptor of its own.
    Single(Box<Operation>),
    /// A list of them.
    Batch(Box<Batch>),
}

impl Execution {
    /// A submitted descriptor.
    pub(crate) fn new(descriptor: Descriptor) -> Self {
        if descriptor.opcode == Opcode::Batch as u8 {
            Execution::Batch(Box::new(Batch::new(descriptor)))
        } else {
            Execution::Single(Box::new(Operation::new(descriptor, None)))
        }
    }

    /// What was submitted.
    pub(crate) const fn descriptor(&self) -> &Descriptor {
        match self {
            Execution::Single(operation) => &operation.descriptor,
            Execution::Batch(batch) => &batch.descriptor,
        }
    }

    /// Goes on until the descriptor is done (`Ok`) or cannot go on under this guard.
    pub(crate) fn step(
        &mut self,
        guard: &mut DmaGuard<'_>,
        terms: &Terms,
        effects: &mut Effects,
    ) -> Result<(), Halt> {
        match self {
            Execution::Single(operation) => operation.step(guard, terms, effects).map(drop),
            Execution::Batch(batch) => batch.step(guard, terms, effects),
        }
    }

    /// The page fault that stopped the last step will not be mended: the access is tried once more
    /// and then fails the descriptor.
    pub(crate) fn deny_page(&mut self) {
        match self {
            Execution::Single(operation) => operation.deny_page(),
            Execution::Batch(batch) => batch.deny_page(),
        }
    }
}

/// The fault that stopped an operation, or why the step ends.
fn fault_of(stop: Stop) -> Result<Fault, Halt> {
    match stop {
        Stop::Fault(fault) => Ok(fault),
        Stop::Remote(worker) => Err(Halt::Remote(worker)),
        Stop::Withheld => Err(Halt::Withheld),
        // Whatever else may stop an operation asks to try again under a new guard.
        _ => Err(Halt::Budget),
    }
}
