//! Random sequences of operations against a naive model: a sorted map of leaves.
//!
//! The model decides about leaves as its one-line rule says (the largest size that alignment and room
//! allow), knows nothing of tables, and is compared with the page table after every operation.
#![cfg(not(ioasid_shuttle))]
// A test that cannot go on has failed.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use ioasid_core::{Access, AddrRange, Prot};
use ioasid_pgtable::{MapError, PageTable, TableConfig, TableFormat, Translation, WalkFault};
use proptest::prelude::*;

const PAGE: u64 = 0x1000;

#[derive(Clone, Copy, Debug)]
struct Leaf {
    last: u64,
    spa: u64,
    prot: Prot,
    dirty: bool,
}

/// What a page table is, said as simply as possible.
struct Model {
    format: TableFormat,
    aperture_last: u64,
    sizes: Vec<u64>,
    tracking: bool,
    leaves: BTreeMap<u64, Leaf>,
}

impl Model {
    fn new(table: &PageTable, tracking: bool) -> Self {
        let sizes = (0..64).rev().map(|shift| 1 << shift);
        Model {
            format: table.format(),
            aperture_last: table.aperture().last(),
            sizes: sizes
                .filter(|size| table.page_sizes() & size != 0)
                .collect(),
            tracking,
            leaves: BTreeMap::new(),
        }
    }

    fn leaf(&self, iova: u64) -> Option<(u64, Leaf)> {
        let (&start, &leaf) = self.leaves.range(..=iova).next_back()?;
        (iova <= leaf.last).then_some((start, leaf))
    }

    /// Covers `range` with leaves like `pattern`, which starts at the range's start.
    fn cover(&mut self, range: AddrRange, pattern: Leaf) {
        let (mut iova, mut spa) = (range.start(), pattern.spa);
        loop {
            let fits = |size: &&u64| {
                (iova | spa).is_multiple_of(**size) && **size - 1 <= range.last() - iova
            };
            let size = *self.sizes.iter().find(fits).expect("page-aligned");
            let last = iova + (size - 1);
            self.leaves.insert(
                iova,
                Leaf {
                    last,
                    spa,
                    ..pattern
                },
            );
            if last == range.last() {
                return;
            }
            (iova, spa) = (last + 1, spa + size);
        }
    }

    fn map(&mut self, iova: u64, spa: u64, len: u64, prot: Prot) -> Result<(), MapError> {
        if prot == Prot::NONE {
            return Err(MapError::NoPermission { iova });
        }
        if len == 0 {
            return Err(MapError::Empty { iova });
        }
        if let Some(value) = [iova, spa, len].into_iter().find(|n| n % PAGE != 0) {
            return Err(unaligned(value));
        }
        let ends = |start: u64, last: u64| start.checked_add(len - 1).filter(|end| *end <= last);
        let Some(last) = ends(iova, self.aperture_last) else {
            return Err(self.out_of_range(iova, len));
        };
        if ends(spa, (1 << 52) - 1).is_none() {
            return Err(MapError::OutputOutOfRange { spa, len, bits: 52 });
        }
        if self
            .leaves
            .range(..=last)
            .next_back()
            .is_some_and(|(_, leaf)| leaf.last >= iova)
        {
            let range = AddrRange::new(iova, last).unwrap();
            return Err(MapError::Exists { range });
        }
        let x86 = self.format == TableFormat::X86_64Stage1;
        let read = prot.read || x86;
        let pattern = Leaf {
            last,
            spa,
            prot: Prot { read, ..prot },
            // Preset by x86-64 when nobody tracks.
            dirty: x86 && prot.write && !self.tracking,
        };
        self.cover(AddrRange::new(iova, last).unwrap(), pattern);
        Ok(())
    }

    fn out_of_range(&self, iova: u64, len: u64) -> MapError {
        MapError::OutOfRange {
            iova,
            len,
            aperture: AddrRange::new(0, self.aperture_last).unwrap(),
        }
    }

    fn unmap(&mut self, range: AddrRange) -> u64 {
        let before = self.bytes();
        self.leaves.retain(|start, leaf| {
            let leaf = AddrRange::new(*start, leaf.last).unwrap();
            !range.covers(leaf)
        });
        before - self.bytes()
    }

