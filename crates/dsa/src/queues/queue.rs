//! One work queue: its configuration, what waits in it and what of it is under way.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use ioasid_core::Pasid;
use ioasid_iommu::PasidUse;

use crate::{
    config::QueueType,
    exec::{Counts, Execution},
    function::endpoint::Endpoint,
    queues::job::Task,
    queues::session::Session,
    spec::{
        Descriptor, Opcode, WqConfig, WqState,
        tables::{WqStatus, WqUse},
    },
};

/// Descriptors of one queue that are neither in the queue nor on an engine: they wait for a page or
/// run on their client's worker. A queue with this many gets no further engine time, and no
/// queue can use up the page requests of the device. In a shared queue the limit is each client's.
pub(crate) const SUSPENDED_LIMIT: usize = 32;

/// Clients of a shared queue that are remembered though they have no descriptor there.
const CLIENTS_KEPT: usize = 64;

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
    session: Arc<Session>,
    descriptor: Descriptor,
}

/// A descriptor under way.
#[derive(Debug)]
struct Running {
    sequence: u64,
    pasid: Option<Pasid>,
    /// On its client's worker.
    remote: bool,
}

/// How a descriptor was stored to a portal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// By a store without an answer (`MOVDIR64B`): for dedicated queues.
    Posted,
    /// By one that is answered (`ENQCMD`): for shared queues, which a limited portal fills up to
    /// the threshold only.
    Deferrable { limited: bool },
}

/// Why a descriptor was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The queue is full: a posted store is dropped silently.
    Full,
    /// There is no such queue.
    NoQueue,
    /// The queue is not enabled, or about to be disabled.
    NotEnabled,
    /// Stores of this kind are not for this kind of queue.
    WrongStore,
    /// The descriptor names a PASID that the device cannot send.
    BadPasid,
}

/// A client of a shared queue that belongs to a child: its PASID is not the one in its descriptors.
#[derive(Debug)]
pub(crate) struct ChildClient {
    /// The child's.
    pub(crate) endpoint: Arc<Endpoint>,
    /// The PASID of its requests.
    pub(crate) pasid_use: PasidUse,
}

/// The client of a child that a descriptor names. Called with the state's lock held.
pub(crate) type ClientOf<'a> = dyn Fn() -> Result<ChildClient, Refused> + 'a;

/// Everything that a queue accepted before a moment, perhaps of one PASID only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DrainPoint {
    pub(crate) queue: usize,
    sequence: u64,
    pub(crate) only: Option<Pasid>,
}

