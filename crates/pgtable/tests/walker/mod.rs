//! Walkers that know a format from its specification only, reading raw table memory, against the page
//! table's own answers over many random maps, unmaps and cuts. There is one in `tests/walker_NAME.rs`
//! for each format.
//!
//! The walkers share nothing with the crate: no constant, no function. They also check that bits
//! which the specification reserves are 0.
// Each test file uses its part.
#![allow(dead_code, unreachable_pub)]
// A test that cannot go on has failed.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use ioasid_core::{AddrRange, Prot};
use ioasid_pgtable::{MapError, PageTable, TableConfig, TableFormat};

const OPERATIONS: usize = 100_000;

/// What a walker found.
#[derive(Debug, PartialEq)]
pub struct Leaf {
    pub spa: u64,
    pub shift: u32,
    pub read: bool,
    pub write: bool,
}

pub fn entry(table: &PageTable, address: u64, index: u64) -> u64 {
    table
        .read_table_entry(address, index as usize)
        .expect("a link leads to a table")
}

pub fn bit(entry: u64, n: u32) -> bool {
    entry >> n & 1 == 1
}

/// Bits `high:low` of `entry`, in place.
pub fn field(entry: u64, high: u32, low: u32) -> u64 {
    entry << (63 - high) >> (63 - high) >> low << low
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
}

#[derive(Clone, Copy, Debug)]
struct Area {
    last: u64,
    spa: u64,
    prot: Prot,
}

struct Run {
    table: PageTable,
    walk: fn(&PageTable, u64) -> Option<Leaf>,
    areas: BTreeMap<u64, Area>,
    random: Random,
    /// Leaf sizes that the walker met.
    met: u64,
    /// Maps that were made and maps that were refused because of another.
    made: usize,
    refused: usize,
    /// Whether write-only mappings can be read.
    write_implies_read: bool,
}

impl Run {
    fn area(&self, iova: u64) -> Option<(u64, Area)> {
        let (&start, &area) = self.areas.range(..=iova).next_back()?;
        (iova <= area.last).then_some((start, area))
    }

    /// The walker, the page table and the list of areas agree about `iova`.
    fn check(&mut self, iova: u64) {
        let walked = (self.walk)(&self.table, iova);
        let found = self.table.iova_to_phys(iova);
        let area = self.area(iova);
        let (Some(leaf), Some(translation), Some((start, area))) = (&walked, found, area) else {
            assert!(
                walked.is_none() && found.is_none() && area.is_none(),
                "{iova:#x}: {walked:x?}, {found:x?}, {area:x?}"
            );
            return;
        };
        self.met |= 1 << leaf.shift;
        let prot = Prot {
            read: leaf.read,
            write: leaf.write,
        };
        let expected = Prot {
            read: area.prot.read || self.write_implies_read,
            ..area.prot
        };
        assert_eq!(leaf.spa, area.spa + (iova - start), "{iova:#x}");
        assert_eq!(prot, expected, "{iova:#x}");
        assert_eq!((translation.spa, translation.prot), (leaf.spa, prot));
        assert_eq!(
            translation.len,
            (1 << leaf.shift) - iova % (1 << leaf.shift)
        );
        assert!(translation.len - 1 <= area.last - iova, "{iova:#x}");
    }

    fn check_around(&mut self, start: u64, last: u64) {
        let inside = start + self.random.below((last - start).saturating_add(1));
        for iova in [
            start.wrapping_sub(1),
            start,
            inside,
            last,
            last.wrapping_add(1),
        ] {
            self.check(iova);
        }
    }

    /// A mapping whose largest leaf is one of the format's sizes, with a ragged edge now and then.
    fn random_range(&mut self) -> (u64, u64, u64) {
        let sizes = self.table.page_sizes();
        let shifts: Vec<u32> = (0..64).filter(|n| bit(sizes, *n)).collect();
        let shift = shifts[self.random.below(shifts.len() as u64) as usize];
        let size = 1u64 << shift;
        let space = self.table.aperture().last() >> shift;
        let place = match self.random.below(4) {
            0 => self.random.below(8).min(space),
            1 => space - self.random.below(8).min(space),
            2 => (1u64 << 39 >> shift)
                .saturating_sub(self.random.below(4))
                .min(space),
            _ => self.random.next() & space,
        };
        let spa = self.random.below(1 << (52 - shift)) << shift;
        let (mut iova, mut spa, mut pages) = (place << shift, spa, size >> 12);
        if self.random.below(4) == 0 {
            let ragged = self.random.below(pages.min(64));
            iova += ragged << 12;
            spa += ragged << 12;
            pages -= ragged;
        }
        if self.random.below(4) == 0 {
            pages += self.random.below(64);
        }
        if self.random.below(8) == 0 {
            // Not congruent: 4 KiB leaves whatever the length.
            spa ^= 0x1000;
            pages = pages.min(600);
        }
        (iova, spa, pages << 12)
    }

