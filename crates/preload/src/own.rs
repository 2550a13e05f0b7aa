//! What is this process's alone, in memory that others may have too.
//!
//! A child of `fork` has a copy of all memory, and must not use the page that its parent shares
//! with the session; a child of `vfork` has the very memory, with signal actions of its own. So
//! these few words lie in a page that is zeros in a child of `fork`, and begin with the process's
//! number.

use core::sync::atomic::{
    AtomicI32, AtomicPtr, AtomicU32,
    Ordering::{AcqRel, Acquire, Relaxed, Release},
};

use crate::{page::Page, sys};

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
}

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
        && let Some(page) = sys::shared_page()
    {
        own.page.store(page.cast().as_ptr(), Release);
    }
}
