//! What one lock protects: the queues, the groups, which engine does what next, and the commands
//! that wait for descriptors to end.

use std::{fmt, sync::Arc};

use ioasid_core::Pasid;
use ioasid_engine::Interrupt;

use crate::{
    function::endpoint::{Endpoint, MiscInterrupt},
    queues::job::Task,
    queues::queue::{DrainPoint, Queue},
    spec::{CommandError, GroupConfig},
};

/// Engine time of a queue of the highest priority per round, in bytes. One round of all queues is
/// what a small job waits at most, so it is about the bytes of one guard.
const ROUND: i64 = 256 << 10;
/// What a descriptor costs besides its bytes.
const DESCRIPTOR_COST: i64 = 512;

/// What happens when the descriptors that a command waits for have ended.
pub(crate) type Then = Box<dyn FnOnce(&mut State) -> Result<(), CommandError> + Send>;

/// A command that waits for descriptors to end.
pub(crate) struct Pending {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) request_interrupt: bool,
    /// What has to end first.
    pub(crate) waits: Vec<DrainPoint>,
    pub(crate) then: Then,
}

impl fmt::Debug for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pending")
            .field("waits", &self.waits)
            .finish_non_exhaustive()
    }
}

/// The interrupt of a command that has ended.
#[derive(Debug)]
pub(crate) struct CommandInterrupt {
    endpoint: Arc<Endpoint>,
    interrupt: MiscInterrupt,
}

impl Interrupt for CommandInterrupt {
    fn raise(self) {
        self.endpoint.raise(self.interrupt);
    }
}

/// The state of a device that its queues share.
#[derive(Debug)]
pub(crate) struct State {
    /// Of the device itself.
    endpoint: Arc<Endpoint>,
    /// Enabled by its driver.
    pub(crate) enabled: bool,
    pub(crate) groups: Vec<GroupConfig>,
    pub(crate) queues: Vec<Queue>,
    pub(crate) pending: Vec<Pending>,
    /// The queue whose turn it is, for each engine.
    turns: Vec<usize>,
}

impl State {
    pub(crate) fn new(endpoint: Arc<Endpoint>, queues: usize, engines: usize) -> Self {
        State {
            endpoint,
            enabled: false,
            groups: vec![GroupConfig::default(); engines],
            queues: (0..queues).map(|_| Queue::new()).collect(),
            pending: Vec::new(),
            turns: vec![0; engines],
        }
    }

    /// The queues that exist, as bits.
    pub(crate) fn all_queues(&self) -> u64 {
        bits(self.queues.len())
    }

    /// The engines that exist, as bits.
    pub(crate) fn all_engines(&self) -> u64 {
        bits(self.turns.len())
    }

    /// Indexes of the queues in `set` that exist.
    pub(crate) fn indexes(&self, set: u64) -> impl Iterator<Item = usize> + use<> {
        (0..self.queues.len()).filter(move |index| set & 1 << index != 0)
    }

    /// The next descriptor for `engine`, from the queues of its group in turn: each may use engine
    /// time up to its credit, then it is the next one's turn; when no queue with work has credit
    /// left, all of them get a new share, weighted by priority. A queue never waits while its
    /// engines are idle, and none can starve another.
    pub(crate) fn next_task(&mut self, engine: usize) -> Option<Task> {
        if !self.may_issue() {
            return None;
        }
        let bit = 1 << engine;
        let set = self
            .groups
            .iter()
            .find(|group| group.engines & bit != 0)?
            .queues;
        let count = self.queues.len();
        let turn = *self.turns.get(engine)?;
        loop {
            let mut work = false;
            for step in 0..count {
                let index = (turn + step) % count;
                let Some(queue) = self.queues.get_mut(index) else {
                    continue;
                };
                if set & 1 << index == 0 || !queue.has_work() {
                    continue;
                }
                work = true;
                if queue.credit > 0 {
                    self.turns[engine] = index;
                    return queue.take(index);
                }
            }
            if !work {
                return None;
            }
            for index in self.indexes(set) {
                let queue = &mut self.queues[index];
                if queue.has_work() {
                    let weight = i64::from(queue.config.usage.priority().max(1));
                    queue.credit = (queue.credit + ROUND * weight / 15).min(ROUND);
                }
            }
        }
    }

    /// The next descriptor of a dedicated queue. In a shared one it may be another client's.
    pub(crate) fn next_task_of(&mut self, index: usize) -> Option<Task> {
        let may_issue = self.may_issue();
        let queue = self.queues.get_mut(index)?;
        let has_work = may_issue && !queue.shared() && queue.has_work();
        has_work.then(|| queue.take(index)).flatten()
    }

