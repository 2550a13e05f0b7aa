//! How far a DMA operation came, and what stopped it.

use std::{fmt, sync::Arc};

use ioasid_core::{host::Worker, memory::MemoryGone};

use crate::events::fault::Fault;

/// What stopped an operation before its end.
#[derive(Clone, Debug)]
pub enum Stop {
    /// The guard's bytes are used up: drop it, enter again and go on from where it stopped.
    Budget,
    /// The access was refused. Not reported yet: see [`crate::DmaGuard::report`].
    Fault(Fault),
    /// The device must not issue the request now ([`crate::Device::withhold`]): drop the guard and go
    /// on from there when it may again. To try at once is to spin.
    Withheld,
    /// The next byte lies in memory that may block for ever: drop the guard and run the rest on
    /// this worker, under a guard from [`crate::DmaPort::enter_blocking`].
    Remote(Arc<dyn Worker>),
}

impl Stop {
    /// The fault, if it is one.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Stop::Fault(fault) => Some(fault),
            Stop::Budget | Stop::Withheld | Stop::Remote(_) => None,
        }
    }
}

impl From<Fault> for Stop {
    fn from(fault: Fault) -> Self {
        Stop::Fault(fault)
    }
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::Budget => f.write_str("the guard's bytes are used up"),
            Stop::Withheld => f.write_str("the device must not issue requests"),
            Stop::Fault(fault) => fault.fmt(f),
            Stop::Remote(_) => f.write_str("the memory may block"),
        }
    }
}

/// The outcome of one operation.
#[derive(Clone, Debug)]
#[must_use = "an operation may stop early"]
pub struct Transfer {
    /// Bytes done by this call.
    pub done: u64,
    /// What stopped it; `None` if everything is done.
    pub stop: Option<Stop>,
}

impl Transfer {
    /// Everything done.
    pub const fn all(done: u64) -> Self {
        Transfer { done, stop: None }
    }

    /// Stopped after `done` bytes.
    pub fn stopped(done: u64, stop: impl Into<Stop>) -> Self {
        Transfer {
            done,
            stop: Some(stop.into()),
        }
    }

    /// Adds what was done to `done`.
    ///
    /// # Errors
    /// What stopped the operation.
    pub fn advance(self, done: &mut u64) -> Result<(), Stop> {
        *done = done.saturating_add(self.done);
        self.stop.map_or(Ok(()), Err)
    }

    /// Whether everything is done.
    pub const fn is_complete(&self) -> bool {
        self.stop.is_none()
    }

    /// The fault that stopped it, if a fault did.
    pub fn fault(&self) -> Option<&Fault> {
        self.stop.as_ref().and_then(Stop::fault)
    }
}

/// In which order a copy goes through its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the first byte up.
    Forward,
    /// From the last byte down: the destination begins inside the source.
    Backward,
}

impl Direction {
    /// The direction in which a copy of `len` bytes must go so that no source byte is overwritten
    /// before it is read. Ranges are compared as I/O virtual addresses: two addresses of one page
    /// are not recognised as the same memory, as in hardware.
    pub const fn of(dst: u64, src: u64, len: u64) -> Self {
        if dst > src && dst - src < len {
            Direction::Backward
        } else {
            Direction::Forward
        }
    }
}

/// The end of a loop: what its last step did before, and why (nothing: the operation is over).
pub(crate) struct Halt {
    pub(crate) done: u64,
    pub(crate) stop: Option<Stop>,
}

impl Halt {
    /// The same, for a step that had done `before` bytes already.
    pub(crate) fn after(self, before: u64) -> Halt {
        Halt {
            done: before + self.done,
            stop: self.stop,
        }
    }
}

impl<S: Into<Stop>> From<S> for Halt {
    fn from(stop: S) -> Self {
        Halt {
            done: 0,
            stop: Some(stop.into()),
        }
    }
}

/// What a step did, and what stopped it.
pub(crate) fn parts(result: Result<u64, Halt>) -> (usize, Option<Stop>) {
    match result {
        Ok(done) => (done as usize, None),
        Err(halt) => (halt.done as usize, halt.stop),
    }
}

/// How many of `len` bytes were written.
pub(crate) fn done_of(written: &Result<(), MemoryGone>, len: usize) -> u64 {
    match written {
        Ok(()) => len as u64,
        Err(MemoryGone { done }) => *done as u64,
    }
}
