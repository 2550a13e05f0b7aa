//! The memory behind areas.
//!
//! One MAP makes one [`Pages`]; a COPY shares it, so memory is pinned and counted once however many
//! address spaces show it. Pages get system physical addresses only when the first domain needs
//! them: mapping an address that is not there is an error only if a domain is attached, as in
//! Linux. The addresses are given back when the last [`Run`] goes, which its areas hold until the
//! unmap of their last domain, barrier included, has returned.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use ioasid_core::{
    Prot,
    memory::{Extent, PageSource, PinError},
    sync::Mutex,
};

/// A source of pages and what is pinned of it.
#[derive(Debug)]
pub(crate) struct Pages {
    source: Arc<dyn PageSource>,
    writable: bool,
    /// Pinned runs by their offset. A run is found again only while an area holds it.
    runs: Mutex<BTreeMap<u64, Weak<Run>>>,
}

impl Pages {
    /// The pages of `source`; `writable` if devices may ever write them.
    pub(crate) fn new(source: Arc<dyn PageSource>, writable: bool) -> Arc<Self> {
        Arc::new(Pages {
            source,
            writable,
            runs: Mutex::default(),
        })
    }

    pub(crate) fn source(&self) -> &dyn PageSource {
        &*self.source
    }

    pub(crate) fn writable(&self) -> bool {
        self.writable
    }

    /// System physical addresses for `len` bytes from `offset`, shared with whoever has them.
    ///
    /// May block as the source does: called with no lock held that inspection needs.
    pub(crate) fn pin(&self, offset: u64, len: u64) -> Result<Arc<Run>, PinError> {
        if let Some(run) = self.pinned(offset, len) {
            return Ok(run);
        }
        let prot = Prot {
            read: true,
            write: self.writable,
        };
        let extents = self.source.pin(offset, len, prot)?;
        let total = extents
            .iter()
            .try_fold(0u64, |sum, extent| sum.checked_add(extent.len));
        if total != Some(len) {
            return Err(PinError::OutOfRange);
        }
        let run = Arc::new(Run {
            offset,
            len,
            extents,
        });
        let mut runs = self.runs.lock();
        runs.retain(|_, run| run.strong_count() > 0);
        runs.insert(offset, Arc::downgrade(&run));
        Ok(run)
    }

    fn pinned(&self, offset: u64, len: u64) -> Option<Arc<Run>> {
        let runs = self.runs.lock();
        let mut before = runs.range(..=offset).rev();
        before.find_map(|(_, run)| run.upgrade().filter(|run| run.covers(offset, len)))
    }

    /// Bytes that have system physical addresses now.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        let runs = self.runs.lock();
        runs.values()
            .filter_map(Weak::upgrade)
            .map(|run| run.len)
            .sum()
    }
}

/// Part of a source that has system physical addresses. They stay valid while this lives.
#[derive(Debug)]
pub(crate) struct Run {
    offset: u64,
    len: u64,
    extents: Vec<Extent>,
}

impl Run {
    fn covers(&self, offset: u64, len: u64) -> bool {
        offset
            .checked_sub(self.offset)
            .and_then(|skip| self.len.checked_sub(skip))
            .is_some_and(|rest| len <= rest)
    }

    /// The (system physical address, length) pieces of `len` bytes from `offset` of the source.
    /// Neighbours whose addresses touch are one piece, so that leaves can be as large as possible.
    pub(crate) fn pieces(&self, offset: u64, len: u64) -> Vec<(u64, u64)> {
        let mut skip = offset.saturating_sub(self.offset);
        let mut left = len;
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        for extent in &self.extents {
            if skip >= extent.len {
                skip -= extent.len;
                continue;
            }
            let (spa, len) = (extent.spa + skip, (extent.len - skip).min(left));
            skip = 0;
            if len == 0 {
                break;
            }
            left -= len;
            match pieces.last_mut() {
                Some((start, bytes)) if *start + *bytes == spa => *bytes += len,
                _ => pieces.push((spa, len)),
            }
        }
        pieces
    }
}

#[cfg(test)]
mod tests {
    use ioasid_core::{grace::Grace, memory::OwnPages, spa::SpaSpace};

    use super::*;

    #[test]
    fn a_part_of_what_is_pinned_is_not_pinned_again() {
        let space = SpaSpace::new(Grace::new());
        let source = OwnPages::new(&space, 1 << 20).unwrap();
        let spa = source.spa();
        let pages = Pages::new(Arc::new(source), true);
        let whole = pages.pin(0, 1 << 20).unwrap();
        let part = pages.pin(0x3000, 0x2000).unwrap();
        assert!(Arc::ptr_eq(&whole, &part));
        assert_eq!(part.pieces(0x3000, 0x2000), [(spa + 0x3000, 0x2000)]);
        assert_eq!(pages.pinned_bytes(), 1 << 20);
        drop((whole, part));
        assert_eq!(pages.pinned_bytes(), 0);
        assert!(pages.pin(0, (1 << 20) + 4096).is_err());
    }

    #[test]
    fn pieces_that_touch_are_one() {
        let space = SpaSpace::new(Grace::new());
        let hold = Arc::new(
            space
                .register(ioasid_core::memory::OwnMemory::new(4096), 0)
                .unwrap(),
        );
        let extent = |spa, len| Extent {
            spa,
            len,
            hold: Arc::clone(&hold),
        };
        let run = Run {
            offset: 0x1000,
            len: 0x4000,
            extents: vec![
                extent(0x1000, 0x1000),
                extent(0x2000, 0x2000),
                extent(0x9000, 0x1000),
            ],
        };
        assert_eq!(
            run.pieces(0x1000, 0x4000),
            [(0x1000, 0x3000), (0x9000, 0x1000)]
        );
        assert_eq!(
            run.pieces(0x2000, 0x2800),
            [(0x2000, 0x2000), (0x9000, 0x800)]
        );
    }
}
