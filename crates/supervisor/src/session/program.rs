//! The program tree that a session serves: its listener, its name, what is counted.

use std::{
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
};

use ioasid_core::{
    inspect::{Inspect, Node},
    sync::Mutex,
};

use super::observe::Observers;
use crate::system::listener::Listener;

/// A program tree.
#[derive(Debug)]
pub(crate) struct Program {
    /// For messages.
    pub(crate) name: Arc<str>,
    /// The first process of the tree, as it knows itself.
    pub(crate) pid: u32,
    /// Limits it to what this VM owns.
    pub(crate) vm: Option<String>,
    /// Where its calls arrive.
    pub(crate) listener: Listener,
    /// Calls so far, with accesses to registers that were asked for in a shared page.
    pub(crate) requests: Arc<AtomicU64>,
    /// What wants to know of its calls.
    pub(crate) observers: Arc<Observers>,
    open_files: AtomicUsize,
    /// Names of the device nodes that it has open.
    devices: Mutex<Vec<String>>,
    warned: AtomicBool,
}

impl Program {
    pub(crate) fn new(
        name: String,
        pid: u32,
        vm: Option<String>,
        listener: Listener,
        observers: Arc<Observers>,
    ) -> Arc<Self> {
        Arc::new(Program {
            name: name.into(),
            pid,
            vm,
            listener,
            requests: Arc::default(),
            observers,
            open_files: AtomicUsize::new(0),
            devices: Mutex::default(),
            warned: AtomicBool::new(false),
        })
    }

    pub(crate) fn set_open_files(&self, open: usize) {
        self.open_files.store(open, Ordering::Relaxed);
    }

    pub(crate) fn set_devices(&self, devices: Vec<String>) {
        *self.devices.lock() = devices;
    }

    /// Logs what has come of it.
    pub(crate) fn report(&self, what: &str) {
        let vm = self.vm.as_deref();
        tracing::info!(program = %self.name, pid = self.pid, vm, "{what}");
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

impl Inspect for Program {
    fn inspect(&self) -> Node {
        Node::new()
            .with("program", &*self.name)
            .with("pid", self.pid)
            .with("vm", self.vm.as_deref())
            .with("requests", self.requests.load(Ordering::Relaxed))
            .with("open_files", self.open_files.load(Ordering::Relaxed))
            .with("devices", self.devices.lock().clone())
    }
}