    fn bytes(&self) -> u64 {
        let bytes = |(start, leaf): (&u64, &Leaf)| leaf.last - start + 1;
        self.leaves.iter().map(bytes).sum()
    }

    fn cut(&mut self, iova: u64) -> Result<(), MapError> {
        if !iova.is_multiple_of(PAGE) {
            return Err(unaligned(iova));
        }
        if iova > self.aperture_last {
            return Err(self.out_of_range(iova, PAGE));
        }
        if let Some((start, leaf)) = self.leaf(iova)
            && start < iova
        {
            self.leaves.remove(&start);
            self.cover(AddrRange::new(start, iova - 1).unwrap(), leaf);
            let spa = leaf.spa + (iova - start);
            self.cover(
                AddrRange::new(iova, leaf.last).unwrap(),
                Leaf { spa, ..leaf },
            );
        }
        Ok(())
    }

    fn lookup(&self, iova: u64) -> Option<Translation> {
        let (start, leaf) = self.leaf(iova)?;
        Some(Translation {
            spa: leaf.spa + (iova - start),
            len: leaf.last - iova + 1,
            prot: leaf.prot,
        })
    }

    fn translate(&mut self, iova: u64, access: Access) -> Result<Translation, WalkFault> {
        if iova > self.aperture_last {
            return Err(WalkFault::OutOfRange);
        }
        let found = self.lookup(iova).ok_or(WalkFault::NotPresent)?;
        if !found.prot.allows(access) {
            return Err(WalkFault::Permission);
        }
        if self.tracking && access == Access::Write {
            let (start, _) = self.leaf(iova).unwrap();
            self.leaves.get_mut(&start).unwrap().dirty = true;
        }
        Ok(found)
    }

    /// The dirty parts of `range`, not merged.
    fn read_dirty(&mut self, range: AddrRange, clear: bool) -> Vec<AddrRange> {
        let mut parts = Vec::new();
        for (&start, leaf) in self.leaves.iter_mut().filter(|(_, leaf)| leaf.dirty) {
            let whole = AddrRange::new(start, leaf.last).unwrap();
            parts.extend(whole.intersect(range));
            leaf.dirty &= !(clear && range.covers(whole));
        }
        parts
    }
}

/// Joins neighbours, and thereby checks that they are sorted and disjoint.
fn merged(parts: &[AddrRange]) -> Vec<AddrRange> {
    let mut all: Vec<AddrRange> = Vec::new();
    for part in parts {
        match all.last_mut() {
            Some(before) if before.last() + 1 == part.start() => {
                *before = AddrRange::new(before.start(), part.last()).unwrap();
            }
            before => {
                assert!(before.is_none_or(|before| before.last() < part.start()));
                all.push(*part);
            }
        }
    }
    all
}

#[derive(Clone, Debug)]
enum Operation {
    Map(u64, u64, u64, Prot),
    Unmap(u64, u64),
    Cut(u64),
    Access(u64, Access),
    ReadDirty(u64, u64, bool),
    SetTracking(bool),
}

/// Addresses where something can happen: near 0, around the edge of a table of each level, and up to
/// the last page of the space.
fn address(last: u64) -> impl Strategy<Value = u64> {
    let base = prop_oneof![
        6 => Just(0u64),
        1 => Just((1 << 30) - 0x20_0000),
        1 => Just((1 << 39) - 0x20_0000),
        1 => Just(last - 0x7f_ffff),
        1 => Just(last - 0x1_ffff_ffff),
    ];
    let offset = prop_oneof![
        6 => (0u64..33).prop_map(|pages| pages * PAGE),
        2 => (0u64..1100).prop_map(|pages| pages * PAGE),
        2 => (0u64..5).prop_map(|n| n * 0x20_0000),
        1 => (0u64..8).prop_map(|n| n * 0x4000_0000),
        1 => 0u64..0x80_0000,
    ];
    (base, offset).prop_map(|(base, offset)| base.wrapping_add(offset))
}

fn length() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0u32..7).prop_map(|shift| PAGE << shift),
        4 => (1u64..1100).prop_map(|pages| pages * PAGE),
        2 => (1u64..4).prop_map(|n| n * 0x20_0000),
        1 => (1u64..3).prop_map(|n| n * 0x4000_0000),
        1 => Just(0u64),
        1 => any::<u64>().prop_map(|n| n >> 44),
    ]
}

