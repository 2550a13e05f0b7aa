//! One program tree: a thread that takes its requests in order and answers them.
//!
//! Whatever can block here - the program's memory, a file system under a path, the machine's
//! barrier - blocks this tree alone. The tree ends when the kernel reports that no process has the
//! filter any more; every file is closed then, whatever state the programs left it in.

mod asking;
mod attend;
mod attribute;
mod calls;
mod current;
mod event;
mod failing;
mod files;
mod identities;
mod kvm;
mod late;
mod listing;
mod live;
mod mmap;
mod mmio;
mod mount;
mod open;
mod overlay;
mod path;
mod paths;
mod regular;
mod stat;
mod statfs;
mod status;
mod trace;
mod transfer;

use std::{
    cell::Cell,
    io,
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    time::Duration,
};

use attend::Attendant;
use current::Current;
use failing::Failing;
use files::{Files, Object};
use identities::Identities;
use ioasid_core::inspect;
use ioasid_host::{Client, can_take_descriptors};
use ioasid_uapi::Errno;
use live::Shown;
use mmap::Mapping;
use mmio::Traps;
use overlay::Overlay;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll, eventfd, poll};

use crate::{
    listener::{Listener, Request},
    run::describe,
    view::MachineView,
    wire::{Attach, Mode, Placeholder},
};

/// How long a request waits for the closing of files before it. Closing waits for DMA in flight,
/// which ends at once unless the program itself holds up its own memory.
const CLOSE_PATIENCE: Duration = Duration::from_secs(2);

/// A running session.
#[derive(Debug)]
pub struct Session {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    vm: Option<String>,
    listener: Listener,
    stop: OwnedFd,
    finished: Mutex<bool>,
    end: Condvar,
    requests: Arc<AtomicU64>,
    open_files: AtomicUsize,
}

impl Session {
    /// Serves the program behind `listener` with what `vm` owns of the machine, or all of it.
    ///
    /// # Errors
    /// If the listener is none, or the host has no thread or inotify instance left.
    pub fn start(
        view: Arc<dyn MachineView>,
        name: impl Into<String>,
        vm: Option<String>,
        listener: OwnedFd,
        attach: Attach,
    ) -> io::Result<Self> {
        let name = name.into();
        let client = Client::new(name.clone(), view.space())?;
        let shared = Arc::new(Shared {
            name,
            vm,
            listener: Listener::new(listener)?,
            stop: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            finished: Mutex::new(false),
            end: Condvar::new(),
            requests: Arc::default(),
            open_files: AtomicUsize::new(0),
        });
        let (placeholders, overlay, sys) = match attach.mode {
            Mode::Namespaces { placeholders, sys } => (placeholders, None, sys),
            Mode::Paths { .. } => {
                let overlay = Overlay::new(&describe(&*view, shared.vm.as_deref()))?;
                (overlay.placeholders(), Some(overlay), None)
            }
        };
        if !can_take_descriptors() {
            tracing::warn!(
                "this host refuses pidfd_getfd: programs get no interrupts; in a container, allow it \
                 (--cap-add SYS_PTRACE)"
            );
        }
        let closer = Closer::start()?;
        let shown = Shown::new(&*view, shared.vm.as_deref());
        let server = Server {
            traps: Traps::new(attach.mmio, &client),
            view,
            files: Files::new(&client)?,
            client,
            identities: Identities::default(),
            mappings: Vec::new(),
            failing: Failing::default(),
            closer,
            placeholders,
            overlay,
            sys: sys.into_iter().collect(),
            shown,
            current: Current::default(),
            base: attach.base,
            warned: Cell::new(false),
            told_of_number: Cell::new(false),
            shared: Arc::clone(&shared),
        };
        std::thread::Builder::new()
            .name("session".to_owned())
            .spawn(move || server.run())?;
        Ok(Session { shared })
    }

    /// The program's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Whether the tree is gone and everything it held is closed.
    pub fn is_finished(&self) -> bool {
        *self.shared.finished()
    }

    /// Whether processes of the tree are left.
    pub fn has_processes(&self) -> bool {
        let mut fds = [PollFd::new(&self.shared.listener, PollFlags::empty())];
        match poll(&mut fds, Some(&Timespec::default())) {
            Ok(0) => true,
            _ => !fds[0].revents().contains(PollFlags::HUP),
        }
    }

