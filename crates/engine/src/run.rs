//! The life of an engine, and of a job on it.
//!
//! A job that
//!
//! * has moved the bytes of one guard goes back to its unit, and others get their turn;
//! * needs memory that may block moves to its client's worker, which runs the rest of it, and some of
//!   those behind it;
//! * wants a page that is missing is parked until its page request is answered;
//! * belongs to a function that must not issue requests goes back to its unit, which has no work
//!   until it may.

use std::{sync::Arc, time::Instant};

use ioasid_core::{
    host::{Worker, hand_over},
    inject::{Failure, Point},
    observe::{Event, Unit, WorkEnd},
    sync::{MutexGuard, thread},
};
use ioasid_iommu::{DmaPort, Fault, PageResponse};

use crate::{
    pool::{EnginePool, State},
    schedule::{Halt, Job, Place, Schedule},
};

/// Jobs of one unit that a worker executes before its client's other units get their turn.
const IN_A_ROW: u32 = 32;

/// What executes a job.
#[derive(Clone, Copy, Debug)]
enum Runner {
    /// The engine with this number.
    Engine(usize),
    /// Its client's worker.
    Worker {
        /// Whether it may take another one afterwards.
        goes_on: bool,
    },
}

impl Runner {
    const fn place(self) -> Place {
        match self {
            Runner::Engine(_) => Place::Engine,
            Runner::Worker { .. } => Place::Worker,
        }
    }

    const fn goes_on(self) -> bool {
        matches!(self, Runner::Worker { goes_on: true })
    }

    const fn engine(self) -> Option<usize> {
        match self {
            Runner::Engine(number) => Some(number),
            Runner::Worker { .. } => None,
        }
    }
}

impl<S: Schedule> EnginePool<S> {
    /// The life of engine `index`.
    pub(crate) fn engine(self: &Arc<Self>, index: usize) {
        let mut port = match self.tlb() {
            Some(tlb) => self.device().port_with_tlb(tlb),
            None => self.device().port(),
        };
        let mut state = self.state();
        while !state.stopping {
            match state.schedule.next(index) {
                Some(job) => {
                    drop(state);
                    self.take_up(job, &mut port, index);
                    state = self.state();
                }
                None => {
                    state.idle += 1;
                    state = self.work.wait(state);
                    state.idle -= 1;
                }
            }
        }
        drop(state);
        // The port goes first: when the engines have ended, none of their slots is left.
        drop(port);
        self.engine_ends();
    }

    /// Executes `job`, or fails with it as a test has asked for.
    #[inline]
    fn take_up(self: &Arc<Self>, job: S::Job, port: &mut DmaPort, engine: usize) {
        match self.device().injections().is_armed() {
            false => {
                self.execute(job, port, Runner::Engine(engine));
            }
            true => self.take_up_counted(job, port, engine),
        }
    }

    #[cold]
    fn take_up_counted(self: &Arc<Self>, mut job: S::Job, port: &mut DmaPort, engine: usize) {
        // A job that comes back from a turn has been counted.
        let is_new = self.state().begun.insert(job.id());
        let injections = self.device().injections();
        match is_new.then(|| injections.at(Point::Descriptor)).flatten() {
            Some(Failure::Lose) => {
                job.lost();
                self.end(self.state(), job, Place::Engine);
                return;
            }
            Some(Failure::Refuse) => port.refuse_next(true),
            Some(Failure::Delay(time)) => thread::sleep(time),
            Some(Failure::Nothing) | None => {}
        }
        self.execute(job, port, Runner::Engine(engine));
        // One that was aborted has entered none.
        port.refuse_next(false);
    }

    /// Executes `job` as far as it goes where it is. A worker may get the next one.
    fn execute(
        self: &Arc<Self>,
        mut job: S::Job,
        port: &mut DmaPort,
        runner: Runner,
    ) -> Option<S::Job> {
        let place = runner.place();
        let watched = self.device().watch().is_on();
        let began = watched.then(|| (job.id(), Instant::now()));
        job.begin();
        let result = loop {
            if job.aborted() {
                break Ok(());
            }
            match job.step(port, place) {
                // An engine has other units; a worker stops for a pause alone.
                Err(Halt::Budget) if place == Place::Worker && !self.is_paused(&job) => {}
                result => break result,
            }
        };
        let work = began.map(|(id, began)| (id, began, job.operation()));
        let (end, next) = match result {
            Ok(()) => self.conclude(job, port, runner),
            Err(halt) => (self.leave(self.state(), job, place, halt), None),
        };
        if let Some((id, began, operation)) = work {
            self.device().watch().tell(|| Event::Worked {
                unit: self.unit(id.unit),
                number: id.number,
                operation,
                engine: runner.engine(),
                began,
                end,
            });
        }
        next
    }

    /// The name of a queue or channel to who watches.
    fn unit(&self, number: usize) -> Unit {
        Unit {
            device: self.device().address(),
            number,
        }
    }

