//! What is pinned of some pages: runs, with their system physical addresses and their users.
//!
//! Pure bookkeeping, nothing is locked here. Nearly all pages have one run of one extent: that needs
//! no memory but its own.

use std::{cmp::Reverse, num::NonZeroU32, sync::Arc};

use ioasid_core::{
    AddrRange,
    memory::{Extent, Memory, MemoryGone, PAGE_SIZE, PinError, RawBytes},
    spa::SpaRange,
};

/// `len` bytes at `offset` of directly addressable memory.
fn direct(memory: RawBytes<'_>, offset: u64, len: usize) -> Result<RawBytes<'_>, MemoryGone> {
    let offset = usize::try_from(offset).ok();
    offset
        .and_then(|offset| memory.slice(offset, len))
        .ok_or(MemoryGone { done: 0 })
}

/// The addresses of a run.
#[derive(Clone)]
enum Addresses {
    /// All in one registration.
    One {
        spa: u64,
        hold: Arc<SpaRange>,
    },
    Many(Arc<Vec<Extent>>),
}

/// Part of a source that has system physical addresses. They stay valid while this, or a clone of
/// it, lives.
#[derive(Clone)]
pub(super) struct Run {
    offset: u64,
    len: u64,
    addresses: Addresses,
}

/// One extent of a run: its addresses and what keeps them.
struct Piece<'a> {
    spa: u64,
    len: u64,
    hold: &'a Arc<SpaRange>,
}

impl Run {
    /// The `len` bytes from `offset` that were pinned as `extents`.
    ///
    /// # Errors
    /// [`PinError::OutOfRange`] if those are not as many bytes.
    pub(super) fn new(offset: u64, len: u64, mut extents: Vec<Extent>) -> Result<Self, PinError> {
        let total = extents
            .iter()
            .try_fold(0u64, |sum, extent| sum.checked_add(extent.len));
        if total != Some(len) {
            return Err(PinError::OutOfRange);
        }
        let addresses = match (extents.len(), extents.pop()) {
            (1, Some(Extent { spa, hold, .. })) => Addresses::One { spa, hold },
            (_, last) => {
                extents.extend(last);
                Addresses::Many(Arc::new(extents))
            }
        };
        Ok(Run {
            offset,
            len,
            addresses,
        })
    }

    /// What runs are sorted by.
    fn order(&self) -> (u64, Reverse<u64>) {
        (self.offset, Reverse(self.len))
    }

    fn covers(&self, offset: u64, len: u64) -> bool {
        offset
            .checked_sub(self.offset)
            .and_then(|skip| self.len.checked_sub(skip))
            .is_some_and(|rest| len <= rest)
    }

    /// Bytes of its pages: from the start of the first to the end of the last, exclusive.
    fn pages(&self) -> (u64, u64) {
        let end = self.offset.saturating_add(self.len);
        let end = end.checked_next_multiple_of(PAGE_SIZE).unwrap_or(end);
        (self.offset / PAGE_SIZE * PAGE_SIZE, end)
    }

