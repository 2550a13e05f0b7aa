//! The engines of one device: one lock, threads that take jobs from a [`Schedule`], and register
//! accesses, resets and answers that change it.

use std::{
    collections::BTreeSet,
    io,
    ops::{Deref, DerefMut},
    sync::Arc,
};

use ioasid_core::{
    host::Spawner,
    sync::{Condvar, Mutex, MutexGuard},
};
use ioasid_iommu::{Device, Tlb};

use crate::{
    raising::Raising,
    schedule::{Interrupt, Interrupts, JobId, Place, Schedule, Wanted},
};

/// The engines of one device and what they share with its registers.
#[derive(Debug)]
pub struct EnginePool<S> {
    device: Arc<Device>,
    /// What the engines keep of translations, if they do.
    tlb: Option<Arc<Tlb>>,
    state: Mutex<State<S>>,
    /// Engines wait here for work.
    pub(crate) work: Condvar,
    /// Waits for jobs, interrupts or engines to end happen here.
    ended: Condvar,
}

/// What the lock protects.
#[derive(Debug)]
pub(crate) struct State<S> {
    pub(crate) schedule: S,
    raising: Raising,
    /// Engines that wait for work.
    pub(crate) idle: usize,
    /// Engine threads that have not ended.
    pub(crate) engines: usize,
    /// The device is going: engines end.
    pub(crate) stopping: bool,
    /// Jobs that were taken up while failures were asked for: each counts once.
    pub(crate) begun: BTreeSet<JobId>,
}

/// The schedule, with the lock held. For looks, and for changes that nothing waits for.
#[derive(Debug)]
pub struct Locked<'a, S>(MutexGuard<'a, State<S>>);

impl<S> Deref for Locked<'_, S> {
    type Target = S;

    fn deref(&self) -> &S {
        &self.0.schedule
    }
}

impl<S> DerefMut for Locked<'_, S> {
    fn deref_mut(&mut self) -> &mut S {
        &mut self.0.schedule
    }
}

impl<S: Schedule> EnginePool<S> {
    /// A pool without engines yet, whose DMA is that of `device`. If `device_tlb`, the engines keep
    /// translations (ATS), which the IOMMU invalidates before it takes them away.
    pub fn new(device: Arc<Device>, schedule: S, device_tlb: bool) -> Arc<Self> {
        let tlb = device_tlb.then(Tlb::new);
        if let Some(tlb) = &tlb {
            device.enable_ats(tlb.clone());
        }
        Arc::new(EnginePool {
            device,
            tlb,
            state: Mutex::new(State {
                schedule,
                raising: Raising::default(),
                idle: 0,
                engines: 0,
                stopping: false,
                begun: BTreeSet::new(),
            }),
            work: Condvar::new(),
            ended: Condvar::new(),
        })
    }

    /// Starts `count` engines, each a thread. `model` goes into their names.
    ///
    /// # Errors
    /// What the operating system says when there is no thread. Those that were started go on until
    /// [`EnginePool::stop`].
    pub fn start(
        self: &Arc<Self>,
        count: usize,
        model: &str,
        spawner: &dyn Spawner,
    ) -> io::Result<()> {
        for index in 0..count {
            let pool = Arc::clone(self);
            let name = format!("{model} {} engine {index}", self.device.address());
            self.state().engines += 1;
            let started = spawner.spawn(&name, Box::new(move || pool.engine(index)));
            if let Err(error) = started {
                self.state().engines -= 1;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Ends the engines and waits for them. What is on a worker ends there.
    pub fn stop(&self) {
        self.state().stopping = true;
        self.work.notify_all();
        let mut state = self.state();
        while state.engines > 0 {
            state = self.ended.wait(state);
        }
        drop(state);
        if self.tlb.is_some() {
            self.device.disable_ats();
        }
    }

    /// The device behind the IOMMU whose DMA the engines do.
    pub const fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// What the engines keep of translations, if they do.
    pub const fn tlb(&self) -> Option<&Arc<Tlb>> {
        self.tlb.as_ref()
    }

    /// Takes the lock.
    pub fn lock(&self) -> Locked<'_, S> {
        Locked(self.state())
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock()
    }

    /// Changes the schedule, wakes engines and waiters, and raises the interrupts that it asks for.
    /// Never called by an engine.
    pub fn change<R>(&self, change: impl FnOnce(&mut S) -> R) -> R {
        let mut state = self.state();
        let result = change(&mut state.schedule);
        self.release(state, None);
        result
    }

    /// Adds work. `add` says how many engines that is for; nothing else may follow from it: neither
    /// is [`Schedule::after_change`] called, nor are waits for the end of jobs woken.
    pub fn submit<R>(&self, add: impl FnOnce(&mut S) -> (R, Wanted)) -> R {
        let mut state = self.state();
        let (result, wanted) = add(&mut state.schedule);
        let idle = state.idle;
        drop(state);
        self.wake(wanted, 0, idle);
        result
    }

    /// Waits until `done`, and until the interrupts that were about to be raised then have been.
    /// Never called by an engine.
    pub fn wait_until_quiet(&self, mut done: impl FnMut(&S) -> bool) {
        let mut state = self.state();
        while !done(&state.schedule) {
            state = self.ended.wait(state);
        }
        let before = state.raising.now();
        while !state.raising.passed(before) {
            state = self.ended.wait(state);
        }
    }

    /// What a function of the device calls when its bus mastering changes.
    pub fn on_bus_master(self: &Arc<Self>) -> impl Fn() + Send + Sync + use<S> {
        let pool = Arc::downgrade(self);
        move || {
            if let Some(pool) = pool.upgrade() {
                pool.change(S::bus_master_changed);
            }
        }
    }

    /// Gives the lock back after a change; `place` is where the job was that made it.
    pub(crate) fn release(&self, mut state: MutexGuard<'_, State<S>>, place: Option<Place>) {
        let interrupts = state.schedule.after_change();
        let raising = (!interrupts.is_empty()).then(|| state.raising.begin());
        let idle = state.idle;
        let wanted = match idle {
            0 => Wanted::NONE,
            _ => state.schedule.wanted(),
        };
        drop(state);
        // An engine looks for work itself when it is done here.
        let own = usize::from(place == Some(Place::Engine));
        self.wake(wanted, own, idle);
        self.ended.notify_all();
        if let Some(number) = raising {
            interrupts.into_iter().for_each(Interrupt::raise);
            self.state().raising.end(number);
            self.ended.notify_all();
        }
    }

    /// Wakes some of `idle` engines, but for `own` that are awake.
    fn wake(&self, wanted: Wanted, own: usize, idle: usize) {
        match wanted {
            Wanted::All if idle > 0 => self.work.notify_all(),
            Wanted::All => {}
            Wanted::Some(wanted) => {
                for _ in 0..wanted.saturating_sub(own).min(idle) {
                    self.work.notify_one();
                }
            }
        }
    }

    /// An engine thread ends.
    pub(crate) fn engine_ends(&self) {
        self.state().engines -= 1;
        self.ended.notify_all();
    }
}
