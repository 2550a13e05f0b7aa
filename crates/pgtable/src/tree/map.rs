//! Map: look whether the range is free, then fill it.
//!
//! Two passes make it all or nothing: nothing is visible to a device of a mapping that is refused,
//! and there is nothing to undo. The first pass reads only what exists.

use ioasid_core::{AddrRange, Prot, sync::atomic::Ordering};

use super::{Counters, Tree, Writer, clip, index, mask, slots};
use crate::{
    arena::Table,
    error::MapError,
    format::Format,
    spec::{ADDRESS_BITS, ENTRIES, PAGE_SHIFT, PAGE_SIZE, entry_shift},
};

/// The largest of `sizes` that can start at `iova` and `spa` and ends at `last` or before, as a power
/// of two.
#[inline]
pub(super) fn fit(sizes: u64, iova: u64, spa: u64, last: u64) -> Option<u32> {
    let align = (iova | spa).trailing_zeros().min(63);
    let room = (last - iova).saturating_add(1).ilog2();
    let fitting = sizes & (u64::MAX >> (63 - align.min(room)));
    (fitting != 0).then(|| fitting.ilog2())
}

impl<F: Format> Tree<F> {
    pub(crate) fn map(&self, iova: u64, spa: u64, len: u64, prot: Prot) -> Result<(), MapError> {
        let range = Self::check(iova, spa, len, prot)?;
        let mut writer = self.writer.lock();
        let reach = F::reach(self.top().1);
        if let Some(within) = AddrRange::new(iova, range.last().min(reach)) {
            let (table, level) = self.common_table(within.start(), within.last());
            if !self.is_empty(table, level, within.start(), within.last()) {
                return Err(MapError::Exists { range });
            }
            if within == range {
                self.fill_whole(&mut writer, table, level, range, spa, prot);
                return Ok(());
            }
        }
        self.grow(range.last());
        let (table, level) = self.common_table(range.start(), range.last());
        self.fill_whole(&mut writer, table, level, range, spa, prot);
        Ok(())
    }

    /// The input addresses of a mapping, if the format can hold it.
    fn check(iova: u64, spa: u64, len: u64, prot: Prot) -> Result<AddrRange, MapError> {
        if prot == Prot::NONE {
            return Err(MapError::NoPermission { iova });
        }
        if len == 0 {
            return Err(MapError::Empty { iova });
        }
        if !(iova | spa | len).is_multiple_of(PAGE_SIZE) {
            let unaligned = |value: &u64| !value.is_multiple_of(PAGE_SIZE);
            return Err(MapError::Unaligned {
                value: [iova, spa, len].into_iter().find(unaligned).unwrap_or(len),
                page_size: PAGE_SIZE,
            });
        }
        let aperture = Self::APERTURE;
        let range = AddrRange::from_len(iova, len).filter(|range| aperture.covers(*range));
        let range = range.ok_or(MapError::OutOfRange {
            iova,
            len,
            aperture,
        })?;
        let output = AddrRange::from_len(spa, len);
        match output.filter(|output| output.last() <= mask(ADDRESS_BITS)) {
            Some(_) => Ok(range),
            None => Err(MapError::OutputOutOfRange {
                spa,
                len,
                bits: ADDRESS_BITS,
            }),
        }
    }

    /// The second pass of [`Tree::map`], with the accounting.
    #[inline]
    fn fill_whole(
        &self,
        writer: &mut Writer,
        table: &Table,
        level: u32,
        range: AddrRange,
        spa: u64,
        prot: Prot,
    ) {
        let attributes = F::attributes(prot, self.dirty_tracking());
        let written = self.fill(writer, table, level, range, spa, attributes);
        Counters::add(&self.counters.writes, written);
        // Not the whole space: a mapping is at most 2^52 bytes long.
        let pages = range.len_saturating() >> PAGE_SHIFT;
        Counters::add(&self.counters.pages, pages);
    }