/// How an output address lies to its input address: congruent modulo 4 GiB, 2 MiB, 64 KiB, 4 KiB.
fn phase() -> impl Strategy<Value = u64> {
    prop_oneof![3 => Just(1u64 << 32), 1 => Just(0x20_0000), 1 => Just(0x1_0000), 1 => Just(PAGE), 1 => Just(1)]
}

fn operation(last: u64) -> impl Strategy<Value = Operation> {
    let prot = prop_oneof![
        4 => Just(Prot::RW),
        2 => Just(Prot::READ),
        2 => Just(Prot::WRITE),
        1 => Just(Prot::NONE),
    ];
    let access = prop_oneof![Just(Access::Read), Just(Access::Write)];
    prop_oneof![
        6 => (address(last), phase(), length(), prot).prop_map(|(iova, phase, len, prot)| {
            // Long ranges of small pages cost time and show nothing.
            let len = if phase < 1 << 32 { len.min(0x40_0000) } else { len };
            let spa = (iova & ((1 << 40) - 1)) + phase;
            Operation::Map(iova, spa, len, prot)
        }),
        3 => (address(last), length()).prop_map(|(iova, len)| Operation::Unmap(iova, len)),
        1 => (address(last), address(last)).prop_map(|(a, b)| Operation::Unmap(a, b.saturating_sub(a))),
        3 => address(last).prop_map(Operation::Cut),
        6 => (address(last), access).prop_map(|(iova, access)| Operation::Access(iova, access)),
        2 => (address(last), length(), any::<bool>())
            .prop_map(|(iova, len, clear)| Operation::ReadDirty(iova, len, clear)),
        1 => any::<bool>().prop_map(Operation::SetTracking),
    ]
}

fn apply(table: &PageTable, model: &mut Model, operation: &Operation) {
    match *operation {
        Operation::Map(iova, spa, len, prot) => {
            assert_eq!(
                table.map(iova, spa, len, prot),
                model.map(iova, spa, len, prot)
            );
        }
        Operation::Unmap(iova, len) => {
            if let Some(range) = AddrRange::from_len(iova, len) {
                let unmapped = table.unmap(range);
                assert_eq!(unmapped.bytes, model.unmap(range));
                table.recycle(unmapped.freed);
            }
        }
        Operation::Cut(iova) => assert_eq!(table.cut(iova), model.cut(iova)),
        Operation::Access(iova, access) => {
            assert_eq!(table.translate(iova, access), model.translate(iova, access));
        }
        Operation::ReadDirty(iova, len, clear) => {
            if let Some(range) = AddrRange::from_len(iova, len) {
                let mut parts = Vec::new();
                table.read_dirty(range, clear, &mut |part| parts.push(part));
                assert_eq!(merged(&parts), merged(&model.read_dirty(range, clear)));
                assert_eq!(parts, merged(&parts), "neighbours are reported as one");
            }
        }
        Operation::SetTracking(on) => {
            table.set_dirty_tracking(on);
            model.tracking = on;
            if on {
                model
                    .leaves
                    .values_mut()
                    .for_each(|leaf| leaf.dirty = false);
            }
        }
    }
}

/// Every edge of every leaf, and the nothing around it.
fn compare(table: &PageTable, model: &mut Model) {
    for (&start, leaf) in &model.leaves {
        for iova in [
            start.wrapping_sub(1),
            start,
            leaf.last,
            leaf.last.wrapping_add(1),
        ] {
            assert_eq!(table.iova_to_phys(iova), model.lookup(iova), "{iova:#x}");
        }
    }
    assert_eq!(table.mapped_bytes(), model.bytes());
    let leaves = model.leaves.iter();
    let leaves = leaves.map(|(&start, leaf)| AddrRange::new(start, leaf.last).unwrap());
    let leaves: Vec<_> = leaves.collect();
    assert_eq!(table.mapped_ranges(usize::MAX, usize::MAX), merged(&leaves));
    for few in 0..4 {
        let first: Vec<_> = merged(&leaves).into_iter().take(few).collect();
        assert_eq!(table.mapped_ranges(few, usize::MAX), first);
        let first = &leaves[..few.min(leaves.len())];
        assert_eq!(table.mapped_ranges(usize::MAX, few), merged(first));
    }
    apply(table, model, &Operation::ReadDirty(0, u64::MAX, false));
}

