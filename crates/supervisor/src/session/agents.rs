//! The agents of a program tree, and what the session asks them to copy.
//!
//! A copy between two places of a program's private memory goes through its agent
//! ([`ioasid_preload::agent`]) if there is one. There is none at first: only once a process has moved so
//! much that starting one pays ([`WORTH_STARTING`]) is its library asked for it, and never where another
//! child would be noticed: under a debugger, or below a filter of system calls that the program has set
//! itself.
//!
//! An agent that ends, is killed or is stopped costs a repetition: the copy in hand is made again the
//! other way, after the agent has ended for certain, so none of its bytes comes late.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use ioasid_core::memory::InnerCopy;
use ioasid_host::{CopyAgent, Process};
use ioasid_preload::errands::{ERRANDS, Errand, Errands, Futex, Outcome, Word};
use ioasid_uapi::{
    CallError,
    error::{FileError, RegisterError},
};
use rustix::{
    event::Timespec,
    process::{Signal, pidfd_send_signal},
    thread::futex,
};

use super::{descriptors::memfd::memfd, program::Program};
use crate::system::{process::ends_within, shared_page::SharedPage};

/// Bytes moved inside of a process before an agent is started for it: starting takes as long as it saves
/// with these.
const WORTH_STARTING: u64 = 1 << 20;

/// Agents that are started for a process, one after the other.
const MOST_STARTS: u32 = 12;

/// Processes of a tree that can have an agent.
const MOST_PAGES: usize = 64;

/// How long a thread sleeps before it looks whether the agent is there still.
const LOOK: Duration = Duration::from_millis(20);

/// How long a killed agent is waited for before a call that would notice it. The kernel ends it at once,
/// unless it cannot.
const END: Duration = Duration::from_secs(1);

/// The agents of a program tree.
#[derive(Debug, Default)]
pub(crate) struct Agents {
    /// The filters of system calls that the program began with, ours among them.
    filters: Option<i32>,
    /// By [`Process::number`].
    pages: HashMap<u64, Arc<Agent>>,
}

/// The agent of one process, or the place for one.
#[derive(Debug)]
struct Agent {
    page: SharedPage<Errands>,
    program: Weak<Process>,
    /// The number of the program, to know its child by.
    id: i32,
    filters: Option<i32>,
    /// The agent's process while there is one. Never held while anything waits.
    process: Mutex<Option<Arc<Running>>>,
    /// Held while an errand is under way.
    asking: Mutex<Account>,
}

/// A process that is an agent.
#[derive(Debug)]
struct Running {
    process: Arc<Process>,
    handle: OwnedFd,
}

/// What decides whether an agent is worth it.
#[derive(Debug, Default)]
struct Account {
    /// Bytes moved without one.
    moved: u64,
    starts: u32,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agents {
    /// The program is about to begin: what filters it has, it has from whoever starts it.
    pub(crate) fn begin(&mut self, process: &Process) {
        self.filters = process.seccomp_filters();
    }

    /// A new page of errands for `process`, to be mapped by it.
    ///
    /// # Errors
    /// EBUSY if it has one, ENOSPC if too many have, ENOMEM if the host gives none.
    pub(crate) fn share(&mut self, process: &Arc<Process>) -> Result<OwnedFd, CallError> {
        self.forget_ended();
        if self.pages.contains_key(&process.number()) {
            return Err(RegisterError::HasPage.into());
        }
        if self.pages.len() >= MOST_PAGES {
            let limit = MOST_PAGES;
            return Err(RegisterError::TooManyPages { limit }.into());
        }
        let file = memfd("errands").map_err(|_| FileError::NoResource)?;
        let page = SharedPage::new(file.as_fd()).map_err(|_| FileError::NoResource)?;
        let agent = Arc::new(Agent {
            page,
            program: Arc::downgrade(process),
            id: process.id(),
            filters: self.filters,
            process: Mutex::default(),
            asking: Mutex::default(),
        });
        process.set_copy_agent(agent.clone());
        self.pages.insert(process.number(), agent);
        Ok(file)
    }

    /// `process` is the agent of the process that started it.
    ///
    /// # Errors
    /// ENOENT if that one has no use for it.
    pub(crate) fn welcome(
        &mut self,
        program: &Program,
        process: &Arc<Process>,
    ) -> Result<(), CallError> {
        let parent = process.parent();
        let page = self.pages.values().find(|agent| agent.id == parent);
        let page = page.ok_or(RegisterError::NoNode)?;
        let handle = process.handle().map_err(|_| FileError::NoResource)?;
        let other = handle.try_clone().map_err(|_| FileError::NoResource)?;
        let mut current = lock(&page.process);
        if current.as_ref().is_some_and(|agent| !agent.has_ended()) {
            return Err(RegisterError::HasPage.into());
        }
        tracing::debug!(
            process = parent,
            agent = process.id(),
            "copies inside of the program's private memory are made by an agent"
        );
        *current = Some(Arc::new(Running {
            process: Arc::clone(process),
            handle,
        }));
        drop(current);
        program.collect_agents();
        program.add_agent(parent, other);
        Ok(())
    }

    /// Ends the agent of process `id`, before its program does what an agent would be in the way of.
    pub(crate) fn end_of(&self, id: i32) {
        let of_it = self.pages.values().filter(|agent| agent.id == id);
        of_it.for_each(|agent| agent.end());
    }

    /// Whether no process has an agent, or could have.
    pub(crate) fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Frees the pages of processes that are gone.
    pub(crate) fn forget_ended(&mut self) {
        let is_there = |agent: &Agent| agent.program.strong_count() > 0;
        self.pages.retain(|_, agent| is_there(agent));
    }
}

impl Running {
    fn has_ended(&self) -> bool {
        ends_within(&self.handle, Duration::ZERO)
    }

