//! Locks, atomics and threads. Built with `--cfg ioasid_shuttle` they are shuttle's, whose
//! scheduler explores interleavings; otherwise the standard library's.
//!
//! [`Mutex`] and [`Condvar`] ignore poisoning: a panic of one client's thread must not become a
//! panic of everybody else's. Every critical section in this project leaves its data valid at each
//! point where it can unwind.

#[cfg(not(ioasid_shuttle))]
use std::sync as imp;
#[cfg(not(ioasid_shuttle))]
pub use std::{sync::atomic, thread};

#[cfg(ioasid_shuttle)]
use shuttle::sync as imp;
#[cfg(ioasid_shuttle)]
pub use shuttle::{sync::atomic, thread};

use std::{fmt, sync::PoisonError};

pub use imp::MutexGuard;

/// A mutual exclusion lock without poisoning.
#[derive(Default)]
pub struct Mutex<T: ?Sized>(imp::Mutex<T>);

impl<T> Mutex<T> {
    /// A new unlocked mutex.
    pub const fn new(value: T) -> Self {
        Mutex(imp::Mutex::new(value))
    }
}

impl<T: ?Sized> Mutex<T> {
    /// Blocks until the lock is held.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: ?Sized> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mutex(..)")
    }
}

/// A condition variable without poisoning.
#[derive(Default)]
pub struct Condvar(imp::Condvar);

impl Condvar {
    /// A new condition variable.
    pub const fn new() -> Self {
        Condvar(imp::Condvar::new())
    }

    /// Releases the lock, sleeps until notified (or spuriously woken) and takes the lock again.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Condvar::wait`], for at most `timeout`. Under shuttle the timeout never fires.
    pub fn wait_timeout<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: std::time::Duration,
    ) -> MutexGuard<'a, T> {
        self.0
            .wait_timeout(guard, timeout)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }

    /// Wakes one waiter.
    pub fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes every waiter.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}

impl fmt::Debug for Condvar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Condvar")
    }
}
