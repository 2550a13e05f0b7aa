//! The open files of a device, and the one that has bound it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, Instant},
};

use ioasid_core::sync::{Condvar, Mutex};

use crate::base::error::BindError;

/// How often a user is asked again for a device that is to be removed.
const REQUEST_PERIOD: Duration = Duration::from_secs(10);

/// The users of a device.
#[derive(Debug, Default)]
pub(crate) struct Users {
    state: Mutex<State>,
    /// A file was closed.
    closed: Condvar,
    /// Number of the last file.
    files: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    /// Open files, bound or not.
    open: usize,
    /// The number of the file that the device is bound through.
    bound: Option<u64>,
    /// The device is being removed: no file can be opened.
    leaving: bool,
}

/// The users at one time, for inspection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    pub(crate) open: usize,
    pub(crate) bound: bool,
    pub(crate) leaving: bool,
}

impl Users {
    /// One more open file; its number.
    ///
    /// # Errors
    /// [`BindError::Gone`] while the device is being removed.
    pub(crate) fn open(&self) -> Result<u64, BindError> {
        let mut state = self.state.lock();
        if state.leaving {
            return Err(BindError::Gone);
        }
        state.open += 1;
        Ok(self.files.fetch_add(1, Ordering::Relaxed) + 1)
    }

    /// An open file less.
    pub(crate) fn close(&self) {
        self.state.lock().open -= 1;
        self.closed.notify_all();
    }

    /// Reserves the device for the file `number`, and does `then` in the same step.
    ///
    /// # Errors
    /// [`BindError::BoundElsewhere`].
    pub(crate) fn bind(&self, number: u64, then: impl FnOnce()) -> Result<(), BindError> {
        let mut state = self.state.lock();
        if state.bound.is_some() {
            return Err(BindError::BoundElsewhere);
        }
        state.bound = Some(number);
        then();
        Ok(())
    }

    /// Ends the reservation, and does `then` in the same step.
    pub(crate) fn unbind(&self, then: impl FnOnce()) {
        let mut state = self.state.lock();
        state.bound = None;
        then();
    }

    pub(crate) fn counts(&self) -> Counts {
        let state = self.state.lock();
        Counts {
            open: state.open,
            bound: state.bound.is_some(),
            leaving: state.leaving,
        }
    }

    /// Asks for the device back, with `ask` now and then, and waits until no file is open. Afterwards
    /// it cannot be opened.
    ///
    /// # Errors
    /// [`BindError::Gone`] if it is being removed already, [`BindError::StillOpen`] after `patience`:
    /// it can be opened again then.
    pub(crate) fn withdraw(&self, patience: Duration, ask: impl Fn()) -> Result<(), BindError> {
        let start = Instant::now();
        let mut state = self.state.lock();
        if state.leaving {
            return Err(BindError::Gone);
        }
        state.leaving = true;
        let mut asked: Option<Instant> = None;
        while state.open > 0 {
            let now = Instant::now();
            let left = patience.saturating_sub(now.duration_since(start));
            if left.is_zero() && asked.is_some() {
                state.leaving = false;
                return Err(BindError::StillOpen { open: state.open });
            }
            if asked.is_none_or(|asked| now.duration_since(asked) >= REQUEST_PERIOD) {
                asked = Some(now);
                drop(state);
                ask();
                state = self.state.lock();
                continue;
            }
            state = self.closed.wait_timeout(state, left.min(REQUEST_PERIOD));
        }
        Ok(())
    }
}
