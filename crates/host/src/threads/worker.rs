//! Threads that serve one client and may be blocked by it for ever.

use std::{
    collections::VecDeque,
    fmt, io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use ioasid_core::{
    host::{Job, Worker, WorkerStopped},
    inspect::{Inspect, Node},
    sync::{Condvar, Mutex},
};

/// A thread that runs jobs one after the other, in order. Its queue holds at most what the engines
/// have parked on it: one job for each work descriptor that is in flight.
pub struct ClientWorker {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    wake: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    running: bool,
    stopping: bool,
    ended: bool,
    done: u64,
}

impl ClientWorker {
    /// Starts the thread.
    ///
    /// # Errors
    /// What the operating system says when no thread can be started.
    pub fn new(name: &str) -> io::Result<Arc<Self>> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            wake: Condvar::new(),
        });
        let thread = Arc::clone(&shared);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || thread.run())?;
        Ok(Arc::new(ClientWorker { shared }))
    }

    /// Takes no more jobs; the thread ends after those that are queued. Does not wait: a job may be
    /// blocked by the client, and then the thread stays until the client lets it go.
    pub fn stop(&self) {
        self.shared.state.lock().stopping = true;
        self.shared.wake.notify_all();
    }

    /// Whether the thread has run its last job.
    pub fn has_ended(&self) -> bool {
        self.shared.state.lock().ended
    }
}

impl Shared {
    fn run(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                state.running = true;
                drop(state);
                // A defect in one job must not silence the client's other jobs.
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    tracing::error!("a job of a client's worker panicked");
                }
                state = self.state.lock();
                state.running = false;
                state.done += 1;
            } else if state.stopping {
                state.ended = true;
                return;
            } else {
                state = self.wake.wait(state);
            }
        }
    }
}

impl Worker for ClientWorker {
    fn submit(&self, job: Job) -> Result<(), WorkerStopped> {
        let mut state = self.shared.state.lock();
        if state.stopping {
            return Err(WorkerStopped);
        }
        state.jobs.push_back(job);
        drop(state);
        self.shared.wake.notify_one();
        Ok(())
    }
}

impl Drop for ClientWorker {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inspect for ClientWorker {
    fn inspect(&self) -> Node {
        let state = self.shared.state.lock();
        Node::new()
            .with("jobs_queued", state.jobs.len())
            .with("jobs_done", state.done)
            .with("busy", state.running)
            .with("stopping", state.stopping)
            .with("ended", state.ended)
    }
}

impl fmt::Debug for ClientWorker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.shared.state.lock();
        f.debug_struct("ClientWorker")
            .field("queued", &state.jobs.len())
            .field("running", &state.running)
            .field("stopping", &state.stopping)
            .finish()
    }
}
