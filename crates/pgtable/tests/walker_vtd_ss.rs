//! The VT-d second stage against a walker after its specification.
#![cfg(not(ioasid_shuttle))]
// A test that cannot go on has failed.
#![allow(clippy::unwrap_used)]

mod walker;

use ioasid_pgtable::{PageTable, TableConfig, TableFormat};
use walker::{Leaf, agree, bit, entry, field};

/// VT-d specification, section 9.8: an entry with neither read nor write is not present.
fn walk_vtd_ss(table: &PageTable, gpa: u64) -> Option<Leaf> {
    assert_eq!(table.levels(), 4);
    if gpa >> 48 != 0 {
        return None;
    }
    let (mut at, mut read, mut write) = (table.root(), true, true);
    for level in [4, 3, 2, 1] {
        let low = 3 + 9 * level;
        let found = entry(table, at, gpa >> low & 0x1ff);
        if !bit(found, 0) && !bit(found, 1) {
            return None;
        }
        assert_eq!(field(found, 63, 52), 0);
        assert!(!bit(found, 2) && !bit(found, 11), "no execute, no snoop");
        (read, write) = (read && bit(found, 0), write && bit(found, 1));
        if level == 1 || (level < 4 && bit(found, 7)) {
            assert_eq!(field(found, low - 1, 12), 0, "reserved below the page");
            return Some(Leaf {
                spa: field(found, 51, low) | field(gpa, low - 1, 0),
                shift: low,
                read,
                write,
            });
        }
        at = field(found, 51, 12);
    }
    unreachable!("a level-1 entry maps a page")
}

#[test]
fn vtd_second_stage_is_what_its_specification_says() {
    agree(TableFormat::VtdSecondStage, walk_vtd_ss);
}

#[test]
fn raw_reads_stay_inside_the_tables() {
    let table = PageTable::new(TableConfig::default());
    assert_eq!(table.read_table_entry(table.root(), 511), Some(0));
    assert_eq!(table.read_table_entry(table.root(), 512), None);
    assert_eq!(table.read_table_entry(table.root() + 8, 0), None);
    assert_eq!(table.read_table_entry(0, 0), None);
    assert_eq!(table.read_table_entry(u64::MAX, usize::MAX), None);
}
