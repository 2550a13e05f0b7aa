//! When UNMAP, DETACH, a replacement or DESTROY returns, no device writes any more.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use ioasid_core::{Prot, memory::OwnPages};
use ioasid_iommufd::{BoundDevice, HwptAlloc, MapArgs, ObjectId};

use crate::machine::*;

const IOVA: u64 = 0x10_0000;
const ROUNDS: usize = 100;

/// Writes through a device and a child, each to a byte of its own, while `body` runs.
fn while_both_write(pdev: &BoundDevice, mdev: &BoundDevice, body: impl FnOnce()) {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for (offset, bound) in [(0, pdev), (64, mdev)] {
            let stop = &stop;
            scope.spawn(move || {
                let mut port = bound.device().port();
                while !stop.load(Ordering::Relaxed) {
                    for _ in 0..64 {
                        let mut guard = port.enter(bound.default_pasid());
                        let _ = guard.write(IOVA + offset, &[1]);
                    }
                    // Few cores may have to do for everybody.
                    thread::yield_now();
                }
            });
        }
        body();
        stop.store(true, Ordering::Relaxed);
    });
}

/// Returns once a byte was written since it was cleared: the writer is at it.
fn wait_for_write(pages: &OwnPages, offset: usize) {
    pages.memory().write(offset, &[0]);
    while byte(pages, offset) == 0 {
        thread::yield_now();
    }
}

/// Nothing of what was taken away arrives: clears the byte, lets other writes pass, looks again.
fn assert_silent(pages: &OwnPages, offset: usize) {
    pages.memory().write(offset, &[0]);
    for _ in 0..20 {
        thread::yield_now();
        assert_eq!(byte(pages, offset), 0, "a write after the call returned");
    }
}

fn setup() -> (Machine, BoundDevice, BoundDevice, ObjectId, OwnPages) {
    let m = machine();
    let (pdev, mdev) = (m.pdev(1), m.mdev(2, 5));
    let ioas = m.ioas();
    let pages = m.map(ioas, IOVA, PAGE);
    pdev.attach(ioas).unwrap();
    mdev.attach(ioas).unwrap();
    (m, pdev, mdev, ioas, pages)
}

#[test]
fn one_unmap_silences_the_device_and_the_child() {
    let (m, pdev, mdev, ioas, pages) = setup();
    while_both_write(&pdev, &mdev, || {
        for _ in 0..ROUNDS {
            wait_for_write(&pages, 0);
            wait_for_write(&pages, 64);
            assert_eq!(m.context.ioas_unmap(ioas, IOVA, PAGE), Ok(PAGE));
            assert_silent(&pages, 0);
            assert_silent(&pages, 64);
            let args = MapArgs::fixed(IOVA, PAGE, Prot::RW);
            let mapped = m.context.ioas_map(ioas, Arc::new(pages.clone()), args);
            assert_eq!(mapped, Ok(IOVA));
        }
    });
}

#[test]
fn detaching_one_silences_it_and_leaves_the_other() {
    let (m, pdev, mdev, ioas, pages) = setup();
    while_both_write(&pdev, &mdev, || {
        for _ in 0..ROUNDS {
            wait_for_write(&pages, 64);
            mdev.detach();
            assert_silent(&pages, 64);
            wait_for_write(&pages, 0);
            // By hand this time: another page table, the same domain.
            let hwpt = m
                .context
                .hwpt_alloc(HwptAlloc::new(mdev.id(), ioas))
                .unwrap();
            mdev.attach(hwpt).unwrap();
            wait_for_write(&pages, 64);
            mdev.attach(ioas).unwrap();
            assert_eq!(m.context.destroy(hwpt), Ok(()));
            assert_eq!(m.domains().len(), 1);
        }
    });
}

#[test]
fn replacing_moves_writes_from_one_address_space_to_the_other() {
    let (m, pdev, mdev, ioas, pages) = setup();
    let other = m.ioas();
    let elsewhere = m.map(other, IOVA, PAGE);
    while_both_write(&pdev, &mdev, || {
        for _ in 0..ROUNDS {
            wait_for_write(&pages, 0);
            pdev.attach(other).unwrap();
            assert_silent(&pages, 0);
            wait_for_write(&elsewhere, 0);
            pdev.attach(ioas).unwrap();
            assert_silent(&elsewhere, 0);
        }
    });
}
