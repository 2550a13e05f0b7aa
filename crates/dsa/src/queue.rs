//! One work queue: its configuration, what waits in it and what of it is under way.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ioasid_core::Pasid;
use ioasid_iommu::PasidUse;

use crate::{
    config::QueueType,
    exec::{Effects, Execution, Terms},
    front::Front,
    spec::{
        Descriptor, Opcode, WqConfig, WqState,
        tables::{WqStatus, WqUse},
    },
};

/// Descriptors of one queue that are neither in the queue nor on an engine: they wait for a page or
/// run on their client's worker. A queue that has so many gets no further engine time, and no
/// queue can use up the page requests of the device.
pub(crate) const SUSPENDED_LIMIT: usize = 32;

/// One enabling of a queue: what its descriptors may do and in whose name. Every descriptor under
/// way holds it, and with it the PASID.
#[derive(Debug)]
pub(crate) struct Session {
    /// Who gets errors and interrupts.
    pub(crate) front: Arc<Front>,
    /// Queue index as that owner counts.
    pub(crate) index: u8,
    pub(crate) pasid: Option<Pasid>,
    pub(crate) pasid_use: Option<PasidUse>,
    pub(crate) terms: Terms,
    aborted: AtomicBool,
}

impl Session {
    pub(crate) fn new(
        front: Arc<Front>,
        index: u8,
        pasid: Option<Pasid>,
        pasid_use: Option<PasidUse>,
        terms: Terms,
    ) -> Arc<Self> {
        Arc::new(Session {
            front,
            index,
            pasid,
            pasid_use,
            terms,
            aborted: AtomicBool::new(false),
        })
    }

    /// The same rights for descriptors that come after an abort.
    fn renewed(&self) -> Arc<Self> {
        Session::new(
            Arc::clone(&self.front),
            self.index,
            self.pasid,
            self.pasid_use.clone(),
            self.terms,
        )
    }

    /// Whether descriptors under way should end as soon as they can, without a record.
    pub(crate) fn aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }
}

/// A descriptor under way.
#[derive(Debug)]
pub(crate) struct Task {
    pub(crate) queue: usize,
    pub(crate) sequence: u64,
    pub(crate) session: Arc<Session>,
    pub(crate) execution: Execution,
}

/// What happened in a queue since the device was made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stats {
    /// Descriptors accepted at the portal.
    pub(crate) accepted: u64,
    /// Descriptors dropped because the queue was full or not enabled.
    pub(crate) dropped: u64,
    /// Descriptors that ended, those of batches included.
    pub(crate) ended: u64,
    /// Of them, those that did not succeed.
    pub(crate) failed: u64,
    /// Bytes moved.
    pub(crate) bytes: u64,
    /// Page faults.
    pub(crate) faults: u64,
    /// Descriptors that were dropped or cut short by an abort.
    pub(crate) aborted: u64,
}

#[derive(Debug)]
struct Waiting {
    sequence: u64,
    descriptor: Descriptor,
}

/// Why a descriptor was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The queue is full: a posted store is dropped, and nobody is told.
    Full,
    /// The queue is not enabled, or about to be disabled.
    NotEnabled,
}

/// A work queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) config: WqConfig,
    /// Who has the queue for itself.
    pub(crate) claim: Option<QueueType>,
    pub(crate) session: Option<Arc<Session>>,
    /// Draining in order to be disabled: accepts nothing.
    pub(crate) closing: bool,
    waiting: VecDeque<Waiting>,
    /// Under way, given up by their engine for the moment, to be resumed first.
    ready: VecDeque<Task>,
    /// Under way, waiting for the answer to a page request.
    parked: BTreeMap<u64, Task>,
    /// Sequence numbers of the descriptors under way.
    running: Vec<u64>,
    /// Descriptors on their client's worker.
    remote: usize,
    next_sequence: u64,
    /// Engine time that the queue may still use in this round, in bytes.
    pub(crate) credit: i64,
    pub(crate) stats: Stats,
}

impl Queue {
    pub(crate) fn new() -> Self {
        Queue {
            config: WqConfig::default(),
            claim: None,
            session: None,
            closing: false,
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            parked: BTreeMap::new(),
            running: Vec::new(),
            remote: 0,
            next_sequence: 0,
            credit: 0,
            stats: Stats::default(),
        }
    }

