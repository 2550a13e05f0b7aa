//! The barrier and the cells under it. With `--cfg ioasid_shuttle` each claim is checked over many
//! schedules; otherwise once, on real threads.

use std::sync::Arc;

use ioasid_core::{
    DomainId,
    grace::{Grace, ProtectedTable},
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

#[test]
fn a_swapped_object_outlives_the_guards_that_saw_it() {
    struct Canary(Arc<AtomicU64>);
    impl Drop for Canary {
        fn drop(&mut self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
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
                    thread::yield_now();
                    assert_eq!(canary.0.load(Ordering::SeqCst), 0, "dropped under a guard");
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
