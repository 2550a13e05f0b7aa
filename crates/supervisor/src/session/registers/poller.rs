//! A thread that polls for accesses of programs that touch registers often.
//!
//! An access by the system call costs two switches between processes, and the session's own way
//! round. So a process shares a page with its session ([`ioasid_preload::page`]), and once its
//! accesses follow one another closely, this thread watches the page and answers there. Nothing is
//! woken for that: where the thread does not watch, the program sees it and makes the system call,
//! as it does whenever it gets no answer.
//!
//! Watching is paid for by what is answered. Each answer allows as much of it as the system call
//! would have cost us ([`WORTH`]), so it never costs more processor time than it saves; what has
//! not been used lasts for [`MOST`]. A process that does nothing is not watched. One that was
//! watched in vain, as the processors have more to do, has to make more accesses the next time.
//!
//! There is one such thread for a program tree, whatever its processes do, and none on a single
//! processor.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use ioasid_host::Process;
use ioasid_preload::{
    call::Shape,
    page::{Page, Question},
};
use ioasid_uapi::{
    CallError,
    error::{FileError, RegisterError},
};

use super::mapped::{self, Mapped};
use crate::{session::descriptors::memfd::memfd, system::shared_page::SharedPage};

/// Processes of a tree that have a page.
const MOST_PAGES: usize = 64;

/// Pages that are watched at a time.
const MOST_WATCHED: usize = 8;

/// What an access by the system call costs the session's side, about.
const WORTH: Duration = Duration::from_micros(8);

/// How long a page is watched in vain at most.
const MOST: Duration = Duration::from_micros(50);

/// Accesses by the system call that follow one another as closely as this are a run.
const CLOSELY: Duration = Duration::from_micros(100);

/// The length of a run after which the page is watched: at first, and at most.
const RUN: (u32, u32) = (8, 1 << 9);

/// Answers that make watching worth while.
const FEW: u32 = 64;

/// Accesses by the system call, of a process that is watched, before it is no more: no answer
/// reaches it in time.
const MISSES: u32 = 4;

/// Looks at the slots before the clock is looked at, and others that want this processor are let go
/// first.
const LOOKS: u32 = 64;

/// A process that has a page.
#[derive(Debug)]
struct Watched {
    page: SharedPage<Page>,
    process: Weak<Process>,
    /// Held while questions are taken and answered.
    answering: Mutex<()>,
    /// Answers since it is watched.
    served: AtomicU32,
    /// Accesses by the system call since it is watched.
    missed: AtomicU32,
    /// The run that the next watch takes.
    run: AtomicU32,
}

/// A process that has a page, as the session's thread sees it.
#[derive(Debug)]
struct Pace {
    watched: Arc<Watched>,
    /// The last access by the system call, and how many have followed one another.
    last: Instant,
    run: u32,
}

/// The thread, and the processes whose pages it may watch.
#[derive(Debug)]
pub(crate) struct Poller {
    pages: HashMap<u64, Pace>,
    thread: Option<(Arc<Inbox>, JoinHandle<()>)>,
    /// Whether a thread that watches is none that keeps others from running.
    spare: bool,
}

