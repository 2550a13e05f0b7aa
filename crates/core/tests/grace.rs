//! The barrier and the cells under it. With `--cfg ioasid_shuttle` each claim is checked over many
//! schedules; otherwise once, on real threads.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

use std::sync::Arc;

use ioasid_core::{
    Access, DomainId,
    grace::{Grace, Loaded, ProtectedTable},
    memory::{Backing, Memory, OwnMemory},
    spa::{KeptPlaces, SpaSpace},
    sync::{
        atomic::{AtomicBool, AtomicU64, Ordering},
        thread,
    },
};

fn explore(claim: impl Fn() + Send + Sync + 'static) {
    #[cfg(ioasid_shuttle)]
    shuttle::check_random(claim, 2_000);
    #[cfg(not(ioasid_shuttle))]
    for _ in 0..200 {
        claim();
    }
}

fn domain(number: u32) -> DomainId {
    DomainId::new(number).unwrap()
}

#[test]
fn wait_returns_after_every_guard_that_saw_the_old_state() {
    explore(|| {
        let grace = Grace::new();
        let live = Arc::new(AtomicBool::new(true));
        let reads = Arc::new(AtomicU64::new(0));
        let reader = {
            let (grace, live, reads) = (grace.clone(), live.clone(), reads.clone());
            thread::spawn(move || {
                let mut slot = grace.slot();
                for _ in 0..2 {
                    let guard = slot.enter();
                    guard.narrow(domain(1));
                    if live.load(Ordering::Acquire) {
                        reads.fetch_add(1, Ordering::Relaxed);
                        // Between these two the writer may run; it must not return.
                        thread::yield_now();
                        reads.fetch_sub(1, Ordering::Relaxed);
                    }
                }
            })
        };
        live.store(false, Ordering::Release);
        grace.wait(domain(1));
        assert_eq!(
            reads.load(Ordering::Relaxed),
            0,
            "a reader is still in the old state"
        );
        reader.join().unwrap();
    });
}

#[test]
fn wait_does_not_wait_for_a_guard_on_another_domain() {
    explore(|| {
        let grace = Grace::new();
        let mut slot = grace.slot();
        let guard = slot.enter();
        guard.narrow(domain(2));
        // Would never return if it waited: the guard is held by this very thread.
        grace.wait(domain(1));
        drop(guard);
    });
}

/// Counts its deaths.
struct Canary(Arc<AtomicU64>);

impl Canary {
    fn assert_alive(&self) {
        thread::yield_now();
        assert_eq!(self.0.load(Ordering::SeqCst), 0, "dropped under a guard");
    }
}

impl Drop for Canary {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn a_swapped_object_outlives_the_guards_that_saw_it() {
    explore(|| {
        let grace = Grace::new();
        let dropped = Arc::new(AtomicU64::new(0));
        let table = Arc::new(ProtectedTable::new(grace.clone(), 1));
        table.swap(0, Some(Arc::new(Canary(dropped.clone()))));
        let reader = {
            let (grace, table) = (grace.clone(), table.clone());
            thread::spawn(move || {
                let mut slot = grace.slot();
                let guard = slot.enter();
                if let Some(canary) = table.load(0, &guard) {
                    canary.assert_alive();
                }
            })
        };
        table.swap(0, None);
        reader.join().unwrap();
        grace.collect();
        assert_eq!(dropped.load(Ordering::SeqCst), 1);
        assert_eq!(grace.retired_items(), 0);
    });
}

#[test]
fn a_table_drops_what_is_in_its_cells_in_whatever_order_they_were_filled() {
    explore(|| {
        let dropped = Arc::new(AtomicU64::new(0));
        let table = ProtectedTable::new(Grace::new(), 8);
        for index in [7, 0, 3] {
            table.swap(index, Some(Arc::new(Canary(dropped.clone()))));
        }
        drop(table);
        assert_eq!(dropped.load(Ordering::SeqCst), 3);
    });
}

#[test]
fn a_waiter_parks_until_the_guard_goes_and_is_woken() {
    explore(|| {
        let grace = Grace::new();
        let released = Arc::new(AtomicBool::new(false));
        let (entered, release) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let reader = {
            let grace = grace.clone();
            let (entered, release, released) = (entered.clone(), release.clone(), released.clone());
            thread::spawn(move || {
                let mut slot = grace.slot();
                let guard = slot.enter();
                guard.narrow(domain(7));
                entered.store(true, Ordering::SeqCst);
                while !release.load(Ordering::SeqCst) {
                    thread::yield_now();
                }
                released.store(true, Ordering::SeqCst);
                drop(guard);
            })
        };
        while !entered.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        release.store(true, Ordering::SeqCst);
        grace.wait(domain(7));
        assert!(released.load(Ordering::SeqCst));
        reader.join().unwrap();
    });
}

/// The end of a guard may become visible after it has looked for waiters.
#[cfg(ioasid_shuttle)]
#[test]
fn a_waiter_that_a_late_end_misses_does_not_sleep_for_ever() {
    let claim = || {
        let grace = Grace::with_late_stores();
        let live = Arc::new(AtomicBool::new(true));
        let reads = Arc::new(AtomicU64::new(0));
        let reader = {
            let (grace, live, reads) = (grace.clone(), live.clone(), reads.clone());
            thread::spawn(move || {
                let mut slot = grace.slot();
                for _ in 0..3 {
                    let _guard = slot.enter_in(domain(1));
                    if live.load(Ordering::Acquire) {
                        reads.fetch_add(1, Ordering::Relaxed);
                        thread::yield_now();
                        reads.fetch_sub(1, Ordering::Relaxed);
                    }
                }
            })
        };
        live.store(false, Ordering::Release);
        grace.wait(domain(1));
        assert_eq!(reads.load(Ordering::Relaxed), 0, "in the old state");
        reader.join().unwrap();
    };
    shuttle::check_random(claim, 4_000);
    shuttle::check_pct(claim, 4_000, 3);
}

/// Memory that can be seen to be gone.
#[derive(Debug)]
struct Mortal {
    memory: Arc<OwnMemory>,
    gone: Arc<AtomicBool>,
}

impl Backing for Mortal {
    fn size(&self) -> u64 {
        self.memory.size()
    }