    fn kill(&self) {
        // Fails only if it has ended already.
        let _ = pidfd_send_signal(&self.handle, Signal::KILL);
    }
}

impl Agent {
    /// Ends what runs, and waits until it has.
    fn end(&self) {
        let running = lock(&self.process).take();
        if let Some(running) = running {
            running.kill();
            if !ends_within(&running.handle, END) {
                tracing::warn!(process = self.id, "an agent was killed and does not end");
            }
        }
    }

    /// Asks for an agent if there is enough to do for one, and nobody who would mind.
    fn consider(&self, account: &mut Account, len: u64) {
        account.moved = account.moved.saturating_add(len);
        // Each that comes to nothing makes the next one rarer.
        let worth = WORTH_STARTING << (2 * account.starts.min(MOST_STARTS));
        if account.moved < worth || account.starts >= MOST_STARTS {
            return;
        }
        account.moved = 0;
        account.starts += 1;
        let Some(program) = self.program.upgrade() else {
            return;
        };
        if self.filters.is_some()
            && program.seccomp_filters() == self.filters
            && program.tracer() == 0
        {
            self.page.wish();
        }
    }
}

impl CopyAgent for Agent {
    fn copy(&self, copies: &mut [InnerCopy]) -> bool {
        let mut account = lock(&self.asking);
        let running = lock(&self.process).clone();
        let Some(running) = running.filter(|_| copies.len() <= ERRANDS) else {
            self.consider(&mut account, copies.iter().map(|copy| copy.len).sum());
            return false;
        };
        let errand = |copy: &InnerCopy| Errand {
            dst: copy.dst,
            src: copy.src,
            len: copy.len,
            done: 0,
        };
        let mut errands: Vec<_> = copies.iter().map(errand).collect();
        let asked = self.page.ask(&errands, &Patient);
        loop {
            match self.page.answer(asked, &mut errands, &Patient) {
                Outcome::Answered => {
                    account.starts = 0;
                    for (copy, errand) in copies.iter_mut().zip(&errands) {
                        copy.done = errand.done;
                    }
                    return true;
                }
                Outcome::Pending if !running.process.is_stopped() => {}
                Outcome::Pending | Outcome::Spoilt => {
                    running.kill();
                    ends_within(&running.handle, LOOK);
                }
            }
            if running.has_ended() {
                lock(&self.process).take_if(|now| Arc::ptr_eq(now, &running));
                return false;
            }
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(running) = lock(&self.process).take() {
            running.kill();
        }
    }
}

/// Sleeps that end after a while, as the other side may be gone.
struct Patient;

impl Futex for Patient {
    fn wait(&self, word: &Word, value: u32) {
        let time = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK.subsec_nanos().into(),
        };
        // However it ends, the word is looked at again.
        let _ = futex::wait(word, futex::Flags::empty(), value, Some(&time));
    }

    fn wake(&self, word: &Word) {
        let _ = futex::wake(word, futex::Flags::empty(), 1);
    }
}
