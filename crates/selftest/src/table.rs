//! The mock's page tables: a map of leaves.
//!
//! The kernel's mock walks AMD tables with a granule of 2 KiB, in two kinds. What a program can see
//! of them is kept: the addresses that they translate, the alignment that they ask for, and which
//! addresses share a dirty bit. In the default kind every leaf is 2 KiB; the other has leaves of 4
//! KiB and 1 MiB.

use std::collections::BTreeMap;

use ioasid_core::{Access, AddrRange, Prot, failpoint, sync::Mutex};
use ioasid_iommu::{
    CustomFormat, CustomTable, Domain, MapError, TableFormat, Translation, WalkFault,
};

use crate::spec;

/// The IOMMU that walks both kinds.
const FAMILY: &str = "selftest";

/// Tables with leaves of 2 KiB and the aperture of the self-test.
pub static DEFAULT: CustomFormat = CustomFormat {
    name: "selftest",
    family: FAMILY,
    make: |tracking| Table::boxed(&SMALL, tracking),
};

/// Tables with leaves of 4 KiB and 1 MiB.
pub static HUGE: CustomFormat = CustomFormat {
    name: "selftest-huge",
    family: FAMILY,
    make: |tracking| Table::boxed(&LARGE, tracking),
};

/// Whether `domain` stands on one of these tables.
pub(crate) fn is_mock(domain: &Domain) -> bool {
    domain
        .config()
        .format
        .is_walked_with(TableFormat::Custom(&DEFAULT))
}

/// How many of the smallest leaves one table of hardware would hold.
const LEAVES_IN_TABLE: u64 = 512;

/// What the two kinds differ in.
struct Shape {
    first: u64,
    last: u64,
    /// Sizes of leaves in ascending order.
    sizes: &'static [u64],
    /// The sizes that the kernel's table says it could have, as a bitmap.
    told: u64,
}

static SMALL: Shape = Shape {
    first: spec::APERTURE_START,
    last: spec::APERTURE_LAST,
    sizes: &[spec::PAGE_SIZE],
    // Of an AMD table every power of two, but for what the whole table translates.
    told: (1 << (spec::ADDRESS_BITS - 1)) - spec::PAGE_SIZE,
};

static LARGE: Shape = Shape {
    first: 0,
    last: (1 << spec::ADDRESS_BITS) - 1,
    sizes: &[2 * spec::PAGE_SIZE, spec::HUGE_PAGE_SIZE],
    told: (2 * spec::PAGE_SIZE) | spec::HUGE_PAGE_SIZE,
};

#[derive(Clone, Copy)]
struct Leaf {
    size: u64,
    spa: u64,
    prot: Prot,
    dirty: bool,
}

#[derive(Default)]
struct State {
    leaves: BTreeMap<u64, Leaf>,
    tracking: bool,
    mapped: u64,
    writes: u64,
}

impl State {
    /// The leaf that `iova` lies in, and where it starts.
    fn find(&mut self, iova: u64) -> Option<(u64, &mut Leaf)> {
        let (start, leaf) = self.leaves.range_mut(..=iova).next_back()?;
        (iova - start < leaf.size).then_some((*start, leaf))
    }
}

struct Table {
    shape: &'static Shape,
    state: Mutex<State>,
}

impl Table {
    fn boxed(shape: &'static Shape, tracking: bool) -> Box<dyn CustomTable> {
        Box::new(Table {
            shape,
            state: Mutex::new(State {
                tracking,
                ..State::default()
            }),
        })
    }

    fn granule(&self) -> u64 {
        self.shape.sizes[0]
    }

    fn check_aligned(&self, value: u64) -> Result<(), MapError> {
        let page_size = self.granule();
        if value.is_multiple_of(page_size) {
            Ok(())
        } else {
            Err(MapError::Unaligned { value, page_size })
        }
    }

    /// Where a mapping from `first` on comes to a table without leaves, memory is needed for it.
    fn needs_table(&self, state: &State, first: u64, iova: u64) -> Result<(), MapError> {
        let covers = self.granule() * LEAVES_IN_TABLE;
        let start = iova - iova % covers;
        let entered = iova == first || iova == start;
        let mut leaves = state.leaves.range(start..=start.saturating_add(covers - 1));
        if entered && leaves.next().is_none() {
            failpoint::allocation()?;
        }
        Ok(())
    }
}

fn translation(start: u64, leaf: &Leaf, iova: u64) -> Translation {
    let inside = iova - start;
    Translation {
        spa: leaf.spa + inside,
        len: leaf.size - inside,
        prot: leaf.prot,
    }
}