    /// Takes engine time off the credit of a queue.
    pub(crate) fn charge(&mut self, index: usize, bytes: u64) {
        if let Some(queue) = self.queues.get_mut(index) {
            let cost = i64::try_from(bytes).unwrap_or(i64::MAX);
            queue.credit = queue
                .credit
                .saturating_sub(cost.saturating_add(DESCRIPTOR_COST));
        }
    }

    /// Whether every engine serves `queue`: then it does not matter which one wakes. An engine may
    /// serve another group, or none at all.
    pub(crate) fn all_engines_serve(&self, queue: usize) -> bool {
        let all = self.all_engines();
        let serves =
            |group: &GroupConfig| group.queues >> queue & 1 == 1 && group.engines & all == all;
        self.groups.iter().any(serves)
    }

    /// Whether an engine could do something now.
    pub(crate) fn has_work(&self) -> bool {
        self.may_issue() && self.queues.iter().any(Queue::has_work)
    }

    /// Whether the device may issue requests; that of a child's queue is asked besides.
    fn may_issue(&self) -> bool {
        self.endpoint.function().bus_master()
    }

    /// Drain points of the queues in `set`: passed when everything accepted so far, perhaps of some
    /// PASIDs only, is done.
    pub(crate) fn drain_points(&self, set: u64, only: Option<&[Pasid]>) -> Vec<DrainPoint> {
        let point = |index: usize, only| self.queues[index].drain_point(index, only);
        self.indexes(set)
            .flat_map(|index| match only {
                None => vec![point(index, None)],
                Some(pasids) => pasids.iter().map(|p| point(index, Some(*p))).collect(),
            })
            .collect()
    }

    /// Whether every drain point is passed.
    pub(crate) fn passed(&self, points: &[DrainPoint]) -> bool {
        points
            .iter()
            .all(|point| self.queues[point.queue].passed(point))
    }

    /// Aborts the queues in `set`, perhaps for some PASIDs only.
    pub(crate) fn abort(&mut self, set: u64, only: Option<&[Pasid]>) {
        for index in self.indexes(set) {
            match only {
                None => self.queues[index].abort(),
                Some(pasids) => pasids
                    .iter()
                    .for_each(|pasid| self.queues[index].abort_pasid(*pasid)),
            }
        }
    }

    /// Lets the queues in `set` accept nothing more.
    pub(crate) fn close(&mut self, set: u64) {
        for index in self.indexes(set) {
            let queue = &mut self.queues[index];
            queue.closing = queue.session.is_some();
        }
    }

    /// Stops the queues in `set` where they are, or lets them go on.
    pub(crate) fn set_paused(&mut self, set: u64, paused: bool) {
        for index in self.indexes(set) {
            self.queues[index].paused = paused;
        }
    }

    /// Whether nothing of the queues in `set` is on an engine or a worker.
    pub(crate) fn is_quiet(&self, set: u64) -> bool {
        self.indexes(set).all(|index| self.queues[index].is_quiet())
    }

    /// Disables the queues in `set`, which are idle.
    pub(crate) fn disable(&mut self, set: u64) {
        for index in self.indexes(set) {
            self.queues[index].disable();
        }
    }

    /// Drops what commands wait for in vain: descriptors whose requests are withheld. They leave no
    /// record, since it could not be written.
    fn drop_withheld(&mut self) {
        let device = self.may_issue();
        let points = self.pending.iter().flat_map(|command| &command.waits);
        let vain: Vec<DrainPoint> = points
            .filter(|point| !device || !self.queues[point.queue].may_issue())
            .filter(|point| !self.queues[point.queue].passed(point))
            .copied()
            .collect();
        for point in vain {
            let only = point.only.as_slice();
            self.abort(1 << point.queue, point.only.is_some().then_some(only));
        }
    }

    /// Ends the commands whose descriptors have ended.
    pub(crate) fn end_commands(&mut self) -> Vec<CommandInterrupt> {
        self.drop_withheld();
        let mut raised = Vec::new();
        while let Some(at) = self.pending.iter().position(|c| self.passed(&c.waits)) {
            let command = self.pending.remove(at);
            let result = (command.then)(self);
            let endpoint = command.endpoint;
            let interrupt = endpoint.end_command(result, command.request_interrupt);
            raised.push(CommandInterrupt {
                endpoint,
                interrupt,
            });
        }
        raised
    }
}