    fn extents(&self) -> impl Iterator<Item = Piece<'_>> {
        let (one, many) = match &self.addresses {
            Addresses::One { spa, hold } => {
                let (spa, len) = (*spa, self.len);
                (Some(Piece { spa, len, hold }), &[][..])
            }
            Addresses::Many(extents) => (None, extents.as_slice()),
        };
        let many = many.iter().map(|extent| Piece {
            spa: extent.spa,
            len: extent.len,
            hold: &extent.hold,
        });
        one.into_iter().chain(many)
    }

    /// The part of each extent that lies in the `len` bytes from `offset` of the source, in order.
    fn within(&self, offset: u64, len: u64) -> impl Iterator<Item = Piece<'_>> {
        let mut skip = offset.saturating_sub(self.offset);
        let mut left = len;
        self.extents().filter_map(move |Piece { spa, len, hold }| {
            if skip >= len || left == 0 {
                skip = skip.saturating_sub(len);
                return None;
            }
            let len = (len - skip).min(left);
            let spa = spa.wrapping_add(skip);
            skip = 0;
            left -= len;
            Some(Piece { spa, len, hold })
        })
    }

    /// Calls `copy` with each extent that has bytes of the range, the offset in its registration
    /// and the bytes, in order.
    fn each(
        &self,
        offset: u64,
        len: usize,
        copy: &mut dyn FnMut(&SpaRange, u64, usize) -> Result<(), MemoryGone>,
    ) -> Result<(), MemoryGone> {
        let mut left = len;
        for Piece { spa, len, hold } in self.within(offset, len as u64) {
            // No more than `left`, which is a size.
            let bytes = usize::try_from(len).map_or(left, |len| len.min(left));
            copy(hold, spa.wrapping_sub(hold.start()), bytes)?;
            left -= bytes;
        }
        match left {
            0 => Ok(()),
            _ => Err(MemoryGone { done: len - left }),
        }
    }

    /// Copies bytes out. May block as the memory does.
    pub(super) fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let mut rest = &mut *dst;
        let len = rest.len();
        self.each(offset, len, &mut |hold, at, bytes| {
            let (part, after) = std::mem::take(&mut rest).split_at_mut(bytes);
            rest = after;
            match hold.memory() {
                Memory::Direct(memory) => direct(memory, at, bytes)?.read(part),
                Memory::Remote(memory) => memory.read(at, part),
            }
        })
    }

    /// Copies bytes in; as [`Run::read`].
    pub(super) fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let mut rest = src;
        self.each(offset, src.len(), &mut |hold, at, bytes| {
            let (part, after) = rest.split_at(bytes);
            rest = after;
            match hold.memory() {
                Memory::Direct(memory) => direct(memory, at, bytes)?.write(part),
                Memory::Remote(memory) => memory.write(at, part),
            }
        })
    }

    /// Whether an address of `page` is one of the run's.
    fn holds(&self, page: AddrRange) -> bool {
        let mut ranges = self
            .extents()
            .filter_map(|p| AddrRange::from_len(p.spa, p.len));
        ranges.any(|range| range.overlaps(page))
    }

    /// The extents of `len` bytes from `offset` of the source.
    fn part(&self, offset: u64, len: u64) -> Vec<Extent> {
        let pieces = self.within(offset, len);
        let extent = |Piece { spa, len, hold }: Piece<'_>| Extent {
            spa,
            len,
            hold: Arc::clone(hold),
        };
        pieces.map(extent).collect()
    }

    /// The (system physical address, length) pieces of `len` bytes from `offset` of the source.
    /// Neighbours whose addresses touch are one piece, so that leaves can be as large as possible.
    pub(super) fn pieces(&self, offset: u64, len: u64) -> Pieces {
        let mut pieces = Pieces::default();
        for Piece { spa, len, .. } in self.within(offset, len) {
            pieces.push(spa, len);
        }
        pieces
    }
}

/// (System physical address, length) pieces, of which there is nearly always one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pieces {
    /// A length of 0 if there is none.
    first: [(u64, u64); 1],
    more: Vec<(u64, u64)>,
}

impl Pieces {
    fn push(&mut self, spa: u64, len: u64) {
        let last = self.more.last_mut().unwrap_or(&mut self.first[0]);
        if last.1 == 0 {
            *last = (spa, len);
        } else if last.0.wrapping_add(last.1) == spa {
            last.1 += len;
        } else {
            self.more.push((spa, len));
        }
    }

    /// In order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        let first = self.first.iter().filter(|(_, len)| *len > 0);
        first.chain(&self.more).copied()
    }
}

/// A run in use.
struct Used {
    run: Run,
    users: NonZeroU32,
    /// What its users know it by.
    number: u32,
}

/// The runs of some pages by offset, the longest first where several begin.
enum Runs {
    One(Used),
    Many(Vec<Used>),
}

/// What is pinned of some pages.
pub(super) struct Pinned(Runs);

const _: () = assert!(
    size_of::<Pinned>() == 40,
    "a word more is one for each mapping"
);

impl Default for Pinned {
    fn default() -> Self {
        Pinned(Runs::Many(Vec::new()))
    }
}

/// What there is of a part that is to be pinned.
pub(super) enum Found {
    /// A run of just these bytes, which has one user more now, and its pieces.
    Used(u32, Pieces),
    /// The extents of a run that has more than these.
    Part(Vec<Extent>),
    Nothing,
}

impl Pinned {
    fn runs(&self) -> &[Used] {
        match &self.0 {
            Runs::One(run) => std::slice::from_ref(run),
            Runs::Many(runs) => runs,
        }
    }

    fn runs_mut(&mut self) -> &mut [Used] {
        match &mut self.0 {
            Runs::One(run) => std::slice::from_mut(run),
            Runs::Many(runs) => runs,
        }
    }

    /// The index of the last run that has all of `len` bytes from `offset`: the one that starts
    /// nearest to them, and the shortest of those.
    fn index(&self, offset: u64, len: u64) -> Option<usize> {
        let runs = self.runs();
        let after = runs.partition_point(|used| used.run.offset <= offset);
        (0..after)
            .rev()
            .find(|index| runs[*index].run.covers(offset, len))
    }

