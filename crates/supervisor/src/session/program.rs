//! The program tree that a session serves: its listener, its name, what is counted.

use std::{
    fmt::Display,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rustix::process::{WaitId, WaitIdOptions, getpid, set_child_subreaper, waitid};

use ioasid_core::{
    inspect::{Inspect, Node},
    sync::Mutex,
};

use super::observe::Observers;
use crate::system::{listener::Listener, process::ends_within};

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
    /// What has been an agent of one of its processes ([`super::agents`]), until it is collected.
    agents: Mutex<Vec<Child>>,
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
            agents: Mutex::default(),
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

/// A process that one of the program's processes has started for us.
#[derive(Debug)]
struct Child {
    parent: i32,
    handle: OwnedFd,
}

/// Children that are remembered. Beyond that init collects them, if there is one that does.
const MOST_CHILDREN: usize = 256;

impl Program {
    /// An agent was started by process `parent`. When that ends the agent falls to this process, if it is
    /// an ancestor, and not to init: in a container there may be none.
    pub(crate) fn add_agent(&self, parent: i32, handle: OwnedFd) {
        if let Err(error) = set_child_subreaper(Some(getpid())) {
            tracing::debug!(%error, "agents are left to init");
        }
        let mut agents = self.agents.lock();
        agents.truncate(MOST_CHILDREN - 1);
        agents.push(Child { parent, handle });
    }

    /// Collects the agents that have ended and fallen to this process.
    pub(crate) fn collect_agents(&self) {
        self.agents.lock().retain(|child| {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let found = waitid(WaitId::PidFd(child.handle.as_fd()), options);
            !matches!(found, Ok(Some(_)))
        });
    }

    /// Waits until the agents of process `parent`, which has ended, have ended too, as the kernel has
    /// killed them, and collects them.
    pub(crate) fn await_agents_of(&self, parent: i32) {
        const PATIENCE: Duration = Duration::from_secs(1);
        for child in self.agents.lock().iter().filter(|c| c.parent == parent) {
            ends_within(&child.handle, PATIENCE);
        }
        self.collect_agents();
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
