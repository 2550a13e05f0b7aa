//! What the lower floors need from an operating system, as traits: a host implements them with
//! eventfds and threads, a test with counters and closures.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    failpoint::OutOfMemory,
    memory::{MemoryGone, PageSource, PinError},
    sync::{Condvar, Mutex},
};

/// Where an interrupt goes: one eventfd, one counter of a test, nothing.
///
/// `signal` is called by engines that serve every client, so it must never block: an implementation
/// that could (an eventfd whose counter is full) hands the write to a thread of its own client.
pub trait IrqSink: Send + Sync + fmt::Debug {
    /// Delivers one interrupt. Must not block and must not panic.
    fn signal(&self);

    /// Returns when every interrupt that was signalled before has been delivered, `patience` at the most:
    /// the client may keep it from arriving. By default delivering takes no time.
    fn flush(&self, patience: Duration) {
        let _ = patience;
    }
}

/// A job for a [`Worker`].
pub type Job = Box<dyn FnOnce() + Send>;

/// The worker no longer takes jobs: its client is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the worker of this client has stopped")]
pub struct WorkerStopped;

/// A thread that serves one client alone, for work that may block for ever on that client's
/// memory. Jobs run in the order of submission.
pub trait Worker: Send + Sync + fmt::Debug {
    /// Queues `job`.
    ///
    /// # Errors
    /// [`WorkerStopped`] if the worker has ended; the job is dropped without being run.
    fn submit(&self, job: Job) -> Result<(), WorkerStopped>;
}

/// Gives `state` to `run` on `worker`. If the worker goes without running it, `lost` gets it: on
/// whichever thread drops the job, at once if the worker has stopped already.
pub fn hand_over<T: Send + 'static>(
    worker: &Arc<dyn Worker>,
    state: T,
    run: impl FnOnce(T) + Send + 'static,
    lost: impl FnOnce(T) + Send + 'static,
) {
    struct Unfinished<T, L: FnOnce(T)>(Option<(T, L)>);

    impl<T, L: FnOnce(T)> Drop for Unfinished<T, L> {
        fn drop(&mut self) {
            if let Some((state, lost)) = self.0.take() {
                lost(state);
            }
        }
    }

    let mut unfinished = Unfinished(Some((state, lost)));
    let job = move || {
        if let Some((state, _)) = unfinished.0.take() {
            run(state);
        }
    };
    // A refused job is dropped, and that is all there is to do about it.
    let _ = worker.submit(Box::new(job));
}

/// Starts threads. The standard one names them, so that a debugger shows which engine is which.
pub trait Spawner: Send + Sync + fmt::Debug {
    /// Runs `job` on a new thread called `name`.
    ///
    /// # Errors
    /// What the operating system says when it has no thread to give.
    fn spawn(&self, name: &str, job: Job) -> std::io::Result<()>;
}

/// [`Spawner`] on plain standard threads, detached.
#[derive(Clone, Copy, Debug, Default)]
pub struct StdSpawner;

impl Spawner for StdSpawner {
    fn spawn(&self, name: &str, job: Job) -> std::io::Result<()> {
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(job)
            .map(drop)
    }
}

/// Why a file descriptor number of a program could not be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FdError {
    /// Not open (EBADF).
    #[error("not an open file descriptor")]
    NotOpen,
    /// Open, but not the kind of file that is asked for (EINVAL or EBADFD, as the caller says).
    #[error("not the kind of file that is asked for")]
    WrongType,
    /// The range lies beyond the end of the file (EINVAL).
    #[error("beyond the end of the file")]
    BeyondEnd,
    /// Out of memory or over a limit (ENOMEM).
    #[error("no memory, or over a limit")]
    NoMemory,
    /// The range lies outside a dma-buf (EINVAL, at once: its size does not change).
    #[error("outside the dma-buf")]
    OutsideBuffer,
    /// The exporter has taken a dma-buf back (ENODEV).
    #[error("the memory was taken back")]
    Revoked,
    /// The program can be given no further file descriptor (EMFILE).
    #[error("no file descriptor is free")]
    NoneFree,
}

