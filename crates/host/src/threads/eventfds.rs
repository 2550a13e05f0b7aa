//! Eventfds of a client that we listen to: it signals, we act.
//!
//! One thread for each client that has such eventfds. It takes what an eventfd counts, without ever
//! waiting for it, and calls the listener once; a client that signals without end costs this thread
//! alone.

use std::{
    collections::HashMap,
    fmt,
    io::{self, IoSliceMut},
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ioasid_core::{
    host::{EventfdWatch, IrqSink},
    sync::Mutex,
};
use rustix::{
    event::{EventfdFlags, epoll, eventfd},
    io::{Errno, ReadWriteFlags, preadv2},
};

/// Events that are taken at a time.
const EVENTS: usize = 32;

/// The event that ends the thread.
const STOP: u64 = 0;

/// The thread that listens to the eventfds of one client. It starts with the first of them.
#[derive(Debug, Default)]
pub(crate) struct EventfdListener {
    thread: Mutex<State>,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    New,
    Running(Arc<Shared>),
    Stopped,
}

struct Shared {
    epoll: OwnedFd,
    stop: OwnedFd,
    watched: Mutex<HashMap<u64, Arc<Watched>>>,
    last: AtomicU64,
}

struct Watched {
    fd: OwnedFd,
    listener: Arc<dyn IrqSink>,
}

impl EventfdListener {
    /// Listens to `fd`, which must be an eventfd.
    pub(crate) fn watch(
        &self,
        name: &str,
        fd: OwnedFd,
        listener: Arc<dyn IrqSink>,
    ) -> io::Result<Box<dyn EventfdWatch>> {
        let shared = {
            let mut thread = self.thread.lock();
            match &*thread {
                State::Running(shared) => Arc::clone(shared),
                State::Stopped => return Err(io::ErrorKind::NotConnected.into()),
                State::New => {
                    let shared = Shared::start(name)?;
                    *thread = State::Running(Arc::clone(&shared));
                    shared
                }
            }
        };
        let id = shared.last.fetch_add(1, Ordering::Relaxed) + 1;
        let watched = Arc::new(Watched { fd, listener });
        shared.watched.lock().insert(id, Arc::clone(&watched));
        let data = epoll::EventData::new_u64(id);
        if let Err(error) = epoll::add(&shared.epoll, &watched.fd, data, epoll::EventFlags::IN) {
            shared.watched.lock().remove(&id);
            return Err(error.into());
        }
        Ok(Box::new(Watch { shared, id }))
    }

    /// Ends the thread; nobody is called any more. Does not wait.
    pub(crate) fn stop(&self) {
        if let State::Running(shared) = std::mem::replace(&mut *self.thread.lock(), State::Stopped)
        {
            // Fails only if the counter is full, which is as good a signal.
            let _ = rustix::io::write(&shared.stop, &1_u64.to_ne_bytes());
        }
    }
}

impl Shared {
    fn start(name: &str) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            stop: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            watched: Mutex::default(),
            last: AtomicU64::new(STOP),
        });
        let data = epoll::EventData::new_u64(STOP);
        epoll::add(&shared.epoll, &shared.stop, data, epoll::EventFlags::IN)?;
        let thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || thread.run())?;
        Ok(shared)
    }

    fn run(&self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            match epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut events),
                None,
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            for event in &events {
                let id = event.data.u64();
                if id == STOP {
                    self.watched.lock().clear();
                    return;
                }
                let watched = self.watched.lock().get(&id).map(Arc::clone);
                if let Some(watched) = watched
                    && watched.take()
                {
                    watched.listener.signal();
                }
            }
        }
    }
}

impl Watched {
    /// Takes what is counted; says whether there was anything. Somebody else may have been faster.
    fn take(&self) -> bool {
        let mut count = [0; 8];
        let mut buffers = [IoSliceMut::new(&mut count)];
        let read = preadv2(
            self.fd.as_fd(),
            &mut buffers,
            u64::MAX,
            ReadWriteFlags::NOWAIT,
        );
        matches!(read, Ok(8))
    }
}

/// One eventfd that is listened to.
struct Watch {
    shared: Arc<Shared>,
    id: u64,
}

impl EventfdWatch for Watch {}

impl Drop for Watch {
    fn drop(&mut self) {
        let watched = self.shared.watched.lock().remove(&self.id);
        if let Some(watched) = watched {
            // It goes with the last copy of the descriptor otherwise, which may be the client's.
            let _ = epoll::delete(&self.shared.epoll, &watched.fd);
        }
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("watched", &self.watched.lock().len())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ioasid_core::sync::Condvar;

    use super::*;

    #[derive(Debug, Default)]
    struct Heard {
        count: Mutex<u32>,
        again: Condvar,
    }

    impl IrqSink for Heard {
        fn signal(&self) {
            *self.count.lock() += 1;
            self.again.notify_all();
        }
    }

    impl Heard {
        fn wait_for(&self, count: u32) {
            let mut heard = self.count.lock();
            while *heard < count {
                heard = self.again.wait_timeout(heard, Duration::from_secs(60));
            }
        }
    }

    #[test]
    fn each_signal_is_heard_and_taken_until_the_watch_goes() {
        let eventfds = EventfdListener::default();
        // A file description that blocks: a client may share such a one.
        let fd = eventfd(3, EventfdFlags::CLOEXEC).unwrap();
        let heard = Arc::new(Heard::default());
        let copy = fd.try_clone().unwrap();
        let watch = eventfds.watch("test", copy, heard.clone()).unwrap();
        heard.wait_for(1);
        for count in 2..5 {
            rustix::io::write(&fd, &1_u64.to_ne_bytes()).unwrap();
            heard.wait_for(count);
        }
        drop(watch);
        rustix::io::write(&fd, &5_u64.to_ne_bytes()).unwrap();
        let second = Arc::new(Heard::default());
        let copy = fd.try_clone().unwrap();
        let _watch = eventfds.watch("test", copy, second.clone()).unwrap();
        second.wait_for(1);
        assert_eq!(*heard.count.lock(), 4);
        eventfds.stop();
        let copy = fd.try_clone().unwrap();
        assert!(eventfds.watch("test", copy, second).is_err());
    }
}
