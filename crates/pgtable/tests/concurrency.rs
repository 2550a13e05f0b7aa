//! Readers on threads of their own while a writer changes the table, with the barrier of
//! `ioasid_core::grace` as a domain uses it. Bounded by counts, never by time.
#![cfg(not(ioasid_shuttle))]
// A test that cannot go on has failed.
#![allow(clippy::unwrap_used)]

use std::{
    collections::BTreeSet,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use ioasid_core::{Access, AddrRange, DomainId, Prot, grace::Grace};
use ioasid_pgtable::{PageTable, TableConfig, TableFormat, WalkFault};

/// Where nothing ever changes, in the same 2 MiB as what does.
const STABLE: u64 = 0x10_0000;
/// What is mapped and unmapped all the time: from single pages to whole tables.
const CHURN: u64 = 0x18_0000;
/// What is cut to pieces: leaves of 1 GiB.
const WHOLE: u64 = 1 << 32;
const GIB: u64 = 1 << 30;

/// The output of the stable part.
fn stable(iova: u64) -> u64 {
    iova + 0x77_0000_0000
}

fn random(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1);
    *state >> 20
}

/// Runs `reader` on two threads, over and over, until `writer` is done on a third.
fn while_writing(writer: impl FnOnce() + Send, reader: impl Fn(&mut u64) + Sync) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for seed in 1..=2u64 {
            let (done, reader) = (&done, &reader);
            scope.spawn(move || {
                let mut state = seed;
                loop {
                    let last = done.load(Ordering::SeqCst);
                    reader(&mut state);
                    if last {
                        return;
                    }
                }
            });
        }
        writer();
        done.store(true, Ordering::SeqCst);
    });
}

/// A stable mapping is always right. A changing one is right for a generation that was current
/// during the walk, or absent: with the barrier, a table that was freed is never seen with the
/// contents of its next life.
fn readers_see_the_truth(format: TableFormat) {
    let grace = Grace::new();
    let table = PageTable::new(TableConfig::new(format));
    table
        .map(STABLE, stable(STABLE), 0x8_0000, Prot::RW)
        .unwrap();
    // Generation g is at (g + 1) << 32; the writer says which it is before and after.
    let (begun, ended) = (AtomicU64::new(0), AtomicU64::new(0));
    let domain = DomainId::new(1).unwrap();
    let slots = Mutex::new(Vec::new());
    let writer = || {
        let mut state = 99;
        for generation in 1..20_000u64 {
            let iova = CHURN + random(&mut state) % 64 * 0x1000;
            let len = [0x1000, 0x1_1000, 0x60_0000][generation as usize % 3];
            begun.store(generation, Ordering::SeqCst);
            table
                .map(iova, (generation << 32) + iova, len, Prot::RW)
                .unwrap();
            let unmapped = table.unmap(AddrRange::from_len(iova, len).unwrap());
            assert_eq!(unmapped.bytes, len);
            grace.wait(domain);
            table.recycle(unmapped.freed);
            ended.store(generation, Ordering::SeqCst);
        }
    };
    while_writing(writer, |state| {
        let mut slot = slots.lock().unwrap().pop().unwrap_or_else(|| grace.slot());
        {
            let guard = slot.enter();
            guard.narrow(domain);
            let earliest = ended.load(Ordering::SeqCst) + 1;
            for _ in 0..32 {
                let iova = STABLE + random(state) % 0x8_0000;
                let found = table.translate(iova, Access::Write).unwrap();
                assert_eq!(found.spa, stable(iova));
                let iova = CHURN + random(state) % 0x60_0000;
                match table.translate(iova, Access::Read) {
                    Ok(found) => {
                        let generation = (found.spa - iova) >> 32;
                        assert_eq!(found.spa, (generation << 32) + iova);
                        let latest = begun.load(Ordering::SeqCst);
                        assert!((earliest..=latest).contains(&generation));
                    }
                    Err(fault) => assert_eq!(fault, WalkFault::NotPresent),
                }
            }
        }
        slots.lock().unwrap().push(slot);
    });
}

/// A leaf that is being cut translates the same way at every moment, and dirty bits survive.
fn cuts_are_invisible(format: TableFormat) {
    let table = PageTable::new(TableConfig {
        dirty_tracking: true,
        ..TableConfig::new(format)
    });
    table.map(WHOLE, 4 * GIB, 4 * GIB, Prot::RW).unwrap();
    let written = Mutex::new(BTreeSet::new());
    let writer = || {
        let mut state = 5;
        for _ in 0..500 {
            table
                .cut(WHOLE + random(&mut state) % (4 * GIB) / 0x1000 * 0x1000)
                .unwrap();
        }
    };
    while_writing(writer, |state| {
        let mut mine = BTreeSet::new();
        for _ in 0..64 {
            let iova = WHOLE + random(state) % (4 * GIB);
            let found = table.translate(iova, Access::Write).unwrap();
            assert_eq!(found.spa, iova - WHOLE + 4 * GIB);
            mine.insert(iova / 0x1000);
        }
        written.lock().unwrap().extend(mine);
    });
    let mut reported = Vec::new();
    let all = AddrRange::from_len(WHOLE, 4 * GIB).unwrap();
    table.read_dirty(all, false, &mut |part| reported.push(part));
    for page in written.into_inner().unwrap() {
        assert!(reported.iter().any(|part| part.contains(page * 0x1000)));
    }
}

/// Each write is in some report: read-and-clear loses none.
fn dirty_bits_are_never_lost(format: TableFormat) {
    let table = PageTable::new(TableConfig {
        dirty_tracking: true,
        ..TableConfig::new(format)
    });
    let range = AddrRange::from_len(0x1000, 0x20_0000).unwrap();
    // Not congruent, so leaves of 4 KiB.
    table
        .map(range.start(), 0x40_0000, 0x20_0000, Prot::RW)
        .unwrap();
    let written = Mutex::new(BTreeSet::new());
    let reported = Mutex::new(BTreeSet::new());
    let take = || {
        let mut pages = Vec::new();
        table.read_dirty(range, true, &mut |part| {
            pages.extend(part.start() / 0x1000..=part.last() / 0x1000);
        });
        reported.lock().unwrap().extend(pages);
    };
    let writer = || (0..500).for_each(|_| take());
    while_writing(writer, |state| {
        for _ in 0..16 {
            let iova = range.start() + random(state) % 0x20_0000;
            table.translate(iova, Access::Write).unwrap();
            written.lock().unwrap().insert(iova / 0x1000);
        }
    });
    take();
    assert_eq!(*written.lock().unwrap(), *reported.lock().unwrap());
}

#[test]
fn readers_see_the_truth_while_a_writer_maps_and_unmaps() {
    TableFormat::ALL.into_iter().for_each(readers_see_the_truth);
}

#[test]
fn a_cut_is_invisible_to_walks_and_keeps_dirty_bits() {
    TableFormat::ALL.into_iter().for_each(cuts_are_invisible);
}

#[test]
fn read_and_clear_loses_no_write() {
    TableFormat::ALL
        .into_iter()
        .for_each(dirty_bits_are_never_lost);
}
