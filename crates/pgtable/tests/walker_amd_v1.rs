//! AMD v1 tables against a walker after their specification.
#![cfg(not(ioasid_shuttle))]
// A test that cannot go on has failed.
#![allow(clippy::unwrap_used)]

mod walker;

use ioasid_core::Prot;
use ioasid_pgtable::{PageTable, TableConfig, TableFormat};
use walker::{Leaf, agree, bit, entry, field};

/// AMD IOMMU specification, section 2.2.3: levels are numbered from 1, and the paging mode is the
/// level of the top table.
fn walk_amd_v1(table: &PageTable, dva: u64) -> Option<Leaf> {
    let (mut level, mut at) = (table.levels(), table.root());
    assert!((3..=6).contains(&level));
    if level < 6 && dva >> (12 + 9 * level) != 0 {
        return None;
    }
    let (mut read, mut write) = (true, true);
    loop {
        let low = 12 + 9 * (level - 1);
        let found = entry(table, at, dva >> low & 0x1ff);
        if !bit(found, 0) {
            return None;
        }
        assert_eq!(field(found, 60, 52) | field(found, 63, 63), 0);
        (read, write) = (read && bit(found, 61), write && bit(found, 62));
        let next_level = (found >> 9 & 7) as u32;
        let shift = match next_level {
            0 => low,
            7 => {
                let zero = (12..51).find(|&n| !bit(found, n)).expect("size is encoded");
                assert!(
                    (low + 1..low + 9).contains(&(zero + 1)),
                    "a size of this level"
                );
                zero + 1
            }
            below => {
                assert_eq!(below, level - 1, "no level is skipped");
                (level, at) = (below, field(found, 51, 12));
                continue;
            }
        };
        assert_ne!(level, 6, "the top level of mode 6 maps no pages");
        if next_level == 0 {
            assert_eq!(field(found, low - 1, 12), 0, "aligned");
        }
        return Some(Leaf {
            spa: field(found, 51, shift) | field(dva, shift - 1, 0),
            shift,
            read,
            write,
        });
    }
}

#[test]
fn amd_v1_is_what_its_specification_says() {
    agree(TableFormat::AmdV1, walk_amd_v1);
}

#[test]
fn every_slot_of_an_amd_sized_page_holds_the_same_entry() {
    let table = PageTable::new(TableConfig::new(TableFormat::AmdV1));
    table.map(0x10000, 0x7_0000, 0x10000, Prot::RW).unwrap();
    let mut at = table.root();
    for _ in 1..table.levels() {
        at = field(entry(&table, at, 0), 51, 12);
    }
    let slots: Vec<u64> = (0..64).map(|index| entry(&table, at, index)).collect();
    assert!(slots[16..32].iter().all(|slot| *slot == slots[16]));
    assert_eq!(slots[16], 0x7_7000 | 7 << 9 | 1 | 3 << 61);
    assert!(
        slots[..16]
            .iter()
            .chain(&slots[32..])
            .all(|slot| *slot == 0)
    );
}
