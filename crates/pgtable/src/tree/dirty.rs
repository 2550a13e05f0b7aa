//! Dirty bits: read, read and clear, and the switch; what is mapped.

use std::ops::ControlFlow;

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
        let _ = self.leaves(range, &mut |entries, leaf| {
            // What is not reported stays dirty.
            let clear = clear && range.covers(leaf);
            let (true, Some(part)) = (take_dirty::<F>(entries, clear), leaf.intersect(range))
            else {
                return ControlFlow::Continue(());
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
            ControlFlow::Continue(())
        });
        run.into_iter().for_each(report);
    }

    /// See [`PageTable::mapped_ranges`](crate::PageTable::mapped_ranges).
    pub(crate) fn mapped_ranges(&self, most: usize, leaves: usize) -> Vec<AddrRange> {
        let _writer = self.writer.lock();
        let (mut ranges, mut left) = (Vec::<AddrRange>::new(), leaves);
        let _ = self.leaves(AddrRange::ALL, &mut |_, leaf| {
            if left == 0 {
                return ControlFlow::Break(());
            }
            left -= 1;
            let full = ranges.len() == most;
            match ranges.last_mut() {
                Some(before) if before.last().checked_add(1) == Some(leaf.start()) => {
                    *before = AddrRange::new(before.start(), leaf.last()).unwrap_or(*before);
                }
                _ if full => return ControlFlow::Break(()),
                _ => ranges.push(leaf),
            }
            ControlFlow::Continue(())
        });
        ranges
    }

    /// See [`PageTable::set_dirty_tracking`](crate::PageTable::set_dirty_tracking).
    pub(crate) fn set_dirty_tracking(&self, on: bool) {
        let _writer = self.writer.lock();
        if on {
            let _ = self.leaves(AddrRange::ALL, &mut |entries, _| {
                take_dirty::<F>(entries, true);
                ControlFlow::Continue(())
            });
        }
        self.tracking.store(on, Ordering::SeqCst);
        self.required.set::<F>(on);
    }

    /// Calls `visit` with each leaf that has an address in `range`, in ascending order, until it breaks
    /// off: with the leaf's slots and its addresses.
    fn leaves(
        &self,
        range: AddrRange,
        visit: &mut impl FnMut(&[AtomicU64], AddrRange) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let (table, levels) = self.top();
        match AddrRange::new(range.start(), range.last().min(F::reach(levels))) {
            Some(within) => self.leaves_of(table, levels - 1, within.start(), within.last(), visit),
            None => ControlFlow::Continue(()),
        }
    }

    fn leaves_of(
        &self,
        table: &Table,
        level: u32,
        mut start: u64,
        last: u64,
        visit: &mut impl FnMut(&[AtomicU64], AddrRange) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        loop {
            let entry = table.entry(index(start, level)).load(Ordering::Relaxed);
            let mut end = clip(start, last, level);
            if let Some(child) = self.arena.child::<F>(entry, level) {
                self.leaves_of(child, level - 1, start, end, visit)?;
            } else if F::is_present(entry) {
                let mask = mask(F::leaf_shift(entry, level));
                let (leaf, leaf_last) = (start & !mask, start | mask);
                let (first, count) = slots(leaf, leaf_last, level);
                if let Some(leaf) = AddrRange::new(leaf, leaf_last) {
                    visit(table.entries(first, count), leaf)?;
                }
                end = leaf_last;
            }
            if end >= last {
                return ControlFlow::Continue(());
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
