//! The processes of a client that are open, found by the number of a thread.
//!
//! The number of a thread says which process it is of as long as the thread lives. So each thread
//! that has asked is held by a pidfd, and the look-up costs no system call: what has ended is
//! learnt from one epoll instance over all of them.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use rustix::{
    event::{Timespec, epoll},
    fs::OFlags,
    process::{Pid, PidfdFlags},
};

use super::process::Process;

/// Threads that are held by a descriptor before they are all forgotten.
const MOST_THREADS: usize = 256;

#[derive(Debug)]
pub(crate) struct Processes {
    by_id: HashMap<i32, Arc<Process>>,
    threads: HashMap<i32, Thread>,
    ended: OwnedFd,
}

/// A thread that has asked.
#[derive(Debug)]
struct Thread {
    process: Arc<Process>,
    /// Readable once the thread has ended. Its close takes it out of the epoll instance.
    _pidfd: OwnedFd,
}

impl Processes {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Processes {
            by_id: HashMap::new(),
            threads: HashMap::new(),
            ended: epoll::create(epoll::CreateFlags::CLOEXEC)?,
        })
    }

    /// Readable when a thread has ended.
    pub(crate) fn ended(&self) -> BorrowedFd<'_> {
        self.ended.as_fd()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(crate) fn clear(&mut self) {
        self.by_id.clear();
        self.threads.clear();
    }

    /// The process of a thread that is known and was alive at the last [`Processes::forget_ended`].
    pub(crate) fn of_thread(&self, tid: i32) -> Option<Arc<Process>> {
        self.threads.get(&tid).map(|t| Arc::clone(&t.process))
    }

    /// Process `id`, if it is open, still the same and `tid` is one of its threads.
    pub(crate) fn find(&self, id: i32, tid: i32) -> Option<Arc<Process>> {
        let process = self.by_id.get(&id)?;
        (process.dir().has_thread(tid) && process.memory().is_alive()).then(|| Arc::clone(process))
    }

    /// Remembers that `tid` is a thread of `process`.
    pub(crate) fn insert(&mut self, tid: i32, process: &Arc<Process>) {
        if process.borrows_memory() {
            // Its `exec` leaves an address space behind that lives on.
            return;
        }
        if !self.by_id.contains_key(&process.id()) {
            self.by_id.retain(|_, process| process.still_same());
        }
        self.by_id.insert(process.id(), Arc::clone(process));
        if self.threads.len() >= MOST_THREADS {
            self.threads.clear();
        }
        // A kernel before 6.9 has no descriptors of threads: those are looked up each time.
        if let Some(pidfd) = self.watch(tid, process) {
            let process = Arc::clone(process);
            self.threads.insert(
                tid,
                Thread {
                    process,
                    _pidfd: pidfd,
                },
            );
        }
    }

    fn watch(&self, tid: i32, process: &Process) -> Option<OwnedFd> {
        // PIDFD_THREAD: the descriptor of a thread that is not the first.
        let thread = PidfdFlags::from_bits_retain(OFlags::EXCL.bits());
        let flags = if tid == process.id() {
            PidfdFlags::empty()
        } else {
            thread
        };
        let pidfd = rustix::process::pidfd_open(Pid::from_raw(tid)?, flags).ok()?;
        let data = epoll::EventData::new_u64(u64::try_from(tid).ok()?);
        epoll::add(&self.ended, &pidfd, data, epoll::EventFlags::IN).ok()?;
        // If it is one of the process's threads now, then it is this one, or the descriptor reports
        // its end.
        process.dir().has_thread(tid).then_some(pidfd)
    }

    /// Forgets what has ended, and says what that was.
    pub(crate) fn forget_ended(&mut self) -> Vec<i32> {
        let mut ended = Vec::new();
        loop {
            let mut events = [epoll::Event {
                flags: epoll::EventFlags::empty(),
                data: epoll::EventData::new_u64(0),
            }; 16];
            let Ok(found @ 1..) = epoll::wait(
                &self.ended,
                events.as_mut_slice(),
                Some(&Timespec::default()),
            ) else {
                return ended;
            };
            for event in events.iter().take(found) {
                if let Ok(tid) = i32::try_from(event.data.u64()) {
                    self.threads.remove(&tid);
                    self.by_id.remove(&tid);
                    ended.push(tid);
                }
            }
        }
    }

    /// Forgets the process of a thread, with all its threads.
    pub(crate) fn forget_process_of(&mut self, tid: i32) {
        let id = match self.threads.get(&tid) {
            Some(thread) => thread.process.id(),
            None => tid,
        };
        self.threads.retain(|_, thread| thread.process.id() != id);
        self.by_id.remove(&id);
    }
}