    fn memory(&self) -> Memory<'_> {
        self.memory.as_ref().memory()
    }
}

impl Drop for Mortal {
    fn drop(&mut self) {
        self.gone.store(true, Ordering::SeqCst);
    }
}

#[test]
fn memory_outlives_the_guards_that_use_what_was_kept_of_it() {
    explore(|| {
        let grace = Grace::new();
        let space = SpaSpace::new(grace.clone());
        let gone = Arc::new(AtomicBool::new(false));
        let memory = Mortal {
            memory: OwnMemory::new(4096),
            gone: gone.clone(),
        };
        let range = space.register(Arc::new(memory), 0).unwrap();
        let spa = (range.start(), 4096);
        let reader = {
            let (grace, space, gone) = (grace.clone(), space.clone(), gone.clone());
            thread::spawn(move || {
                let kept = KeptPlaces::new(&space);
                let mut slot = grace.slot();
                for _ in 0..3 {
                    let guard = slot.enter();
                    let found = kept
                        .find(&guard, Access::Read, 0, 8)
                        .or_else(|| kept.resolve(&guard, Access::Read, 0, spa));
                    if let Some(bytes) = found {
                        thread::yield_now();
                        assert!(!gone.load(Ordering::SeqCst), "dropped under a guard");
                        bytes.read(&mut [0; 8]).unwrap();
                    }
                }
            })
        };
        drop(range);
        reader.join().unwrap();
        grace.collect();
        assert!(gone.load(Ordering::SeqCst));
        assert_eq!(grace.retired_items(), 0);
    });
}

#[test]
fn a_blocked_guard_does_not_keep_what_others_retire() {
    explore(|| {
        let grace = Grace::new();
        let dropped = Arc::new(AtomicU64::new(0));
        let table = ProtectedTable::new(grace.clone(), 1);
        table.swap(0, Some(Arc::new(Canary(dropped.clone()))));
        let mut slot = grace.slot();
        let mut guard = slot.enter();
        guard.narrow(domain(2));
        assert!(table.load(0, &guard).is_some());
        guard.block(domain(2), || {
            // For ever, as far as these two know.
            table.swap(0, None);
            grace.wait(domain(1));
            assert_eq!(dropped.load(Ordering::SeqCst), 1);
            assert_eq!(grace.retired_items(), 0);
        });
        assert!(table.load(0, &guard).is_none());
    });
}

#[test]
fn what_was_retired_before_a_guard_blocked_goes_while_it_blocks() {
    explore(|| {
        let grace = Grace::new();
        let dropped = Arc::new(AtomicU64::new(0));
        let mut slot = grace.slot();
        let mut guard = slot.enter();
        guard.narrow(domain(2));
        grace.retire(Box::new(Canary(dropped.clone())));
        assert_eq!(grace.retired_items(), 1);
        guard.block(domain(2), || {
            grace.wait(domain(1));
            assert_eq!(dropped.load(Ordering::SeqCst), 1);
        });
    });
}