impl From<OutOfMemory> for FdError {
    fn from(_: OutOfMemory) -> Self {
        FdError::NoMemory
    }
}

/// On whose account memory is locked: the program as it was when it asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// The process, by a number that stands for its address space and is not used again.
    pub process: u64,
    /// The user id.
    pub user: u32,
    /// Whether no limit applies (CAP_IPC_LOCK).
    pub unlimited: bool,
    /// The limit in bytes (RLIMIT_MEMLOCK), if there is one.
    pub limit: Option<u64>,
}

/// The program behind an ioctl: its memory and its file descriptors, as far as an ioctl names them.
///
/// Everything it gives is hostile: bytes may change between two reads, so each is read once.
pub trait Caller: Send + Sync + fmt::Debug {
    /// Copies `dst.len()` bytes from the program's address `address`.
    ///
    /// # Errors
    /// [`MemoryGone`] if they are not all readable (EFAULT).
    fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone>;

    /// Copies `src` to the program's address `address`.
    ///
    /// # Errors
    /// [`MemoryGone`] if the bytes are not all writable (EFAULT).
    fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone>;

    /// The program's address range as a source of pages. Looks at no page yet: an address that is
    /// not mapped shows at [`PageSource::pin`].
    ///
    /// # Errors
    /// [`PinError::NoMemory`] if the program is over its limit of mappings.
    fn pages(&self, address: u64, len: u64) -> Result<Arc<dyn PageSource>, PinError>;

    /// `len` bytes from `start` of the file behind `fd` (a memfd or a file on hugetlbfs or tmpfs).
    ///
    /// # Errors
    /// See [`FdError`].
    fn file_pages(&self, fd: i32, start: u64, len: u64) -> Result<Arc<dyn PageSource>, FdError>;

    /// The eventfd behind `fd` as an interrupt sink.
    ///
    /// # Errors
    /// [`FdError::NotOpen`], or [`FdError::WrongType`] if it is not an eventfd.
    fn eventfd(&self, fd: i32) -> Result<Arc<dyn IrqSink>, FdError>;

    /// Calls `listener` each time that the eventfd behind `fd` is signalled, and at once if it was
    /// signalled before; takes what it counts. Ends when the answer is dropped; a call that is under way
    /// then goes on.
    ///
    /// # Errors
    /// As [`Caller::eventfd`]; [`FdError::NoMemory`] if there is nothing to listen with, the default.
    fn watch_eventfd(
        &self,
        fd: i32,
        listener: Arc<dyn IrqSink>,
    ) -> Result<Box<dyn EventfdWatch>, FdError> {
        let _ = (fd, listener);
        Err(FdError::NoMemory)
    }

    /// Waits until every interrupt of this client that was signalled has arrived: a program that fires
    /// one itself finds it when the ioctl returns. Waits a moment at most, as a client can keep its
    /// own interrupts from arriving. By default there is nothing to wait for.
    fn flush_interrupts(&self) {}

    /// The account of memory that this ioctl locks. By default one without a limit.
    fn account(&self) -> Account {
        Account::default()
    }
}

/// A listener of a program's eventfd, until this is dropped.
pub trait EventfdWatch: Send + Sync + fmt::Debug {}

/// An interrupt sink that counts, for tests and in-process drivers.
#[derive(Debug, Default)]
pub struct CountingIrq {
    count: Mutex<u64>,
    raised: Condvar,
}

impl CountingIrq {
    /// A counter at zero.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Interrupts delivered so far.
    pub fn count(&self) -> u64 {
        *self.count.lock()
    }

    /// Waits until more than `seen` have been delivered, until `deadline` at the latest: whether
    /// they have. A caller that reads the count before it looks at what an interrupt would report,
    /// and waits then, misses none.
    pub fn wait_past(&self, seen: u64, deadline: Instant) -> bool {
        let mut count = self.count.lock();
        while *count <= seen {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            count = self.raised.wait_timeout(count, left);
        }
        true
    }
}

impl IrqSink for CountingIrq {
    fn signal(&self) {
        *self.count.lock() += 1;
        self.raised.notify_all();
    }
}
