//! Closing descriptors that a peer has sent and nobody has looked into.
//!
//! The `close` of a file can wait for its server as long as that likes: one on FUSE is asked to
//! flush (`fuse_flush` of `fs/fuse/file.c`), and not even SIGKILL ends the wait. Nothing but
//! `close` takes a descriptor away. So it is done on threads that do nothing else, and of these
//! there are few.

use std::{
    collections::VecDeque,
    fmt,
    os::fd::OwnedFd,
    sync::{Arc, OnceLock},
};

use ioasid_core::{
    inspect::{Inspect, Node},
    sync::Mutex,
};
use rustix::process::Resource;

/// Most threads of one closer.
const THREADS: usize = 4;

/// Descriptors that may wait for a thread: at most this many, and at most this part of those that
/// the process may have.
const WAITING: usize = 1024;
const PART: u64 = 16;

/// Descriptors that may wait for a thread of one closer. Asked for once: a process that has
/// confined itself cannot any more.
pub(crate) fn room() -> usize {
    static ROOM: OnceLock<usize> = OnceLock::new();
    *ROOM.get_or_init(|| {
        let limit = rustix::process::getrlimit(Resource::Nofile).current;
        let part = limit.and_then(|limit| usize::try_from(limit / PART).ok());
        part.unwrap_or(WAITING).min(WAITING)
    })
}

/// Closes descriptors of one peer, or of those that share a socket, on threads of its own. They
/// start when there is something to close, and end when there is nothing left.
pub struct Closer {
    name: String,
    room: usize,
    shared: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<OwnedFd>,
    threads: usize,
}

impl Closer {
    /// A closer whose threads are called `close NAME`.
    pub fn new(name: &str) -> Arc<Self> {
        Arc::new(Closer {
            name: format!("close {name}"),
            room: room(),
            shared: Arc::default(),
        })
    }

    /// Closes `fd`, some time. Never waits.
    pub fn close(&self, fd: OwnedFd) {
        let mut state = self.shared.lock();
        state.waiting.push_back(fd);
        if state.threads >= THREADS {
            return;
        }
        state.threads += 1;
        drop(state);
        let shared = Arc::clone(&self.shared);
        let thread = std::thread::Builder::new()
            .name(self.name.clone())
            .spawn(move || work(&shared));
        if thread.is_err() {
            // The next one that comes tries again.
            self.shared.lock().threads -= 1;
        }
    }

    /// Whether as many descriptors wait as may: their sender is to send no more.
    pub fn is_full(&self) -> bool {
        self.shared.lock().waiting.len() >= self.room
    }
}

fn work(shared: &Mutex<State>) {
    loop {
        let mut state = shared.lock();
        let Some(fd) = state.waiting.pop_front() else {
            state.threads -= 1;
            return;
        };
        drop(state);
        drop(fd);
    }
}

impl Inspect for Closer {
    fn inspect(&self) -> Node {
        let state = self.shared.lock();
        Node::new()
            .with("waiting", state.waiting.len())
            .with("threads", state.threads)
    }
}

impl fmt::Debug for Closer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.lock();
        f.debug_struct("Closer")
            .field("waiting", &state.waiting.len())
            .field("threads", &state.threads)
            .finish_non_exhaustive()
    }
}
