//! The memory behind areas.
//!
//! One MAP makes one [`Pages`]; a COPY shares it, so memory is pinned and counted once however many
//! address spaces show it. Pages get system physical addresses only when the first domain (or
//! access) needs them: mapping an address that is not there is an error only if a domain is
//! attached, as in Linux. The addresses are given back when the last [`Run`] goes, which its areas
//! hold until the unmap of their last domain, barrier included, has returned.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use ioasid_core::{
    AddrRange, Prot, failpoint,
    host::Account,
    memory::{Extent, Memory, MemoryGone, PAGE_SIZE, PageSource, PinError, RawBytes},
    sync::Mutex,
};

use super::ledger::{Charge, MemoryLedger};

/// A source of pages and what is pinned of it.
pub(crate) struct Pages {
    source: Arc<dyn PageSource>,
    writable: bool,
    /// The exporter took the memory back, for good.
    revoked: AtomicBool,
    ledger: Arc<MemoryLedger>,
    /// Its number in the ledger.
    number: u64,
    pinned: Mutex<Pinned>,
}

struct Pinned {
    /// Pinned runs by their offset and number, with their bytes. A run is found again only while
    /// it is in use.
    runs: BTreeMap<(u64, u64), (u64, Weak<Run>)>,
    last: u64,
    charge: Charge,
    /// Bytes that count now.
    charged: u64,
}

impl Pinned {
    /// Bytes of the pages that the live runs cover together.
    fn covered(&self) -> u64 {
        let mut bytes = 0;
        let mut next = 0;
        // None is upgraded: the end of a run needs the lock that the caller has.
        let live = self
            .runs
            .iter()
            .filter(|(_, (_, run))| run.strong_count() > 0);
        for ((offset, _), (len, _)) in live {
            let start = (offset / PAGE_SIZE * PAGE_SIZE).max(next);
            let end = offset.saturating_add(*len);
            let end = end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(end);
            bytes += end.saturating_sub(start);
            next = next.max(end);
        }
        bytes
    }
}

impl Pages {
    /// The pages of `source`; `writable` if devices may ever write them.
    pub(crate) fn new(
        source: Arc<dyn PageSource>,
        writable: bool,
        ledger: &Arc<MemoryLedger>,
        charge: Charge,
    ) -> Arc<Self> {
        Arc::new_cyclic(|weak: &Weak<Pages>| Pages {
            source,
            writable,
            revoked: AtomicBool::new(false),
            ledger: Arc::clone(ledger),
            number: ledger.enter(Weak::clone(weak)),
            pinned: Mutex::new(Pinned {
                runs: BTreeMap::new(),
                last: 0,
                charge,
                charged: 0,
            }),
        })
    }

    pub(crate) fn source(&self) -> &Arc<dyn PageSource> {
        &self.source
    }

    pub(crate) fn writable(&self) -> bool {
        self.writable
    }