/// A work queue.
#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) config: WqConfig,
    /// The owner that has the queue for itself.
    pub(crate) claim: Option<QueueType>,
    pub(crate) session: Option<Arc<Session>>,
    /// Of a shared queue: the clients that have submitted something.
    clients: BTreeMap<Pasid, Arc<Session>>,
    /// Draining in order to be disabled: accepts nothing.
    pub(crate) closing: bool,
    /// Stopped to be migrated: accepts descriptors, and nothing goes on.
    pub(crate) paused: bool,
    waiting: VecDeque<Waiting>,
    /// Under way, given up by their engine for the moment, resumed first.
    ready: VecDeque<Task>,
    /// Under way, waiting for the answer to a page request.
    parked: BTreeMap<u64, Task>,
    running: Vec<Running>,
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
            clients: BTreeMap::new(),
            closing: false,
            paused: false,
            waiting: VecDeque::new(),
            ready: VecDeque::new(),
            parked: BTreeMap::new(),
            running: Vec::new(),
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

    /// Whether the enabled queue is shared.
    pub(crate) fn shared(&self) -> bool {
        self.session
            .as_ref()
            .is_some_and(|session| session.terms.shared)
    }

    /// As a device without children takes one in.
    #[cfg(test)]
    pub(crate) fn accept(&mut self, descriptor: Descriptor, store: Store) -> Result<(), Refused> {
        self.accept_for(descriptor, store, None)
    }

    /// Takes a descriptor in, up to the size of the queue; in the name of the client that `child` gives, if
    /// a child stores it.
    pub(crate) fn accept_for(
        &mut self,
        descriptor: Descriptor,
        store: Store,
        child: Option<&ClientOf<'_>>,
    ) -> Result<(), Refused> {
        let session = self.admit(&descriptor, store, child);
        let session = session.inspect_err(|_| self.stats.dropped += 1)?;
        self.stats.accepted += 1;
        self.enqueue(session, descriptor);
        Ok(())
    }

    /// The number of the descriptor that was accepted last.
    pub(crate) const fn last_accepted(&self) -> u64 {
        self.next_sequence.wrapping_sub(1)
    }

    /// In whose name a descriptor is accepted.
    fn admit(
        &mut self,
        descriptor: &Descriptor,
        store: Store,
        child: Option<&ClientOf<'_>>,
    ) -> Result<Arc<Session>, Refused> {
        let session = match &self.session {
            Some(session) if !self.closing => session,
            _ => return Err(Refused::NotEnabled),
        };
        let shared = session.terms.shared;
        let room = match store {
            Store::Posted if shared => return Err(Refused::WrongStore),
            Store::Deferrable { .. } if !shared => return Err(Refused::WrongStore),
            Store::Deferrable { limited: true } => self.config.threshold,
            Store::Deferrable { limited: false } | Store::Posted => self.config.size,
        };
        if self.waiting.len() >= room.into() {
            return Err(Refused::Full);
        }
        match child {
            None => self.client(descriptor),
            Some(child) => self.client_of_child(child()?),
        }
    }

    /// In whose name a descriptor of the enabled queue runs.
    fn client(&mut self, descriptor: &Descriptor) -> Result<Arc<Session>, Refused> {
        let session = Arc::clone(self.session.as_ref().ok_or(Refused::NotEnabled)?);
        if !session.terms.shared {
            return Ok(session);
        }
        let pasid = Pasid::new(descriptor.pasid)
            .filter(|pasid| pasid.get() < session.terms.max_pasids)
            .ok_or(Refused::BadPasid)?;
        self.forget_idle_clients();
        let client = self
            .clients
            .entry(pasid)
            .or_insert_with(|| session.in_name_of(Some(pasid)));
        Ok(Arc::clone(client))
    }

    /// In whose name a descriptor of a child of the enabled, shared queue runs.
    fn client_of_child(&mut self, child: ChildClient) -> Result<Arc<Session>, Refused> {
        let session = self.session.as_ref().ok_or(Refused::NotEnabled)?;
        let terms = session.terms;
        self.forget_idle_clients();
        let pasid = child.pasid_use.pasid();
        let client = self.clients.entry(pasid).or_insert_with(|| {
            Session::new(child.endpoint, 0, Some(pasid), Some(child.pasid_use), terms)
        });
        Ok(Arc::clone(client))
    }

    fn forget_idle_clients(&mut self) {
        if self.clients.len() > CLIENTS_KEPT {
            self.clients
                .retain(|_, client| Arc::strong_count(client) > 1);
        }
    }

    /// Whether an engine could do something for this queue now.
    pub(crate) fn has_work(&self) -> bool {
        !self.paused
            && self.may_issue()
            && (!self.ready.is_empty() || self.next_waiting().is_some())
    }

    /// Whether the function of the queue's owner may issue requests.
    pub(crate) fn may_issue(&self) -> bool {
        let session = self.session.as_ref();
        session.is_none_or(|session| session.endpoint.function().bus_master())
    }

    /// The descriptor that starts next. Descriptors of one client start in order; in a shared
    /// queue, one client that is held up does not hold up the others.
    fn next_waiting(&self) -> Option<usize> {
        if !self.shared() {
            let next = self.waiting.front()?;
            return self.may_start(next).then_some(0);
        }
        let mut held_up = Vec::new();
        for (index, waiting) in self.waiting.iter().enumerate() {
            let pasid = waiting.session.pasid;
            if held_up.contains(&pasid) {
                continue;
            }
            if self.may_start(waiting) {
                return Some(index);
            }
            held_up.push(pasid);
        }
        None
    }

    /// Whether nothing of its client that is under way keeps a descriptor from starting.
    fn may_start(&self, waiting: &Waiting) -> bool {
        let pasid = waiting.session.pasid;
        let drains = waiting.descriptor.opcode == Opcode::Drain as u8;
        if drains && self.running.iter().any(|running| running.pasid == pasid) {
            return false;
        }
        // Fewer under way than that: no need to count.
        if self.running.len() < SUSPENDED_LIMIT {
            return true;
        }
        let parked = self.parked.values().map(|task| task.session.pasid);
        let remote = self.running.iter().filter(|running| running.remote);
        let suspended = parked.chain(remote.map(|running| running.pasid));
        suspended.filter(|other| *other == pasid).count() < SUSPENDED_LIMIT
    }

    /// Takes what an engine should do next, if [`Queue::has_work`].
    pub(crate) fn take(&mut self, queue: usize) -> Option<Task> {
        if let Some(task) = self.ready.pop_front() {
            return Some(task);
        }
        let index = self.next_waiting()?;
        let Waiting {
            sequence,
            session,
            descriptor,
        } = self.waiting.remove(index)?;
        self.running.push(Running {
            sequence,
            pasid: session.pasid,
            remote: false,
        });
        let execution = Execution::new(descriptor);
        Some(Task::new(queue, sequence, session, execution))
    }

    /// Whether everything that is under way is suspended.
    pub(crate) fn is_quiet(&self) -> bool {
        self.running.len() == self.ready.len() + self.parked.len()
    }

    /// What is under way and suspended, in the order in which it was accepted.
    pub(crate) fn under_way(&self) -> Vec<&Execution> {
        let mut tasks: Vec<_> = self.ready.iter().chain(self.parked.values()).collect();
        tasks.sort_unstable_by_key(|task| task.sequence);
        tasks.iter().map(|task| &task.execution).collect()
    }

    /// What waits, in order.
    pub(crate) fn waiting(&self) -> impl ExactSizeIterator<Item = &Descriptor> {
        self.waiting.iter().map(|waiting| &waiting.descriptor)
    }

    /// Adds a descriptor that is under way, behind those that are there; nothing waits yet.
    pub(crate) fn put_under_way(
        &mut self,
        queue: usize,
        execution: Execution,
    ) -> Result<(), Refused> {
        let session = self.client(execution.descriptor())?;
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.running.push(Running {
            sequence,
            pasid: session.pasid,
            remote: false,
        });
        let task = Task::new(queue, sequence, session, execution);
        self.ready.push_back(task);
        Ok(())
    }

    /// Adds a descriptor that waits. It was accepted elsewhere.
    pub(crate) fn put_waiting(&mut self, descriptor: Descriptor) -> Result<(), Refused> {
        let session = self.client(&descriptor)?;
        self.enqueue(session, descriptor);
        Ok(())
    }

    fn enqueue(&mut self, session: Arc<Session>, descriptor: Descriptor) {
        let sequence = self.next_sequence;
        self.next_sequence += 1;
        self.waiting.push_back(Waiting {
            sequence,
            session,
            descriptor,
        });
    }

    /// Adds what a descriptor did to the statistics.
    pub(crate) const fn account(&mut self, counts: Counts) {
        let stats = &mut self.stats;
        stats.bytes += counts.bytes;
        stats.ended += counts.ended;
        stats.failed += counts.failed;
        stats.faults += counts.faults;
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

    /// The descriptor goes to its client's worker, or comes back from there.
    pub(crate) fn set_remote(&mut self, sequence: u64, remote: bool) {
        let mut running = self.running.iter_mut();
        if let Some(running) = running.find(|running| running.sequence == sequence) {
            running.remote = remote;
        }
    }

    /// A descriptor is done, or cut short by an abort.
    pub(crate) fn end(&mut self, sequence: u64, aborted: bool) {
        self.stats.aborted += u64::from(aborted);
        self.running.retain(|running| running.sequence != sequence);
    }

    /// Drops what waits and what is suspended, and asks what is on an engine or a worker to end.
    /// Descriptors that are accepted from now on are not concerned.
    pub(crate) fn abort(&mut self) {
        let Some(session) = &mut self.session else {
            return;
        };
        session.abort();
        *session = session.renewed();
        for client in std::mem::take(&mut self.clients).into_values() {
            client.abort();
        }
        self.drop_aborted();
    }

    /// As [`Queue::abort`], for the descriptors of one PASID.
    pub(crate) fn abort_pasid(&mut self, pasid: Pasid) {
        if let Some(client) = self.clients.remove(&pasid) {
            client.abort();
            self.drop_aborted();
        } else if self
            .session
            .as_ref()
            .is_some_and(|session| session.pasid == Some(pasid))
        {
            self.abort();
        }
    }

    /// Drops what waits or is suspended in the name of a session that was aborted.
    fn drop_aborted(&mut self) {
        let before = self.waiting.len();
        self.waiting.retain(|waiting| !waiting.session.aborted());
        let mut dropped = before - self.waiting.len();
        let mut suspended = Vec::new();
        self.ready.retain(|task| {
            let aborted = task.session.aborted();
            suspended.extend(aborted.then_some(task.sequence));
            !aborted
        });
        self.parked.retain(|sequence, task| {
            let aborted = task.session.aborted();
            suspended.extend(aborted.then_some(*sequence));
            !aborted
        });
        dropped += suspended.len();
        self.running
            .retain(|running| !suspended.contains(&running.sequence));
        self.stats.aborted += dropped as u64;
    }

    /// The drain point that [`Queue::passed`] compares with: everything accepted so far, perhaps of
    /// one PASID only, is before it.
    pub(crate) const fn drain_point(&self, queue: usize, only: Option<Pasid>) -> DrainPoint {
        DrainPoint {
            queue,
            sequence: self.next_sequence,
            only,
        }
    }

    /// Whether every descriptor before `point` is done.
    pub(crate) fn passed(&self, point: &DrainPoint) -> bool {
        let after = |sequence: u64, pasid: Option<Pasid>| {
            sequence >= point.sequence || (point.only.is_some() && pasid != point.only)
        };
        let running = self.running.iter();
        if !running
            .map(|r| (r.sequence, r.pasid))
            .all(|(s, p)| after(s, p))
        {
            return false;
        }
        match point.only {
            // In the order of their numbers: the first one decides.
            None => self
                .waiting
                .front()
                .is_none_or(|w| w.sequence >= point.sequence),
            Some(_) => self
                .waiting
                .iter()
                .all(|w| after(w.sequence, w.session.pasid)),
        }
    }

    /// Disabled, with nothing left of its session and no PASID in its configuration.
    pub(crate) fn disable(&mut self) {
        self.session = None;
        self.clients.clear();
        self.closing = false;
        if self.config.usage.dedicated() {
            self.config.usage = WqUse::from_bits(self.config.usage.into_bits() & 0xff);
        }
    }
}

#[cfg(test)]
mod tests;
