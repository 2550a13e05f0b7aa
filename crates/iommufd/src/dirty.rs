//! Which pages were written.
//!
//! A domain has one dirty bit per leaf, but several page table objects may stand on it, and each
//! reads and clears for itself. So whoever clears the domain's bits hands what it found to the
//! others: the [`DirtyLedger`] holds, for each object that tracks, what was written and is not in
//! the domain's bits any more.

use std::collections::BTreeMap;

use ioasid_core::AddrRange;
use rangemap::RangeInclusiveSet;

use crate::{domains::IoasDomain, error::Error, hwpt::Hwpt, ioas::Ioas, object::ObjectId};

/// Which dirty bits to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyRequest {
    /// The page table.
    pub hwpt: ObjectId,
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub len: u64,
    /// Bytes per bit of the program's bitmap.
    pub page_size: u64,
    /// Leave the bits as they are.
    pub no_clear: bool,
}

/// What each page table object that tracks has not been told yet.
#[derive(Debug, Default)]
pub(crate) struct DirtyLedger {
    trackers: BTreeMap<ObjectId, RangeInclusiveSet<u64>>,
}

impl DirtyLedger {
    /// Unmapped ranges have no dirty pages.
    pub(crate) fn forget(&mut self, ranges: &[AddrRange]) {
        for pending in self.trackers.values_mut() {
            for range in ranges {
                pending.remove(range.start()..=range.last());
            }
        }
    }

    fn found(&mut self, range: AddrRange) {
        for pending in self.trackers.values_mut() {
            pending.insert(range.start()..=range.last());
        }
    }
}

impl IoasDomain {
    /// Starts (with nothing dirty) or stops tracking for one page table object.
    pub(crate) fn track(&self, hwpt: ObjectId, on: bool) {
        let mut ledger = self.dirty.lock();
        ledger.trackers.remove(&hwpt);
        if on {
            if ledger.trackers.is_empty() {
                self.domain().set_dirty_tracking(true);
            } else {
                let all = AddrRange::ALL;
                self.domain()
                    .read_dirty(all, true, &mut |range| ledger.found(range));
            }
            ledger.trackers.insert(hwpt, RangeInclusiveSet::new());
        } else if ledger.trackers.is_empty() {
            self.domain().set_dirty_tracking(false);
        }
    }

    /// Reports what was written in `range` since `hwpt` last cleared it; returns after the barrier.
    fn read_dirty(
        &self,
        hwpt: ObjectId,
        range: AddrRange,
        clear: bool,
        report: &mut dyn FnMut(AddrRange),
    ) -> Result<(), Error> {
        let mut ledger = self.dirty.lock();
        if !ledger.trackers.contains_key(&hwpt) {
            return Err(Error::NoDirtyBits);
        }
        if clear {
            self.domain()
                .read_dirty(range, true, &mut |dirty| ledger.found(dirty));
        } else {
            self.domain().read_dirty(range, false, report);
        }
        let window = range.start()..=range.last();
        if let Some(pending) = ledger.trackers.get_mut(&hwpt) {
            for dirty in pending.overlapping(&window) {
                let dirty = AddrRange::new(*dirty.start(), *dirty.end());
                if let Some(dirty) = dirty.and_then(|dirty| dirty.intersect(range)) {
                    report(dirty);
                }
            }
            if clear {
                pending.remove(window);
            }
        }
        Ok(())
    }
}

impl Hwpt {
    /// Reports the dirty parts of a range of the IOAS, and clears them unless asked not to. After a
    /// clearing call the pages may be read: no DMA that wrote them is in flight.
    pub(crate) fn get_dirty(
        &self,
        request: DirtyRequest,
        report: &mut dyn FnMut(AddrRange),
    ) -> Result<(), Error> {
        let range = self.ioas().check_dirty(request)?;
        self.needs_dirty()?;
        self.ioas().covered(range)?;
        let clear = !request.no_clear;
        match self.paging() {
            Some(paging) => paging.domain().read_dirty(self.id(), range, clear, report),
            None => Err(Error::NoDirtyTracking),
        }
    }
}

impl Ioas {
    fn check_dirty(&self, request: DirtyRequest) -> Result<AddrRange, Error> {
        let aligned = |unit: u64| {
            // As the kernel does, without asking whether the unit is a power of two.
            let mask = unit.wrapping_sub(1);
            let end = request.iova.wrapping_add(request.len);
            unit != 0 && request.iova & mask == 0 && end & mask == 0
        };
        let range = AddrRange::from_len(request.iova, request.len);
        if range.is_none() && request.iova != 0 {
            return Err(Error::Overflow);
        }
        let alignment = self.state.lock().alignment();
        if !aligned(alignment) || !aligned(request.page_size) {
            return Err(Error::NoDirtyBits);
        }
        range.ok_or(Error::NoDirtyBits)
    }

    /// Whether areas cover the whole range.
    fn covered(&self, range: AddrRange) -> Result<(), Error> {
        let state = self.state.lock();
        let mut next = range.start();
        for (area, _) in state.space.overlapping(range) {
            if area.start() > next {
                return Err(Error::NoDirtyBits);
            }
            match area.last().checked_add(1) {
                Some(after) if area.last() < range.last() => next = after,
                _ => return Ok(()),
            }
        }
        Err(Error::NoDirtyBits)
    }
}
