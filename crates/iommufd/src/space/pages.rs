//! The memory behind areas.
//!
//! One MAP makes one [`Pages`]; a COPY shares it, so memory is pinned and counted once however many
//! address spaces show it. Pages get system physical addresses only when the first domain (or
//! access) needs them: mapping an address that is not there is an error only if a domain is
//! attached, as in Linux. The addresses are given back when the last [`PinnedRun`] goes, which its areas
//! hold until the unmap of their last domain, barrier included, has returned.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ioasid_core::{
    AddrRange, Prot, failpoint,
    memory::{MemoryGone, PageSource, PinBatch, PinError},
    sync::Mutex,
};

use super::{
    ledger::Payer,
    pinned::{Found, Pieces, Pinned, Run},
};

/// A source of pages and what is pinned of it.
pub(crate) struct Pages {
    source: Arc<dyn PageSource>,
    writable: bool,
    /// The exporter took the memory back, for good.
    revoked: AtomicBool,
    state: Mutex<State>,
}

struct State {
    pinned: Pinned,
    /// Bytes of `pinned` are counted here.
    payer: Arc<Payer>,
}

// Each mapping has one: with the two counts of its `Arc` this is an allocation of 112 bytes.
const _: () = assert!(cfg!(ioasid_shuttle) || size_of::<Pages>() <= 88);