    /// Whether no address from `start` to `last`, both in `table`'s coverage, is mapped.
    fn is_empty(&self, table: &Table, level: u32, mut start: u64, last: u64) -> bool {
        if level == 0 {
            let (first, count) = slots(start, last, level);
            return table.is_zero(first, count);
        }
        loop {
            let entry = table.entry(index(start, level)).load(Ordering::Relaxed);
            let end = clip(start, last, level);
            match self.arena.child::<F>(entry, level) {
                Some(child) if !self.is_empty(child, level - 1, start, end) => return false,
                None if F::is_present(entry) => return false,
                _ if end == last => return true,
                _ => start = end + 1,
            }
        }
    }

    /// Fills `range`, which is free and lies in `table`'s coverage, with the largest leaves that the
    /// alignment allows. Returns the number of entries written.
    pub(super) fn fill(
        &self,
        writer: &mut Writer,
        table: &Table,
        level: u32,
        range: AddrRange,
        mut spa: u64,
        attributes: u64,
    ) -> u64 {
        let (mut iova, last) = (range.start(), range.last());
        let (shift, sizes) = (entry_shift(level), F::leaf_sizes(level));
        // Sizes above this one never fit: input and output are not congruent.
        let congruent = mask((iova ^ spa).trailing_zeros().min(63)) << 1 | 1;
        let single = sizes & congruent == 1 << shift;
        let mut written = 0;
        loop {
            let first = index(iova, level);
            let done = match fit(sizes, iova, spa, last) {
                Some(size) => {
                    let (count, step, bytes) = if single {
                        let room = ((last - iova).saturating_add(1) >> shift) as usize;
                        let count = room.min(ENTRIES - first);
                        (count, 1u64 << shift, (count as u64) << shift)
                    } else {
                        (1 << (size - shift), 0, 1 << size)
                    };
                    if level > 0 {
                        self.detach_empty(writer, table, level, first, count);
                    }
                    let leaf = F::leaf(spa, size, level, attributes);
                    table.store_run(first, count, leaf, step);
                    written += count as u64;
                    bytes
                }
                None => {
                    let slot_last = clip(iova, last, level);
                    let bytes = slot_last - iova + 1;
                    let part = AddrRange::new(iova, slot_last).expect("not empty");
                    let entry = table.entry(first);
                    let seen = entry.load(Ordering::Relaxed);
                    if let Some(child) = self.arena.child::<F>(seen, level) {
                        written += self.fill(writer, child, level - 1, part, spa, attributes);
                    } else {
                        // Complete before it is linked: walks see all of it or nothing.
                        let child = self.arena.allocate();
                        written += self.fill(writer, child, level - 1, part, spa, attributes) + 1;
                        entry.store(self.arena.link::<F>(child, level), Ordering::Release);
                        Counters::add(&self.counters.tables, 1);
                    }
                    bytes
                }
            };
            if last - iova < done {
                return written;
            }
            iova += done;
            spa += done;
        }
    }

    /// Takes empty subtrees out of slots that a leaf is about to fill.
    fn detach_empty(
        &self,
        writer: &mut Writer,
        table: &Table,
        level: u32,
        first: usize,
        count: usize,
    ) {
        if table.is_zero(first, count) {
            return;
        }
        for slot in table.entries(first, count) {
            let entry = slot.load(Ordering::Relaxed);
            if let Some(child) = self.arena.child::<F>(entry, level) {
                slot.store(0, Ordering::Release);
                self.detach_empty(writer, child, level - 1, 0, ENTRIES);
                writer.replaced.push(child);
                Counters::sub(&self.counters.tables, 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_size_is_bounded_by_alignment_and_room() {
        let sizes = 1 << 12 | 1 << 13 | 1 << 21;
        assert_eq!(fit(sizes, 0, 0, mask(21)), Some(21));
        assert_eq!(fit(sizes, 0, 0, mask(21) - 1), Some(13));
        assert_eq!(fit(sizes, 0x1000, 0, u64::MAX), Some(12));
        assert_eq!(fit(sizes, 0, 0x2000, u64::MAX), Some(13));
        assert_eq!(fit(1 << 21, 0x1000, 0x1000, u64::MAX), None);
        assert_eq!(fit(sizes, !mask(12), 0, u64::MAX), Some(12));
        assert_eq!(fit(0, 0, 0, u64::MAX), None);
    }
}
