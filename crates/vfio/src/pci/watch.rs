//! Who is told that a function has changed.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use ioasid_core::sync::Mutex;

use super::function::Function;

/// Is told when configuration space has changed, or who uses the function.
pub trait FunctionWatch: Send + Sync + fmt::Debug {
    /// Something has changed, perhaps. Called by whoever made the change and before the call that asked for
    /// it returns, perhaps with the gate of the device held: this must not wait for a program.
    fn changed(&self);
}

/// Those who watch one function.
#[derive(Debug, Default)]
pub(super) struct Watchers(Mutex<Vec<Weak<dyn FunctionWatch>>>);

impl Watchers {
    /// One more, as long as it lives.
    pub(super) fn add(&self, watcher: Weak<dyn FunctionWatch>) {
        let mut watchers = self.0.lock();
        watchers.retain(|known| known.strong_count() > 0);
        watchers.push(watcher);
    }

    /// Tells all. The caller holds no lock of the function's.
    pub(super) fn tell(&self) {
        let watchers: Vec<Arc<dyn FunctionWatch>> =
            self.0.lock().iter().filter_map(Weak::upgrade).collect();
        for watcher in watchers {
            watcher.changed();
        }
    }
}

impl Function {
    /// Lets `watcher` know of every change, as long as it lives.
    pub fn watch(&self, watcher: Weak<dyn FunctionWatch>) {
        self.watchers.add(watcher);
    }

    /// Tells whoever watches that something beside configuration space has changed.
    pub(crate) fn tell_watchers(&self) {
        self.watchers.tell();
    }
}
