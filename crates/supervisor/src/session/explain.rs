//! Why calls were refused and DMA failed, a line each: what `ioasid run --explain` shows.
//!
//! Lines go through a bounded queue to a thread that writes them, so a terminal or a pipe that takes none
//! holds up neither the program nor the machine. Lines that find the queue full are counted, and the
//! next one that is written is preceded by how many were lost.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI32, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};

use ioasid_iommu::DmaRefusal;
use rustix::event::{PollFd, PollFlags, poll};

use super::observe::{CallObserver, CallResult, CalledFile, FinishedCall};

/// What every line begins with, to tell it from the program's own.
pub const PREFIX: &str = "ioasid: ";

/// Lines that may wait to be written.
const QUEUE: usize = 1024;

/// How long lines that are left are waited for at the end.
const PATIENCE: Duration = Duration::from_secs(2);

/// Writes a line for each refused call and each fault of DMA.
#[derive(Debug)]
pub struct Explainer {
    /// None once there will be no more.
    lines: Mutex<Option<SyncSender<String>>>,
    progress: Arc<Progress>,
    /// The process whose calls need no number: the first that made one.
    first: AtomicI32,
}

/// What became of the lines.
#[derive(Debug, Default)]
struct Progress {
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Counts {
    queued: u64,
    written: u64,
    /// Since the last line that was written.
    lost: u64,
    /// Nothing can be written any more.
    closed: bool,
}

impl Progress {
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Explainer {
    /// Writes to `to`.
    ///
    /// # Errors
    /// If the host has no thread left.
    pub fn start(to: OwnedFd) -> io::Result<Arc<Self>> {
        let (lines, queue) = sync_channel(QUEUE);
        let progress = Arc::<Progress>::default();
        let written = Arc::clone(&progress);
        std::thread::Builder::new()
            .name("explain".to_owned())
            .spawn(move || write_lines(File::from(to), &queue, &written))?;
        Ok(Arc::new(Explainer {
            lines: Mutex::new(Some(lines)),
            progress,
            first: AtomicI32::new(0),
        }))
    }

    /// Waits until the lines so far are written, a moment at the most if they cannot be. There will be no
    /// more: the descriptor is closed, which its reader may wait for.
    pub fn finish(&self) {
        self.close();
        let counts = self.progress.counts();
        let pending = |counts: &mut Counts| counts.written < counts.queued && !counts.closed;
        let waited = self
            .progress
            .changed
            .wait_timeout_while(counts, PATIENCE, pending);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends the thread when it has written what is queued.
    fn close(&self) {
        *self.lines() = None;
    }

    fn lines(&self) -> MutexGuard<'_, Option<SyncSender<String>>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self, line: String) {
        let lines = self.lines();
        let Some(lines) = &*lines else {
            return;
        };
        let mut counts = self.progress.counts();
        match lines.try_send(line) {
            Ok(()) => counts.queued += 1,
            Err(TrySendError::Full(_)) => counts.lost += 1,
            // The reader has gone, and wants no more.
            Err(TrySendError::Disconnected(_)) => {}
        }
    }

    /// Whether `process` is the one whose calls need no number.
    fn is_first(&self, process: i32) -> bool {
        let first = self
            .first
            .compare_exchange(0, process, Ordering::Relaxed, Ordering::Relaxed);
        first.is_ok() || first == Err(process)
    }
}

impl CallObserver for Explainer {
    fn wants_all(&self) -> bool {
        false
    }

    fn finished(&self, call: &FinishedCall<'_>) {
        let CallResult::Refused(error) = call.result else {
            return;
        };
        if call.is_foreign {
            return;
        }
        let process = match self.is_first(call.process) {
            true => String::new(),
            false => format!("[pid {}] ", call.process),
        };
        let file = match &call.file {
            None | Some(CalledFile::Iommu) => String::new(),
            // An open says it by its path.
            Some(_) if call.fd.is_none() && call.call.get("path").is_some() => String::new(),
            Some(file) => format!("{file} "),
        };
        let errno = match call.is_register_access() {
            true => "SIGBUS".to_owned(),
            false => error.errno().to_string(),
        };
        let asked = &call.call;
        self.queue(format!(
            "{PREFIX}{process}{file}{asked} -> {errno}: {error}\n"
        ));
    }

    fn ended(&self) {
        self.close();
    }

    fn refused_dma(&self, refusal: &DmaRefusal) {
        self.queue(format!("{PREFIX}DMA fault: {refusal}\n"));
    }
}

/// Writes what comes through the queue, until its other end is gone or nobody reads.
fn write_lines(mut to: File, queue: &Receiver<String>, progress: &Progress) {
    for line in queue {
        let lost = std::mem::take(&mut progress.counts().lost);
        let result = match lost {
            0 => Ok(()),
            lost => write_all(
                &mut to,
                format!("{PREFIX}{lost} lines were lost: they were not read fast enough\n")
                    .as_bytes(),
            ),
        };
        let result = result.and_then(|()| write_all(&mut to, line.as_bytes()));
        let mut counts = progress.counts();
        counts.written += 1;
        counts.closed = result.is_err();
        drop(counts);
        progress.changed.notify_all();
        if result.is_err() {
            return;
        }
    }
}

/// Writes all of it, also to a terminal that others have made non-blocking.
fn write_all(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(to, PollFlags::OUT)];
                let _ = poll(&mut fds, None);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