    pub(crate) const fn state(&self) -> WqState {
        match self.session {
            Some(_) => WqState::Enabled,
            None => WqState::Disabled,
        }
    }

    /// Bytes 24..=27 of WQCFG.
    pub(crate) fn status(&self) -> WqStatus {
        WqStatus::new()
            .with_occupancy(u16::try_from(self.waiting.len()).unwrap_or(u16::MAX))
            .with_state(self.state())
    }

    /// Descriptors that wait, and those under way.
    pub(crate) fn depth(&self) -> (usize, usize) {
        (self.waiting.len(), self.running.len())
    }

    /// Descriptors that wait for a page.
    pub(crate) fn parked(&self) -> usize {
        self.parked.len()
    }

    /// Takes a descriptor in, up to the size of the queue.
    pub(crate) fn accept(&mut self, descriptor: Descriptor) -> Result<(), Refused> {
        let refused = match &self.session {
            None => Some(Refused::NotEnabled),
            Some(_) if self.closing => Some(Refused::NotEnabled),
            Some(_) if self.waiting.len() >= self.config.size.into() => Some(Refused::Full),
            Some(_) => None,
        };
        if let Some(refused) = refused {
            self.stats.dropped += 1;
            return Err(refused);
        }
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.stats.accepted += 1;
        self.waiting.push_back(Waiting {
            sequence,
            descriptor,
        });
        Ok(())
    }

    /// Whether an engine could do something for this queue now.
    pub(crate) fn has_work(&self) -> bool {
        if !self.ready.is_empty() {
            return true;
        }
        let Some(next) = self.waiting.front() else {
            return false;
        };
        // A Drain descriptor starts when the ones before have ended.
        let drains = next.descriptor.opcode == Opcode::Drain as u8;
        self.parked.len() + self.remote < SUSPENDED_LIMIT && (!drains || self.running.is_empty())
    }

    /// Takes what an engine should do next, if [`Queue::has_work`].
    pub(crate) fn take(&mut self, queue: usize) -> Option<Task> {
        if let Some(task) = self.ready.pop_front() {
            return Some(task);
        }
        let session = Arc::clone(self.session.as_ref()?);
        let Waiting {
            sequence,
            descriptor,
        } = self.waiting.pop_front()?;
        self.running.push(sequence);
        Some(Task {
            queue,
            sequence,
            session,
            execution: Execution::new(descriptor),
        })
    }

    /// Adds what a descriptor did to the books.
    pub(crate) fn account(&mut self, effects: &Effects) {
        let stats = &mut self.stats;
        stats.bytes += effects.bytes;
        stats.ended += effects.ended;
        stats.failed += effects.failed;
        stats.faults += effects.faults;
    }

    /// The engine gave the descriptor up for another queue's turn. Given back if it was aborted.
    pub(crate) fn resume_later(&mut self, task: Task) -> Result<(), Task> {
        if task.session.aborted() {
            return Err(task);
        }
        self.ready.push_back(task);
        Ok(())
    }

    /// The descriptor waits for a page. Given back if it was aborted.
    pub(crate) fn park(&mut self, task: Task) -> Result<(), Task> {
        if task.session.aborted() {
            return Err(task);
        }
        self.parked.insert(task.sequence, task);
        Ok(())
    }

    /// The wait is over; `denied` if there will be no page. Nothing happens if the descriptor was
    /// aborted meanwhile.
    pub(crate) fn unpark(&mut self, sequence: u64, denied: bool) {
        if let Some(mut task) = self.parked.remove(&sequence) {
            if denied {
                task.execution.deny_page();
            }
            self.ready.push_back(task);
        }
    }

    pub(crate) const fn goes_remote(&mut self) {
        self.remote += 1;
    }

    pub(crate) const fn returns_from_remote(&mut self) {
        self.remote = self.remote.saturating_sub(1);
    }

    /// A descriptor is done, or cut short by an abort.
    pub(crate) fn end(&mut self, sequence: u64, aborted: bool) {
        self.stats.aborted += u64::from(aborted);
        self.running.retain(|running| *running != sequence);
    }

