//! Engines: the threads that execute descriptors. An engine serves every client, so it never waits
//! for one: a channel whose descriptor has moved the bytes of one guard goes to the end of the line,
//! and one that needs memory that may block moves to its client's worker for that descriptor. One whose
//! function must not issue requests leaves the line until it may.

use std::{collections::VecDeque, sync::Arc};

use ioasid_core::{
    host::{Worker, hand_over},
    sync::{Condvar, Mutex, MutexGuard},
};
use ioasid_iommu::{Device, DmaGuard, DmaPort};

use crate::{
    channel::{Channel, Place, Reset, Task},
    exec::{Ending, Halt},
    front::{Front, Interrupt},
};

/// What one lock protects.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) channels: Vec<Channel>,
    /// Channels in line. One may be in it twice, or for nothing: its place tells.
    line: VecDeque<usize>,
    /// Engines that wait for work.
    idle_engines: usize,
    /// Engine threads that have not ended.
    pub(crate) engines: usize,
    stopping: bool,
}

impl State {
    /// Puts the channels that have work in line.
    fn queue_up(&mut self) {
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if channel.is_due() {
                channel.place = Place::Ready;
                self.line.push_back(index);
            }
        }
    }

    /// The next descriptor, from the channels in turn.
    fn next(&mut self) -> Option<Task> {
        loop {
            let index = self.line.pop_front()?;
            let channel = self.channels.get_mut(index)?;
            if let Some(task) = channel.take(index) {
                return Some(task);
            }
        }
    }
}

/// What engines and registers of one device share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) device: Arc<Device>,
    state: Mutex<State>,
    /// Engines wait here for work.
    work: Condvar,
    /// Whoever waits for descriptors or engines to end waits here.
    ended: Condvar,
}

/// Where a descriptor is being executed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Where {
    Engine,
    Worker,
}

impl Where {
    /// The way to memory from there.
    fn enter<'a>(self, port: &'a mut DmaPort, task: &Task) -> DmaGuard<'a> {
        match self {
            Where::Engine => port.enter(task.tag.pasid),
            Where::Worker => port.enter_blocking(task.tag.pasid),
        }
    }

    /// How many channels it takes from the line when it is done with one.
    const fn takes(self) -> usize {
        match self {
            Where::Engine => 1,
            Where::Worker => 0,
        }
    }
}

impl Shared {
    pub(crate) fn new(device: Arc<Device>, channels: Vec<Channel>) -> Arc<Self> {
        Arc::new(Shared {
            device,
            state: Mutex::new(State {
                channels,
                line: VecDeque::new(),
                idle_engines: 0,
                engines: 0,
                stopping: false,
            }),
            work: Condvar::new(),
            ended: Condvar::new(),
        })
    }

