//! A descriptor on an engine or on its client's worker.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use ioasid_engine::{Halt, Job, JobId, Place};
use ioasid_iommu::{DmaGuard, DmaPort};

use crate::{
    channel::Client,
    exec::{Ending, Execution},
};

/// A descriptor under way. A channel has one at a time.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) channel: usize,
    /// Its number among those of the channel.
    number: u64,
    client: Arc<Client>,
    execution: Execution,
    aborted: Arc<AtomicBool>,
    /// How it has ended, when it has.
    ending: Option<Ending>,
    /// Bytes of it that are accounted for.
    accounted: u64,
}

impl Task {
    pub(crate) fn new(
        (channel, number): (usize, u64),
        client: Arc<Client>,
        execution: Execution,
        aborted: &Arc<AtomicBool>,
    ) -> Self {
        Task {
            channel,
            number,
            client,
            aborted: Arc::clone(aborted),
            ending: None,
            accounted: execution.moved,
            execution,
        }
    }

    /// Bytes that it has moved since this was last called.
    pub(crate) const fn take_moved(&mut self) -> u64 {
        let moved = self.execution.moved - self.accounted;
        self.accounted = self.execution.moved;
        moved
    }

    /// What is left of it, for another engine.
    pub(crate) fn into_execution(self) -> Execution {
        self.execution
    }

    /// How it has ended; one that was aborted is not reported.
    pub(crate) fn ending(&self) -> Option<Ending> {
        self.ending.filter(|_| !self.aborted())
    }

    /// The way to memory from `place`.
    fn enter<'a>(&self, port: &'a mut DmaPort, place: Place) -> DmaGuard<'a> {
        match place {
            Place::Engine => port.enter(self.client.pasid),
            Place::Worker => port.enter_blocking(self.client.pasid),
        }
    }
}

impl Job for Task {
    fn id(&self) -> JobId {
        JobId {
            unit: self.channel,
            number: self.number,
        }
    }

    fn operation(&self) -> &'static str {
        self.execution.operation()
    }

    fn aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    fn step(&mut self, port: &mut DmaPort, place: Place) -> Result<(), Halt> {
        let mut guard = self.enter(port, place);
        self.execution.step(&mut guard)
    }

    /// Completion word and registers change at once, as seen by a reader of the registers. Entering
    /// a domain and writing a word in it does not block an engine; on a worker it may, so there the
    /// registers change only after it.
    fn conclude(&mut self, port: &mut DmaPort, place: Place) -> Result<(), Halt> {
        let mut guard = self.enter(port, place);
        self.ending = Some(self.execution.conclude(&mut guard)?);
        Ok(())
    }

    /// The channel halts.
    fn lost(&mut self) {
        self.ending = Some(self.execution.lost());
    }
}
