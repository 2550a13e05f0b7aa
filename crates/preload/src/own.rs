//! What is this process's alone, in memory that others may have too.
//!
//! A child of `fork` has a copy of all memory, and must not use the page that its parent shares
//! with the session; a child of `vfork` has the very memory, with signal actions of its own. So
//! these few words lie in a page that is zeros in a child of `fork`, and begin with the process's
//! number.

use core::{
    ptr::NonNull,
    sync::atomic::{
        AtomicI32, AtomicPtr, AtomicU32,
        Ordering::{AcqRel, Acquire, Relaxed, Release},
    },
};

use crate::{call::Kind, errands::Errands, page::Page, sys};

/// Zeros in a child of `fork`.
#[repr(C)]
#[derive(Debug)]
struct Own {
    /// 0: not known yet.
    pid: AtomicI32,
    /// Accesses by the system call so far, as long as there is no page.
    accesses: AtomicU32,
    /// The page that is shared with the session, if there is one.
    page: AtomicPtr<Page>,
    /// Whether a page of errands was asked for.
    errands_asked: AtomicU32,
    /// The page of errands, if there is one.
    errands: AtomicPtr<Errands>,
    /// The stack of the agents of this process, one after the other.
    stack: AtomicPtr<u8>,
    /// The agent that was started last; [`STARTING`] while a thread starts one.
    agent: AtomicI32,
}

/// No process has this number.
const STARTING: i32 = -1;

/// Accesses before a process asks for a page: a program that looks at a register or two does
/// without.
const ACCESSES: u32 = 32;

static OWN: AtomicPtr<Own> = AtomicPtr::new(core::ptr::null_mut());

fn own() -> Option<&'static Own> {
    // SAFETY: null, or a page that is mapped for good, large enough, aligned, and zeros or what was
    // put there by these functions; all fields are atomic.
    unsafe { OWN.load(Relaxed).as_ref() }
}

/// Learns whose memory this is.
pub fn learn() {
    if let Some(page) = sys::page_wiped_on_fork() {
        OWN.store(page.cast().as_ptr(), Relaxed);
        is_borrowed();
    }
}

/// Whether this process uses another one's memory, after `vfork`.
pub fn is_borrowed() -> bool {
    let Some(own) = own() else {
        return false;
    };
    let me = sys::getpid();
    match own.pid.load(Relaxed) {
        0 => {
            own.pid.store(me, Relaxed);
            false
        }
        pid => pid != me,
    }
}

/// The page that this process shares with the session, if there is one.
pub fn page() -> Option<&'static Page> {
    // SAFETY: null, or a page that is mapped for good: only the program itself unmaps it. It
    // is not in a child of `fork`, but neither is the pointer.
    unsafe { own()?.page.load(Acquire).as_ref() }
}

/// The page is of no use any more.
pub fn forget_page() {
    if let Some(own) = own() {
        own.page.store(core::ptr::null_mut(), Release);
    }
}

/// Counts an access by the system call, and asks for a page when there have been some.
pub fn count_access() {
    let Some(own) = own() else {
        return;
    };
    // Stays above once it is there: a process that was refused does not ask again.
    if own.accesses.load(Relaxed) >= ACCESSES || own.accesses.fetch_add(1, AcqRel) + 1 != ACCESSES {
        return;
    }
    if !is_borrowed()
        && let Some(page) = sys::shared_page(Kind::Share)
    {
        own.page.store(page.cast().as_ptr(), Release);
    }
}

/// The number of this process, once it is known.
pub fn pid() -> Option<i32> {
    Some(own()?.pid.load(Relaxed)).filter(|pid| *pid != 0)
}

/// The page in which the session asks for errands, if there is one.
pub fn errands() -> Option<&'static Errands> {
    // SAFETY: as for `page`.
    unsafe { own()?.errands.load(Acquire).as_ref() }
}

/// This process has memory that devices reach: asks for a page of errands, once.
pub fn has_mapped() {
    let Some(own) = own() else {
        return;
    };
    if own.errands_asked.load(Relaxed) != 0 || own.errands_asked.swap(1, Relaxed) != 0 {
        return;
    }
    if !is_borrowed()
        && let Some(page) = sys::shared_page(Kind::Errands)
    {
        own.errands.store(page.cast().as_ptr(), Release);
    }
}

/// Has `start` start an agent on a stack of `len` bytes, always the same, unless there is one still.
/// It returns the agent's number, or an error.
pub fn start_agent(len: u64, start: impl FnOnce(NonNull<u8>) -> i64) {
    let Some(own) = own() else {
        return;
    };
    let last = own.agent.load(Acquire);
    let is_free = last != STARTING
        && (last == 0 || sys::alone::has_ended(last))
        && own
            .agent
            .compare_exchange(last, STARTING, AcqRel, Relaxed)
            .is_ok();
    if is_free {
        let child = stack(own, len).map_or(0, start);
        let child = i32::try_from(child).unwrap_or(0).max(0);
        own.agent.store(child, Release);
    }
}

fn stack(own: &Own, len: u64) -> Option<NonNull<u8>> {
    if let Some(stack) = NonNull::new(own.stack.load(Relaxed)) {
        return Some(stack);
    }
    let stack = sys::memory_of_its_own(len)?;
    own.stack.store(stack.as_ptr(), Relaxed);
    Some(stack)
}