    fn map(&mut self) {
        let (iova, spa, len) = self.random_range();
        let prot = [Prot::READ, Prot::WRITE, Prot::RW][self.random.below(3) as usize];
        let result = self.table.map(iova, spa, len, prot);
        let range = AddrRange::from_len(iova, len);
        let range = range.filter(|range| self.table.aperture().covers(*range));
        let Some(range) = range.filter(|_| spa + len <= 1 << 52) else {
            let refused = matches!(
                result,
                Err(MapError::OutOfRange { .. } | MapError::OutputOutOfRange { .. })
            );
            assert!(refused, "{result:?}");
            return;
        };
        let last = range.last();
        let taken = self.areas.range(..=last).next_back();
        if taken.is_some_and(|(_, area)| area.last >= iova) {
            assert_eq!(result, Err(MapError::Exists { range }));
            self.refused += 1;
        } else {
            self.made += 1;
            assert_eq!(result, Ok(()), "{range}");
            self.areas.insert(iova, Area { last, spa, prot });
        }
        self.check_around(iova, last);
    }

    fn unmap(&mut self) {
        let from = self.random.next() & self.table.aperture().last();
        let next = self.areas.range(from..).next();
        let Some((&start, &area)) = next.or(self.areas.first_key_value()) else {
            return;
        };
        let mut range = AddrRange::new(start, area.last).unwrap();
        if self.random.below(4) == 0 && area.last - start > 0x1000 {
            // Leave the front of the area behind.
            let cut = start + (self.random.below((area.last - start) >> 12) + 1) * 0x1000;
            self.table.cut(cut).unwrap();
            // Nothing has changed for a walk.
            self.check_around(start, area.last);
            self.check(cut - 1);
            self.check(cut);
            let front = Area {
                last: cut - 1,
                ..area
            };
            self.areas.insert(start, front);
            range = AddrRange::new(cut, area.last).unwrap();
        } else {
            self.areas.remove(&start);
        }
        let unmapped = self.table.unmap(range);
        assert_eq!(unmapped.bytes, range.last() - range.start() + 1);
        self.table.recycle(unmapped.freed);
        self.check_around(range.start(), range.last());
    }
}

/// Lets `walk` and a table of `format` agree.
pub fn agree(format: TableFormat, walk: fn(&PageTable, u64) -> Option<Leaf>) {
    let mut run = Run {
        table: PageTable::new(TableConfig::new(format)),
        walk,
        areas: BTreeMap::new(),
        random: Random(format.name().len() as u64),
        met: 0,
        made: 0,
        refused: 0,
        write_implies_read: format == TableFormat::X86_64Stage1,
    };
    for _ in 0..OPERATIONS {
        // About 200 areas at a time.
        if run.random.below(400) < 200 + run.areas.len() as u64 / 2 {
            run.unmap();
        } else {
            run.map();
        }
    }
    assert_eq!(
        run.met,
        run.table.page_sizes(),
        "every leaf size was walked"
    );
    let (made, refused) = (run.made, run.refused);
    assert!(
        made > OPERATIONS / 4 && refused > OPERATIONS / 50,
        "{made} made, {refused} refused"
    );
    let mapped = run.areas.iter().map(|(start, area)| area.last - start + 1);
    assert_eq!(run.table.mapped_bytes(), mapped.sum::<u64>());
    for (start, area) in run.areas.clone() {
        run.check_around(start, area.last);
    }
    run.areas.clear();
    let unmapped = run.table.unmap(AddrRange::ALL);
    run.table.recycle(unmapped.freed);
    assert_eq!(run.table.mapped_bytes(), 0);
    assert_eq!(run.table.table_pages(), 1, "only the top table is left");
}