#[derive(Debug, Default)]
struct Inbox {
    wanted: Mutex<Vec<Arc<Watched>>>,
    wake: Condvar,
    /// There is something wanted, or the thread is to end.
    news: AtomicBool,
    stop: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Poller {
    pub(crate) fn new() -> Self {
        Poller {
            pages: HashMap::new(),
            thread: None,
            spare: thread::available_parallelism().is_ok_and(|processors| processors.get() > 1),
        }
    }

    /// A new page for `process`, to be mapped by it.
    ///
    /// # Errors
    /// ENODEV where it would never be watched, EBUSY if it has one, ENOSPC if too many have, ENOMEM
    /// if the host gives none.
    pub(crate) fn share(
        &mut self,
        process: &Arc<Process>,
        mapped: &Arc<Mapped>,
        requests: &Arc<AtomicU64>,
    ) -> Result<OwnedFd, CallError> {
        if !self.spare {
            return Err(RegisterError::NotWatched.into());
        }
        self.forget_ended();
        if self.pages.contains_key(&process.number()) {
            return Err(RegisterError::HasPage.into());
        }
        if self.pages.len() >= MOST_PAGES {
            let limit = MOST_PAGES;
            return Err(RegisterError::TooManyPages { limit }.into());
        }
        let failed = |_| FileError::NoResource;
        self.start(mapped, requests).map_err(failed)?;
        let file = memfd("registers").map_err(|_| FileError::NoResource)?;
        let page = SharedPage::new(file.as_fd()).map_err(failed)?;
        let watched = Arc::new(Watched {
            page,
            process: Arc::downgrade(process),
            answering: Mutex::default(),
            served: AtomicU32::new(0),
            missed: AtomicU32::new(0),
            run: AtomicU32::new(RUN.0),
        });
        let pace = Pace {
            watched,
            last: Instant::now(),
            run: 0,
        };
        self.pages.insert(process.number(), pace);
        Ok(file)
    }

    fn start(&mut self, mapped: &Arc<Mapped>, requests: &Arc<AtomicU64>) -> io::Result<()> {
        if self.thread.is_some() {
            return Ok(());
        }
        let inbox = Arc::new(Inbox::default());
        let watch = Watch {
            inbox: Arc::clone(&inbox),
            mapped: Arc::clone(mapped),
            requests: Arc::clone(requests),
            now: Vec::new(),
        };
        let thread = thread::Builder::new()
            .name("poller".to_owned())
            .spawn(move || watch.run())?;
        self.thread = Some((inbox, thread));
        Ok(())
    }

    /// `process` has made an access by the system call.
    pub(crate) fn note(&mut self, process: &Process) {
        let Some(pace) = self.pages.get_mut(&process.number()) else {
            return;
        };
        let watched = &pace.watched;
        if watched.page.is_polled() {
            // The processors are busy, or the program has more threads than slots.
            if watched.missed.fetch_add(1, Relaxed) >= MISSES {
                watched.page.set_polled(false);
            }
            return;
        }
        let now = Instant::now();
        pace.run = match now.saturating_duration_since(pace.last) < CLOSELY {
            true => pace.run.saturating_add(1),
            false => 0,
        };
        pace.last = now;
        if pace.run < watched.run.load(Relaxed) {
            return;
        }
        pace.run = 0;
        if let Some((inbox, _)) = &self.thread {
            let mut wanted = lock(&inbox.wanted);
            if wanted.len() < MOST_WATCHED {
                wanted.push(Arc::clone(watched));
                inbox.news.store(true, Relaxed);
                inbox.wake.notify_one();
            }
        }
    }

    /// Waits until no question that `process` has asked before is being answered.
    pub(crate) fn wait_for_answer(&self, process: &Process) {
        if let Some(pace) = self.pages.get(&process.number()) {
            drop(lock(&pace.watched.answering));
        }
    }

    /// Frees the pages of processes that are gone.
    pub(crate) fn forget_ended(&mut self) {
        let is_there = |pace: &Pace| pace.watched.process.strong_count() > 0;
        self.pages.retain(|_, pace| is_there(pace));
    }
}

impl Drop for Poller {
    /// Ends the thread, after the access in hand.
    fn drop(&mut self) {
        if let Some((inbox, thread)) = self.thread.take() {
            let wanted = lock(&inbox.wanted);
            inbox.stop.store(true, Relaxed);
            inbox.news.store(true, Relaxed);
            inbox.wake.notify_one();
            drop(wanted);
            // It catches panics, and says so.
            let _ = thread.join();
        }
    }
}

/// What the thread has.
#[derive(Debug)]
struct Watch {
    inbox: Arc<Inbox>,
    mapped: Arc<Mapped>,
    requests: Arc<AtomicU64>,
    /// What is watched now, and the time that may still pass in vain.
    now: Vec<(Arc<Watched>, Duration)>,
}

impl Watch {
    fn run(mut self) {
        while self.wait() {
            self.watch();
        }
        self.end_all();
    }

