//! One client: a program tree and what belongs to it.

use std::{
    collections::HashMap,
    fmt, io,
    os::fd::OwnedFd,
    sync::{
        Arc, Weak,
        atomic::{AtomicUsize, Ordering},
    },
};

use ioasid_core::{
    host::Worker,
    inspect::{Inspect, Node},
    spa::{SpaRange, SpaSpace},
    sync::Mutex,
};

use crate::{
    address_space::AddressSpace,
    copy::RecoveringCopy,
    file::{FileId, MemoryFile, WeakFileWindow},
    irq::InterruptThread,
    process::{Process, process_of},
    worker::ClientWorker,
};

/// Why a process could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProcessError {
    /// It has ended (ESRCH).
    #[error("the process has ended")]
    Gone,
    /// The kernel does not let us look into it: it is not dumpable, or Yama forbids it (EPERM).
    #[error("not allowed to look into the process (not dumpable, or Yama's ptrace_scope)")]
    Denied,
    /// No file descriptor or no memory left on our side (ENOMEM).
    #[error("out of file descriptors or memory")]
    NoMemory,
}

/// What a client may use of what all clients share.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Limits {
    /// Windows of 1 GiB in the system physical address space. Private memory takes one for each GiB
    /// of user addresses that a mapping touches, a file one for each GiB of it.
    pub windows: usize,
}

impl Default for Limits {
    /// 16384 windows: a sixteenth of the space.
    fn default() -> Self {
        Limits { windows: 16384 }
    }
}

/// What the objects of a client have in common; they may outlive the [`Client`].
pub(crate) struct Shared {
    pub(crate) space: Arc<SpaSpace>,
    pub(crate) worker: Arc<ClientWorker>,
    pub(crate) interrupts: Arc<InterruptThread>,
    pub(crate) copier: &'static RecoveringCopy,
    /// The mapped chunks of files. The live mapping of a file keeps its identity from being reused.
    pub(crate) file_windows: Mutex<HashMap<(FileId, u64), WeakFileWindow>>,
    /// The registered chunks of shared memory that no descriptor leads to.
    pub(crate) shared_windows: Mutex<HashMap<(FileId, u64), Weak<SpaRange>>>,
    files: Mutex<HashMap<FileId, Weak<MemoryFile>>>,
    spaces: Mutex<Vec<Weak<AddressSpace>>>,
    windows: Arc<AtomicUsize>,
    limits: Limits,
}

/// The right to one window, given back on drop: with the backing, after the grace period.
#[derive(Debug)]
pub(crate) struct WindowPermit(Arc<AtomicUsize>);

