//! Dirty bits: read, read and clear, and the switch.

use ioasid_core::{
    AddrRange,
    sync::atomic::{AtomicU64, Ordering},
};

use super::{Tree, clip, index, mask, slots};
use crate::{arena::Table, format::Format};

impl<F: Format> Tree<F> {
    /// See [`PageTable::read_dirty`](crate::PageTable::read_dirty).
    pub(crate) fn read_dirty(
        &self,
        range: AddrRange,
        clear: bool,
        report: &mut dyn FnMut(AddrRange),
    ) {
        let _writer = self.writer.lock();
        let mut run: Option<AddrRange> = None;
        self.leaves(range, &mut |entries, leaf| {
            // What is not reported stays dirty.
            let clear = clear && range.covers(leaf);
            let (true, Some(part)) = (take_dirty::<F>(entries, clear), leaf.intersect(range))
            else {
                return;
            };
            match run {
                Some(before) if before.last().checked_add(1) == Some(part.start()) => {
                    run = AddrRange::new(before.start(), part.last());
                }
                before => {
                    before.into_iter().for_each(&mut *report);
                    run = Some(part);
                }
            }
        });
        run.into_iter().for_each(report);
    }

    /// See [`PageTable::set_dirty_tracking`](crate::PageTable::set_dirty_tracking).
    pub(crate) fn set_dirty_tracking(&self, on: bool) {
        let _writer = self.writer.lock();
        if on {
            self.leaves(AddrRange::ALL, &mut |entries, _| {
                take_dirty::<F>(entries, true);
            });
        }
        self.tracking.store(on, Ordering::SeqCst);
    }

    /// Calls `visit` with each leaf that has an address in `range`, in ascending order: its slots and
    /// its addresses.
    fn leaves(&self, range: AddrRange, visit: &mut impl FnMut(&[AtomicU64], AddrRange)) {
        let (table, levels) = self.top();
        if let Some(within) = AddrRange::new(range.start(), range.last().min(F::reach(levels))) {
            self.leaves_of(table, levels - 1, within.start(), within.last(), visit);
        }
    }

    fn leaves_of(
        &self,
        table: &Table,
        level: u32,
        mut start: u64,
        last: u64,
        visit: &mut impl FnMut(&[AtomicU64], AddrRange),
    ) {
        loop {
            let entry = table.entry(index(start, level)).load(Ordering::Relaxed);
            let mut end = clip(start, last, level);
            if let Some(child) = self.arena.child::<F>(entry, level) {
                self.leaves_of(child, level - 1, start, end, visit);
            } else if F::is_present(entry) {
                let mask = mask(F::leaf_shift(entry, level));
                let (leaf, leaf_last) = (start & !mask, start | mask);
                let (first, count) = slots(leaf, leaf_last, level);
                if let Some(leaf) = AddrRange::new(leaf, leaf_last) {
                    visit(table.entries(first, count), leaf);
                }
                end = leaf_last;
            }
            if end >= last {
                return;
            }
            start = end + 1;
        }
    }
}

/// Whether one of a leaf's slots is dirty; with `clear` none is afterwards.
#[inline]
fn take_dirty<F: Format>(entries: &[AtomicU64], clear: bool) -> bool {
    let mut dirty = false;
    for entry in entries {
        if entry.load(Ordering::Relaxed) & F::DIRTY != 0 {
            dirty = true;
            if clear {
                // Only takes a bit away: an access that sets it again afterwards is a new one.
                entry.fetch_and(!F::DIRTY, Ordering::AcqRel);
            } else {
                break;
            }
        }
    }
    dirty
}