    /// The exporter takes the memory back. Nothing is pinned of it from now on.
    pub(crate) fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
    }

    /// Whether the exporter has taken the memory back: no page table shows it any more.
    pub(crate) fn is_revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }

    /// System physical addresses for `len` bytes from `offset`, shared with every other user.
    ///
    /// May block as the source does: called with no lock held that inspection needs.
    pub(crate) fn pin(self: &Arc<Self>, offset: u64, len: u64) -> Result<Arc<Run>, PinError> {
        let extents = match self.pinned(offset, len) {
            Some(run) if (run.offset, run.len) == (offset, len) => return Ok(run),
            // A part of its own, so that the rest can go before it.
            Some(run) => run.part(offset, len),
            None => {
                let prot = Prot {
                    read: true,
                    write: self.writable,
                };
                failpoint::allocation()?;
                self.source.pin(offset, len, prot)?
            }
        };
        // The run: what was pinned for it is released on failure.
        failpoint::allocation()?;
        let total = extents
            .iter()
            .try_fold(0u64, |sum, extent| sum.checked_add(extent.len));
        if total != Some(len) {
            return Err(PinError::OutOfRange);
        }
        let run = Arc::new(Run {
            pages: Arc::clone(self),
            offset,
            len,
            extents,
        });
        let mut pinned = self.pinned.lock();
        pinned.last += 1;
        let key = (offset, pinned.last);
        pinned.runs.insert(key, (len, Arc::downgrade(&run)));
        let counted = self.count(&mut pinned);
        if counted.is_err() {
            pinned.runs.remove(&key);
        }
        drop(pinned);
        counted?;
        Ok(run)
    }

    /// Brings the ledger up to date with the runs that there are.
    fn count(&self, pinned: &mut Pinned) -> Result<(), PinError> {
        if self.source.is_device() {
            return Ok(());
        }
        let covered = pinned.covered();
        if covered > pinned.charged {
            let more = covered - pinned.charged;
            self.ledger.charge(pinned.charge, more)?;
        } else {
            let less = pinned.charged - covered;
            self.ledger.uncharge(pinned.charge, less);
        }
        pinned.charged = covered;
        Ok(())
    }

    /// A run is gone.
    fn unpinned(&self) {
        let mut pinned = self.pinned.lock();
        pinned.runs.retain(|_, (_, run)| run.strong_count() > 0);
        // Less than before: nothing can be refused.
        let _ = self.count(&mut pinned);
    }

    /// A live run that has all of `len` bytes from `offset`.
    pub(crate) fn pinned(&self, offset: u64, len: u64) -> Option<Arc<Run>> {
        let pinned = self.pinned.lock();
        let mut before = pinned.runs.range(..=(offset, u64::MAX)).rev();
        // What is upgraded and not wanted is dropped after the lock is free.
        let mut passed = Vec::new();
        let found = before.find_map(|(_, (_, run))| {
            let run = run.upgrade()?;
            if run.covers(offset, len) {
                return Some(run);
            }
            passed.push(run);
            None
        });
        drop(pinned);
        drop(passed);
        found
    }

    /// Whether software may use them too, not only page tables.
    pub(crate) fn is_accessible(&self) -> bool {
        !self.source.is_device()
    }

    /// Copies bytes out: from the pinned pages where there are some, else from wherever the source
    /// finds them now. May block as the source does.
    pub(crate) fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        match self.pinned(offset, dst.len() as u64) {
            Some(run) => run.read(offset, dst),
            None => self.source.read(offset, dst),
        }
    }

    /// Copies bytes in; as [`Pages::read`].
    pub(crate) fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        match self.pinned(offset, src.len() as u64) {
            Some(run) => run.write(offset, src),
            None => self.source.write(offset, src),
        }
    }

    /// Whether an address of `page` has been given to one of the runs.
    pub(crate) fn holds(&self, page: AddrRange) -> bool {
        let live: Vec<_> = {
            let pinned = self.pinned.lock();
            let runs = pinned.runs.values();
            runs.filter_map(|(_, run)| run.upgrade()).collect()
        };
        live.iter().any(|run| run.holds(page))
    }

    /// Bytes that are counted as locked now.
    pub(crate) fn charged(&self) -> (Charge, u64) {
        let pinned = self.pinned.lock();
        (pinned.charge, pinned.charged)
    }

    /// The memory counts for `account` from now on, which has been charged for what is pinned.
    pub(crate) fn hand_over(&self, account: Account) {
        let mut pinned = self.pinned.lock();
        self.ledger.uncharge(pinned.charge, pinned.charged);
        pinned.charge = pinned.charge.moved_to(account);
    }

    /// Bytes that have system physical addresses now.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned.lock().covered()
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        self.ledger.leave(self.number);
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages")
            .field("source", &self.source)
            .field("writable", &self.writable)
            .finish_non_exhaustive()
    }
}