impl Drop for WindowPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Shared {
    /// The right to one more window; `None` over the limit.
    pub(crate) fn permit(&self) -> Option<WindowPermit> {
        self.windows
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < self.limits.windows).then_some(used + 1)
            })
            .is_ok()
            .then(|| WindowPermit(Arc::clone(&self.windows)))
    }

    /// Remembers an address space of the client's.
    pub(crate) fn remember_space(&self, space: &Arc<AddressSpace>) {
        let mut spaces = self.spaces.lock();
        spaces.retain(|space| space.strong_count() > 0);
        spaces.push(Arc::downgrade(space));
    }

    /// The client's address spaces that are open, the latest first.
    pub(crate) fn address_spaces(&self) -> Vec<Arc<AddressSpace>> {
        let spaces = self.spaces.lock();
        spaces.iter().rev().filter_map(Weak::upgrade).collect()
    }

    /// The open file `id`, while some mapping uses it.
    pub(crate) fn known_file(&self, id: FileId) -> Option<Arc<MemoryFile>> {
        self.files.lock().get(&id).and_then(Weak::upgrade)
    }

    pub(crate) fn remember_file(&self, file: &Arc<MemoryFile>) {
        let mut files = self.files.lock();
        files.retain(|_, file| file.strong_count() > 0);
        files.insert(file.id(), Arc::downgrade(file));
    }

    /// Closes a descriptor that turned out to be something else than it was: the close of a file on
    /// FUSE waits for its server, so it is the client's worker that waits.
    pub(crate) fn discard(&self, fd: OwnedFd) {
        let _ = self.worker.submit(Box::new(move || drop(fd)));
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("windows", &self.windows.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

/// One client: a program tree, with its two threads, its processes, its limits.
pub struct Client {
    name: String,
    shared: Arc<Shared>,
    processes: Mutex<Processes>,
}

impl Client {
    /// A client called `name` whose memory gets system physical addresses in `space`. Starts its
    /// two threads.
    ///
    /// # Errors
    /// What the operating system says when no thread can be had, or no signal handler.
    pub fn new(name: impl Into<String>, space: Arc<SpaSpace>) -> io::Result<Arc<Self>> {
        Client::with_limits(name, space, Limits::default())
    }

    /// As [`Client::new`], with other limits than the default ones.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub fn with_limits(
        name: impl Into<String>,
        space: Arc<SpaSpace>,
        limits: Limits,
    ) -> io::Result<Arc<Self>> {
        let name = name.into();
        Ok(Arc::new(Client {
            shared: Arc::new(Shared {
                space,
                worker: ClientWorker::new(&format!("memory {name}"))?,
                interrupts: InterruptThread::new(&format!("irq {name}"))?,
                copier: RecoveringCopy::get()?,
                file_windows: Mutex::default(),
                shared_windows: Mutex::default(),
                spaces: Mutex::default(),
                files: Mutex::default(),
                windows: Arc::default(),
                limits,
            }),
            processes: Mutex::default(),
            name,
        }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its memory gets system physical addresses.
    pub fn space(&self) -> &Arc<SpaSpace> {
        &self.shared.space
    }

    /// The thread that touches its private memory.
    pub fn worker(&self) -> Arc<dyn Worker> {
        Arc::clone(&self.shared.worker) as Arc<dyn Worker>
    }

    /// The process that the thread `tid` belongs to, with the address space it has now. The same
    /// [`Process`] as before unless the number was reused or the program has called `exec`.
    ///
    /// # Errors
    /// See [`ProcessError`].
    pub fn process(self: &Arc<Self>, tid: i32) -> Result<Arc<Process>, ProcessError> {
        let mut processes = self.processes.lock();
        let hint = processes.of_thread.get(&tid).copied().unwrap_or(tid);
        if let Some(process) = processes.find(hint, tid) {
            return Ok(process);
        }
        let id = process_of(tid)?;
        let process = match processes.find(id, tid) {
            Some(process) => process,
            None => {
                let process = Process::open(id, Arc::clone(&self.shared))?;
                // The thread may have ended meanwhile, and its number may be another's.
                if !process.has_thread(tid) {
                    return Err(ProcessError::Gone);
                }
                process
            }
        };
        processes.insert(tid, &process);
        Ok(process)
    }

    /// Ends both threads when they have done what is queued, and lets go of the processes; DMA to
    /// the client's private memory and its interrupts end. Does not wait: a thread that the client
    /// has blocked stays until the client lets it go or dies.
    pub fn stop(&self) {
        self.shared.worker.stop();
        self.shared.interrupts.stop();
        *self.processes.lock() = Processes::default();
    }

    /// Whether both threads have ended.
    pub fn has_stopped(&self) -> bool {
        self.shared.worker.has_ended() && self.shared.interrupts.has_ended()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inspect for Client {
    fn inspect(&self) -> Node {
        let shared = &self.shared;
        let mapped = |files: &HashMap<_, WeakFileWindow>| {
            files.values().filter(|window| window.is_alive()).count()
        };
        Node::new()
            .with("name", self.name.as_str())
            .with("processes", self.processes.lock().by_id.len())
            .with("windows", shared.windows.load(Ordering::Relaxed))
            .with("windows_limit", shared.limits.windows)
            .with("file_chunks_mapped", mapped(&shared.file_windows.lock()))
            .with("worker", shared.worker.inspect())
            .with("interrupts", shared.interrupts.inspect())
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// The processes of a client that are open.
#[derive(Default)]
struct Processes {
    by_id: HashMap<i32, Arc<Process>>,
    /// The process of a thread that is not its first: a hint, checked at each use.
    of_thread: HashMap<i32, i32>,
}

impl Processes {
    /// Hints that are kept before they are all forgotten.
    const MOST_HINTS: usize = 4096;

    /// Process `id`, if it is open, still the same and `tid` is one of its threads.
    fn find(&self, id: i32, tid: i32) -> Option<Arc<Process>> {
        let process = self.by_id.get(&id)?;
        (process.has_thread(tid) && process.memory().is_alive()).then(|| Arc::clone(process))
    }

    fn insert(&mut self, tid: i32, process: &Arc<Process>) {
        self.by_id.retain(|_, process| process.still_same());
        if self.of_thread.len() >= Self::MOST_HINTS {
            self.of_thread.clear();
        }
        if process.borrows_memory() {
            return;
        }
        self.by_id.insert(process.id(), Arc::clone(process));
        if tid == process.id() {
            self.of_thread.remove(&tid);
        } else {
            self.of_thread.insert(tid, process.id());
        }
    }
}