fn behaves(format: TableFormat, dirty_tracking: bool, operations: &[Operation]) {
    let config = TableConfig {
        dirty_tracking,
        ..TableConfig::new(format)
    };
    let table = PageTable::new(config);
    let mut model = Model::new(&table, dirty_tracking);
    for operation in operations {
        apply(&table, &mut model, operation);
    }
    compare(&table, &mut model);
    let all = table.unmap(AddrRange::ALL);
    assert_eq!(all.bytes, model.unmap(AddrRange::ALL));
    assert_eq!((table.mapped_bytes(), table.table_pages()), (0, 1));
}

fn table(format: TableFormat) -> PageTable {
    PageTable::new(TableConfig::new(format))
}

fn last(format: TableFormat) -> u64 {
    table(format).aperture().last()
}

fn unaligned(value: u64) -> MapError {
    MapError::Unaligned {
        value,
        page_size: PAGE,
    }
}

/// A format, and what is done to a table of it.
fn operations() -> impl Strategy<Value = (TableFormat, Vec<Operation>)> {
    proptest::sample::select(TableFormat::ALL.to_vec()).prop_flat_map(|format| {
        let operations = proptest::collection::vec(operation(last(format)), 1..60);
        (Just(format), operations)
    })
}

proptest! {
    // 256 for each format.
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(256 * TableFormat::ALL.len() as u32)
    })]

    #[test]
    fn behaves_like_the_model(tracking in any::<bool>(), (format, operations) in operations()) {
        behaves(format, tracking, &operations);
    }

    #[test]
    fn no_argument_panics(
        format in proptest::sample::select(TableFormat::ALL.to_vec()),
        arguments in proptest::collection::vec(any::<(u8, u64, u64, u64)>(), 1..20),
    ) {
        let table = table(format);
        for (which, a, b, c) in arguments {
            // A few thousand pages at most, else the test only fills memory.
            let len = c >> (which % 64).max(40);
            let _ = table.map(a, b, len, Prot::RW);
            let _ = table.map(a & !0xfff, b >> 12 & !0xfff, len & !0xfff, Prot::RW);
            let _ = table.cut(a.wrapping_add(c));
            let _ = table.translate(a, Access::Write);
            if let Some(range) = AddrRange::new(a, b) {
                table.read_dirty(range, true, &mut |_| {});
                let unmapped = table.unmap(range);
                table.recycle(unmapped.freed);
            }
        }
    }
}

#[test]
fn the_last_page_can_be_mapped_cut_off_and_unmapped() {
    for format in TableFormat::ALL {
        let (table, last) = (table(format), last(format));
        let start = last - 0x1f_ffff;
        table.map(start, 0x20_0000, 0x20_0000, Prot::RW).unwrap();
        let page = last - 0xfff;
        assert_eq!(table.iova_to_phys(last).unwrap().spa, 0x3f_ffff);
        assert_eq!(table.iova_to_phys(last).unwrap().len, 1);
        table.cut(page).unwrap();
        assert_eq!(table.iova_to_phys(page).unwrap().len, 0x1000);
        let unmapped = table.unmap(AddrRange::new(page, last).unwrap());
        assert_eq!((unmapped.bytes, table.iova_to_phys(last)), (0x1000, None));
        assert_eq!(table.mapped_bytes(), 0x1f_f000);
        let beyond = table.map(page, 0, 0x2000, Prot::RW);
        let out_of_range = matches!(beyond, Err(MapError::OutOfRange { iova, .. }) if iova == page);
        assert!(out_of_range, "{beyond:?}");
    }
}

#[test]
fn a_refused_mapping_leaves_no_trace() {
    for format in TableFormat::ALL {
        let table = table(format);
        table.map(0x40_0000, 0, 0x1000, Prot::READ).unwrap();
        let (tables, writes) = (table.table_pages(), table.pte_writes());
        let refused = table.map(0, 0x1000, 0x80_0000, Prot::RW);
        let range = AddrRange::new(0, 0x7f_ffff).unwrap();
        assert_eq!(refused, Err(MapError::Exists { range }));
        assert_eq!((table.table_pages(), table.pte_writes()), (tables, writes));
        assert_eq!(table.mapped_bytes(), 0x1000);
    }
}

