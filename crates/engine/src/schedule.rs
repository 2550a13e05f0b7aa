//! What a device says of its jobs.

use std::{fmt, sync::Arc};

use ioasid_core::host::Worker;
use ioasid_iommu::{DmaPort, Fault, Stop};

/// Where a job is executed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On an engine, which other clients wait for.
    Engine,
    /// On its client's worker, where it may block for ever.
    Worker,
}

/// Why a job cannot go on where it is. It is resumed by another step.
#[derive(Debug)]
pub enum Halt {
    /// The guard has moved as many bytes as it may: take a new one.
    Budget,
    /// The owner's function must not issue requests: go on when it may.
    Withheld,
    /// Memory that may block: go on on this worker.
    Remote(Arc<dyn Worker>),
    /// The job wants to wait until this page fault has been handled.
    Page(Fault),
}

impl Halt {
    /// The fault that stopped an operation, or why the step ends.
    ///
    /// # Errors
    /// [`Halt`], for every stop but a fault. What this crate does not know asks to try again under
    /// a new guard.
    pub fn or_fault(stop: Stop) -> Result<Fault, Halt> {
        match stop {
            Stop::Fault(fault) => Ok(fault),
            Stop::Remote(worker) => Err(Halt::Remote(worker)),
            Stop::Withheld => Err(Halt::Withheld),
            _ => Err(Halt::Budget),
        }
    }
}

/// The name of a job that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct JobId {
    /// The queue or channel that it belongs to.
    pub unit: usize,
    /// Its number there.
    pub number: u64,
}

/// One descriptor under way: a resumable state machine. It holds its client's PASID.
pub trait Job: Send + Sized + 'static {
    /// Its name.
    fn id(&self) -> JobId;

    /// What it does, in a word for a trace. Asked when a part of it is done.
    fn operation(&self) -> &'static str {
        "descriptor"
    }

    /// Whether it should end as soon as it can, without a trace in memory.
    fn aborted(&self) -> bool;

    /// An engine or a worker takes it up. By default there is nothing to do.
    fn begin(&mut self) {}

    /// Goes on under one guard of `port`. Called without the lock, and it must not block, but on a
    /// worker for its client's memory.
    ///
    /// # Errors
    /// [`Halt`]: it is not done.
    fn step(&mut self, port: &mut DmaPort, place: Place) -> Result<(), Halt>;

    /// Does what is left when [`Job::step`] is done: the words in memory that have to change
    /// together with the registers. On an engine this is called with the lock held, so that neither
    /// is seen without the other; on a worker, where it may block, without. By default nothing is
    /// left.
    ///
    /// # Errors
    /// [`Halt`]: it is called again.
    fn conclude(&mut self, port: &mut DmaPort, place: Place) -> Result<(), Halt> {
        let _ = (port, place);
        Ok(())
    }

    /// Its client's worker has gone without executing it: it cannot be carried out. It ends next.
    fn lost(&mut self) {}
}

/// How many engines could do something now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// This many, whichever they are. An engine that says so itself is one of them.
    Some(usize),
    /// Perhaps one engine in particular: each of them looks.
    All,
}

impl Wanted {
    /// No engine.
    pub const NONE: Wanted = Wanted::Some(0);
}

/// An interrupt that has been decided on with the lock held.
pub trait Interrupt: Send {
    /// Raises it. Called without the lock.
    fn raise(self);
}

/// What a change of the schedule asks to raise: an [`Option`] where one change asks for one
/// interrupt at the most, otherwise a [`Vec`].
pub trait Interrupts: IntoIterator<Item: Interrupt> + Send {
    /// Whether there is nothing to raise.
    fn is_empty(&self) -> bool;
}

impl<I: Interrupt> Interrupts for Option<I> {
    fn is_empty(&self) -> bool {
        self.is_none()
    }
}

impl<I: Interrupt> Interrupts for Vec<I> {
    fn is_empty(&self) -> bool {
        Vec::is_empty(self)
    }
}

/// What the lock of an [`EnginePool`](crate::EnginePool) protects: the units of a device (queues,
/// channels), and which job comes next. Every method is called with the lock held and must not
/// block.
pub trait Schedule: fmt::Debug + Send + Sized + 'static {
    /// A descriptor under way.
    type Job: Job;
    /// What a change asks to raise.
    type Interrupts: Interrupts;

    /// Takes the next job for `engine`, if there is one for it.
    fn next(&mut self, engine: usize) -> Option<Self::Job>;

    /// Takes the next job of `unit` for the worker that has just ended one of it, if it is of the same
    /// client. By default an engine takes it.
    fn next_of(&mut self, unit: usize) -> Option<Self::Job> {
        let _ = unit;
        None
    }

    /// Comes after each change: does what waited for it, and gives the interrupts that the change
    /// or this asks for.
    fn after_change(&mut self) -> Self::Interrupts;

    /// How many engines should wake. Asked after [`Schedule::after_change`], if engines sleep.
    fn wanted(&self) -> Wanted;

    /// A job stops at `place`, for whatever reason: accounts for what it has done there. One of the
    /// five methods below comes next.
    fn account(&mut self, job: &mut Self::Job, place: Place);

    /// The job goes on later: its guard's budget is used up, or its requests are withheld. Whether
    /// something may wait for that.
    ///
    /// # Errors
    /// Given back if it was aborted; it ends next.
    fn put_back(&mut self, job: Self::Job, withheld: bool) -> Result<bool, Self::Job>;

    /// The job goes to its client's worker.
    fn make_remote(&mut self, job: &Self::Job);

    /// The job waits for the answer to a page request. Whether something may wait for it to stop.
    ///
    /// # Errors
    /// Given back if it was aborted, or, the default, if jobs of the device cannot wait for pages;
    /// it ends next.
    fn park(&mut self, job: Self::Job) -> Result<bool, Self::Job> {
        Err(job)
    }

    /// The answer has come; `denied` if there will be no page. The job may have been aborted
    /// meanwhile.
    fn unpark(&mut self, job: JobId, denied: bool) {
        let _ = (job, denied);
    }

    /// The job has ended, or was cut short by an abort.
    fn end(&mut self, job: Self::Job);

    /// Whether nothing of `unit` may go on for now. Asked by workers between two steps; engines ask
    /// [`Schedule::next`].
    fn is_paused(&self, unit: usize) -> bool;

    /// Bus mastering of a function of the device has changed. By default nothing follows from it.
    fn bus_master_changed(&mut self) {}
}
