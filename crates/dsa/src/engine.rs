//! Engines: the threads that execute descriptors, and the ways a descriptor leaves one before it is
//! done.
//!
//! An engine serves every client, so it never waits for one. A descriptor that
//!
//! * has moved the bytes of one guard goes back to its queue, and other queues get their turn;
//! * needs memory that may block moves to its client's worker, which runs the rest of it;
//! * wants a page that is missing is parked until its page request is answered;
//! * belongs to a function that must not issue requests goes back to its queue, which has no work until
//!   it may. Whoever drains such a queue drops what is in it: it cannot end.

use std::sync::{Arc, Weak};

use ioasid_core::{
    host::{Worker, hand_over},
    sync::{Condvar, Mutex, MutexGuard},
};
use ioasid_iommu::{Device, DmaPort, Fault, PageResponse, Stop, Tlb};

use crate::{
    exec::{Effects, Halt, Terms},
    front::Front,
    queue::{Refused, Store},
    session::{Session, Task},
    spec::{
        Descriptor, Status,
        registers::{SwError, SwErrorInfo},
    },
    state::{Raised, State},
};

/// What engines, portals and registers of one device share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) device: Arc<Device>,
    /// What the engines keep of translations, if they do.
    tlb: Option<Arc<Tlb>>,
    state: Mutex<State>,
    /// Engines wait here for work.
    work: Condvar,
    /// Whoever waits for descriptors or engines to end waits here.
    ended: Condvar,
}

/// Where a descriptor is being executed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Engine,
    Worker,
}

impl Shared {
    pub(crate) fn new(device: Arc<Device>, state: State, device_tlb: bool) -> Arc<Self> {
        let tlb = device_tlb.then(Tlb::new);
        if let Some(tlb) = &tlb {
            device.enable_ats(tlb.clone());
        }
        Arc::new(Shared {
            device,
            tlb,
            state: Mutex::new(state),
            work: Condvar::new(),
            ended: Condvar::new(),
        })
    }

    /// Follows the function of `front`, whose bus mastering changes.
    pub(crate) fn follow(self: &Arc<Self>, front: &Front) {
        let shared = Arc::downgrade(self);
        front.function().on_bus_master(move || {
            if let Some(shared) = shared.upgrade() {
                shared.change(|_| ());
            }
        });
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Changes the state, ends the commands that can end, and wakes whoever that concerns.
    pub(crate) fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = change(&mut state);
        self.release(state);
        result
    }

    /// Gives the lock back after a change.
    fn release(&self, mut state: MutexGuard<'_, State>) {
        let raised = state.settle();
        let raising = raised.len();
        state.raising += raising;
        let wake = state.idle_engines > 0 && state.has_work();
        drop(state);
        if wake {
            self.work.notify_all();
        }
        self.ended.notify_all();
        if raising > 0 {
            raise(raised);
            self.lock().raising -= raising;
            self.ended.notify_all();
        }
    }

    /// Waits until `done`. Never called by an engine.
    pub(crate) fn wait_until(&self, mut done: impl FnMut(&State) -> bool) {
        let mut state = self.lock();
        while !done(&state) {
            state = self.ended.wait(state);
        }
    }