    /// Ends a job whose steps are done.
    fn conclude(
        self: &Arc<Self>,
        mut job: S::Job,
        port: &mut DmaPort,
        runner: Runner,
    ) -> (WorkEnd, Option<S::Job>) {
        let place = runner.place();
        loop {
            let locked = (place == Place::Engine).then(|| self.state());
            let result = match job.aborted() {
                true => Ok(()),
                false => job.conclude(port, place),
            };
            let mut state = locked.unwrap_or_else(|| self.state());
            match result {
                Ok(()) => {
                    state.schedule.account(&mut job, place);
                    let end = match job.aborted() {
                        true => WorkEnd::Aborted,
                        false => WorkEnd::Done,
                    };
                    return (end, self.end_and_take(state, job, place, runner.goes_on()));
                }
                Err(Halt::Budget) => {}
                Err(halt) => return (self.leave(state, job, place, halt), None),
            }
        }
    }

    /// The job is not done, and goes on elsewhere or later.
    fn leave(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State<S>>,
        mut job: S::Job,
        place: Place,
        halt: Halt,
    ) -> WorkEnd {
        state.schedule.account(&mut job, place);
        match halt {
            Halt::Budget => self.put_back(state, job, place, false),
            Halt::Withheld => self.put_back(state, job, place, true),
            Halt::Remote(worker) => {
                state.schedule.make_remote(&job);
                drop(state);
                self.hand_over(job, &worker);
                WorkEnd::Remote
            }
            Halt::Page(fault) => self.park(state, job, place, &fault),
        }
    }

    fn put_back(
        &self,
        mut state: MutexGuard<'_, State<S>>,
        job: S::Job,
        place: Place,
        withheld: bool,
    ) -> WorkEnd {
        match state.schedule.put_back(job, withheld) {
            Ok(true) => self.release(state, Some(place)),
            Ok(false) => {}
            Err(job) => {
                self.end(state, job, place);
                return WorkEnd::Aborted;
            }
        }
        WorkEnd::Later
    }

    /// The job is done, or cut short.
    fn end(&self, state: MutexGuard<'_, State<S>>, job: S::Job, place: Place) {
        self.end_and_take(state, job, place, false);
    }

    /// As [`EnginePool::end`]. One that `goes_on` gets the next job of the unit, whose memory is likely to be of
    /// the same kind: that spares waking an engine, and the worker again.
    fn end_and_take(
        &self,
        mut state: MutexGuard<'_, State<S>>,
        job: S::Job,
        place: Place,
        goes_on: bool,
    ) -> Option<S::Job> {
        let unit = job.id().unit;
        if !state.begun.is_empty() {
            state.begun.remove(&job.id());
        }
        state.schedule.end(job);
        let goes_on = goes_on && !state.stopping && !self.device().injections().is_armed();
        let next = match goes_on {
            true => state.schedule.next_of(unit),
            false => None,
        };
        if let Some(next) = &next {
            state.schedule.make_remote(next);
        }
        self.release(state, Some(place));
        next
    }

    fn is_paused(&self, job: &S::Job) -> bool {
        self.state().schedule.is_paused(job.id().unit)
    }

    /// Parks `job` and asks for the page that it misses.
    fn park(
        self: &Arc<Self>,
        mut state: MutexGuard<'_, State<S>>,
        job: S::Job,
        place: Place,
        fault: &Fault,
    ) -> WorkEnd {
        let id = job.id();
        // Parked before asking: the answer may come from within the request.
        match state.schedule.park(job) {
            Ok(true) => self.release(state, Some(place)),
            Ok(false) => drop(state),
            Err(job) => {
                self.end(state, job, place);
                return WorkEnd::Aborted;
            }
        }
        let pool = Arc::downgrade(self);
        let on_answer = move |response| {
            if let Some(pool) = pool.upgrade() {
                let denied = response != PageResponse::Success;
                pool.change(|schedule| schedule.unpark(id, denied));
            }
        };
        let asked = self.device().request_page(fault, Box::new(on_answer));
        if asked.is_err() {
            // There is nothing that answers such requests.
            self.change(|schedule| schedule.unpark(id, true));
        }
        WorkEnd::Page
    }

    /// Lets `worker` execute the rest of `job`.
    fn hand_over(self: &Arc<Self>, job: S::Job, worker: &Arc<dyn Worker>) {
        let run = |(pool, job): (Arc<Self>, S::Job)| {
            let mut port = pool.device().port();
            let mut next = Some(job);
            for left in (0..IN_A_ROW).rev() {
                let Some(job) = next.take() else {
                    break;
                };
                let goes_on = left > 0;
                next = pool.execute(job, &mut port, Runner::Worker { goes_on });
            }
        };
        // Its client is gone: the job ends without a trace in memory.
        let lost = |(pool, mut job): (Arc<Self>, S::Job)| {
            job.lost();
            pool.end(pool.state(), job, Place::Worker);
        };
        hand_over(worker, (Arc::clone(self), job), run, lost);
    }
}