    /// Drops what waits and what is suspended, and asks what is on an engine or a worker to end.
    /// Descriptors that are accepted from now on are not concerned.
    pub(crate) fn abort(&mut self) {
        let Some(session) = &mut self.session else {
            return;
        };
        session.aborted.store(true, Ordering::Release);
        *session = session.renewed();
        let suspended = self
            .ready
            .drain(..)
            .chain(std::mem::take(&mut self.parked).into_values());
        let mut dropped = self.waiting.drain(..).count() as u64;
        for task in suspended {
            dropped += 1;
            self.running.retain(|sequence| *sequence != task.sequence);
        }
        self.stats.aborted += dropped;
    }

    /// The mark that [`Queue::passed`] compares with: everything accepted so far is before it.
    pub(crate) const fn mark(&self) -> u64 {
        self.next_sequence
    }

    /// Whether every descriptor before `mark` is done.
    pub(crate) fn passed(&self, mark: u64) -> bool {
        self.running.iter().all(|sequence| *sequence >= mark)
            && self
                .waiting
                .front()
                .is_none_or(|next| next.sequence >= mark)
    }

    /// Disabled, with nothing left of its session and no PASID in its configuration.
    pub(crate) fn disable(&mut self) {
        self.session = None;
        self.closing = false;
        self.config.usage = WqUse::from_bits(self.config.usage.into_bits() & 0xff);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::test_front;

    fn queue(size: u16) -> Queue {
        let mut queue = Queue::new();
        queue.config.size = size;
        let terms = Terms {
            max_transfer: 1,
            max_batch: 2,
            block_on_fault: false,
            vectors: 1,
        };
        queue.session = Some(Session::new(test_front(), 0, None, None, terms));
        queue
    }

    #[test]
    fn a_full_queue_drops_and_a_taken_descriptor_makes_room() {
        let mut queue = queue(2);
        let descriptor = Descriptor::new(Opcode::Noop, 0);
        assert_eq!(queue.accept(descriptor), Ok(()));
        assert_eq!(queue.accept(descriptor), Ok(()));
        assert_eq!(queue.accept(descriptor), Err(Refused::Full));
        let task = queue.take(0).unwrap();
        assert_eq!(queue.accept(descriptor), Ok(()));
        assert_eq!((queue.stats.accepted, queue.stats.dropped), (3, 1));
        queue.end(task.sequence, false);
        assert_eq!(queue.depth(), (2, 0));
    }

    #[test]
    fn a_drain_descriptor_waits_for_what_is_under_way() {
        let mut queue = queue(8);
        queue.accept(Descriptor::new(Opcode::Noop, 0)).unwrap();
        queue.accept(Descriptor::new(Opcode::Drain, 0)).unwrap();
        let first = queue.take(0).unwrap();
        assert!(!queue.has_work());
        queue.end(first.sequence, false);
        assert!(queue.has_work());
    }

    #[test]
    fn a_mark_is_passed_when_everything_before_it_is_done() {
        let mut queue = queue(8);
        queue.accept(Descriptor::new(Opcode::Noop, 0)).unwrap();
        let first = queue.take(0).unwrap();
        let mark = queue.mark();
        queue.accept(Descriptor::new(Opcode::Noop, 0)).unwrap();
        assert!(!queue.passed(mark));
        queue.end(first.sequence, false);
        assert!(queue.passed(mark), "later descriptors do not count");
    }

    #[test]
    fn an_abort_drops_what_waits_and_spares_what_comes_later() {
        let mut queue = queue(8);
        for _ in 0..5 {
            queue.accept(Descriptor::new(Opcode::Noop, 0)).unwrap();
        }
        let under_way = queue.take(0).unwrap();
        let parked = queue.take(0).unwrap();
        queue.park(parked).unwrap();
        queue.abort();
        assert_eq!(queue.depth(), (0, 1));
        assert!(under_way.session.aborted());
        assert!(queue.resume_later(under_way).is_err());
        queue.accept(Descriptor::new(Opcode::Noop, 0)).unwrap();
        assert!(!queue.take(0).unwrap().session.aborted());
    }
}
