//! What stands behind a descriptor of events: a pipe that holds one byte while there is an event.
//!
//! The program's end is an open file of its own, made by opening the pipe once more, so that poll,
//! select and epoll of any kind report it with nothing trapped; reads and writes are trapped and
//! never touch the byte. We keep a writing end, and a reading end to take the byte back when events
//! go without being read. The last close of the program's end is seen as for every other file, by
//! inotify.

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ioasid_iommufd::EventFile;
use rustix::{
    event::{EventfdFlags, eventfd},
    fs::{Mode, OFlags},
    io::Errno,
    pipe::{PipeFlags, pipe_with},
};

/// Wakes the session's thread when some file may have become readable, or stopped being so.
#[derive(Debug)]
pub(crate) struct Readiness {
    changed: AtomicBool,
    wake: OwnedFd,
}

impl Readiness {
    pub(crate) fn new() -> io::Result<Arc<Self>> {
        Ok(Arc::new(Readiness {
            changed: AtomicBool::new(false),
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
        }))
    }

    /// Called on any thread that changes a queue.
    fn announce(&self) {
        if !self.changed.swap(true, Ordering::AcqRel) {
            // Full is as good as written.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }

    /// Whether anything was announced since the last call.
    pub(crate) fn take(&self) -> bool {
        // The plain load is what a request without events pays.
        if !self.changed.load(Ordering::Relaxed) {
            return false;
        }
        // Emptied first: an announcement that follows wakes again.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        self.changed.swap(false, Ordering::AcqRel)
    }
}

impl AsFd for Readiness {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Our side of one file of events.
pub(crate) struct EventPipe {
    file: Arc<dyn EventFile>,
    read: OwnedFd,
    write: OwnedFd,
    /// Whether the byte is in the pipe.
    raised: AtomicBool,
}

impl EventPipe {
    /// The pipe for `file`, and the program's end of it.
    pub(crate) fn new(
        file: Arc<dyn EventFile>,
        readiness: &Arc<Readiness>,
    ) -> io::Result<(Arc<Self>, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Open for writing, poll reports a pipe writable; for reading alone, it does not.
        let access = if file.is_writable() {
            OFlags::RDWR
        } else {
            OFlags::RDONLY
        };
        let path = format!("/proc/self/fd/{}", read.as_raw_fd());
        let program = rustix::fs::open(path, access | OFlags::CLOEXEC, Mode::empty())?;
        let pipe = Arc::new(EventPipe {
            file,
            read,
            write,
            raised: AtomicBool::new(false),
        });
        let readiness = Arc::clone(readiness);
        pipe.file.set_notify(Arc::new(move || readiness.announce()));
        pipe.sync();
        Ok((pipe, program))
    }

    /// The file itself.
    pub(crate) fn file(&self) -> &Arc<dyn EventFile> {
        &self.file
    }

    /// Makes the pipe say what the file says. Only the session's thread calls this.
    pub(crate) fn sync(&self) {
        let readable = self.file.is_readable();
        if self.raised.load(Ordering::Relaxed) == readable {
            return;
        }
        let moved = if readable {
            rustix::io::write(&self.write, &[0])
        } else {
            rustix::io::read(&self.read, &mut [0; 1])
        };
        match moved {
            // Empty or full by a read or write past the filter, which harms that program alone.
            Ok(_) | Err(Errno::AGAIN) => self.raised.store(readable, Ordering::Relaxed),
            Err(error) => tracing::debug!(%error, "a pipe of events is stuck"),
        }
    }
}

impl fmt::Debug for EventPipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventPipe")
            .field("file", &self.file)
            .field("raised", &self.raised)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use ioasid_iommufd::{Error, Notify};
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    use super::*;

    /// Events are single bytes.
    #[derive(Default)]
    struct Queue {
        events: Mutex<Vec<u8>>,
        notify: Mutex<Option<Notify>>,
        writable: bool,
    }

    impl Queue {
        fn push(&self) {
            self.events.lock().unwrap().push(7);
            (self.notify.lock().unwrap().as_ref().unwrap())();
        }
    }

    impl fmt::Debug for Queue {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("Queue")
        }
    }

    impl EventFile for Queue {
        fn read(&self, _count: usize) -> Result<Vec<u8>, Error> {
            Ok(std::mem::take(&mut *self.events.lock().unwrap()))
        }

        fn write(&self, bytes: &[u8]) -> Result<usize, Error> {
            Ok(bytes.len())
        }

        fn is_readable(&self) -> bool {
            !self.events.lock().unwrap().is_empty()
        }

        fn set_notify(&self, notify: Notify) {
            *self.notify.lock().unwrap() = Some(notify);
        }

        fn closed(&self) {}

        fn is_writable(&self) -> bool {
            self.writable
        }
    }

    fn ready(file: &OwnedFd) -> PollFlags {
        let mut fds = [PollFd::new(file, PollFlags::IN | PollFlags::OUT)];
        poll(&mut fds, Some(&Timespec::default())).unwrap();
        fds[0].revents()
    }

    #[test]
    fn poll_reports_an_event_as_long_as_there_is_one() {
        for writable in [false, true] {
            let readiness = Readiness::new().unwrap();
            let queue = Arc::new(Queue {
                writable,
                ..Queue::default()
            });
            let (pipe, program) = EventPipe::new(queue.clone(), &readiness).unwrap();
            let idle = if writable {
                PollFlags::OUT
            } else {
                PollFlags::empty()
            };
            for _ in 0..3 {
                assert_eq!(ready(&program), idle);
                queue.push();
                queue.push();
                assert!(readiness.take());
                assert!(!readiness.take());
                pipe.sync();
                assert_eq!(ready(&program), idle | PollFlags::IN);
                // Gone without a read of the program's: withdrawn.
                pipe.file().read(100).unwrap();
                pipe.sync();
            }
        }
    }

    #[test]
    fn an_event_from_before_the_descriptor_shows() {
        let readiness = Readiness::new().unwrap();
        let queue = Arc::new(Queue::default());
        queue.events.lock().unwrap().push(1);
        let (_pipe, program) = EventPipe::new(queue, &readiness).unwrap();
        assert_eq!(ready(&program), PollFlags::IN);
    }
}
