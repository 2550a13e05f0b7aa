//! One client: a program tree and what belongs to it.

mod received;

use std::{
    fmt, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use ioasid_core::{
    host::Worker,
    inspect::{Inspect, Node},
    spa::SpaSpace,
    sync::Mutex,
};
pub use received::{MemoryFileId, ReceivedFd, prepare_received};

use crate::{
    memory::registers::Registers,
    process::{
        error::ProcessError,
        process::{Process, process_of},
        processes::Processes,
        resources::Resources,
    },
    system::file_id::FileId,
};

/// What a client may use of what all clients share.
#[derive(Clone, Copy, Debug)]
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

/// One client: a program tree, with its two threads, its processes, its limits.
pub struct Client {
    name: String,
    resources: Arc<Resources>,
    processes: Mutex<Processes>,
    /// Another descriptor of what [`Processes`] waits on.
    ended: OwnedFd,
}

impl Client {
    /// A client called `name` whose memory gets system physical addresses in `space`. Starts its
    /// two threads.
    ///
    /// # Errors
    /// What the operating system says when no thread can be started, or no signal handler
    /// installed.
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
            resources: Resources::start(&name, space, limits.windows)?,
            ended: processes.ended().try_clone_to_owned()?,
            processes: Mutex::new(processes),
            name,
        }))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its memory gets system physical addresses.
    pub fn space(&self) -> &Arc<SpaSpace> {
        self.resources.windows.space()
    }

    /// The thread that touches its private memory.
    pub fn worker(&self) -> Arc<dyn Worker> {
        self.resources.remote_worker()
    }

    /// Mappings of the file with this device and inode number are `registers` from now on, and not
    /// memory.
    pub fn add_registers(&self, (dev, ino): (u64, u64), registers: Arc<dyn Registers>) {
        self.resources.registers.add(FileId { dev, ino }, registers);
    }

    /// The file is closed: what is left of its mappings leads nowhere.
    pub fn remove_registers(&self, (dev, ino): (u64, u64)) {
        self.resources.registers.remove(FileId { dev, ino });
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
                let process = Process::open(id, Arc::clone(&self.resources))?;
                // The thread may have ended meanwhile, and its number may be another's.
                if !process.dir().has_thread(tid) {
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

    /// Forgets the threads that have ended since the last call, and returns their numbers. There
    /// are some if this client is readable as a file ([`AsFd`]).
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
        self.resources.worker.stop();
        self.resources.interrupts.stop();
        self.resources.eventfds.stop();
        self.processes.lock().clear();
    }

    /// Whether both threads have ended.
    pub fn has_stopped(&self) -> bool {
        self.resources.worker.has_ended() && self.resources.interrupts.has_ended()
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inspect for Client {
    fn inspect(&self) -> Node {
        let resources = &self.resources;
        let (searches, listings) = resources.files.searches();
        Node::new()
            .with("name", self.name.as_str())
            .with("processes", self.processes.lock().len())
            .with("windows", resources.windows.used())
            .with("windows_limit", resources.windows.limit())
            .with("file_chunks_mapped", resources.files.mapped_chunks())
            .with("file_searches", searches)
            .with("descriptor_listings", listings)
            .with("worker", resources.worker.inspect())
            .with("interrupts", resources.interrupts.inspect())
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
