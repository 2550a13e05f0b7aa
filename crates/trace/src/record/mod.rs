//! Keeping lines while they happen.
//!
//! Whoever tells something puts it into a queue of fixed size and goes on; one thread takes it out,
//! makes text of it and writes. The thread looks by itself after a short while, and is woken when the
//! queue is half full, so that telling costs no system call.

mod observer;
mod sink;

use std::{
    fmt, io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle, Thread},
    time::{Duration, Instant},
};

use crossbeam_queue::ArrayQueue;

use crate::schema::{Header, Line, Lost};

pub use observer::MachineObserver;
pub use sink::{JsonLines, Sink, TextLines};

/// Lines that wait to be written, at the most.
const CAPACITY: usize = 1 << 18;

/// How long lines wait if there are few.
const PATIENCE: Duration = Duration::from_millis(20);

/// Takes lines from any thread and writes them on one of its own.
pub struct Recorder {
    shared: Arc<Shared>,
    thread: Thread,
    handle: Mutex<Option<JoinHandle<io::Result<()>>>>,
    programs: AtomicU32,
}

/// What waits to be written.
enum Waiting {
    Line(Line),
    /// A line that is still to be made, or found to be none.
    Later(Box<dyn FnOnce() -> Option<Line> + Send>),
}

struct Shared {
    began: Instant,
    queue: ArrayQueue<Waiting>,
    /// Lines that found the queue full.
    lost: AtomicU64,
    /// The thread has been woken and has not looked yet.
    woken: AtomicBool,
    ended: AtomicBool,
}

impl Recorder {
    /// Begins a trace: writes `header` to each of `sinks`, and what is told from now on.
    ///
    /// # Errors
    /// If the header cannot be written, or there is no thread.
    pub fn start(header: Header, sinks: Vec<Box<dyn Sink>>) -> io::Result<Arc<Self>> {
        Self::with_capacity(header, sinks, CAPACITY)
    }

    /// As [`Recorder::start`], with room for `capacity` lines that wait.
    ///
    /// # Errors
    /// As [`Recorder::start`].
    pub fn with_capacity(
        header: Header,
        mut sinks: Vec<Box<dyn Sink>>,
        capacity: usize,
    ) -> io::Result<Arc<Self>> {
        let header = Line::Header(header);
        for sink in &mut sinks {
            sink.line(&header)?;
            sink.flush()?;
        }
        let shared = Arc::new(Shared {
            began: Instant::now(),
            queue: ArrayQueue::new(capacity.max(1)),
            lost: AtomicU64::new(0),
            woken: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        });
        let writer = Writer {
            shared: Arc::clone(&shared),
            sinks,
        };
        let handle = thread::Builder::new()
            .name("trace".to_owned())
            .spawn(move || writer.run())?;
        Ok(Arc::new(Recorder {
            shared,
            thread: handle.thread().clone(),
            handle: Mutex::new(Some(handle)),
            programs: AtomicU32::new(0),
        }))
    }

    /// A number for one more program.
    pub fn number_program(&self) -> u32 {
        self.programs.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Nanoseconds since the trace began.
    pub fn now(&self) -> u64 {
        self.at(Instant::now())
    }

    /// Nanoseconds from the beginning of the trace to `instant`.
    pub fn at(&self, instant: Instant) -> u64 {
        nanoseconds(instant.saturating_duration_since(self.shared.began))
    }

    /// Takes a line. Never blocks: one that does not fit is counted.
    pub fn push(&self, line: Line) {
        self.wait(Waiting::Line(line));
    }

    /// As [`Recorder::push`], of a line that the thread which writes it makes first.
    pub fn push_later(&self, make: impl FnOnce() -> Option<Line> + Send + 'static) {
        self.wait(Waiting::Later(Box::new(make)));
    }

    fn wait(&self, waiting: Waiting) {
        let shared = &*self.shared;
        if shared.queue.push(waiting).is_err() {
            shared.lost.fetch_add(1, Ordering::Relaxed);
        }
        if shared.queue.len() * 2 >= shared.queue.capacity()
            && !shared.woken.swap(true, Ordering::Relaxed)
        {
            self.thread.unpark();
        }
    }

    /// Writes what is left and ends the trace. What is told later is not kept.
    ///
    /// # Errors
    /// The first error of writing: the trace is incomplete then.
    pub fn finish(&self) -> io::Result<()> {
        self.shared.ended.store(true, Ordering::Release);
        self.thread.unpark();
        let handle = self.handle.lock();
        let handle = handle.unwrap_or_else(PoisonError::into_inner).take();
        match handle.map(JoinHandle::join) {
            Some(Ok(written)) => written,
            Some(Err(_)) => Err(io::Error::other(
                "the thread that writes the trace panicked",
            )),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recorder")
            .field("waiting", &self.shared.queue.len())
            .finish_non_exhaustive()
    }
}

/// A duration as the schema has it.
pub fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// What the thread runs.
struct Writer {
    shared: Arc<Shared>,
    sinks: Vec<Box<dyn Sink>>,
}

impl Writer {
    /// Until the trace ends. After an error nothing is written any more, and lines are thrown away.
    fn run(mut self) -> io::Result<()> {
        let mut result = Ok(());
        loop {
            // Looked at first: what was told before the end is in the queue then.
            let ended = self.shared.ended.load(Ordering::Acquire);
            self.shared.woken.store(false, Ordering::Relaxed);
            let written = self.write_queue(result.is_ok());
            result = result.and(written);
            if ended {
                return result;
            }
            if self.shared.queue.is_empty() {
                thread::park_timeout(PATIENCE);
            }
        }
    }

    /// Writes what is in the queue now, unless it is only to be thrown away.
    fn write_queue(&mut self, keep: bool) -> io::Result<()> {
        // No more than there is room for, so that a flood does not keep the rest from the disk.
        for _ in 0..self.shared.queue.capacity() {
            let Some(waiting) = self.shared.queue.pop() else {
                break;
            };
            let line = match waiting {
                _ if !keep => None,
                Waiting::Line(line) => Some(line),
                Waiting::Later(make) => make(),
            };
            if let Some(line) = line {
                self.write(&line)?;
            }
        }
        let lines = self.shared.lost.swap(0, Ordering::Relaxed);
        if keep && lines > 0 {
            let t = nanoseconds(self.shared.began.elapsed());
            self.write(&Line::Lost(Lost {
                t,
                lines,
                accesses: 0,
            }))?;
        }
        match keep {
            true => self.sinks.iter_mut().try_for_each(|sink| sink.flush()),
            false => Ok(()),
        }
    }

    fn write(&mut self, line: &Line) -> io::Result<()> {
        self.sinks.iter_mut().try_for_each(|sink| sink.line(line))
    }
}

#[cfg(test)]
mod tests;
