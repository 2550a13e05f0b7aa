//! Interrupts by eventfd.
//!
//! An engine that serves every client calls [`IrqSink::signal`]; a client can make the write to its
//! eventfd block, by filling the counter and clearing `O_NONBLOCK` on a file description that it
//! shares with us. So `signal` only counts, and a thread that serves this client alone writes.
//!
//! A full counter takes no more, as in the kernel (`eventfd_signal` saturates): whoever reads it
//! has an interrupt to see. So a counter that is full is skipped, not waited for. Between the look
//! and the write the client can still fill it; then its interrupt thread waits, and nobody else.

use std::{
    collections::VecDeque,
    fmt, io,
    os::fd::OwnedFd,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ioasid_core::{
    host::IrqSink,
    inspect::{Inspect, Node},
    sync::{Condvar, Mutex},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The thread that writes to one client's eventfds.
pub(crate) struct InterruptThread {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    written: AtomicU64,
    skipped: AtomicU64,
}

#[derive(Default)]
struct Queue {
    /// Eventfds with signals to deliver, each at most once.
    waiting: VecDeque<Arc<Target>>,
    stopping: bool,
    ended: bool,
}

struct Target {
    fd: OwnedFd,
    /// Signals not written yet. The signal that raises it from 0 queues the target.
    pending: AtomicU64,
}

impl InterruptThread {
    pub(crate) fn new(name: &str) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            queue: Mutex::new(Queue::default()),
            wake: Condvar::new(),
            written: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
        });
        let thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || thread.run())?;
        Ok(Arc::new(InterruptThread { shared }))
    }

    /// Delivers what is queued, then ends; later signals go nowhere. Does not wait.
    pub(crate) fn stop(&self) {
        self.shared.queue.lock().stopping = true;
        self.shared.wake.notify_all();
    }

    /// Whether the thread has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.shared.queue.lock().ended
    }
}

impl Shared {
    fn run(&self) {
        let mut queue = self.queue.lock();
        loop {
            if let Some(target) = queue.waiting.pop_front() {
                drop(queue);
                self.deliver(&target);
                queue = self.queue.lock();
            } else if queue.stopping {
                queue.ended = true;
                return;
            } else {
                queue = self.wake.wait(queue);
            }
        }
    }

    fn deliver(&self, target: &Target) {
        let count = target.pending.swap(0, Ordering::AcqRel);
        let mut fds = [PollFd::new(&target.fd, PollFlags::OUT)];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let room = poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
            && fds[0].revents().contains(PollFlags::OUT);
        if room && rustix::io::write(&target.fd, &count.to_ne_bytes()).is_ok() {
            self.written.fetch_add(count, Ordering::Relaxed);
        } else {
            self.skipped.fetch_add(count, Ordering::Relaxed);
        }
    }
}

impl Drop for InterruptThread {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inspect for InterruptThread {
    fn inspect(&self) -> Node {
        let queue = self.shared.queue.lock();
        Node::new()
            .with("eventfds_waiting", queue.waiting.len())
            .with(
                "signals_written",
                self.shared.written.load(Ordering::Relaxed),
            )
            .with(
                "signals_skipped",
                self.shared.skipped.load(Ordering::Relaxed),
            )
            .with("ended", queue.ended)
    }
}

impl fmt::Debug for InterruptThread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InterruptThread")
            .field("waiting", &self.shared.queue.lock().waiting.len())
            .finish_non_exhaustive()
    }
}

/// One eventfd of a client as an interrupt sink. Signals that the client's interrupt thread has not
/// written yet are added up, as the counter of the eventfd would.
pub struct EventFd {
    target: Arc<Target>,
    thread: Arc<InterruptThread>,
}

impl EventFd {
    /// `fd` must be an eventfd: the caller has looked (see [`crate::Process`]).
    pub(crate) fn new(fd: OwnedFd, thread: Arc<InterruptThread>) -> Self {
        EventFd {
            target: Arc::new(Target {
                fd,
                pending: AtomicU64::new(0),
            }),
            thread,
        }
    }
}

impl IrqSink for EventFd {
    fn signal(&self) {
        if self.target.pending.fetch_add(1, Ordering::AcqRel) > 0 {
            return; // already queued, and not taken yet
        }
        let shared = &self.thread.shared;
        let mut queue = shared.queue.lock();
        if !queue.stopping {
            queue.waiting.push_back(Arc::clone(&self.target));
            drop(queue);
            shared.wake.notify_one();
        }
    }
}

impl fmt::Debug for EventFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventFd")
            .field("pending", &self.target.pending.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}
