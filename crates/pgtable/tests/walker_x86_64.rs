//! The x86-64 first stage against a walker after its specification.
#![cfg(not(ioasid_shuttle))]
// A test that cannot go on has failed.
#![allow(clippy::unwrap_used)]

mod walker;

use ioasid_pgtable::{PageTable, TableFormat};
use walker::{Leaf, agree, bit, entry, field};

/// Intel SDM volume 3, figure 4-8 and tables 4-15 to 4-20.
fn walk_x86_64(table: &PageTable, va: u64) -> Option<Leaf> {
    assert_eq!(table.levels(), 4);
    if va >> 47 != 0 {
        return None;
    }
    let (mut at, mut write) = (table.root(), true);
    for (low, may_be_page) in [(39, false), (30, true), (21, true), (12, true)] {
        let found = entry(table, at, va >> low & 0x1ff);
        if !bit(found, 0) {
            return None;
        }
        assert!(bit(found, 2), "device requests are user accesses");
        assert_eq!(
            field(found, 63, 52),
            0,
            "XD, keys and ignored bits are unused"
        );
        write &= bit(found, 1);
        if low == 12 || (may_be_page && bit(found, 7)) {
            assert_eq!(
                field(found, low.max(13) - 1, 13),
                0,
                "reserved below the page"
            );
            return Some(Leaf {
                spa: field(found, 51, low) | field(va, low - 1, 0),
                shift: low,
                read: true,
                write,
            });
        }
        assert!(!bit(found, 7), "PS is reserved in a PML4E");
        at = field(found, 51, 12);
    }
    unreachable!("a page-table entry maps a page")
}

#[test]
fn x86_64_stage_1_is_what_its_specification_says() {
    agree(TableFormat::X86_64Stage1, walk_x86_64);
}
