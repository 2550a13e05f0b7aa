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
    time::{Duration, Instant},
};

use ioasid_core::{
    host::IrqSink,
    inspect::{Inspect, Node},
    sync::{Condvar, Mutex},
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// How long a client waits for interrupts of its own that it keeps from arriving.
const FLUSH: Duration = Duration::from_secs(2);

/// The thread that writes to one client's eventfds.
pub(crate) struct InterruptThread {
    shared: Arc<Shared>,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
    /// One more has been delivered.
    delivered: Condvar,
    written: AtomicU64,
    skipped: AtomicU64,
}

#[derive(Default)]
struct Queue {
    /// Eventfds with signals to deliver, each at most once.
    waiting: VecDeque<Arc<Target>>,
    /// Eventfds queued so far, and delivered so far.
    queued: u64,
    done: u64,
    /// Who waits for a delivery.
    flushing: usize,
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
            delivered: Condvar::new(),
            written: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
        });
        let thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || thread.run())?;
        Ok(Arc::new(InterruptThread { shared }))
    }

    /// Waits until what is queued has been written, [`FLUSH`] at most.
    pub(crate) fn flush(&self) {
        self.flush_within(FLUSH);
    }

    /// Waits until what is queued has been written, `patience` at most.
    fn flush_within(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        let mut queue = self.shared.queue.lock();
        let wanted = queue.queued;
        queue.flushing += 1;
        while queue.done < wanted && !queue.ended {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            queue = self.shared.delivered.wait_timeout(queue, left);
        }
        queue.flushing -= 1;
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
                queue.done += 1;
                if queue.flushing > 0 {
                    self.delivered.notify_all();
                }
            } else if queue.stopping {
                queue.ended = true;
                self.delivered.notify_all();
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
            queue.queued += 1;
            queue.waiting.push_back(Arc::clone(&self.target));
            drop(queue);
            shared.wake.notify_one();
        }
    }

    fn flush(&self, patience: Duration) {
        self.thread.flush_within(patience);
    }
}

impl fmt::Debug for EventFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventFd")
            .field("pending", &self.target.pending.load(Ordering::Relaxed))
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    #[test]
    fn after_a_flush_every_signal_has_arrived() {
        let thread = InterruptThread::new("irq test").unwrap();
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        let sink = EventFd::new(fd.try_clone().unwrap(), Arc::clone(&thread));
        for _ in 0..1000 {
            sink.signal();
            thread.flush();
            let mut count = [0; 8];
            rustix::io::read(&fd, &mut count).unwrap();
            assert_eq!(u64::from_ne_bytes(count), 1);
        }
    }

    #[test]
    fn a_flush_does_not_wait_for_a_thread_that_has_ended() {
        let thread = InterruptThread::new("irq test").unwrap();
        thread.stop();
        while !thread.has_ended() {
            std::thread::yield_now();
        }
        thread.flush();
    }
}