impl Pages {
    /// The pages of `source`; `writable` if devices may ever write them.
    pub(crate) fn new(source: Arc<dyn PageSource>, writable: bool, payer: Arc<Payer>) -> Arc<Self> {
        Arc::new(Pages {
            source,
            writable,
            revoked: AtomicBool::new(false),
            state: Mutex::new(State {
                pinned: Pinned::default(),
                payer,
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

    /// System physical addresses for `len` bytes from `offset`, shared with every other user, and
    /// what they are.
    ///
    /// May block as the source does: called with no lock held that inspection needs. `batch` is of
    /// the call that it is made in.
    pub(crate) fn pin(
        self: &Arc<Self>,
        batch: &mut PinBatch,
        offset: u64,
        len: u64,
    ) -> Result<(PinnedRun, Pieces), PinError> {
        let found = self.state.lock().pinned.find(offset, len);
        let extents = match found {
            Found::Used(number, pieces) => return Ok((self.run(number), pieces)),
            // A part of its own, so that the rest can go before it.
            Found::Part(extents) => extents,
            Found::Nothing => {
                let prot = Prot {
                    read: true,
                    write: self.writable,
                };
                failpoint::allocation()?;
                self.source.pin_next(batch, offset, len, prot)?
            }
        };
        // The run: what was pinned for it is released on failure.
        failpoint::allocation()?;
        let run = Run::new(offset, len, extents)?;
        let pieces = run.pieces(offset, len);
        let mut state = self.state.lock();
        let before = self.bytes(&state);
        let number = state.pinned.insert(run);
        if self.source.is_device() {
            return Ok((self.run(number), pieces));
        }
        let more = self.bytes(&state).saturating_sub(before);
        if let Err(error) = state.payer.count(more) {
            let run = state.pinned.release(number);
            drop(state);
            drop(run);
            return Err(error);
        }
        Ok((self.run(number), pieces))
    }

    /// A handle on run `number`, which counts it as a user already.
    fn run(self: &Arc<Self>, number: u32) -> PinnedRun {
        PinnedRun {
            pages: Arc::clone(self),
            number,
        }
    }

    /// A user of run `number` is gone.
    fn unpin(&self, number: u32) {
        let mut state = self.state.lock();
        let before = self.bytes(&state);
        let run = state.pinned.release(number);
        if run.is_some() {
            let less = before.saturating_sub(self.bytes(&state));
            state.payer.uncount(less);
        }
        drop(state);
        drop(run);
    }

    /// A pinned run that has all of `len` bytes from `offset`.
    fn covering(&self, offset: u64, len: u64) -> Option<Run> {
        self.state.lock().pinned.covering(offset, len)
    }

    /// Whether software may use them too, not only page tables.
    pub(crate) fn is_accessible(&self) -> bool {
        !self.source.is_device()
    }

    /// Copies bytes out: from the pinned pages where there are some, else from wherever the source
    /// finds them now. May block as the source does.
    pub(crate) fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        match self.covering(offset, dst.len() as u64) {
            Some(run) => run.read(offset, dst),
            None => self.source.read(offset, dst),
        }
    }

    /// Copies bytes in; as [`Pages::read`].
    pub(crate) fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        match self.covering(offset, src.len() as u64) {
            Some(run) => run.write(offset, src),
            None => self.source.write(offset, src),
        }
    }

    /// Whether an address of `page` has been given to one of the runs.
    pub(crate) fn holds(&self, page: AddrRange) -> bool {
        self.state.lock().pinned.holds(page)
    }

    /// Who pays for what is pinned, and the bytes that are counted as locked now.
    pub(crate) fn counted(&self) -> (Arc<Payer>, u64) {
        let state = self.state.lock();
        (Arc::clone(&state.payer), self.bytes(&state))
    }

    /// The memory counts for `payer` from now on, for whom `bytes` have been counted.
    pub(crate) fn hand_over(&self, payer: Arc<Payer>, bytes: u64) {
        let mut state = self.state.lock();
        let now = self.bytes(&state);
        state.payer.uncount(now);
        // An access object may have released some meanwhile.
        payer.uncount(bytes.saturating_sub(now));
        state.payer = payer;
    }

    /// Bytes that count as locked.
    fn bytes(&self, state: &State) -> u64 {
        match self.source.is_device() {
            true => 0,
            false => state.pinned.covered(),
        }
    }

    /// Bytes that have system physical addresses now.
    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.state.lock().pinned.covered()
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

/// Part of some pages that has system physical addresses: one use of it. They stay valid while this
/// lives.
pub(crate) struct PinnedRun {
    pages: Arc<Pages>,
    number: u32,
}

impl PinnedRun {
    pub(crate) fn pages(&self) -> &Arc<Pages> {
        &self.pages
    }

    /// The (system physical address, length) pieces of `len` bytes from `offset` of the source,
    /// which the run has. Neighbours whose addresses touch are one piece, so that leaves can be as
    /// large as possible.
    pub(crate) fn pieces(&self, offset: u64, len: u64) -> Pieces {
        let state = self.pages.state.lock();
        state.pinned.pieces(self.number, offset, len)
    }
}

impl Clone for PinnedRun {
    fn clone(&self) -> Self {
        self.pages.state.lock().pinned.share(self.number);
        self.pages.run(self.number)
    }
}

impl Drop for PinnedRun {
    fn drop(&mut self) {
        self.pages.unpin(self.number);
    }
}

impl fmt::Debug for PinnedRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedRun")
            .field("pages", &self.pages)
            .field("number", &self.number)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use ioasid_core::{grace::Grace, host::Account, memory::OwnPages, spa::SpaSpace};

    use super::*;

    use crate::space::ledger::{Charge, Limits, MemoryLedger};

    fn pages_of(source: OwnPages, ledger: &MemoryLedger) -> Arc<Pages> {
        let payer = ledger.payer(Charge::new(Account::default(), true));
        Pages::new(Arc::new(source), true, payer)
    }

    #[test]
    fn a_part_of_what_is_pinned_is_not_pinned_again() {
        let space = SpaSpace::new(Grace::new());
        let source = OwnPages::new(&space, 1 << 20).unwrap();
        let spa = source.spa();
        let ledger = MemoryLedger::new(Limits::Counted);
        let pages = pages_of(source, &ledger);
        let (whole, _) = pages.pin(&mut PinBatch::single(), 0, 1 << 20).unwrap();
        let (part, pieces) = pages.pin(&mut PinBatch::single(), 0x3000, 0x2000).unwrap();
        assert_eq!(
            whole.number,
            pages
                .pin(&mut PinBatch::single(), 0, 1 << 20)
                .unwrap()
                .0
                .number
        );
        for pieces in [pieces, part.pieces(0x3000, 0x2000)] {
            assert_eq!(pieces.iter().collect::<Vec<_>>(), [(spa + 0x3000, 0x2000)]);
        }
        assert_eq!(pages.pinned_bytes(), 1 << 20);
        drop(whole);
        assert_eq!(
            pages.pinned_bytes(),
            0x2000,
            "the rest goes before the part"
        );
        drop(part);
        assert_eq!(pages.pinned_bytes(), 0);
        assert!(
            pages
                .pin(&mut PinBatch::single(), 0, (1 << 20) + 4096)
                .is_err()
        );
    }

    #[test]
    fn a_page_counts_once_however_many_runs_have_it() {
        let space = SpaSpace::new(Grace::new());
        let source = OwnPages::new(&space, 1 << 20).unwrap();
        let page = AddrRange::from_len(source.spa() + 0x3000, 0x1000).unwrap();
        let ledger = MemoryLedger::new(Limits::Counted);
        let pages = pages_of(source, &ledger);
        let part = pages.pin(&mut PinBatch::single(), 0x3000, 0x1000).unwrap();
        assert_eq!((ledger.locked(0), pages.holds(page)), (0x1000, true));
        let whole = pages.pin(&mut PinBatch::single(), 0x2000, 0x3800).unwrap();
        assert_eq!((ledger.locked(0), pages.holds(page)), (0x4000, true));
        drop(part);
        assert_eq!((ledger.locked(0), pages.holds(page)), (0x4000, true));
        drop(whole);
        assert_eq!((ledger.locked(0), pages.holds(page)), (0, false));
    }

    #[test]
    fn what_is_pinned_moves_to_the_account_it_is_handed_to() {
        let space = SpaSpace::new(Grace::new());
        let ledger = MemoryLedger::new(Limits::Counted);
        let pages = pages_of(OwnPages::new(&space, 0x2000).unwrap(), &ledger);
        let run = pages.pin(&mut PinBatch::single(), 0, 0x2000).unwrap();
        let other = Account {
            process: 7,
            ..Account::default()
        };
        let (payer, bytes) = pages.counted();
        let payer = ledger.payer(payer.charge().moved_to(other));
        payer.count(bytes).unwrap();
        pages.hand_over(payer, bytes);
        assert_eq!((ledger.locked(0), ledger.locked(7)), (0, 0x2000));
        drop(run);
        assert_eq!(ledger.locked(7), 0);
    }
}