    /// Sleeps until something is wanted; false at the end.
    fn wait(&mut self) -> bool {
        let inbox = Arc::clone(&self.inbox);
        let wanted = lock(&inbox.wanted);
        let idle = |wanted: &mut Vec<_>| wanted.is_empty() && !inbox.stop.load(Relaxed);
        let woken = inbox.wake.wait_while(wanted, idle);
        drop(woken);
        self.begin()
    }

    /// Begins to watch what is wanted; false at the end.
    fn begin(&mut self) -> bool {
        self.inbox.news.store(false, Relaxed);
        let mut wanted = lock(&self.inbox.wanted);
        for watched in wanted.drain(..) {
            let known = self.now.iter().any(|(its, _)| Arc::ptr_eq(its, &watched));
            if !known && self.now.len() < MOST_WATCHED {
                watched.served.store(0, Relaxed);
                watched.missed.store(0, Relaxed);
                watched.page.set_polled(true);
                self.now.push((watched, MOST));
            }
        }
        !self.inbox.stop.load(Relaxed)
    }

    /// Watches until nothing is worth it.
    fn watch(&mut self) {
        let mut last = Instant::now();
        while !self.now.is_empty() {
            let mut served = [0u32; MOST_WATCHED];
            for _ in 0..LOOKS {
                for ((watched, _), served) in self.now.iter().zip(&mut served) {
                    *served += answer(watched, &self.mapped);
                }
                std::hint::spin_loop();
            }
            let now = Instant::now();
            let passed = now.saturating_duration_since(last);
            last = now;
            self.account(passed, &served);
            if self.inbox.news.load(Relaxed) && !self.begin() {
                return;
            }
            // A thread that the device has just woken may be waiting for this processor.
            thread::yield_now();
        }
    }

    /// Ends the watches that have used up what they had.
    fn account(&mut self, passed: Duration, served: &[u32; MOST_WATCHED]) {
        let mut served = served.iter();
        let requests = &self.requests;
        self.now.retain_mut(|(watched, left)| {
            let served = served.next().copied().unwrap_or(0);
            if served > 0 {
                requests.fetch_add(served.into(), Relaxed);
                watched.served.fetch_add(served, Relaxed);
                watched.missed.store(0, Relaxed);
            }
            *left = left
                .saturating_add(WORTH.saturating_mul(served))
                .saturating_sub(passed)
                .min(MOST);
            if !left.is_zero() && watched.page.is_polled() {
                return true;
            }
            watched.end();
            false
        });
    }

    fn end_all(&mut self) {
        for (watched, _) in self.now.drain(..) {
            watched.end();
        }
    }
}

impl Watched {
    fn end(&self) {
        self.page.set_polled(false);
        let run = match self.served.load(Relaxed) < FEW {
            true => self.run.load(Relaxed).saturating_mul(2).min(RUN.1),
            false => RUN.0,
        };
        self.run.store(run, Relaxed);
    }
}

/// Looks at each slot once; the number of accesses that were carried out.
fn answer(watched: &Watched, mapped: &Mapped) -> u32 {
    if !watched.page.has_questions() {
        return 0;
    }
    let _answering = lock(&watched.answering);
    watched.page.serve(|question| {
        let carried_out = catch_unwind(AssertUnwindSafe(|| carry_out(watched, mapped, question)));
        carried_out
            .unwrap_or_else(|_| {
                tracing::error!("an access to a register made the supervisor panic");
                None
            })
            .is_some()
    })
}

/// Carries out what is asked; `None` if it is to be asked by the system call.
fn carry_out(watched: &Watched, mapped: &Mapped, question: &mut Question) -> Option<()> {
    let shape = Shape::decode(question.shape)?;
    let process = watched.process.upgrade()?;
    mapped::carry_out(
        &process,
        mapped,
        question.address,
        shape,
        &mut question.data,
    )
    .ok()
}