#[test]
fn a_large_leaf_replaces_empty_tables_which_come_back_with_the_next_unmap() {
    for format in TableFormat::ALL {
        let table = table(format);
        table.map(0, 0, 0x1000, Prot::RW).unwrap();
        let page = table.unmap(AddrRange::new(0, 0xfff).unwrap());
        assert!(
            page.freed.is_empty(),
            "a table is freed with its whole coverage"
        );
        let before = table.table_pages();
        table.map(0, 0x4000_0000, 0x20_0000, Prot::RW).unwrap();
        assert_eq!(table.table_pages(), before - 1);
        assert_eq!(table.iova_to_phys(0).unwrap().len, 0x20_0000);
        let other = table.unmap(AddrRange::new(0x80_0000, 0x80_0fff).unwrap());
        assert_eq!((other.bytes, other.freed.len()), (0, 1));
    }
}

#[test]
fn a_run_covers_pages_that_go_on_in_memory_and_allow_the_same() {
    for format in TableFormat::ALL {
        let table = table(format);
        for page in 0..16u64 {
            let hole = if page >= 12 { 0x10_0000 } else { 0 };
            let prot = if page == 8 { Prot::READ } else { Prot::RW };
            let spa = 0x1000 + page * 0x1000 + hole;
            table.map(page * 0x1000, spa, 0x1000, prot).unwrap();
        }
        let run = |iova, want| table.translate_run(iova, want, Access::Read).unwrap();
        assert_eq!((run(0x10, 0x20).spa, run(0x10, 0x20).len), (0x1010, 0xff0));
        assert_eq!(run(0x10, 0x4000).len, 0x4ff0);
        // The read-only page, the gap in memory, the end of what is mapped.
        assert_eq!(run(0, 0x1_0000).len, 0x8000);
        assert_eq!(run(0x9000, 0x1_0000).len, 0x3000);
        assert_eq!(run(0xc000, u64::MAX).len, 0x4000);
        let write = table.translate_run(0x8000, 0x2000, Access::Write);
        assert_eq!(write, Err(WalkFault::Permission));
    }
}

#[test]
fn every_page_of_a_written_run_is_dirty() {
    for format in TableFormat::ALL {
        let table = PageTable::new(TableConfig {
            dirty_tracking: true,
            ..TableConfig::new(format)
        });
        table.map(0, 0x1000, 0x8000, Prot::RW).unwrap();
        // One page was written before: runs begin and end there.
        table.translate(0x3000, Access::Write).unwrap();
        let mut at = 0;
        while at < 0x8000 {
            let run = table.translate_run(at, 0x8000 - at, Access::Write).unwrap();
            at += run.len;
        }
        let (all, mut dirty) = (AddrRange::new(0, 0x7fff).unwrap(), Vec::new());
        table.read_dirty(all, true, &mut |part| dirty.push(part));
        assert_eq!(dirty, [all]);
    }
}

#[test]
fn tables_are_reused_after_recycle_and_not_before() {
    for format in TableFormat::ALL {
        let table = table(format);
        let range = AddrRange::new(0, 0x1f_ffff).unwrap();
        let leaf_table = |table: &PageTable| {
            let mut at = table.root();
            for _ in 1..table.levels() {
                at = table.read_table_entry(at, 0).unwrap() & 0x000f_ffff_ffff_f000;
            }
            at
        };
        table.map(0, 0x1000, 0x20_0000, Prot::RW).unwrap();
        let first = leaf_table(&table);
        let unmapped = table.unmap(range);
        table.map(0, 0x1000, 0x20_0000, Prot::RW).unwrap();
        assert_ne!(leaf_table(&table), first, "a walk may still be in it");
        assert_eq!(table.read_table_entry(first, 1), Some(0));
        drop(table.unmap(range));
        table.recycle(unmapped.freed);
        table.map(0, 0x1000, 0x20_0000, Prot::RW).unwrap();
        assert_eq!(leaf_table(&table), first);
    }
}
