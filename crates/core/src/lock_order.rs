//! The order of locks, checked while the program runs, as the kernel's lockdep does it.
//!
//! A crate declares a [`LockClass`] for each kind of lock that is held together with others. Classes
//! have ranks; a thread takes them in ascending order, and no two of one class at a time. An
//! [`OrderedMutex`] checks that at every lock, so a test that takes two locks the wrong way round
//! fails at once, whether or not another thread happens to take them the other way.
//!
//! In release builds a class is not even stored, and an [`OrderedMutex`] is a [`Mutex`]. Under a
//! model checker, which runs many threads of its own on one of the system's, nothing is checked: it
//! finds deadlocks by itself.

use std::{
    fmt,
    ops::{Deref, DerefMut},
};

use crate::sync::{Mutex, MutexGuard};

/// A kind of lock.
#[derive(Debug, PartialEq, Eq)]
pub struct LockClass {
    name: &'static str,
    rank: u8,
    over_barriers: bool,
}

impl LockClass {
    /// A lock that is taken after those of lower ranks, and never held over a barrier
    /// ([`crate::grace::Grace::wait`]).
    pub const fn new(name: &'static str, rank: u8) -> Self {
        LockClass {
            name,
            rank,
            over_barriers: false,
        }
    }

    /// A lock that may be held over a barrier: no reader ever takes it.
    pub const fn held_over_barriers(name: &'static str, rank: u8) -> Self {
        LockClass {
            name,
            rank,
            over_barriers: true,
        }
    }

    /// Panics in debug builds unless this thread holds a lock of the class (`lockdep_assert_held`).
    #[inline]
    pub fn assert_held(&'static self) {
        imp::assert_held(self);
    }

    /// Panics in debug builds if this thread holds a lock of the class
    /// (`lockdep_assert_not_held`).
    #[inline]
    pub fn assert_not_held(&'static self) {
        imp::assert_not_held(self);
    }
}

impl fmt::Display for LockClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// Panics in debug builds if this thread holds a lock that must not be held over a barrier.
#[inline]
pub(crate) fn assert_may_wait() {
    imp::assert_may_wait();
}

/// A [`Mutex`] of a [`LockClass`].
#[derive(Debug)]
pub struct OrderedMutex<T: ?Sized> {
    class: imp::Class,
    mutex: Mutex<T>,
}

impl<T> OrderedMutex<T> {
    /// A new unlocked mutex of `class`.
    pub const fn new(class: &'static LockClass, value: T) -> Self {
        OrderedMutex {
            class: imp::Class::new(class),
            mutex: Mutex::new(value),
        }
    }
}

impl<T: ?Sized> OrderedMutex<T> {
    /// Blocks until the lock is held.
    ///
    /// # Panics
    /// In debug builds, if the thread holds a lock that is not taken before this one.
    #[inline]
    pub fn lock(&self) -> OrderedGuard<'_, T> {
        // The order is checked before the thread can block.
        let entry = self.class.enter();
        OrderedGuard {
            guard: self.mutex.lock(),
            _entry: entry,
        }
    }
}

/// A lock that is held until this is dropped.
#[derive(Debug)]
pub struct OrderedGuard<'a, T: ?Sized> {
    // Released before the entry goes.
    guard: MutexGuard<'a, T>,
    _entry: imp::Entry,
}

impl<T: ?Sized> Deref for OrderedGuard<'_, T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T: ?Sized> DerefMut for OrderedGuard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

#[cfg(all(debug_assertions, not(ioasid_shuttle)))]
mod imp {
    use std::cell::RefCell;

    use super::LockClass;

    thread_local! {
        /// What this thread holds, in the order of taking.
        static HELD: RefCell<Vec<&'static LockClass>> = const { RefCell::new(Vec::new()) };
    }

    fn is_held(class: &'static LockClass) -> bool {
        HELD.with_borrow(|held| held.contains(&class))
    }

    pub(super) fn assert_held(class: &'static LockClass) {
        assert!(is_held(class), "the lock `{class}` is not held");
    }