impl CustomTable for Table {
    fn aperture(&self) -> AddrRange {
        AddrRange::new(self.shape.first, self.shape.last).expect("start before last")
    }

    fn page_sizes(&self) -> u64 {
        self.shape.told
    }

    fn map(&self, iova: u64, spa: u64, len: u64, prot: Prot) -> Result<(), MapError> {
        if prot == Prot::NONE {
            return Err(MapError::NoPermission { iova });
        }
        if len == 0 {
            return Err(MapError::Empty { iova });
        }
        for value in [iova, spa, len] {
            self.check_aligned(value)?;
        }
        let aperture = self.aperture();
        let range = AddrRange::from_len(iova, len).filter(|range| aperture.covers(*range));
        let range = range.ok_or(MapError::OutOfRange {
            iova,
            len,
            aperture,
        })?;
        if AddrRange::from_len(spa, len).is_none() {
            return Err(MapError::OutputOutOfRange { spa, len, bits: 64 });
        }
        let mut state = self.state.lock();
        let inside = state.leaves.range(iova..=range.last()).next().is_some();
        if inside || state.find(iova).is_some() {
            return Err(MapError::Exists { range });
        }
        let mut done = 0;
        while done < len {
            let fits = |size: &&u64| {
                len - done >= **size && ((iova + done) | (spa + done)).is_multiple_of(**size)
            };
            if let Err(error) = self.needs_table(&state, iova, iova + done) {
                state
                    .leaves
                    .retain(|start, _| !(iova..iova + done).contains(start));
                return Err(error);
            }
            // The granule always does.
            let size = *self
                .shape
                .sizes
                .iter()
                .rev()
                .find(fits)
                .unwrap_or(&self.granule());
            let leaf = Leaf {
                size,
                spa: spa + done,
                prot,
                dirty: false,
            };
            state.leaves.insert(iova + done, leaf);
            state.writes += 1;
            done += size;
        }
        state.mapped += len;
        Ok(())
    }

    fn unmap(&self, range: AddrRange) -> u64 {
        let mut state = self.state.lock();
        let whole: Vec<u64> = state
            .leaves
            .range(range.start()..=range.last())
            .filter(|(start, leaf)| leaf.size - 1 <= range.last() - **start)
            .map(|(start, _)| *start)
            .collect();
        let mut bytes = 0;
        for start in whole {
            if let Some(leaf) = state.leaves.remove(&start) {
                bytes += leaf.size;
                state.writes += 1;
            }
        }
        state.mapped -= bytes;
        bytes
    }

    fn cut(&self, iova: u64) -> Result<(), MapError> {
        self.check_aligned(iova)?;
        let mut state = self.state.lock();
        let Some((start, leaf)) = state.find(iova) else {
            return Ok(());
        };
        if start == iova {
            return Ok(());
        }
        let (whole, step) = (*leaf, self.granule());
        state.writes += whole.size / step;
        for offset in (0..whole.size).step_by(step as usize) {
            let leaf = Leaf {
                size: step,
                spa: whole.spa + offset,
                ..whole
            };
            state.leaves.insert(start + offset, leaf);
        }
        Ok(())
    }

    fn translate(&self, iova: u64, access: Access) -> Result<Translation, WalkFault> {
        if !self.aperture().contains(iova) {
            return Err(WalkFault::OutOfRange);
        }
        let mut state = self.state.lock();
        let tracking = state.tracking;
        let (start, leaf) = state.find(iova).ok_or(WalkFault::NotPresent)?;
        if !leaf.prot.allows(access) {
            return Err(WalkFault::Permission);
        }
        leaf.dirty |= tracking && access == Access::Write;
        Ok(translation(start, leaf, iova))
    }

    fn iova_to_phys(&self, iova: u64) -> Option<Translation> {
        let mut state = self.state.lock();
        let (start, leaf) = state.find(iova)?;
        Some(translation(start, leaf, iova))
    }

    fn set_dirty_tracking(&self, on: bool) {
        let mut state = self.state.lock();
        if on {
            state
                .leaves
                .values_mut()
                .for_each(|leaf| leaf.dirty = false);
        }
        state.tracking = on;
    }

    fn dirty_tracking(&self) -> bool {
        self.state.lock().tracking
    }

