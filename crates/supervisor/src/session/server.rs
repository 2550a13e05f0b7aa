//! The session thread: takes requests in order, and notes what happens beside them.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, atomic::Ordering},
};

use ioasid_uapi::Errno;

use super::{
    closer::Closer,
    dispatch::dispatch,
    ready::{Now, Ready, Sources},
    state::State,
};
use crate::{calls::table, system::listener::Request};

/// What the thread runs.
#[derive(Debug)]
pub(crate) struct Server {
    state: State,
    closer: Closer,
    /// Readable when the session is to end.
    stop: OwnedFd,
}

impl Server {
    /// # Errors
    /// If the host has no thread or descriptor left.
    pub(crate) fn new(state: State, stop: OwnedFd) -> io::Result<Self> {
        Ok(Server {
            state,
            closer: Closer::start()?,
            stop,
        })
    }

    /// Serves until the program is gone or the session is to end, and closes everything. `finished`
    /// is called when nothing is left.
    pub(crate) fn run(mut self, finished: impl FnOnce()) {
        if let Err(error) = self.serve() {
            let program = &self.state.program.name;
            tracing::error!(%program, %error, "the session broke off");
        }
        self.state.registers.stop_polling();
        let objects = self.state.descriptors.take_all();
        self.closer.close(objects);
        self.state.client.stop();
        // The waiting thread may end the process, and a directory would stay behind.
        self.state.paths.remove_overlay();
        self.state.program.observers.ended();
        self.state.program.report("the program has left");
        finished();
        // A served machine goes on without this program.
        drop(self);
        ioasid_host::service::give_back_memory();
    }

    fn serve(&mut self) -> io::Result<()> {
        let program = Arc::clone(&self.state.program);
        let files = &self.state.descriptors.files;
        let ready = Ready::new(Sources {
            listener: program.listener.as_fd(),
            closes: files.as_fd(),
            events: files.readiness(),
            threads: self.state.client.as_fd(),
            stop: self.stop.as_fd(),
        })?;
        loop {
            let now = ready.wait()?;
            if now.stop {
                return Ok(());
            }
            if now.request {
                // The request is taken first and the rest after it: whatever the program closed
                // before it made the request is seen before the request is carried out, and a
                // thread that ended before has left its number.
                let request = program.listener.receive()?;
                let beside = ready.beside()?;
                self.note(beside);
                if let Some(request) = request {
                    program.requests.fetch_add(1, Ordering::Relaxed);
                    self.answer(&request);
                }
                if beside.stop {
                    return Ok(());
                }
            } else if now.no_program {
                return Ok(());
            } else {
                self.note(now);
            }
        }
    }

    /// Notes what has happened beside the requests.
    fn note(&mut self, now: Now) {
        if now.threads_ended {
            for tid in self.state.client.forget_ended() {
                self.state.descriptors.thread_ended(tid);
                self.state.faults.ended(tid);
            }
            self.state.registers.forget_ended();
            self.state.agents.forget_ended();
            self.state.program.collect_agents();
        }
        if now.files_closed {
            self.close_what_was_closed();
        }
        if now.events {
            self.state.descriptors.files.sync_events();
        }
    }

    fn close_what_was_closed(&mut self) {
        let closed = self.state.descriptors.take_closed();
        if !closed.is_empty() && !self.closer.close(closed) {
            tracing::warn!(
                program = %self.state.program.name,
                "closing a file takes long: DMA to memory that does not answer?"
            );
        }
    }

    fn answer(&mut self, request: &Request) {
        // A defect here must not take other programs' machine away; this program gets EIO.
        let answered = catch_unwind(AssertUnwindSafe(|| dispatch(&mut self.state, request)));
        if answered.is_err() {
            let call = table::name(request.nr);
            tracing::error!(?request, call, "a request made the supervisor panic");
            let listener = &self.state.program.listener;
            listener.fail(request.id, Errno::EIO.get());
        }
    }
}
