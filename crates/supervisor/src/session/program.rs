//! The program tree that a session serves: its listener, its name, what is counted.

use std::{
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use super::observe::Observers;
use crate::system::listener::Listener;

/// A program tree.
#[derive(Debug)]
pub(crate) struct Program {
    /// For messages.
    pub(crate) name: String,
    /// Where its calls arrive.
    pub(crate) listener: Listener,
    /// Calls so far, with accesses to registers that were asked for in a shared page.
    pub(crate) requests: Arc<AtomicU64>,
    /// What wants to know of its calls.
    pub(crate) observers: Arc<Observers>,
    open_files: AtomicUsize,
    warned: AtomicBool,
}

impl Program {
    pub(crate) fn new(name: String, listener: Listener, observers: Arc<Observers>) -> Arc<Self> {
        Arc::new(Program {
            name,
            listener,
            requests: Arc::default(),
            observers,
            open_files: AtomicUsize::new(0),
            warned: AtomicBool::new(false),
        })
    }

    /// How many files of the machine are open.
    pub(crate) fn open_files(&self) -> usize {
        self.open_files.load(Ordering::Relaxed)
    }

    pub(crate) fn set_open_files(&self, open: usize) {
        self.open_files.store(open, Ordering::Relaxed);
    }

    /// Warns once that a process of the program cannot be served, and why.
    pub(crate) fn warn_of_closed_memory(&self, error: &dyn Display) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            tracing::warn!(
                program = %self.name,
                %error,
                "a process cannot use the machine: its memory is closed to us"
            );
        }
    }
}
