//! Which pages were written.
//!
//! A domain has one dirty bit per leaf, but several page table objects may stand on it, and each
//! reads and clears for itself. So an object that clears the domain's bits hands what it found to
//! the others: the [`DirtyLedger`] holds, for each object that tracks, what was written and is not
//! in the domain's bits any more.

use std::collections::BTreeMap;

use ioasid_core::AddrRange;
use ioasid_iommu::Domain;
use rangemap::RangeInclusiveSet;

use crate::base::{error::DirtyError, id::ObjectId};

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

/// What was written and not reported yet, for each page table object that tracks.
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

impl DirtyLedger {
    /// Starts (with nothing dirty) or stops tracking for one page table object.
    pub(crate) fn track(&mut self, domain: &Domain, hwpt: ObjectId, on: bool) {
        self.trackers.remove(&hwpt);
        if on {
            if self.trackers.is_empty() {
                domain.set_dirty_tracking(true);
            } else {
                let all = AddrRange::ALL;
                domain.read_dirty(all, true, &mut |range| self.found(range));
            }
            self.trackers.insert(hwpt, RangeInclusiveSet::new());
        } else if self.trackers.is_empty() {
            domain.set_dirty_tracking(false);
        }
    }

    /// Reports what was written in `range` since `hwpt` last cleared it; returns after the barrier.
    pub(crate) fn read(
        &mut self,
        domain: &Domain,
        hwpt: ObjectId,
        range: AddrRange,
        clear: bool,
        report: &mut dyn FnMut(AddrRange),
    ) -> Result<(), DirtyError> {
        if !self.trackers.contains_key(&hwpt) {
            return Err(DirtyError::Off(hwpt));
        }
        if clear {
            domain.read_dirty(range, true, &mut |dirty| self.found(dirty));
        } else {
            domain.read_dirty(range, false, report);
        }
        let window = range.start()..=range.last();
        if let Some(pending) = self.trackers.get_mut(&hwpt) {
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