    pub(super) fn assert_not_held(class: &'static LockClass) {
        assert!(!is_held(class), "the lock `{class}` is held");
    }

    pub(super) fn assert_may_wait() {
        HELD.with_borrow(|held| {
            if let Some(class) = held.iter().find(|class| !class.over_barriers) {
                panic!("the lock `{class}` is held over a barrier");
            }
        });
    }

    #[derive(Debug)]
    pub(super) struct Class(&'static LockClass);

    impl Class {
        pub(super) const fn new(class: &'static LockClass) -> Self {
            Class(class)
        }

        pub(super) fn enter(&self) -> Entry {
            let class = self.0;
            HELD.with_borrow_mut(|held| {
                if let Some(other) = held.iter().find(|other| other.rank >= class.rank) {
                    panic!(
                        "the lock `{class}` is taken while `{other}` is held, which comes after"
                    );
                }
                held.push(class);
            });
            Entry(class)
        }
    }

    /// One lock that this thread holds.
    #[derive(Debug)]
    pub(super) struct Entry(&'static LockClass);

    impl Drop for Entry {
        fn drop(&mut self) {
            // Not always the last one: guards may be dropped in any order.
            let _ = HELD.try_with(|held| {
                let mut held = held.borrow_mut();
                if let Some(index) = held.iter().rposition(|class| *class == self.0) {
                    held.remove(index);
                }
            });
        }
    }
}

#[cfg(not(all(debug_assertions, not(ioasid_shuttle))))]
mod imp {
    use super::LockClass;

    #[inline]
    pub(super) fn assert_held(_: &'static LockClass) {}

    #[inline]
    pub(super) fn assert_not_held(_: &'static LockClass) {}

    #[inline]
    pub(super) fn assert_may_wait() {}

    #[derive(Debug)]
    pub(super) struct Class;

    impl Class {
        pub(super) const fn new(_: &'static LockClass) -> Self {
            Class
        }

        #[inline]
        pub(super) fn enter(&self) -> Entry {
            Entry
        }
    }

    #[derive(Debug)]
    pub(super) struct Entry;
}

#[cfg(all(test, debug_assertions, not(ioasid_shuttle)))]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::{grace::Grace, id::DomainId};

    static OUTER: LockClass = LockClass::held_over_barriers("outer", 1);
    static INNER: LockClass = LockClass::new("inner", 2);

    fn panics(work: impl FnOnce()) -> bool {
        catch_unwind(AssertUnwindSafe(work)).is_err()
    }

    #[test]
    fn locks_are_taken_in_ascending_order_and_one_of_a_class() {
        let (outer, inner) = (OrderedMutex::new(&OUTER, 1), OrderedMutex::new(&INNER, 2));
        {
            let (_outer, _inner) = (outer.lock(), inner.lock());
            OUTER.assert_held();
            assert!(panics(|| INNER.assert_not_held()));
        }
        OUTER.assert_not_held();
        assert!(panics(|| INNER.assert_held()));
        let held = inner.lock();
        assert!(panics(|| drop(outer.lock())));
        let other = OrderedMutex::new(&INNER, 3);
        assert!(panics(|| drop(other.lock())));
        drop(held);
        // A refused lock is not counted as held.
        drop((outer.lock(), inner.lock()));
    }

    #[test]
    fn guards_may_be_dropped_in_any_order() {
        let (outer, inner) = (OrderedMutex::new(&OUTER, 1), OrderedMutex::new(&INNER, 2));
        let first = outer.lock();
        let second = inner.lock();
        drop(first);
        INNER.assert_held();
        drop(second);
        INNER.assert_not_held();
    }

    #[test]
    fn only_some_locks_may_be_held_over_a_barrier() {
        let grace = Grace::new();
        let domain = DomainId::new(1).unwrap();
        let (outer, inner) = (OrderedMutex::new(&OUTER, ()), OrderedMutex::new(&INNER, ()));
        let _outer = outer.lock();
        grace.wait(domain);
        let _inner = inner.lock();
        assert!(panics(|| grace.wait(domain)));
    }
}