/// The `count` lowest bits.
fn bits(count: usize) -> u64 {
    u64::MAX.checked_shr(64 - count as u32).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        exec::Terms,
        function::endpoint::test_endpoint,
        queues::queue::Store,
        queues::session::Session,
        spec::{Descriptor, Opcode},
    };

    fn busy_state(priorities: &[u8]) -> State {
        let mut state = State::new(test_endpoint(), priorities.len(), 2);
        state.groups[0] = GroupConfig {
            queues: state.all_queues(),
            engines: state.all_engines(),
            flags: 0,
        };
        let terms = Terms::for_tests();
        for (queue, priority) in state.queues.iter_mut().zip(priorities) {
            queue.config.size = u16::MAX;
            queue.config.usage.set_priority(*priority);
            queue.session = Some(Session::new(test_endpoint(), 0, None, None, terms));
            for _ in 0..20_000 {
                queue
                    .accept(Descriptor::new(Opcode::Noop, 0), Store::Posted)
                    .unwrap();
            }
        }
        state
    }

    /// Bytes that each queue gets of 3000 turns, with its own cost per descriptor.
    fn shares(state: &mut State, costs: &[u64]) -> Vec<u64> {
        let mut shares = vec![0; costs.len()];
        for turn in 0..3000 {
            let task = state.next_task(turn % 2).expect("there is work");
            let cost = costs[task.queue];
            shares[task.queue] += cost;
            state.charge(task.queue, cost);
            state.queues[task.queue].end(task.sequence, false);
        }
        shares
    }

    #[test]
    fn queues_of_equal_priority_share_by_bytes_not_by_descriptors() {
        let mut state = busy_state(&[10, 10]);
        let shares = shares(&mut state, &[4096, 131_072]);
        let ratio = shares[0] as f64 / shares[1] as f64;
        assert!((0.7..1.3).contains(&ratio), "{shares:?}");
    }

    #[test]
    fn a_low_priority_is_a_smaller_share_and_never_none() {
        let mut state = busy_state(&[15, 1]);
        let shares = shares(&mut state, &[4096, 4096]);
        assert!(shares[0] > 5 * shares[1], "{shares:?}");
        assert!(shares[1] > 0, "{shares:?}");
    }

    #[test]
    fn a_single_job_waits_for_one_round_of_a_flood_however_low_its_priority() {
        const GUARD: u64 = 128 << 10;
        for priorities in [[10, 10], [1, 15], [15, 1]] {
            let mut state = busy_state(&priorities);
            state.queues[0].abort();
            // What the flood moves while a job of the other queue waits, sorted.
            let mut waits: Vec<u64> = (0..1000)
                .map(|round| {
                    for _ in 0..round % 7 {
                        let task = state.next_task(0).expect("the flood");
                        state.charge(task.queue, GUARD);
                        state.queues[task.queue].end(task.sequence, false);
                    }
                    let job = Descriptor::new(Opcode::Noop, 0);
                    state.queues[0].accept(job, Store::Posted).unwrap();
                    let mut moved = 0;
                    loop {
                        let task = state.next_task(0).expect("both have work");
                        let own = task.queue == 0;
                        let cost = if own { 4096 } else { GUARD };
                        state.charge(task.queue, cost);
                        state.queues[task.queue].end(task.sequence, false);
                        if own {
                            return moved;
                        }
                        moved += cost;
                    }
                })
                .collect();
            waits.sort_unstable();
            let round = ROUND as u64 + GUARD;
            assert!(waits[999] <= round, "{priorities:?}: {}", waits[999]);
            assert!(waits[0] == 0 || waits[0] < waits[999]);
        }
    }

    #[test]
    fn an_idle_queue_leaves_its_share_to_the_others() {
        let mut state = busy_state(&[10, 10]);
        state.queues[1].abort();
        let shares = shares(&mut state, &[4096, 4096]);
        assert_eq!(shares, [3000 * 4096, 0]);
    }

    #[test]
    fn an_engine_serves_its_own_group_only() {
        let mut state = busy_state(&[10, 10]);
        state.groups[0].queues = 1;
        state.groups[0].engines = 1;
        state.groups[1].queues = 2;
        state.groups[1].engines = 2;
        assert_eq!(state.next_task(0).unwrap().queue, 0);
        assert_eq!(state.next_task(1).unwrap().queue, 1);
        state.groups[1].engines = 0;
        assert!(state.next_task(1).is_none());
    }
}
