//! One program tree: a thread that takes its requests in order and answers them.
//!
//! Whatever can block here - the program's memory, a file system under a path, the machine's
//! barrier - blocks this tree alone. The tree ends when the kernel reports that no process has the
//! filter any more; every file is closed then, whatever state the programs left it in.
//!
//! A session owns four things, each a type of its own: `descriptors` (open files of the machine),
//! `paths` (what lies below `/dev` and `/sys`), `registers` (accesses to mapped BARs) and `agents` (what
//! copies inside of a program's memory). `state`
//! puts them together, `dispatch` parses each call by the table of `calls` and gives it to its
//! function in `handlers`.

mod agents;
mod answer;
mod closer;
mod descriptors;
mod dispatch;
pub mod explain;
mod faults;
mod handlers;
mod identity;
mod machine;
pub mod observe;
mod paths;
mod pieces;
mod program;
mod ready;
mod registers;
mod report;
mod server;
mod state;
mod steps;
pub(crate) mod tracer;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use closer::CLOSE_PATIENCE;
use ioasid_core::inspect;
use ioasid_host::{Client, can_take_descriptors};
use ioasid_iommu::DmaWatcher;
use machine::Machine;
use observe::{Account, Observers};
use program::Program;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use server::Server;
use state::State;

use crate::{system::listener::Listener, view::MachineView, wire::Attach};

/// A running session.
#[derive(Debug)]
pub struct Session {
    program: Arc<Program>,
    stop: OwnedFd,
    end: Arc<End>,
}

/// Whether the thread has closed everything.
#[derive(Debug, Default)]
struct End {
    finished: Mutex<bool>,
    changed: Condvar,
}

impl Session {
    /// Serves the program behind `listener` with what `vm` owns of the machine, or all of it, and tells
    /// `observers` what it does.
    ///
    /// # Errors
    /// If the listener is none, or the host has no thread or inotify instance left.
    pub fn start(
        view: Arc<dyn MachineView>,
        name: impl Into<String>,
        vm: Option<String>,
        listener: OwnedFd,
        attach: Attach,
        observers: Arc<Observers>,
    ) -> io::Result<Self> {
        let name = name.into();
        let client = Client::new(name.clone(), view.space())?;
        let watcher: Arc<dyn DmaWatcher> = observers.clone();
        view.watch_refused_dma(&watcher);
        let listener = Listener::new(listener)?;
        let program = Program::new(name, attach.pid, vm.clone(), listener, observers);
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        if !can_take_descriptors() {
            tracing::warn!(
                "this host refuses pidfd_getfd: programs get no interrupts; in a container, allow it \
                 (--cap-add SYS_PTRACE)"
            );
        }
        let machine = Machine { view, vm };
        let state = State::new(&program, machine, client, attach)?;
        let server = Server::new(state, stop.try_clone()?)?;
        let end = Arc::<End>::default();
        let ended = Arc::clone(&end);
        std::thread::Builder::new()
            .name("session".to_owned())
            .spawn(move || server.run(|| ended.finish()))?;
        program.report("a program uses the machine");
        Ok(Session { program, stop, end })
    }

    /// The program's name.
    pub fn name(&self) -> &str {
        &self.program.name
    }

    /// How many of its calls were refused, and how many faults its DMA had.
    pub fn account(&self) -> &Arc<Account> {
        self.program.observers.account()
    }

    /// What there is to see of the program.
    pub fn shown(&self) -> Arc<dyn inspect::Inspect + Send + Sync> {
        Arc::clone(&self.program) as _
    }

    /// Whether the tree is gone and everything it held is closed.
    pub fn is_finished(&self) -> bool {
        *self.end.finished()
    }

    /// Whether processes of the tree are left.
    pub fn has_processes(&self) -> bool {
        let mut fds = [PollFd::new(&self.program.listener, PollFlags::empty())];
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(0) => true,
            _ => !fds[0].revents().contains(PollFlags::HUP),
        }
    }

    /// Process `id` of the tree has ended: waits until what it had started for us has too.
    pub fn process_has_ended(&self, id: i32) {
        self.program.await_agents_of(id);
    }

    /// Another descriptor of the listener, for what answers after this session.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn listener(&self) -> io::Result<OwnedFd> {
        self.program.listener.as_fd().try_clone_to_owned()
    }

    /// Ends the session after the request in hand and closes what the tree held.
    pub fn stop(&self) {
        // Fails only if the counter is full, which is as good a signal.
        let _ = rustix::io::write(&self.stop, &1u64.to_ne_bytes());
    }

    /// Waits until the session has ended, which may be as long as the program lives.
    pub fn wait(&self) {
        let mut finished = self.end.finished();
        while !*finished {
            let woken = self.end.changed.wait(finished);
            finished = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl End {
    fn finished(&self) -> MutexGuard<'_, bool> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn finish(&self) {
        *self.finished() = true;
        self.changed.notify_all();
    }
}

impl Drop for Session {
    /// Ends the session. One that is caught in memory of its program which does not answer is
    /// left behind, and ends when the program frees it or dies.
    fn drop(&mut self) {
        self.stop();
        let finished = self.end.finished();
        let ended = self
            .end
            .changed
            .wait_timeout_while(finished, 2 * CLOSE_PATIENCE, |finished| !*finished);
        if ended.is_ok_and(|(_, timeout)| timeout.timed_out()) {
            tracing::warn!(program = %self.program.name, "a session does not end yet");
        }
    }
}

impl inspect::Inspect for Session {
    fn inspect(&self) -> inspect::Node {
        self.program.inspect()
    }
}