    /// A run that has all of `len` bytes from `offset`.
    pub(super) fn covering(&self, offset: u64, len: u64) -> Option<Run> {
        let index = self.index(offset, len)?;
        Some(self.runs().get(index)?.run.clone())
    }

    /// Uses the run of `len` bytes from `offset`, or finds one that it is part of.
    pub(super) fn find(&mut self, offset: u64, len: u64) -> Found {
        let index = self.index(offset, len);
        match index.and_then(|index| self.runs_mut().get_mut(index)) {
            Some(used) if (used.run.offset, used.run.len) == (offset, len) => {
                used.users = used.users.saturating_add(1);
                Found::Used(used.number, used.run.pieces(offset, len))
            }
            Some(used) => Found::Part(used.run.part(offset, len)),
            None => Found::Nothing,
        }
    }

    /// Adds a run with one user, and returns its number.
    pub(super) fn insert(&mut self, run: Run) -> u32 {
        let numbers = self.runs().iter().map(|used| used.number);
        let mut number = numbers.max().map_or(0, |highest| highest.wrapping_add(1));
        while self.runs().iter().any(|used| used.number == number) {
            number = number.wrapping_add(1);
        }
        let used = Used {
            run,
            users: NonZeroU32::MIN,
            number,
        };
        self.0 = match std::mem::replace(&mut self.0, Runs::Many(Vec::new())) {
            Runs::Many(runs) if runs.is_empty() => Runs::One(used),
            Runs::One(other) if other.run.order() <= used.run.order() => {
                Runs::Many(vec![other, used])
            }
            Runs::One(other) => Runs::Many(vec![used, other]),
            Runs::Many(mut runs) => {
                let at = runs.partition_point(|other| other.run.order() <= used.run.order());
                runs.insert(at, used);
                Runs::Many(runs)
            }
        };
        number
    }

    /// Run `number` has one user more.
    pub(super) fn share(&mut self, number: u32) {
        let mut runs = self.runs_mut().iter_mut();
        if let Some(used) = runs.find(|used| used.number == number) {
            used.users = used.users.saturating_add(1);
        }
    }

    /// Run `number` has one user less. If that was the last, the run is no longer here and is
    /// returned.
    pub(super) fn release(&mut self, number: u32) -> Option<Run> {
        let index = self.runs().iter().position(|used| used.number == number)?;
        let used = self.runs_mut().get_mut(index)?;
        if let Some(users) = NonZeroU32::new(used.users.get() - 1) {
            used.users = users;
            return None;
        }
        match std::mem::replace(&mut self.0, Runs::Many(Vec::new())) {
            Runs::One(used) => Some(used.run),
            Runs::Many(mut runs) => {
                let used = runs.remove(index);
                self.0 = match runs.len() {
                    1 => runs.pop().map_or(Runs::Many(runs), Runs::One),
                    _ => Runs::Many(runs),
                };
                Some(used.run)
            }
        }
    }

    /// The pieces of `len` bytes from `offset`, which run `number` has.
    pub(super) fn pieces(&self, number: u32, offset: u64, len: u64) -> Pieces {
        let mut runs = self.runs().iter();
        let used = runs.find(|used| used.number == number);
        used.map_or_else(Pieces::default, |used| used.run.pieces(offset, len))
    }

    /// Whether an address of `page` has been given to one of the runs.
    pub(super) fn holds(&self, page: AddrRange) -> bool {
        self.runs().iter().any(|used| used.run.holds(page))
    }

