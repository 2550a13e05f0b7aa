//! Cut: replace a leaf by smaller ones so that none crosses a given address.
//!
//! Walks go on meanwhile. Each slot changes with one compare-exchange from what was observed, either
//! to a smaller leaf or to a complete table, so the translation is the same at every moment and no
//! accessed or dirty bit is lost. The leaves of a new table inherit the bits of the old leaf.

use ioasid_core::{AddrRange, sync::atomic::Ordering};

use super::{Counters, Found, Tree, Writer, index, map::fit, mask, slot_range, slots};
use crate::{
    arena::Table,
    error::MapError,
    format::Format,
    spec::{PAGE_SIZE, entry_shift},
};

/// The leaf that is cut: where it starts, in and out, and the accessed and dirty bits of all its
/// slots together, which every part inherits.
#[derive(Clone, Copy)]
struct Old {
    iova: u64,
    spa: u64,
    marks: u64,
}

impl Old {
    fn spa_at(self, iova: u64) -> u64 {
        self.spa + (iova - self.iova)
    }
}

impl<F: Format> Tree<F> {
    pub(crate) fn cut(&self, iova: u64) -> Result<(), MapError> {
        if !iova.is_multiple_of(PAGE_SIZE) {
            return Err(MapError::Unaligned {
                value: iova,
                page_size: PAGE_SIZE,
            });
        }
        if iova > F::LAST {
            return Err(MapError::OutOfRange {
                iova,
                len: PAGE_SIZE,
                aperture: Self::APERTURE,
            });
        }
        let mut writer = self.writer.lock();
        let Some(Found {
            table,
            level,
            entry,
        }) = self.find(iova)
        else {
            return Ok(());
        };
        if !F::is_present(entry) {
            return Ok(());
        }
        let mask = mask(F::leaf_shift(entry, level));
        let (start, last) = (iova & !mask, iova | mask);
        if start == iova {
            return Ok(());
        }
        let (first, count) = slots(start, last, level);
        let marks = table
            .entries(first, count)
            .iter()
            .fold(0, |all, entry| all | entry.load(Ordering::Acquire))
            & (F::ACCESSED | F::DIRTY);
        let old = Old {
            iova: start,
            spa: Self::translation(entry, level, start).spa,
            marks,
        };
        let (slot, slot_last) = slot_range(iova, level);
        if slot == iova {
            self.shrink(&mut writer, table, level, old, start, iova - 1);
            self.shrink(&mut writer, table, level, old, iova, last);
        } else {
            if start < slot {
                self.shrink(&mut writer, table, level, old, start, slot - 1);
            }
            self.split(&mut writer, table, level, old, slot, Some(iova));
            if slot_last < last {
                self.shrink(&mut writer, table, level, old, slot_last + 1, last);
            }
        }
        Ok(())
    }

    /// Rewrites the slots of `start..=last`, a part of the leaf `old` with slot boundaries at both
    /// ends, with the largest leaves that fit.
    fn shrink(
        &self,
        writer: &mut Writer,
        table: &Table,
        level: u32,
        old: Old,
        mut start: u64,
        last: u64,
    ) {
        loop {
            let spa = old.spa_at(start);
            let end = if let Some(shift) = fit(F::leaf_sizes(level), start, spa, last) {
                let end = start | mask(shift);
                let (first, count) = slots(start, end, level);
                for slot in table.entries(first, count) {
                    let shrunk = |seen| {
                        let attributes = F::attributes_of(seen) | old.marks;
                        Some(F::leaf(spa, shift, level, attributes))
                    };
                    let _ = slot.fetch_update(Ordering::AcqRel, Ordering::Acquire, shrunk);
                }
                Counters::add(&self.counters.writes, count as u64);
                end
            } else {
                // No leaf of this format has the size of one slot.
                self.split(writer, table, level, old, start, None);
                slot_range(start, level).1
            };
            if end >= last {
                return;
            }
            start = end + 1;
        }
    }

    /// Replaces the slot that starts at `slot`, a part of the leaf `old`, by a table of smaller
    /// leaves, none of which crosses `cut`.
    fn split(
        &self,
        writer: &mut Writer,
        table: &Table,
        level: u32,
        old: Old,
        slot: u64,
        cut: Option<u64>,
    ) {
        let last = slot | mask(entry_shift(level));
        let entry = table.entry(index(slot, level));
        let mut seen = entry.load(Ordering::Acquire);
        loop {
            let child = self.arena.allocate();
            let attributes = F::attributes_of(seen) | old.marks;
            let cut = cut.unwrap_or(slot);
            let parts = [
                cut.checked_sub(1).and_then(|end| AddrRange::new(slot, end)),
                AddrRange::new(cut, last),
            ];
            let mut written = 1;
            for part in parts.into_iter().flatten() {
                let spa = old.spa_at(part.start());
                written += self.fill(writer, child, level - 1, part, spa, attributes);
            }
            let link = self.arena.link::<F>(child, level);
            match entry.compare_exchange(seen, link, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => {
                    Counters::add(&self.counters.tables, 1);
                    Counters::add(&self.counters.writes, written);
                    return;
                }
                // A walk marked the leaf meanwhile: its bits come along.
                Err(now) => {
                    self.discard(child, level - 1);
                    seen = now;
                }
            }
        }
    }
}
