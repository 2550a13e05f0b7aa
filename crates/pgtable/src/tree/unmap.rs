//! Unmap: clear whole leaves, take tables out whose coverage lies in the range.
//!
//! A leaf that reaches beyond the range stays as it is: a caller that wants a boundary there cuts first.

use std::mem;

use ioasid_core::{AddrRange, sync::atomic::Ordering};

use super::{Counters, Tree, clip, index, mask, slot_range, slots};
use crate::{
    arena::{FreedTables, Table},
    format::Format,
    spec::{PAGE_SHIFT, PAGE_SIZE, entry_shift},
    translation::Unmapped,
};

/// What a clearing pass did.
struct Cleared {
    pages: u64,
    writes: u64,
    freed: FreedTables,
}

impl<F: Format> Tree<F> {
    pub(crate) fn unmap(&self, range: AddrRange) -> Unmapped {
        let mut writer = self.writer.lock();
        let reach = F::reach(self.top().1);
        let mut cleared = Cleared {
            pages: 0,
            writes: 0,
            freed: mem::replace(&mut writer.replaced, self.arena.freed()),
        };
        let replaced = cleared.freed.len();
        if let Some(pages) = whole_pages(range)
            && let Some(within) = AddrRange::new(pages.start(), pages.last().min(reach))
        {
            let (table, level) = self.common_table(within.start(), within.last());
            self.clear(&mut cleared, table, level, within.start(), within.last());
        }
        let tables = (cleared.freed.len() - replaced) as u64;
        Counters::sub(&self.counters.tables, tables);
        Counters::sub(&self.counters.pages, cleared.pages);
        Counters::add(&self.counters.writes, cleared.writes);
        Unmapped {
            bytes: cleared.pages.saturating_mul(PAGE_SIZE),
            freed: cleared.freed,
        }
    }

    /// Clears the leaves that lie in `start..=last`, which lies in `table`'s coverage.
    ///
    /// With plain stores, not exchanges: only this writer makes entries, and a reader's
    /// compare-exchange that comes late fails on the 0. One that comes between the load of an entry and
    /// its store adds marks that are lost; an unmap reports none, and asks only for bits that no
    /// reader changes.
    fn clear(&self, cleared: &mut Cleared, table: &Table, level: u32, mut start: u64, last: u64) {
        if level == 0 {
            Self::clear_pages(cleared, table, start, last);
            return;
        }
        loop {
            let slot = table.entry(index(start, level));
            let entry = slot.load(Ordering::Relaxed);
            let end = if let Some(child) = self.arena.child::<F>(entry, level) {
                let end = clip(start, last, level);
                let whole = (start, end) == slot_range(start, level);
                if whole {
                    slot.store(0, Ordering::Release);
                    cleared.writes += 1;
                }
                self.clear(cleared, child, level - 1, start, end);
                if whole {
                    cleared.freed.push(child);
                }
                end
            } else if F::is_present(entry) {
                let mask = mask(F::leaf_shift(entry, level));
                let (leaf, leaf_last) = (start & !mask, start | mask);
                if leaf != start || leaf_last > last {
                    leaf_last
                } else if mask == super::mask(entry_shift(level)) {
                    self.clear_run(cleared, table, level, start, last)
                } else {
                    let (first, count) = slots(leaf, leaf_last, level);
                    table.store_run(first, count, 0, 0);
                    cleared.writes += count as u64;
                    cleared.pages += (mask >> PAGE_SHIFT) + 1;
                    leaf_last
                }
            } else {
                slot_range(start, level).1
            };
            if end >= last {
                return;
            }
            start = end + 1;
        }
    }

    /// [`Tree::clear`] at level 0, where all that is present are leaves, and each slot of one stands
    /// for 4 KiB: only the leaves at the two ends can reach beyond the range.
    fn clear_pages(cleared: &mut Cleared, table: &Table, mut start: u64, mut last: u64) {
        let leaf = |iova: u64| {
            let entry = table.entry(index(iova, 0)).load(Ordering::Relaxed);
            let mask = mask(F::leaf_shift(entry, 0));
            (iova & !mask, iova | mask)
        };
        let (first_leaf, first_end) = leaf(start);
        if first_leaf < start {
            if first_end >= last {
                return;
            }
            start = first_end + 1;
        }
        let (last_leaf, last_end) = leaf(last);
        if last_end > last {
            if last_leaf <= start {
                return;
            }
            last = last_leaf - 1;
        }
        let (first, count) = slots(start, last, 0);
        let pages = table.clear_run(first, count, F::KIND, F::is_present) as u64;
        cleared.pages += pages;
        cleared.writes += pages;
    }

    /// Clears leaves of one slot each, as many as follow each other from the slot that starts at
    /// `start` and lie before `last`. Returns the last address dealt with.
    #[inline]
    fn clear_run(
        &self,
        cleared: &mut Cleared,
        table: &Table,
        level: u32,
        start: u64,
        last: u64,
    ) -> u64 {
        let shift = entry_shift(level);
        // Whole slots; the caller has seen that the first is one.
        let whole = (last - start).saturating_add(1) >> shift;
        let first = index(start, level);
        let like = table.entry(first).load(Ordering::Relaxed);
        let count = table.clear_alike(first, whole as usize, like, F::KIND);
        let count = count as u64;
        cleared.writes += count;
        cleared.pages += count << (shift - PAGE_SHIFT);
        start + ((count << shift) - 1)
    }

    /// Empties a subtree that no walk has ever seen and gives its tables back at once.
    pub(super) fn discard(&self, table: &Table, level: u32) {
        let mut cleared = Cleared {
            pages: 0,
            writes: 0,
            freed: self.arena.freed(),
        };
        self.clear(&mut cleared, table, level, 0, mask(entry_shift(level + 1)));
        Counters::sub(&self.counters.tables, cleared.freed.len() as u64);
        cleared.freed.push(table);
        self.arena.recycle(cleared.freed);
    }
}

/// The pages that lie in `range` whole.
fn whole_pages(range: AddrRange) -> Option<AddrRange> {
    let start = range.start().checked_next_multiple_of(PAGE_SIZE)?;
    let last = match range.last() % PAGE_SIZE {
        rest if rest == PAGE_SIZE - 1 => range.last(),
        rest => (range.last() - rest).checked_sub(1)?,
    };
    AddrRange::new(start, last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_that_the_range_cuts_is_not_in_it() {
        let pages = |start, last| {
            let pages = whole_pages(AddrRange::new(start, last).unwrap())?;
            Some((pages.start(), pages.last()))
        };
        assert_eq!(pages(0, u64::MAX), Some((0, u64::MAX)));
        assert_eq!(pages(1, 0x2fff), Some((0x1000, 0x2fff)));
        assert_eq!(pages(0, 0x2ffe), Some((0, 0x1fff)));
        assert_eq!(pages(0, 0xffe), None);
        assert_eq!(pages(1, 0x1ffe), None);
        assert_eq!(pages(u64::MAX, u64::MAX), None);
    }
}
