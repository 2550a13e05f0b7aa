//! Reports of changes of a function.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use ioasid_core::sync::Mutex;

/// Gets a report when configuration space has changed, or whether the function is in use.
pub trait FunctionWatch: Send + Sync + fmt::Debug {
    /// Something has changed, perhaps. Called by the thread that made the change and before the call
    /// that asked for it returns, perhaps with the gate of the device held: this must not wait for a
    /// program.
    fn changed(&self);
}

/// The watchers of one function.
#[derive(Debug, Default)]
pub(super) struct Watchers(Mutex<Vec<Weak<dyn FunctionWatch>>>);

impl Watchers {
    /// One more, as long as it lives.
    pub(super) fn add(&self, watcher: Weak<dyn FunctionWatch>) {
        let mut watchers = self.0.lock();
        watchers.retain(|known| known.strong_count() > 0);
        watchers.push(watcher);
    }

    /// Reports a change to all. The caller holds no lock of the function's.
    pub(super) fn report(&self) {
        let watchers: Vec<Arc<dyn FunctionWatch>> =
            self.0.lock().iter().filter_map(Weak::upgrade).collect();
        for watcher in watchers {
            watcher.changed();
        }
    }
}