    /// Bytes of the pages that the runs cover together.
    pub(super) fn covered(&self) -> u64 {
        let mut bytes = 0;
        let mut next = 0;
        for used in self.runs() {
            let (start, end) = used.run.pages();
            bytes += end.saturating_sub(start.max(next));
            next = next.max(end);
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use ioasid_core::{grace::Grace, memory::OwnMemory, spa::SpaSpace};
    use proptest::prelude::*;

    use super::*;

    fn hold() -> Arc<SpaRange> {
        let space = SpaSpace::new(Grace::new());
        Arc::new(space.register(OwnMemory::new(4096), 0).unwrap())
    }

    fn run(hold: &Arc<SpaRange>, offset: u64, extents: &[(u64, u64)]) -> Run {
        let extent = |&(spa, len): &(u64, u64)| Extent {
            spa,
            len,
            hold: Arc::clone(hold),
        };
        let len = extents.iter().map(|(_, len)| len).sum();
        Run::new(offset, len, extents.iter().map(extent).collect()).unwrap()
    }

    #[test]
    fn pieces_that_touch_are_one() {
        let extents = [(0x1000, 0x1000), (0x2000, 0x2000), (0x9000, 0x1000)];
        let run = run(&hold(), 0x1000, &extents);
        let pieces = |offset, len| run.pieces(offset, len).iter().collect::<Vec<_>>();
        assert_eq!(pieces(0x1000, 0x4000), [(0x1000, 0x3000), (0x9000, 0x1000)]);
        assert_eq!(pieces(0x2000, 0x2800), [(0x2000, 0x2000), (0x9000, 0x800)]);
        assert_eq!(pieces(0x4100, 0x100), [(0x9100, 0x100)]);
        assert_eq!(pieces(0x5000, 0x100), []);
    }

    #[test]
    fn extents_that_are_not_all_bytes_are_no_run() {
        let extent = || Extent {
            spa: 0x1000,
            len: 0x1000,
            hold: hold(),
        };
        for extents in [vec![], vec![extent()], vec![extent(), extent(), extent()]] {
            assert!(Run::new(0, 0x2000, extents).is_err());
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Pin(u64, u64),
        Share(usize),
        Release(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            3 => (0..24u64, 1..9u64).prop_map(|(at, len)| Step::Pin(at * 0x800, len * 0x800)),
            1 => any::<usize>().prop_map(Step::Share),
            3 => any::<usize>().prop_map(Step::Release),
        ];
        prop::collection::vec(step, 1..60)
    }

    /// One use: its number, and the bytes it is of.
    type Use = (u32, u64, u64);

    /// Bytes of the pages that `uses` touch.
    fn touched(uses: &[Use]) -> u64 {
        let touches = |page: &u64| {
            let page = *page * PAGE_SIZE..(*page + 1) * PAGE_SIZE;
            uses.iter()
                .any(|(_, at, len)| *at < page.end && page.start < at + len)
        };
        (0..64).filter(touches).count() as u64 * PAGE_SIZE
    }

    proptest! {
        /// Against a list of uses: a run is there as long as one use of it is, whatever is pinned
        /// beside it, and each page counts once.
        #[test]
        fn runs_live_as_long_as_their_users(steps in steps()) {
            const SPA: u64 = 1 << 40;
            let hold = hold();
            let mut pinned = Pinned::default();
            let mut uses: Vec<Use> = Vec::new();
            for step in steps {
                match step {
                    Step::Pin(at, len) => {
                        let covered = uses.iter().any(|(_, o, l)| *o <= at && at + len <= o + l);
                        let same = uses.iter().any(|(_, o, l)| (*o, *l) == (at, len));
                        let number = match pinned.find(at, len) {
                            Found::Used(number, _) => {
                                prop_assert!(same);
                                number
                            }
                            Found::Part(extents) => {
                                prop_assert!(covered && !same);
                                pinned.insert(Run::new(at, len, extents).unwrap())
                            }
                            Found::Nothing => {
                                prop_assert!(!covered);
                                // Two extents, if there are two pages.
                                let first = len.min(PAGE_SIZE);
                                let extents = [(SPA + at, first), (SPA + at + first, len - first)];
                                let count = if first == len { 1 } else { 2 };
                                pinned.insert(run(&hold, at, &extents[..count]))
                            }
                        };
                        uses.push((number, at, len));
                    }
                    Step::Share(_) | Step::Release(_) if uses.is_empty() => {}
                    Step::Share(which) => {
                        let shared = uses[which % uses.len()];
                        pinned.share(shared.0);
                        uses.push(shared);
                    }
                    Step::Release(which) => {
                        let (number, at, len) = uses.swap_remove(which % uses.len());
                        let gone = pinned.release(number);
                        let last = uses.iter().all(|(other, ..)| *other != number);
                        prop_assert_eq!(gone.is_some(), last);
                        if let Some(run) = gone {
                            prop_assert_eq!((run.offset, run.len), (at, len));
                        }
                    }
                }
                prop_assert_eq!(pinned.covered(), touched(&uses));
                for (number, at, len) in &uses {
                    let pieces: Vec<_> = pinned.pieces(*number, *at, *len).iter().collect();
                    prop_assert_eq!(pieces, [(SPA + at, *len)]);
                    prop_assert!(pinned.covering(*at, *len).is_some());
                }
                for page in 0..20 {
                    let held = AddrRange::from_len(SPA + page * PAGE_SIZE, 1).unwrap();
                    let expected = uses.iter().any(|(_, at, len)| {
                        (*at..at + len).contains(&(page * PAGE_SIZE))
                    });
                    prop_assert_eq!(pinned.holds(held), expected);
                }
            }
            while let Some((number, ..)) = uses.pop() {
                pinned.release(number);
            }
            prop_assert_eq!((pinned.covered(), Arc::strong_count(&hold)), (0, 1));
        }
    }
}