    /// Another descriptor of the listener, for whoever answers after this session.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn listener(&self) -> io::Result<OwnedFd> {
        self.shared.listener.as_fd().try_clone_to_owned()
    }

    /// Ends the session after the request in hand and closes what the tree held.
    pub fn stop(&self) {
        // Fails only if the counter is full, which is as good a signal.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
    }

    /// Waits until the session has ended, which may be as long as the program lives.
    pub fn wait(&self) {
        let mut finished = self.shared.finished();
        while !*finished {
            let woken = self.shared.end.wait(finished);
            finished = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn finished(&self) -> MutexGuard<'_, bool> {
        self.finished.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Session {
    /// Ends the session. One that is caught in memory of its program's which does not answer is
    /// left behind, and ends when the program lets go of it or dies.
    fn drop(&mut self) {
        self.stop();
        let finished = self.shared.finished();
        let ended = self
            .shared
            .end
            .wait_timeout_while(finished, 2 * CLOSE_PATIENCE, |finished| !*finished);
        if ended.is_ok_and(|(_, timeout)| timeout.timed_out()) {
            tracing::warn!(program = %self.shared.name, "a session does not end yet");
        }
    }
}

impl inspect::Inspect for Session {
    fn inspect(&self) -> inspect::Node {
        let shared = &self.shared;
        let mut node = inspect::Node::new().with("program", shared.name.as_str());
        if let Some(vm) = &shared.vm {
            node.set("vm", vm.as_str());
        }
        node.with("requests", shared.requests.load(Ordering::Relaxed))
            .with("open_files", shared.open_files.load(Ordering::Relaxed))
    }
}

/// What the session thread owns.
#[derive(Debug)]
struct Server {
    view: Arc<dyn MachineView>,
    client: Arc<Client>,
    files: Files,
    identities: Identities,
    /// What programs have mapped of files of ours.
    mappings: Vec<Mapping>,
    /// How their accesses to mapped registers are caught.
    traps: Traps,
    failing: Failing,
    closer: Closer,
    placeholders: Vec<Placeholder>,
    /// Our `/dev` and `/sys`, if the program has no namespace with them.
    overlay: Option<Overlay>,
    /// Device numbers of the file systems of our part of the programs' `/sys`, if they have one.
    sys: Vec<u64>,
    /// What the program has been shown of the machine.
    shown: Shown,
    /// What of it is kept current.
    current: Current,
    base: u32,
    warned: Cell<bool>,
    /// A file of ours on a number that is none of ours was told of.
    told_of_number: Cell<bool>,
    shared: Arc<Shared>,
}

impl Server {
    fn run(mut self) {
        if let Err(error) = self.serve() {
            tracing::error!(program = %self.shared.name, %error, "the session broke off");
        }
        self.mappings.clear();
        // Whoever answers after us is asked by the system call.
        self.traps.attendant = Attendant::new();
        let objects = self.files.take_all();
        self.closer.close(objects);
        self.shared.open_files.store(0, Ordering::Relaxed);
        self.client.stop();
        // Whoever waits may end the process, and a directory would stay behind.
        drop(self.overlay.take());
        *self.shared.finished() = true;
        self.shared.end.notify_all();
        // A served machine goes on without this program.
        drop(self);
        ioasid_host::service::give_back_memory();
    }

    fn serve(&mut self) -> io::Result<()> {
        let shared = Arc::clone(&self.shared);
        let ready = Ready::new(&shared, &self.files, &self.client)?;
        loop {
            let now = ready.wait()?;
            if now.stop {
                return Ok(());
            }
            if now.request {
                // The request is taken first and the rest after it: whatever the program closed
                // before it made the request is seen before the request is carried out, and a thread
                // that ended before has left its number.
                let request = shared.listener.receive()?;
                let beside = ready.beside()?;
                self.take_note(beside);
                if let Some(request) = request {
                    shared.requests.fetch_add(1, Ordering::Relaxed);
                    self.answer(&request);
                }
                if beside.stop {
                    return Ok(());
                }
            } else if now.no_program {
                return Ok(());
            } else {
                self.take_note(now);
            }
        }
    }

    /// Learns what has happened beside the requests.
    fn take_note(&mut self, now: Now) {
        if now.threads_ended {
            for tid in self.client.forget_ended() {
                self.identities.ended(tid);
                self.failing.ended(tid);
            }
            self.traps.attendant.forget_ended();
        }
        if now.files_closed {
            self.close_what_was_closed();
        }
        if now.events {
            self.files.sync_events();
        }
    }

    fn close_what_was_closed(&mut self) {
        let closed = self.files.take_closed();
        if closed.is_empty() {
            return;
        }
        self.identities.forget();
        self.forget_mappings_of_closed_files();
        self.count_open_files();
        if !self.closer.close(closed) {
            tracing::warn!(
                program = %self.shared.name,
                "closing a file takes long: DMA to memory that does not answer?"
            );
        }
    }

    fn answer(&mut self, request: &Request) {
        // A mistake of ours must not take other programs' machine away; this program hears EIO.
        let answered = catch_unwind(AssertUnwindSafe(|| self.dispatch(request)));
        if answered.is_err() {
            tracing::error!(?request, "a request made the supervisor panic");
            self.shared.listener.fail(request.id, Errno::EIO.get());
        }
    }
}

/// Everything the session waits for.
#[derive(Debug)]
struct Ready {
    /// The listener and what is beside it.
    all: OwnedFd,
    /// The rest: looked at after each request, so without the listener, which takes locks to say
    /// that the next request is there.
    beside: OwnedFd,
}

/// What of it is there now.
#[derive(Clone, Copy, Debug, Default)]
struct Now {
    request: bool,
    no_program: bool,
    files_closed: bool,
    events: bool,
    threads_ended: bool,
    stop: bool,
}

impl Ready {
    const LISTENER: u64 = 0;
    const CLOSES: u64 = 1;
    const EVENTS: u64 = 2;
    const THREADS: u64 = 3;
    const STOP: u64 = 4;
    const BESIDE: u64 = 5;

    fn new(shared: &Shared, files: &Files, client: &Client) -> io::Result<Self> {
        let all = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let beside = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (set, what, fd) in [
            (&all, Self::LISTENER, shared.listener.as_fd()),
            (&all, Self::BESIDE, beside.as_fd()),
            (&beside, Self::CLOSES, files.as_fd()),
            (&beside, Self::EVENTS, files.readiness()),
            (&beside, Self::THREADS, client.as_fd()),
            (&beside, Self::STOP, shared.stop.as_fd()),
        ] {
            let data = epoll::EventData::new_u64(what);
            epoll::add(set, fd, data, epoll::EventFlags::IN)?;
        }
        Ok(Ready { all, beside })
    }

    /// Waits until there is something.
    fn wait(&self) -> io::Result<Now> {
        let mut now = Now::default();
        let mut beside = false;
        Self::look(&self.all, None, |what, flags| match what {
            Self::LISTENER => {
                now.request = flags.contains(epoll::EventFlags::IN);
                now.no_program = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            }
            _ => beside = true,
        })?;
        if beside && !now.request {
            let rest = self.beside()?;
            let no_program = now.no_program;
            now = Now { no_program, ..rest };
        }
        Ok(now)
    }

    /// What there is beside requests.
    fn beside(&self) -> io::Result<Now> {
        let mut now = Now::default();
        Self::look(
            &self.beside,
            Some(&Timespec::default()),
            |what, _| match what {
                Self::CLOSES => now.files_closed = true,
                Self::EVENTS => now.events = true,
                Self::THREADS => now.threads_ended = true,
                _ => now.stop = true,
            },
        )?;
        Ok(now)
    }

    fn look(
        set: &OwnedFd,
        timeout: Option<&Timespec>,
        mut see: impl FnMut(u64, epoll::EventFlags),
    ) -> io::Result<()> {
        let none = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        };
        let mut events = [none; 4];
        let found = match epoll::wait(set, events.as_mut_slice(), timeout) {
            Ok(found) => found,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in events.iter().take(found) {
            let (data, flags) = (event.data, event.flags);
            see(data.u64(), flags);
        }
        Ok(())
    }
}

/// A thread that closes files, so that one that waits for DMA does not hold up the session for
/// ever.
#[derive(Debug)]
struct Closer {
    jobs: mpsc::Sender<(Vec<Object>, mpsc::SyncSender<()>)>,
}

impl Closer {
    fn start() -> io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<(Vec<Object>, mpsc::SyncSender<()>)>();
        std::thread::Builder::new()
            .name("closer".to_owned())
            .spawn(move || {
                for (objects, done) in queue {
                    for object in &objects {
                        if catch_unwind(AssertUnwindSafe(|| object.close())).is_err() {
                            tracing::error!("closing a file made the supervisor panic");
                        }
                    }
                    drop(objects);
                    // Nobody may be waiting any more.
                    let _ = done.send(());
                }
            })?;
        Ok(Closer { jobs })
    }

    /// Closes in order; false if that is not done within the patience of a request. It goes on
    /// then.
    fn close(&self, objects: Vec<Object>) -> bool {
        let (done, wait) = mpsc::sync_channel(1);
        self.jobs.send((objects, done)).is_ok() && wait.recv_timeout(CLOSE_PATIENCE).is_ok()
    }
}
