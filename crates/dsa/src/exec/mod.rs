//! Executing descriptors: resumable state machines that move bytes through a [`DmaGuard`] and never
//! wait.
//!
//! A step runs under one guard until the descriptor is done or a [`Halt`] says why it cannot go on
//! there. Nothing that could block happens inside a step: interrupts and errors are collected in
//! [`Effects`], and delivered when the guard is dropped.

mod batch;
pub(crate) mod bytes;
mod crc;
mod ending;
mod operation;
mod saved;
mod terms;

use ioasid_engine::Halt;
use ioasid_iommu::DmaGuard;

use crate::spec::{Descriptor, Opcode};

pub(crate) use self::terms::{Counts, Effects, Terms};
use self::{batch::Batch, operation::Operation};

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