    /// Follows the function of `front`, whose bus mastering changes.
    pub(crate) fn follow(self: &Arc<Self>, front: &Front) {
        let shared = Arc::downgrade(self);
        front.function().on_bus_master(move || {
            if let Some(shared) = shared.upgrade() {
                let mut state = shared.lock();
                let channels = state.channels.iter_mut();
                channels.for_each(Channel::follow_bus_master);
                shared.release(state, 0);
            }
        });
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Changes channel `index`, and wakes whoever that concerns.
    pub(crate) fn change(&self, index: usize, change: impl FnOnce(&mut Channel) -> Interrupt) {
        let mut state = self.lock();
        let interrupt = state.channels.get_mut(index).and_then(change);
        self.release(state, 0);
        raise(interrupt);
    }

    /// Gives the lock back after a change, by an engine that takes `own` of the line itself.
    fn release(&self, mut state: MutexGuard<'_, State>, own: usize) {
        state.queue_up();
        let wake = state.line.len().saturating_sub(own).min(state.idle_engines);
        drop(state);
        for _ in 0..wake {
            self.work.notify_one();
        }
        self.ended.notify_all();
    }

    /// Waits until `done`. Never called by an engine.
    pub(crate) fn wait_until(&self, mut done: impl FnMut(&State) -> bool) {
        let mut state = self.lock();
        while !done(&state) {
            state = self.ended.wait(state);
        }
    }

    /// Resets the channels that `concerns`, by index too, and waits until none of their descriptors
    /// is under way. They are paused no more.
    pub(crate) fn reset(&self, mut concerns: impl FnMut(usize, &mut Channel) -> bool) {
        let mut state = self.lock();
        let mut waits = Vec::new();
        for (index, channel) in state.channels.iter_mut().enumerate() {
            if concerns(index, channel) {
                channel.set_paused(false);
                channel.begin_reset(Reset::Everything);
                waits.push(index);
            }
        }
        self.release(state, 0);
        self.wait_until(|state| {
            let mut channels = waits.iter().filter_map(|index| state.channels.get(*index));
            channels.all(|channel| !channel.resetting())
        });
    }

    /// The life of one engine.
    pub(crate) fn engine(self: &Arc<Self>) {
        let mut port = self.device.port();
        let mut state = self.lock();
        while !state.stopping {
            match state.next() {
                Some(task) => {
                    drop(state);
                    self.execute(task, &mut port, Where::Engine);
                    state = self.lock();
                }
                None => {
                    state.idle_engines += 1;
                    state = self.work.wait(state);
                    state.idle_engines -= 1;
                }
            }
        }
        drop(state);
        // The port goes first: whoever waits for the engines finds none of their slots left.
        drop(port);
        self.lock().engines -= 1;
        self.ended.notify_all();
    }

    /// Ends the engines and waits for them.
    pub(crate) fn stop(&self) {
        self.lock().stopping = true;
        self.work.notify_all();
        self.wait_until(|state| state.engines == 0);
    }

    /// Executes `task` as far as it goes here.
    fn execute(self: &Arc<Self>, mut task: Task, port: &mut DmaPort, place: Where) {
        let before = task.execution.moved;
        let result = loop {
            if task.aborted() {
                break Ok(());
            }
            let result = task.execution.step(&mut place.enter(port, &task));
            match result {
                // An engine has other channels; a worker stops for a pause alone.
                Err(Halt::Budget) if place == Where::Worker && !self.is_paused(task.channel) => {}
                result => break result,
            }
        };
        let moved = task.execution.moved - before;
        match (result, place) {
            (Ok(()), Where::Engine) => self.conclude(task, moved, port),
            (Ok(()), Where::Worker) => {
                let ending = loop {
                    if task.aborted() {
                        break task.execution.lost();
                    }
                    // It may block, so the registers change only after it.
                    let result = task.execution.conclude(&mut place.enter(port, &task));
                    match result {
                        Ok(ending) => break ending,
                        Err(Halt::Withheld) => return self.hold(self.lock(), task, moved, place),
                        Err(_) => {}
                    }
                };
                self.end(self.lock(), task, &ending, moved, place);
            }
            (Err(Halt::Budget | Halt::Withheld), _) => self.hold(self.lock(), task, moved, place),
            (Err(Halt::Remote(worker)), _) => self.hand_over(task, moved, &worker),
        }
    }

    /// Gives the descriptor up for the moment.
    fn hold(&self, mut state: MutexGuard<'_, State>, task: Task, moved: u64, place: Where) {
        if let Some(channel) = state.channels.get_mut(task.channel) {
            channel.stats.bytes += moved;
            channel.hold(task);
        }
        self.release(state, place.takes());
    }

    /// Ends a descriptor on an engine: completion word and registers change at once, for whoever
    /// reads the registers. Entering a domain and writing a word in it does not block.
    fn conclude(self: &Arc<Self>, mut task: Task, moved: u64, port: &mut DmaPort) {
        loop {
            let state = self.lock();
            let ending = match task.aborted() {
                true => Ok(task.execution.lost()),
                false => {
                    let mut guard = Where::Engine.enter(port, &task);
                    task.execution.conclude(&mut guard)
                }
            };
            match ending {
                Ok(ending) => return self.end(state, task, &ending, moved, Where::Engine),
                Err(Halt::Budget) => {}
                Err(Halt::Withheld) => return self.hold(state, task, moved, Where::Engine),
                Err(Halt::Remote(worker)) => {
                    drop(state);
                    return self.hand_over(task, moved, &worker);
                }
            }
        }
    }

    /// The descriptor has ended, or was cut short: then nobody learns how.
    fn end(
        &self,
        mut state: MutexGuard<'_, State>,
        task: Task,
        ending: &Ending,
        moved: u64,
        place: Where,
    ) {
        let ending = (!task.aborted()).then_some(ending);
        let index = task.channel;
        // Before anybody learns that it has ended: with it goes its hold on the PASID.
        drop(task);
        let mut interrupt = None;
        if let Some(channel) = state.channels.get_mut(index) {
            channel.stats.bytes += moved;
            interrupt = channel.end(ending);
            if interrupt.is_some() {
                channel.raises();
            }
        }
        self.release(state, place.takes());
        if interrupt.is_some() {
            raise(interrupt);
            let mut state = self.lock();
            if let Some(channel) = state.channels.get_mut(index) {
                channel.raised();
            }
            drop(state);
            self.ended.notify_all();
        }
    }

    fn is_paused(&self, channel: usize) -> bool {
        let state = self.lock();
        state.channels.get(channel).is_some_and(Channel::paused)
    }

    /// Lets `worker` execute the rest of `task`. If its client is gone, the channel halts without a
    /// trace in memory.
    fn hand_over(self: &Arc<Self>, task: Task, moved: u64, worker: &Arc<dyn Worker>) {
        let mut state = self.lock();
        if let Some(channel) = state.channels.get_mut(task.channel) {
            channel.stats.bytes += moved;
            channel.place = Place::Worker;
        }
        drop(state);
        let run = |(shared, task): (Arc<Shared>, Task)| {
            let mut port = shared.device.port();
            shared.execute(task, &mut port, Where::Worker);
        };
        let lost = |(shared, task): (Arc<Shared>, Task)| {
            let ending = task.execution.lost();
            shared.end(shared.lock(), task, &ending, 0, Where::Worker);
        };
        hand_over(worker, (Arc::clone(self), task), run, lost);
    }
}

/// Raises an interrupt; no lock is held.
fn raise(interrupt: Interrupt) {
    if let Some((front, vector)) = interrupt {
        front.raise(vector);
    }
}