#[test]
fn waiters_of_its_own_domain_wait_for_a_blocked_guard() {
    explore(|| {
        let grace = Grace::new();
        let (blocked, done) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicBool::new(false)),
        );
        let reader = {
            let (grace, blocked, done) = (grace.clone(), blocked.clone(), done.clone());
            thread::spawn(move || {
                let mut slot = grace.slot();
                let mut guard = slot.enter();
                guard.narrow(domain(1));
                guard.block(domain(1), || {
                    blocked.store(true, Ordering::SeqCst);
                    thread::yield_now();
                    done.store(true, Ordering::SeqCst);
                });
                // Another domain after the block: nobody waits for that one.
                guard.narrow(domain(2));
                thread::yield_now();
            })
        };
        while !blocked.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        grace.wait(domain(1));
        assert!(done.load(Ordering::SeqCst), "still using the old state");
        reader.join().unwrap();
    });
}

#[test]
fn what_is_read_after_a_block_is_alive_and_current() {
    explore(|| {
        let grace = Grace::new();
        let table = Arc::new(ProtectedTable::new(grace.clone(), 1));
        // They outlive the canaries: one that died early is seen to be dead.
        let (old, new) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        table.swap(0, Some(Arc::new(Canary(old.clone()))));
        let swapped = Arc::new(AtomicBool::new(false));
        let reader = {
            let (grace, table, swapped) = (grace.clone(), table.clone(), swapped.clone());
            let new = new.clone();
            thread::spawn(move || {
                let mut slot = grace.slot();
                let mut held = Loaded::new(slot.enter());
                held.find(&table, 0);
                held.get().expect("never empty").assert_alive();
                let late = held.block(domain(1), || {
                    thread::yield_now();
                    swapped.load(Ordering::SeqCst)
                });
                assert!(held.get().is_none(), "forgotten by the block");
                held.find(&table, 0);
                let found = held.get().expect("never empty");
                found.assert_alive();
                if late {
                    assert!(Arc::ptr_eq(&found.0, &new), "the new one");
                }
            })
        };
        table.swap(0, Some(Arc::new(Canary(new.clone()))));
        swapped.store(true, Ordering::SeqCst);
        reader.join().unwrap();
        grace.collect();
        assert_eq!(grace.retired_items(), 0);
    });
}

#[test]
fn a_guard_for_a_guessed_domain_keeps_cells_and_holds_back_that_domain_alone() {
    explore(|| {
        let grace = Grace::new();
        let table = Arc::new(ProtectedTable::new(grace.clone(), 1));
        // They outlive the canaries: one that died early is seen to be dead.
        let (old, new) = (Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        table.swap(0, Some(Arc::new(Canary(old.clone()))));
        let reading = Arc::new(AtomicU64::new(0));
        let reader = {
            let (grace, table, reading) = (grace.clone(), table.clone(), reading.clone());
            let old = old.clone();
            thread::spawn(move || {
                let mut slot = grace.slot();
                let mut held = Loaded::new(slot.enter_in(domain(1)));
                assert!(held.guard().covers(domain(1)) && !held.guard().covers(domain(2)));
                held.find(&table, 0);
                held.get().expect("never empty").assert_alive();
                // The cell leads to domain 2.
                held.again();
                assert!(held.get().is_none() && held.guard().covers(domain(2)));
                held.find(&table, 0);
                held.guard().narrow(domain(2));
                if held
                    .get()
                    .is_some_and(|canary| Arc::ptr_eq(&canary.0, &old))
                {
                    reading.store(1, Ordering::SeqCst);
                    thread::yield_now();
                    reading.store(0, Ordering::SeqCst);
                }
            })
        };
        table.swap(0, Some(Arc::new(Canary(new.clone()))));
        grace.wait(domain(2));
        assert_eq!(
            reading.load(Ordering::SeqCst),
            0,
            "the old object is in use"
        );
        reader.join().unwrap();
    });
}

#[test]
fn a_deadline_is_for_guards_that_are_blocked() {
    explore(|| {
        let grace = Grace::new();
        let done = Arc::new(AtomicBool::new(false));
        let (blocked, go_on) = (Arc::new(AtomicBool::new(false)), done.clone());
        let reader = {
            let (grace, blocked) = (grace.clone(), blocked.clone());
            thread::spawn(move || {
                let mut slot = grace.slot();
                let mut guard = slot.enter();
                guard.narrow(domain(1));
                guard.block(domain(1), || {
                    blocked.store(true, Ordering::SeqCst);
                    while !go_on.load(Ordering::SeqCst) {
                        thread::yield_now();
                    }
                });
            })
        };
        while !blocked.load(Ordering::SeqCst) {
            thread::yield_now();
        }
        // It has passed: a guard that runs would be waited for all the same.
        let deadline = std::time::Instant::now();
        assert!(!grace.wait_until(domain(1), deadline));
        assert!(grace.wait_until(domain(2), deadline));
        done.store(true, Ordering::SeqCst);
        reader.join().unwrap();
        assert!(grace.wait_until(domain(1), deadline));
    });
}