    fn read_dirty(&self, range: AddrRange, clear: bool, report: &mut dyn FnMut(AddrRange)) {
        let mut state = self.state.lock();
        let first = state.find(range.start()).map(|(start, _)| start);
        let first = first.unwrap_or(range.start());
        let mut run: Option<AddrRange> = None;
        for (start, leaf) in state.leaves.range_mut(first..=range.last()) {
            let whole = AddrRange::from_len(*start, leaf.size);
            let (true, Some(whole)) = (leaf.dirty, whole) else {
                continue;
            };
            let Some(part) = whole.intersect(range) else {
                continue;
            };
            // A leaf of which a part is not reported stays dirty.
            leaf.dirty = !(clear && range.covers(whole));
            run = match run {
                Some(before) if before.last().checked_add(1) == Some(part.start()) => {
                    AddrRange::new(before.start(), part.last())
                }
                before => {
                    before.into_iter().for_each(&mut *report);
                    Some(part)
                }
            };
        }
        run.into_iter().for_each(report);
    }

    fn mapped_bytes(&self) -> u64 {
        self.state.lock().mapped
    }

    fn writes(&self) -> u64 {
        self.state.lock().writes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: u64 = spec::APERTURE_START;

    fn range(start: u64, len: u64) -> AddrRange {
        AddrRange::from_len(start, len).unwrap()
    }

    fn dirty(table: &dyn CustomTable, range: AddrRange, clear: bool) -> Vec<AddrRange> {
        let mut found = Vec::new();
        table.read_dirty(range, clear, &mut |range| found.push(range));
        found
    }

    #[test]
    fn each_2_kib_has_a_dirty_bit_of_its_own() {
        let table = (DEFAULT.make)(true);
        table.map(BASE, 0x10_0000, 0x4000, Prot::RW).unwrap();
        for page in [0, 2, 3] {
            table.translate(BASE + page * 2048, Access::Write).unwrap();
        }
        table.translate(BASE + 5 * 2048, Access::Read).unwrap();
        let all = range(BASE, 0x4000);
        let expected = [range(BASE, 2048), range(BASE + 4096, 4096)];
        assert_eq!(dirty(&*table, all, false), expected);
        assert_eq!(dirty(&*table, all, true), expected);
        assert_eq!(dirty(&*table, all, true), []);
    }

    #[test]
    fn a_large_leaf_is_dirty_as_a_whole_and_stays_so_until_all_of_it_is_reported() {
        let table = (HUGE.make)(true);
        let mega = spec::HUGE_PAGE_SIZE;
        table.map(mega, 4 * mega, 2 * mega, Prot::RW).unwrap();
        table.translate(mega + 0x5000, Access::Write).unwrap();
        let half = range(mega, mega / 2);
        assert_eq!(dirty(&*table, half, true), [half]);
        assert_eq!(
            dirty(&*table, range(0, 4 * mega), true),
            [range(mega, mega)]
        );
        assert_eq!(dirty(&*table, range(0, 4 * mega), true), []);
    }

    #[test]
    fn a_mapping_is_all_or_nothing_and_unmap_takes_whole_leaves() {
        let table = (HUGE.make)(false);
        let mega = spec::HUGE_PAGE_SIZE;
        table.map(mega, mega, mega, Prot::RW).unwrap();
        assert_eq!(
            table.map(0, 0, mega + 4096, Prot::RW),
            Err(MapError::Exists {
                range: range(0, mega + 4096)
            })
        );
        assert_eq!(table.mapped_bytes(), mega);
        assert_eq!(table.unmap(range(mega, 4096)), 0, "inside a large leaf");
        table.cut(mega + 4096).unwrap();
        assert_eq!(table.unmap(range(mega, 4096)), 4096);
        assert_eq!(table.iova_to_phys(mega), None);
        assert_eq!(table.iova_to_phys(mega + 4097).unwrap().spa, mega + 4097);
        assert_eq!(table.unmap(AddrRange::ALL), mega - 4096);
    }

    #[test]
    fn outside_the_aperture_or_across_the_granule_nothing_is_mapped() {
        let table = (DEFAULT.make)(false);
        let map = |iova, len| table.map(iova, 0x1000, len, Prot::RW);
        let outside = |iova, len| {
            Err(MapError::OutOfRange {
                iova,
                len,
                aperture: table.aperture(),
            })
        };
        let unaligned = |value| {
            Err(MapError::Unaligned {
                value,
                page_size: 2048,
            })
        };
        let beyond = spec::APERTURE_LAST + 1;
        assert_eq!(map(BASE - 2048, 4096), outside(BASE - 2048, 4096));
        assert_eq!(map(beyond, 2048), outside(beyond, 2048));
        assert_eq!(map(BASE + 1024, 2048), unaligned(BASE + 1024));
        assert_eq!(map(BASE, 2048), Ok(()));
    }
}
