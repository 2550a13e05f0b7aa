//! What the session thread waits for.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{Timespec, epoll};

/// Everything the session waits for.
#[derive(Debug)]
pub(crate) struct Ready {
    /// The listener and what is beside it.
    all: OwnedFd,
    /// The rest: looked at after each request, so without the listener, which takes locks to say
    /// that the next request is there.
    beside: OwnedFd,
}

/// What of it is there now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Now {
    pub(crate) request: bool,
    pub(crate) no_program: bool,
    pub(crate) files_closed: bool,
    pub(crate) events: bool,
    pub(crate) threads_ended: bool,
    pub(crate) stop: bool,
}

/// The descriptors that are waited on.
pub(crate) struct Sources<'a> {
    /// Readable when a request has come; hung up when no process of the program is left.
    pub(crate) listener: BorrowedFd<'a>,
    /// Readable when a file of the machine was closed.
    pub(crate) closes: BorrowedFd<'a>,
    /// Readable when a file of events has changed.
    pub(crate) events: BorrowedFd<'a>,
    /// Readable when threads of the program have ended.
    pub(crate) threads: BorrowedFd<'a>,
    /// Readable when the session is to end.
    pub(crate) stop: BorrowedFd<'a>,
}

impl Ready {
    const LISTENER: u64 = 0;
    const CLOSES: u64 = 1;
    const EVENTS: u64 = 2;
    const THREADS: u64 = 3;
    const STOP: u64 = 4;
    const BESIDE: u64 = 5;

    pub(crate) fn new(sources: Sources<'_>) -> io::Result<Self> {
        let all = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let beside = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        for (set, what, fd) in [
            (&all, Self::LISTENER, sources.listener),
            (&all, Self::BESIDE, beside.as_fd()),
            (&beside, Self::CLOSES, sources.closes),
            (&beside, Self::EVENTS, sources.events),
            (&beside, Self::THREADS, sources.threads),
            (&beside, Self::STOP, sources.stop),
        ] {
            let data = epoll::EventData::new_u64(what);
            epoll::add(set, fd, data, epoll::EventFlags::IN)?;
        }
        Ok(Ready { all, beside })
    }

    /// Waits until there is something.
    pub(crate) fn wait(&self) -> io::Result<Now> {
        let mut now = Now::default();
        let mut beside = false;
        Self::look(&self.all, None, |what, flags| match what {
            Self::LISTENER => {
                now.request = flags.contains(epoll::EventFlags::IN);
                now.no_program = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
            }
            _ => beside = true,
        })?;
        if beside && !now.request {
            let rest = self.beside()?;
            let no_program = now.no_program;
            now = Now { no_program, ..rest };
        }
        Ok(now)
    }

    /// What there is beside requests.
    pub(crate) fn beside(&self) -> io::Result<Now> {
        let mut now = Now::default();
        Self::look(
            &self.beside,
            Some(&Timespec::default()),
            |what, _| match what {
                Self::CLOSES => now.files_closed = true,
                Self::EVENTS => now.events = true,
                Self::THREADS => now.threads_ended = true,
                _ => now.stop = true,
            },
        )?;
        Ok(now)
    }

    fn look(
        set: &OwnedFd,
        timeout: Option<&Timespec>,
        mut see: impl FnMut(u64, epoll::EventFlags),
    ) -> io::Result<()> {
        let none = epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        };
        let mut events = [none; 4];
        let found = match epoll::wait(set, events.as_mut_slice(), timeout) {
            Ok(found) => found,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in events.iter().take(found) {
            let (data, flags) = (event.data, event.flags);
            see(data.u64(), flags);
        }
        Ok(())
    }
}
