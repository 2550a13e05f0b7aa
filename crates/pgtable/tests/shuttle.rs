//! Accessed and dirty updates against writers, under a scheduler that explores interleavings. Run
//! with `RUSTFLAGS="--cfg ioasid_shuttle"`.
#![cfg(ioasid_shuttle)]
// A test that cannot go on has failed.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use ioasid_core::{Access, AddrRange, Prot, sync::thread};
use ioasid_pgtable::{PageTable, TableConfig, TableFormat, WalkFault};

const PAGE: u64 = 0x1000;
const LARGE: u64 = 0x20_0000;
const SPA: u64 = 0x5000_0000;
const ITERATIONS: usize = 400;

/// Whether an entry of the last table on the way to `iova` is in use, by raw reads.
fn raw_leaf(table: &PageTable, iova: u64) -> u64 {
    let mut at = table.root();
    for level in (1..table.levels()).rev() {
        let index = (iova >> (12 + 9 * level)) as usize % 512;
        at = table.read_table_entry(at, index).unwrap() & 0x000f_ffff_ffff_f000;
        if at == 0 {
            return 0;
        }
    }
    table
        .read_table_entry(at, (iova >> 12) as usize % 512)
        .unwrap()
}

/// Maps `len` bytes at 0 and runs `reader` on two threads beside `writer`, then `after`.
fn explore(
    format: TableFormat,
    len: u64,
    writer: fn(&PageTable),
    reader: fn(&PageTable),
    after: fn(&PageTable),
) {
    shuttle::check_random(
        move || {
            let table = Arc::new(PageTable::new(TableConfig {
                dirty_tracking: true,
                ..TableConfig::new(format)
            }));
            table.map(0, SPA, len, Prot::RW).unwrap();
            let readers: Vec<_> = (0..2)
                .map(|_| {
                    let table = Arc::clone(&table);
                    thread::spawn(move || reader(&table))
                })
                .collect();
            writer(&table);
            for reader in readers {
                reader.join().unwrap();
            }
            after(&table);
        },
        ITERATIONS,
    );
}

fn write_second_page(table: &PageTable) {
    match table.translate(PAGE + 7, Access::Write) {
        Ok(found) => assert_eq!(found.spa, SPA + PAGE + 7),
        Err(fault) => assert_eq!(fault, WalkFault::NotPresent),
    }
}

fn write_second_page_for_sure(table: &PageTable) {
    let found = table.translate(PAGE + 7, Access::Write).unwrap();
    assert_eq!(found.spa, SPA + PAGE + 7);
}

fn is_dirty(table: &PageTable, clear: bool) -> bool {
    let mut dirty = false;
    table.read_dirty(AddrRange::ALL, clear, &mut |part| {
        dirty |= part.contains(PAGE)
    });
    dirty
}

fn unmap_does_not_come_back(format: TableFormat) {
    let writer = |table: &PageTable| {
        let unmapped = table.unmap(AddrRange::from_len(0, 4 * PAGE).unwrap());
        assert_eq!(unmapped.bytes, 4 * PAGE);
        assert_eq!(raw_leaf(table, PAGE), 0);
    };
    explore(format, 4 * PAGE, writer, write_second_page, |table| {
        assert_eq!(raw_leaf(table, PAGE), 0, "a late access revived the entry");
        assert_eq!(table.iova_to_phys(PAGE), None);
    });
}

fn a_new_mapping_is_not_marked_by_an_old_access(format: TableFormat) {
    // A late access may mark the entry it observed, never the one that took its place elsewhere.
    let writer = |table: &PageTable| {
        let _ = table.unmap(AddrRange::from_len(0, 4 * PAGE).unwrap());
        table
            .map(PAGE, SPA + (PAGE << 10), PAGE, Prot::READ)
            .unwrap();
    };
    let reader = |table: &PageTable| match table.translate(PAGE, Access::Write) {
        Ok(found) => assert_eq!(found.spa, SPA + PAGE, "only the old one can be written"),
        Err(fault) => assert!(matches!(
            fault,
            WalkFault::NotPresent | WalkFault::Permission
        )),
    };
    explore(format, 4 * PAGE, writer, reader, |table| {
        assert_eq!(table.iova_to_phys(PAGE).unwrap().spa, SPA + (PAGE << 10));
        assert!(!is_dirty(table, false));
    });
}

fn cut_keeps_marks(format: TableFormat) {
    // A large leaf becomes a table; of an AMD page of 16 KiB the slots change one by one.
    let writer = |table: &PageTable| table.cut(2 * PAGE).unwrap();
    for len in [LARGE, 4 * PAGE] {
        explore(format, len, writer, write_second_page_for_sure, |table| {
            assert!(is_dirty(table, false), "the write was lost in the cut");
            assert_eq!(table.iova_to_phys(PAGE).unwrap().len, PAGE);
        });
    }
}

fn clear_takes_each_write_once(format: TableFormat) {
    // Two writes, at least one report: the bit is seen by the clearing pass or left for the next.
    let writer = |table: &PageTable| {
        if is_dirty(table, true) {
            // Told here, so that the end can tell: the first page is written too.
            table.translate(0, Access::Write).unwrap();
        }
    };
    explore(
        format,
        4 * PAGE,
        writer,
        write_second_page_for_sure,
        |table| {
            let mut parts = Vec::new();
            table.read_dirty(AddrRange::ALL, false, &mut |part| parts.push(part));
            assert!(!parts.is_empty(), "a write was in no report");
        },
    );
}

#[test]
fn an_access_never_revives_what_was_unmapped() {
    TableFormat::ALL
        .into_iter()
        .for_each(unmap_does_not_come_back);
}

#[test]
fn an_access_never_marks_what_it_did_not_observe() {
    let formats = TableFormat::ALL.into_iter();
    formats.for_each(a_new_mapping_is_not_marked_by_an_old_access);
}

#[test]
fn a_cut_loses_no_mark() {
    TableFormat::ALL.into_iter().for_each(cut_keeps_marks);
}

#[test]
fn a_clear_loses_no_write() {
    TableFormat::ALL
        .into_iter()
        .for_each(clear_takes_each_write_once);
}