/// `len` bytes at `offset` of directly addressable memory.
fn direct(memory: RawBytes<'_>, offset: u64, len: usize) -> Result<RawBytes<'_>, MemoryGone> {
    let offset = usize::try_from(offset).ok();
    offset
        .and_then(|offset| memory.slice(offset, len))
        .ok_or(MemoryGone { done: 0 })
}

/// Part of a source that has system physical addresses. They stay valid while this lives.
pub(crate) struct Run {
    pages: Arc<Pages>,
    offset: u64,
    len: u64,
    extents: Vec<Extent>,
}

impl Drop for Run {
    fn drop(&mut self) {
        self.pages.unpinned();
    }
}

impl fmt::Debug for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Run")
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Run {
    fn covers(&self, offset: u64, len: u64) -> bool {
        offset
            .checked_sub(self.offset)
            .and_then(|skip| self.len.checked_sub(skip))
            .is_some_and(|rest| len <= rest)
    }

    /// Calls `copy` with each extent that has bytes of the range, the offset in its registration
    /// and the bytes, in order.
    fn each(
        &self,
        offset: u64,
        len: usize,
        copy: &mut dyn FnMut(&Extent, u64, usize) -> Result<(), MemoryGone>,
    ) -> Result<(), MemoryGone> {
        let mut skip = offset.saturating_sub(self.offset);
        let mut left = len;
        for extent in &self.extents {
            if skip >= extent.len {
                skip -= extent.len;
                continue;
            }
            let bytes = usize::try_from(extent.len - skip).map_or(left, |room| room.min(left));
            let start = extent.spa.wrapping_add(skip);
            copy(extent, start.wrapping_sub(extent.hold.start()), bytes)?;
            skip = 0;
            left -= bytes;
            if left == 0 {
                return Ok(());
            }
        }
        Err(MemoryGone { done: len - left })
    }

    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let mut rest = &mut *dst;
        let len = rest.len();
        self.each(offset, len, &mut |extent, at, bytes| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(bytes);
            rest = after;
            match extent.hold.memory() {
                Memory::Direct(memory) => direct(memory, at, bytes)?.read(part),
                Memory::Remote(memory) => memory.read(at, part),
            }
        })
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let mut rest = src;
        self.each(offset, src.len(), &mut |extent, at, bytes| {
            let (part, after) = rest.split_at(bytes);
            rest = after;
            match extent.hold.memory() {
                Memory::Direct(memory) => direct(memory, at, bytes)?.write(part),
                Memory::Remote(memory) => memory.write(at, part),
            }
        })
    }

    /// Whether an address of `page` is one of the run's.
    fn holds(&self, page: AddrRange) -> bool {
        let of = |extent: &Extent| AddrRange::from_len(extent.spa, extent.len);
        let mut ranges = self.extents.iter().filter_map(of);
        ranges.any(|range| range.overlaps(page))
    }

    /// The extents of `len` bytes from `offset` of the source.
    fn part(&self, offset: u64, len: u64) -> Vec<Extent> {
        let mut skip = offset.saturating_sub(self.offset);
        let mut left = len;
        let mut extents = Vec::new();
        for extent in &self.extents {
            if skip >= extent.len {
                skip -= extent.len;
                continue;
            }
            let len = (extent.len - skip).min(left);
            if len == 0 {
                break;
            }
            extents.push(Extent {
                spa: extent.spa + skip,
                len,
                hold: Arc::clone(&extent.hold),
            });
            skip = 0;
            left -= len;
        }
        extents
    }

    /// The (system physical address, length) pieces of `len` bytes from `offset` of the source.
    /// Neighbours whose addresses touch are one piece, so that leaves can be as large as possible.
    pub(crate) fn pieces(&self, offset: u64, len: u64) -> Vec<(u64, u64)> {
        let mut pieces: Vec<(u64, u64)> = Vec::new();
        for Extent { spa, len, .. } in self.part(offset, len) {
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

    use crate::space::ledger::Limits;

    fn pages_of(source: OwnPages, ledger: &Arc<MemoryLedger>) -> Arc<Pages> {
        let charge = Charge::new(Account::default(), true);
        Pages::new(Arc::new(source), true, ledger, charge)
    }

    #[test]
    fn a_part_of_what_is_pinned_is_not_pinned_again() {
        let space = SpaSpace::new(Grace::new());
        let source = OwnPages::new(&space, 1 << 20).unwrap();
        let spa = source.spa();
        let ledger = MemoryLedger::new(Limits::Counted);
        let pages = pages_of(source, &ledger);
        let whole = pages.pin(0, 1 << 20).unwrap();
        let part = pages.pin(0x3000, 0x2000).unwrap();
        assert!(Arc::ptr_eq(&whole, &pages.pin(0, 1 << 20).unwrap()));
        assert_eq!(part.pieces(0x3000, 0x2000), [(spa + 0x3000, 0x2000)]);
        assert_eq!(pages.pinned_bytes(), 1 << 20);
        drop(whole);
        assert_eq!(
            pages.pinned_bytes(),
            0x2000,
            "the rest goes before the part"
        );
        drop(part);
        assert_eq!(pages.pinned_bytes(), 0);
        assert!(pages.pin(0, (1 << 20) + 4096).is_err());
    }

    #[test]
    fn a_page_counts_once_however_many_runs_have_it() {
        let space = SpaSpace::new(Grace::new());
        let source = OwnPages::new(&space, 1 << 20).unwrap();
        let page = AddrRange::from_len(source.spa() + 0x3000, 0x1000).unwrap();
        let ledger = MemoryLedger::new(Limits::Counted);
        let pages = pages_of(source, &ledger);
        let part = pages.pin(0x3000, 0x1000).unwrap();
        assert_eq!((ledger.locked(0), ledger.pins(page)), (0x1000, 1));
        let whole = pages.pin(0x2000, 0x3800).unwrap();
        assert_eq!((ledger.locked(0), ledger.pins(page)), (0x4000, 1));
        drop(part);
        assert_eq!((ledger.locked(0), ledger.pins(page)), (0x4000, 1));
        drop(whole);
        assert_eq!((ledger.locked(0), ledger.pins(page)), (0, 0));
    }

    #[test]
    fn what_is_pinned_moves_to_the_account_it_is_handed_to() {
        let space = SpaSpace::new(Grace::new());
        let ledger = MemoryLedger::new(Limits::Counted);
        let pages = pages_of(OwnPages::new(&space, 0x2000).unwrap(), &ledger);
        let run = pages.pin(0, 0x2000).unwrap();
        let other = Account {
            process: 7,
            ..Account::default()
        };
        let (charge, bytes) = pages.charged();
        ledger.charge(charge.moved_to(other), bytes).unwrap();
        pages.hand_over(other);
        assert_eq!((ledger.locked(0), ledger.locked(7)), (0, 0x2000));
        drop(run);
        assert_eq!(ledger.locked(7), 0);
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
        let ledger = MemoryLedger::new(Limits::Counted);
        let run = Run {
            pages: pages_of(OwnPages::new(&space, 4096).unwrap(), &ledger),
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