    /// Takes a descriptor that was stored to the portal of `queue` by the owner of `front`, or says
    /// why not. Never executes it: that is the engines' part.
    pub(crate) fn submit(
        &self,
        queue: usize,
        front: &Front,
        descriptor: Descriptor,
        store: Store,
    ) -> Result<(), Refused> {
        let mut state = self.lock();
        let Some(target) = state.queues.get_mut(queue) else {
            return Err(Refused::NotEnabled);
        };
        let index = target.session.as_ref().map_or(0, |session| session.index);
        let accepted = target.accept(descriptor, store);
        let wake = accepted.is_ok() && state.idle_engines > 0;
        let one_is_enough = state.all_engines_serve(queue);
        drop(state);
        match (wake, one_is_enough) {
            (true, true) => self.work.notify_one(),
            (true, false) => self.work.notify_all(),
            _ => {}
        }
        let error = match accepted {
            // Whoever waits for an answer learns it from that.
            Err(Refused::NotEnabled) if store == Store::Posted => SwError::QUEUE_DISABLED,
            // Not even the record can be reached.
            Err(Refused::BadPasid) => Status::RecordFault as u8,
            _ => return accepted,
        };
        front.raise(
            front.report(SwError {
                info: SwErrorInfo::new()
                    .with_desc_valid(true)
                    .with_wq_idx_valid(true)
                    .with_wq_idx(index)
                    .with_error(error)
                    .with_operation(descriptor.opcode)
                    .with_pasid(descriptor.pasid),
                ..SwError::default()
            }),
        );
        accepted
    }

