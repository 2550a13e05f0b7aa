//! One client: a program tree and what belongs to it.

use std::{
    collections::HashMap,
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
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
    closer::Closer,
    copy::RecoveringCopy,
    file::{FileId, MemoryFile, WeakFileWindow},
    irq::InterruptThread,
    process::{Process, process_of},
    processes::Processes,
    registers::Registers,
    watch::Watcher,
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
    pub(crate) watcher: Watcher,
    closer: Arc<Closer>,
    pub(crate) copier: &'static RecoveringCopy,
    /// The mapped chunks of files. The live mapping of a file keeps its identity from being reused.
    pub(crate) file_windows: Mutex<HashMap<(FileId, u64), WeakFileWindow>>,
    /// The registered chunks of shared memory that no descriptor leads to.
    pub(crate) shared_windows: Mutex<HashMap<(FileId, u64), Weak<SpaRange>>>,
    files: Mutex<HashMap<FileId, Weak<MemoryFile>>>,
    /// The files of the client whose mappings are registers.
    registers: Mutex<HashMap<FileId, Arc<dyn Registers>>>,
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

    /// Windows that the client may use.
    pub(crate) fn window_limit(&self) -> usize {
        self.limits.windows
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

    /// What serves the mappings of the file `id`, if they are registers.
    pub(crate) fn registers(&self, id: FileId) -> Option<Arc<dyn Registers>> {
        self.registers.lock().get(&id).cloned()
    }

    pub(crate) fn remember_file(&self, file: &Arc<MemoryFile>) {
        let mut files = self.files.lock();
        files.retain(|_, file| file.strong_count() > 0);
        files.insert(file.id(), Arc::downgrade(file));
    }

    /// Closes a descriptor that turned out to be something else than it was: the close of a file on
    /// FUSE waits for its server, so it is a thread for that which waits.
    pub(crate) fn discard(&self, fd: OwnedFd) {
        self.closer.close(fd);
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
    /// Another descriptor of what [`Processes`] waits on.
    ended: OwnedFd,
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
        let processes = Processes::new()?;
        Ok(Arc::new(Client {
            shared: Arc::new(Shared {
                space,
                worker: ClientWorker::new(&format!("memory {name}"))?,
                interrupts: InterruptThread::new(&format!("irq {name}"))?,
                watcher: Watcher::default(),
                closer: Closer::new(&name),
                copier: RecoveringCopy::get()?,
                file_windows: Mutex::default(),
                shared_windows: Mutex::default(),
                spaces: Mutex::default(),
                files: Mutex::default(),
                registers: Mutex::default(),
                windows: Arc::default(),
                limits,
            }),
            ended: processes.ended().try_clone_to_owned()?,
            processes: Mutex::new(processes),
            name,
        }))
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
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

    /// Mappings of the file with this device and inode number are `registers` from now on, and not
    /// memory.
    pub fn add_registers(&self, (dev, ino): (u64, u64), registers: Arc<dyn Registers>) {
        let mut known = self.shared.registers.lock();
        known.insert(FileId { dev, ino }, registers);
    }

    /// The file is closed: what is left of its mappings leads nowhere.
    pub fn remove_registers(&self, (dev, ino): (u64, u64)) {
        let removed = self.shared.registers.lock().remove(&FileId { dev, ino });
        drop(removed);
    }

    /// The process that the thread `tid` belongs to, with the address space it has now. The same
    /// [`Process`] as before unless the number was reused or the program has called `exec`.
    ///
    /// # Errors
    /// See [`ProcessError`].
    pub fn process(self: &Arc<Self>, tid: i32) -> Result<Arc<Process>, ProcessError> {
        let mut processes = self.processes.lock();
        let hint = processes.of_thread(tid).map_or(tid, |process| process.id());
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

    /// As [`Client::process`], from memory and without a system call; `None` if it is not known.
    ///
    /// It is the right one if [`Client::forget_ended`] was called since the thread is known to have
    /// been alive, and [`Client::forget_memory_of`] for each `exec`.
    pub fn known_process(&self, tid: i32) -> Option<Arc<Process>> {
        self.processes.lock().of_thread(tid)
    }

    /// Forgets the threads that have ended since the last call, and returns their numbers. There are
    /// some if this client is readable as a file ([`AsFd`]).
    pub fn forget_ended(&self) -> Vec<i32> {
        self.processes.lock().forget_ended()
    }

    /// The thread `tid` calls `exec`, or has lost its address space in another way: its process is
    /// looked up anew.
    pub fn forget_memory_of(&self, tid: i32) {
        self.processes.lock().forget_process_of(tid);
    }

    /// Ends both threads when they have done what is queued, and lets go of the processes; DMA to
    /// the client's private memory and its interrupts end. Does not wait: a thread that the client
    /// has blocked stays until the client lets it go or dies.
    pub fn stop(&self) {
        self.shared.worker.stop();
        self.shared.interrupts.stop();
        self.shared.watcher.stop();
        self.processes.lock().clear();
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
            .with("processes", self.processes.lock().len())
            .with("windows", shared.windows.load(Ordering::Relaxed))
            .with("windows_limit", shared.limits.windows)
            .with("file_chunks_mapped", mapped(&shared.file_windows.lock()))
            .with("worker", shared.worker.inspect())
            .with("interrupts", shared.interrupts.inspect())
    }
}

/// Readable while there is something for [`Client::forget_ended`].
impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
