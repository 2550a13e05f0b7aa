//! Signals of this process, passed on to the program that it runs.
// UNSAFETY: a signal handler and the calls that install it; each block says why it is sound.
#![allow(unsafe_code)]

use std::{
    mem, ptr,
    sync::atomic::{AtomicI32, Ordering},
};

/// The program that gets the signals sent to this process; 0 if none.
static SIGNAL_TARGET: AtomicI32 = AtomicI32::new(0);

/// Forwards SIGTERM, SIGHUP, SIGINT and SIGQUIT to `pid` until dropped.
///
/// A signal of the terminal's is not forwarded: the program is in the same process group and got
/// it too. Signals that were ignored stay ignored.
#[derive(Debug)]
pub(crate) struct ForwardSignals {
    previous: Vec<(libc::c_int, SavedAction)>,
}

struct SavedAction(libc::sigaction);

impl std::fmt::Debug for SavedAction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SavedAction")
    }
}

extern "C" fn forward(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let pid = SIGNAL_TARGET.load(Ordering::Acquire);
    // SAFETY: with SA_SIGINFO the kernel gives a valid structure.
    let from_kernel = unsafe { (*info).si_code } == libc::SI_KERNEL;
    if pid > 0 && !from_kernel {
        // SAFETY: `__errno_location` is always valid, and `kill` may be called in a handler; errno
        // is put back for the code that was interrupted.
        unsafe {
            let errno = *libc::__errno_location();
            libc::kill(pid, signal);
            *libc::__errno_location() = errno;
        }
    }
}

impl ForwardSignals {
    /// Starts forwarding. Call before the child can be asked to end; set its pid with `target`.
    pub(crate) fn start() -> Self {
        let mut previous = Vec::new();
        for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
            // SAFETY: zero is a value of every field of `sigaction`.
            let mut old: libc::sigaction = unsafe { mem::zeroed() };
            // SAFETY: a null action only reads the present one into `old`.
            let read = unsafe { libc::sigaction(signal, ptr::null(), &mut old) };
            if read != 0 || old.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            // SAFETY: as above.
            let mut new: libc::sigaction = unsafe { mem::zeroed() };
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                forward;
            new.sa_sigaction = handler as libc::sighandler_t;
            new.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            // SAFETY: the handler has the signature that SA_SIGINFO asks for and calls only what a
            // handler may call.
            if unsafe { libc::sigaction(signal, &new, ptr::null_mut()) } == 0 {
                previous.push((signal, SavedAction(old)));
            }
        }
        ForwardSignals { previous }
    }

    /// The process that gets them from now on.
    pub(crate) fn target(&self, pid: i32) {
        SIGNAL_TARGET.store(pid, Ordering::Release);
    }
}

impl Drop for ForwardSignals {
    fn drop(&mut self) {
        SIGNAL_TARGET.store(0, Ordering::Release);
        for (signal, action) in &self.previous {
            // SAFETY: puts back what `start` read.
            unsafe { libc::sigaction(*signal, &action.0, ptr::null_mut()) };
        }
    }
}