    /// The life of engine `index`.
    pub(crate) fn engine(self: &Arc<Self>, index: usize) {
        let mut port = match &self.tlb {
            Some(tlb) => self.device.port_with_tlb(tlb),
            None => self.device.port(),
        };
        let mut state = self.lock();
        while !state.stopping {
            match state.next(index) {
                Some(task) => {
                    drop(state);
                    self.execute(task, &mut port, Place::Engine);
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
        if self.tlb.is_some() {
            self.device.disable_ats();
        }
    }

    /// What the engines keep of translations, if they do.
    pub(crate) const fn tlb(&self) -> Option<&Arc<Tlb>> {
        self.tlb.as_ref()
    }

    /// Executes `task` as far as it goes here.
    fn execute(self: &Arc<Self>, mut task: Task, port: &mut DmaPort, place: Place) {
        let session = &task.session;
        let terms = match session.terms.shared {
            true => Terms {
                vectors: session.front.vectors_of(session.pasid),
                ..session.terms
            },
            false => session.terms,
        };
        let mut total = Effects::default();
        let halt = loop {
            if session.aborted() {
                break Ok(());
            }
            let mut effects = Effects::default();
            let result = if task.done {
                Ok(())
            } else {
                let mut guard = match place {
                    Place::Engine if session.terms.ats => port.enter(session.pasid),
                    Place::Engine => port.enter_untranslated(session.pasid),
                    Place::Worker => port.enter_blocking(session.pasid),
                };
                let execution = &mut task.execution;
                execution.step(&mut guard, &terms, &mut effects)
            };
            task.logs |= !effects.errors.is_empty();
            deliver(session, &mut effects);
            total.add(&effects);
            task.done = result.is_ok();
            if task.logs {
                // What halted the descriptor halts it again where the log can be reached.
                if let Err(halt) = write_log(session, port, place) {
                    break Err(halt);
                }
                task.logs = false;
            }
            match result {
                // An engine has other queues; a worker stops for a pause alone.
                Err(Halt::Budget) if place == Place::Worker && !self.is_paused(task.queue) => {}
                result => break result,
            }
        };
        let queue = task.queue;
        let mut state = self.lock();
        state.queues[queue].account(&total);
        match place {
            Place::Engine => state.charge(queue, total.bytes),
            Place::Worker => state.queues[queue].set_remote(task.sequence, false),
        }
        match halt {
            Ok(()) => self.end(state, task),
            Err(Halt::Budget) => match state.queues[queue].resume_later(task) {
                Err(task) => self.end(state, task),
                Ok(()) if state.queues[queue].paused => self.release(state),
                Ok(()) => {}
            },
            Err(Halt::Withheld) => match state.queues[queue].resume_later(task) {
                Err(task) => self.end(state, task),
                // A command may wait for it in vain.
                Ok(()) => self.release(state),
            },
            Err(Halt::Remote(worker)) => {
                state.queues[queue].set_remote(task.sequence, true);
                drop(state);
                self.hand_over(task, &worker);
            }
            Err(Halt::Page(fault)) => self.park(state, task, &fault),
        }
    }

    fn is_paused(&self, queue: usize) -> bool {
        let state = self.lock();
        state.queues.get(queue).is_some_and(|queue| queue.paused)
    }

    /// The descriptor is done, or cut short.
    fn end(&self, mut state: MutexGuard<'_, State>, task: Task) {
        let (queue, sequence) = (task.queue, task.sequence);
        let aborted = task.session.aborted();
        // Before anybody learns that it has ended: with it goes its hold on the PASID.
        drop(task);
        state.queues[queue].end(sequence, aborted);
        self.release(state);
    }

    /// Parks `task` and asks for the page that it misses.
    fn park(self: &Arc<Self>, mut state: MutexGuard<'_, State>, task: Task, fault: &Fault) {
        let (queue, sequence) = (task.queue, task.sequence);
        // Parked before asking: the answer may come from within the request.
        if let Err(task) = state.queues[queue].park(task) {
            return self.end(state, task);
        }
        match state.queues[queue].paused {
            true => self.release(state),
            false => drop(state),
        }
        let shared = Arc::downgrade(self);
        let on_answer = move |response| {
            if let Some(shared) = Weak::upgrade(&shared) {
                let denied = response != PageResponse::Success;
                shared.change(|state| state.queues[queue].unpark(sequence, denied));
            }
        };
        if self
            .device
            .request_page(fault, Box::new(on_answer))
            .is_err()
        {
            self.change(|state| state.queues[queue].unpark(sequence, true));
        }
    }

    /// Lets `worker` execute the rest of `task`.
    fn hand_over(self: &Arc<Self>, task: Task, worker: &Arc<dyn Worker>) {
        let run = |(shared, task): (Arc<Shared>, Task)| {
            let mut port = shared.device.port();
            shared.execute(task, &mut port, Place::Worker);
        };
        // Its client is gone: the descriptor ends without a trace in memory.
        let lost = |(shared, task): (Arc<Shared>, Task)| shared.end(shared.lock(), task);
        hand_over(worker, (Arc::clone(self), task), run, lost);
    }
}

/// Delivers what a step caused outside of memory; no guard and no lock is held.
fn deliver(session: &Session, effects: &mut Effects) {
    let front = &session.front;
    for mut event in effects.errors.drain(..) {
        event.error.info.set_wq_idx_valid(true);
        event.error.info.set_wq_idx(session.index);
        front.raise(front.log(event));
    }
    for vector in effects.interrupts.drain(..) {
        front.interrupt(vector);
    }
}

/// Writes what waits for the event log of the session's owner.
///
/// # Errors
/// [`Halt::Remote`]: where it has to be done. [`Halt::Withheld`]: it has to wait.
fn write_log(session: &Session, port: &mut DmaPort, place: Place) -> Result<(), Halt> {
    let front = &session.front;
    while let Some((slot, pasid)) = front.begin_entry(session.pasid) {
        let bytes = slot.event.to_bytes();
        let mut done = 0;
        let stop = loop {
            let mut guard = match place {
                Place::Engine => port.enter(pasid),
                Place::Worker => port.enter_blocking(pasid),
            };
            let rest = bytes.get(done as usize..).unwrap_or_default();
            let transfer = guard.write(slot.address.wrapping_add(done), rest);
            done += transfer.done;
            match transfer.stop {
                Some(Stop::Budget) => {}
                stop => break stop,
            }
        };
        match stop {
            None => front.raise(front.end_entry()),
            Some(Stop::Remote(worker)) if place == Place::Engine => {
                front.put_off_entry();
                return Err(Halt::Remote(worker));
            }
            Some(Stop::Withheld) => {
                front.put_off_entry();
                return Err(Halt::Withheld);
            }
            Some(_) => front.raise(front.abandon_log()),
        }
    }
    Ok(())
}

/// Raises interrupts; no lock is held.
pub(crate) fn raise(raised: Raised) {
    for (front, interrupt) in raised {
        front.raise(interrupt);
    }
}
