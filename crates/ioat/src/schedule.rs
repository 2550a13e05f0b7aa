//! The device's channels as its engines see them: which comes next, and what becomes of a
//! descriptor that leaves an engine. A channel whose descriptor has moved the bytes of one guard
//! goes to the end of the queue; one whose function must not issue requests leaves the queue until
//! it may.

use std::{collections::VecDeque, mem};

use ioasid_core::observe::{Event, Unit};
use ioasid_engine::{EnginePool, Job as _, Place, Schedule, Wanted};

use crate::{
    channel::{Channel, Reset, RunState},
    endpoint::Message,
    job::Task,
    spec::map::Chan,
};

/// The engines of a device and its channels.
pub(crate) type Pool = EnginePool<State>;

/// What one lock protects.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) channels: Vec<Channel>,
    /// Channels that wait for an engine. One may be in it twice, or for nothing: its
    /// `run_state` decides.
    ready: VecDeque<usize>,
    /// What a change asks to raise.
    message: Option<Message>,
}

impl State {
    pub(crate) fn new(channels: Vec<Channel>) -> Self {
        State {
            channels,
            ready: VecDeque::new(),
            message: None,
        }
    }

    /// Queues the channels that have work.
    fn queue_up(&mut self) {
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if channel.is_due() {
                channel.run_state = RunState::Ready;
                self.ready.push_back(index);
            }
        }
    }

    /// Changes channel `index`, and keeps the interrupt that the change asks for.
    fn change(&mut self, index: usize, change: impl FnOnce(&mut Channel) -> Option<Message>) {
        self.message = self.channels.get_mut(index).and_then(change);
    }
}

impl Schedule for State {
    type Job = Task;
    type Interrupts = Option<Message>;

    /// From the channels in turn.
    fn next(&mut self, _engine: usize) -> Option<Task> {
        loop {
            let index = self.ready.pop_front()?;
            let channel = self.channels.get_mut(index)?;
            if let Some(task) = channel.take(index) {
                return Some(task);
            }
        }
    }

    fn next_of(&mut self, channel: usize) -> Option<Task> {
        let index = channel;
        let channel = self.channels.get_mut(index)?;
        if !channel.is_due() {
            return None;
        }
        channel.run_state = RunState::Ready;
        channel.take(index)
    }

    fn after_change(&mut self) -> Option<Message> {
        self.queue_up();
        mem::take(&mut self.message)
    }

    fn wanted(&self) -> Wanted {
        Wanted::Some(self.ready.len())
    }

    fn account(&mut self, task: &mut Task, _place: Place) {
        if let Some(channel) = self.channels.get_mut(task.channel) {
            channel.stats.bytes += task.take_moved();
        }
    }

    fn put_back(&mut self, task: Task, _withheld: bool) -> Result<bool, Task> {
        if task.aborted() {
            return Err(task);
        }
        if let Some(channel) = self.channels.get_mut(task.channel) {
            channel.hold(task.into_execution());
        }
        Ok(true)
    }

    fn make_remote(&mut self, task: &Task) {
        if let Some(channel) = self.channels.get_mut(task.channel) {
            channel.run_state = RunState::OnWorker;
        }
    }

    fn end(&mut self, task: Task) {
        let (channel, ending) = (task.channel, task.ending());
        // With it goes its hold on the PASID.
        drop(task);
        self.change(channel, |channel| channel.end(ending.as_ref()));
    }

    fn is_paused(&self, channel: usize) -> bool {
        self.channels.get(channel).is_some_and(Channel::paused)
    }

    fn bus_master_changed(&mut self) {
        self.channels
            .iter_mut()
            .for_each(Channel::follow_bus_master);
    }
}

/// Changes channel `index`, and raises the interrupt that the change asks for.
pub(crate) fn change(
    pool: &Pool,
    index: usize,
    change: impl FnOnce(&mut Channel) -> Option<Message>,
) {
    pool.change(|state| state.change(index, change));
}

/// Writes a register of channel `index` if `is_open`.
pub(crate) fn write_register(
    pool: &Pool,
    index: usize,
    is_open: impl FnOnce(&Channel) -> bool,
    (register, value, mask): (Chan, u64, u64),
) {
    change(pool, index, |channel| {
        if !is_open(channel) {
            return None;
        }
        let first = channel.submitted();
        let message = channel.write(register, value, mask);
        let count = channel.submitted().saturating_sub(first);
        if count > 0 {
            let device = pool.device();
            device.watch().tell(|| Event::Submitted {
                unit: Unit {
                    device: device.address(),
                    number: index,
                },
                first,
                count,
            });
        }
        message
    });
}

/// Resets the channels that `concerns`, by index too, and waits until none of their descriptors is
/// under way and no interrupt of the time before is about to be raised. They are paused no more.
pub(crate) fn reset(pool: &Pool, mut concerns: impl FnMut(usize, &mut Channel) -> bool) {
    let waits = pool.change(|state| {
        let mut waits = Vec::new();
        for (index, channel) in state.channels.iter_mut().enumerate() {
            if concerns(index, channel) {
                channel.set_paused(false);
                channel.begin_reset(Reset::Everything);
                waits.push(index);
            }
        }
        waits
    });
    pool.wait_until_quiet(|state| {
        let mut channels = waits.iter().filter_map(|index| state.channels.get(*index));
        channels.all(|channel| !channel.resetting())
    });
}
