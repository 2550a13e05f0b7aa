//! Which IOVAs of an address space are mapped, reserved or allowed, and where the next mapping
//! without an address of its own goes. Pure bookkeeping: no page table and no memory is known here.
//!
//! Ranges are (start, inclusive last). The rules are those of drivers/iommu/iommufd/io_pagetable.c.

use std::{collections::BTreeMap, ops::RangeInclusive};

use ioasid_core::{AddrRange, DomainId, failpoint, memory::PAGE_SIZE};
use rangemap::RangeInclusiveSet;

use super::area_map::AreaMap;
use crate::base::{
    error::{Error, MapError, RangeError, ReservedBy},
    id::ObjectId,
};

/// Alignment beyond which a chosen IOVA gains nothing: the size of a huge page.
const HUGE_PAGE: u64 = 2 << 20;

/// What needs a range to stay unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Owner {
    /// A device attached by its RID: its interrupt window and the like.
    Device(ObjectId),
    /// A page table that cannot translate the whole space.
    Domain(DomainId),
    /// A back end, for good. Each range has a number of its own.
    Permanent(u64),
}

/// A range that must stay unmapped, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ReservedRange {
    pub(crate) range: AddrRange,
    pub(crate) by: ReservedBy,
}

/// The IOVAs of one address space; an area carries a `T`.
#[derive(Debug)]
pub(crate) struct IovaSpace<T> {
    areas: AreaMap<T>,
    owners: BTreeMap<Owner, Vec<ReservedRange>>,
    /// The union of what the owners reserve.
    reserved: RangeInclusiveSet<u64>,
    /// Ranges that must stay mappable. Empty: no promise, and mappings may go anywhere.
    allowed: RangeInclusiveSet<u64>,
    searches: Vec<Search>,
    mapped: u64,
    /// Number of ranges that are reserved for good.
    permanent: u64,
}

impl<T> Default for IovaSpace<T> {
    fn default() -> Self {
        IovaSpace {
            areas: AreaMap::default(),
            owners: BTreeMap::new(),
            reserved: RangeInclusiveSet::new(),
            allowed: RangeInclusiveSet::new(),
            searches: Vec::new(),
            mapped: 0,
            permanent: 0,
        }
    }
}

fn span(range: AddrRange) -> RangeInclusive<u64> {
    range.start()..=range.last()
}

fn addr_range(span: &RangeInclusive<u64>) -> Option<AddrRange> {
    AddrRange::new(*span.start(), *span.end())
}

impl<T> IovaSpace<T> {
    /// The area with the highest address that meets `range`.
    fn highest_in(&self, range: AddrRange) -> Option<AddrRange> {
        let (area, _) = self.areas.at_or_before(range.last())?;
        Some(area).filter(|area| area.overlaps(range))
    }

    /// The areas that meet `range`, ascending.
    pub(crate) fn overlapping(&self, range: AddrRange) -> impl Iterator<Item = (AddrRange, &T)> {
        self.areas.overlapping(range)
    }

    /// Every area, ascending.
    pub(crate) fn areas(&self) -> impl Iterator<Item = (AddrRange, &T)> {
        self.overlapping(AddrRange::ALL)
    }

    /// The area that starts at `start`.
    pub(crate) fn area_mut(&mut self, start: u64) -> Option<&mut T> {
        self.areas.get_mut(start)
    }

    /// Every area, ascending, with what it carries.
    pub(crate) fn areas_mut_with_ranges(&mut self) -> impl Iterator<Item = (AddrRange, &mut T)> {
        self.areas.iter_mut()
    }

    /// What every area carries.
    pub(crate) fn areas_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.areas.iter_mut().map(|(_, area)| area)
    }

    /// Number of areas.
    pub(crate) fn len(&self) -> usize {
        self.areas.len()
    }

    /// Bytes in areas.
    pub(crate) fn mapped(&self) -> u64 {
        self.mapped
    }

    /// Whether `len` bytes at `iova` could become an area: the checks of a fixed mapping.
    pub(crate) fn check(&self, iova: u64, len: u64, alignment: u64) -> Result<AddrRange, MapError> {
        if iova & (alignment - 1) != 0 {
            return Err(MapError::Misaligned {
                what: "IOVA",
                value: iova,
                alignment,
            });
        }
        let range = AddrRange::from_len(iova, len);
        let range = range.ok_or(MapError::Overflow { start: iova, len })?;
        if let Some((reserved, by)) = self.reserved_in(range) {
            return Err(MapError::Reserved {
                range,
                reserved,
                by,
            });
        }
        if let Some(mapped) = self.highest_in(range) {
            return Err(MapError::Exists { range, mapped });
        }
        Ok(range)
    }

    /// A reserved range that meets `range`, and what it is reserved for.
    fn reserved_in(&self, range: AddrRange) -> Option<(AddrRange, ReservedBy)> {
        if self.owners.is_empty() || !self.reserved.overlaps(&span(range)) {
            return None;
        }
        let mut reserved = self.owners.values().flatten();
        let found = reserved.find(|reserved| reserved.range.overlaps(range))?;
        Some((found.range, found.by))
    }

    /// Adds an area that [`IovaSpace::check`] or [`IovaSpace::find`] approved.
    pub(crate) fn insert(&mut self, range: AddrRange, area: T) {
        self.areas.insert(range, area);
        self.mapped = self.mapped.saturating_add(range.len_saturating());
    }

    /// Lets the area that starts at `start` end at `last`, inside it, and gives the rest to
    /// `right`.
    pub(crate) fn split(&mut self, start: u64, last: u64, right: T) {
        let rest = self.areas.set_last(start, last);
        if let Some(rest) = rest.and_then(|rest| AddrRange::new(last + 1, rest)) {
            self.areas.insert(rest, right);
        }
    }

    /// Takes the area that starts at `start` out.
    pub(crate) fn remove(&mut self, start: u64) -> Option<(AddrRange, T)> {
        let (range, area) = self.areas.remove(start)?;
        self.mapped = self.mapped.saturating_sub(range.len_saturating());
        if self.searches.is_empty() {
            return Some((range, area));
        }
        let before = self.areas.at_or_before(start);
        let after = self.areas.starting_from(start).next();
        let gap_start = before.map_or(0, |(area, _)| area.last() + 1);
        let gap_last = after.map_or(u64::MAX, |(area, _)| area.start() - 1);
        let areas = self.areas.len();
        for search in &mut self.searches {
            search.opened(gap_start, gap_last, areas);
        }
        Some((range, area))
    }

    /// Takes every area out.
    pub(crate) fn clear(&mut self) -> AreaMap<T> {
        self.mapped = 0;
        self.searches.clear();
        std::mem::take(&mut self.areas)
    }

    /// Reserves `range` for good.
    ///
    /// # Errors
    /// As for [`IovaSpace::reserve`].
    pub(crate) fn reserve_permanently(&mut self, range: AddrRange) -> Result<(), Error> {
        self.permanent += 1;
        let by = ReservedBy::BackEnd;
        let owner = Owner::Permanent(self.permanent);
        self.reserve(owner, vec![ReservedRange { range, by }])
    }

    /// Reserves `ranges` for `owner`, all or none. An owner that has reserved before keeps that.
    ///
    /// # Errors
    /// [`RangeError::Mapped`] or [`RangeError::Allowed`] if that is in the way.
    pub(crate) fn reserve(
        &mut self,
        owner: Owner,
        ranges: Vec<ReservedRange>,
    ) -> Result<(), Error> {
        if ranges.is_empty() || self.owners.contains_key(&owner) {
            return Ok(());
        }
        for ReservedRange { range, by } in &ranges {
            let (reserved, by) = (*range, *by);
            if let Some(area) = self.highest_in(*range) {
                return Err(RangeError::Mapped { reserved, area, by }.into());
            }
            if self.allowed.overlaps(&span(*range)) {
                return Err(RangeError::Allowed { reserved, by }.into());
            }
            failpoint::allocation()?;
        }
        let spans = ranges.iter().map(|reserved| span(reserved.range));
        self.reserved.extend(spans);
        self.owners.insert(owner, ranges);
        self.searches.clear();
        Ok(())
    }

    /// Gives back what `owner` reserved.
    pub(crate) fn unreserve(&mut self, owner: Owner) {
        if self.owners.remove(&owner).is_some() {
            let ranges = self.owners.values().flatten();
            self.reserved = ranges.map(|reserved| span(reserved.range)).collect();
            self.searches.clear();
        }
    }

    /// Replaces the ranges that must stay mappable.
    ///
    /// # Errors
    /// [`RangeError::Empty`], [`RangeError::Overlaps`], [`RangeError::Reserved`].
    pub(crate) fn set_allowed(&mut self, ranges: &[AddrRange]) -> Result<(), Error> {
        let mut allowed = RangeInclusiveSet::new();
        for range in ranges {
            // One byte is refused too, as in the kernel.
            if range.start() == range.last() {
                return Err(RangeError::Empty {
                    start: range.start(),
                    last: range.last(),
                }
                .into());
            }
            if allowed.overlaps(&span(*range)) {
                return Err(RangeError::Overlaps { range: *range }.into());
            }
            failpoint::allocation()?;
            allowed.insert(span(*range));
        }
        let reserved = |range: &&AddrRange| self.reserved.overlaps(&span(**range));
        if let Some(range) = ranges.iter().find(reserved) {
            return Err(RangeError::Reserved { range: *range }.into());
        }
        self.allowed = allowed;
        self.searches.clear();
        Ok(())
    }

    /// What is not reserved, ascending.
    pub(crate) fn usable(&self) -> Vec<AddrRange> {
        let gaps = self.reserved.gaps(&(0..=u64::MAX));
        gaps.filter_map(|gap| addr_range(&gap)).collect()
    }

    /// A free address for `len` bytes whose own address is `address`: so aligned that leaves can be
    /// as large as the memory allows, and the lowest such one if `address` is that of a page. An
    /// offset in its page is set in the IOVA as the kernel sets it, bit by bit in the first address
    /// of each gap (`iopt_alloc_iova`).
    ///
    /// # Errors
    /// [`MapError::Overflow`] for lengths no alignment can be computed of, [`MapError::Misaligned`]
    /// if memory and page table cannot agree, [`MapError::NoSpace`].
    pub(crate) fn find(&mut self, address: u64, len: u64, alignment: u64) -> Result<u64, MapError> {
        if len == 0 || len >= u64::MAX / 2 {
            return Err(MapError::Overflow { start: 0, len });
        }
        let natural = len.next_power_of_two();
        let wanted = match address {
            0 => natural,
            address => natural.min(1 << address.trailing_zeros()),
        };
        let wanted = wanted.min(HUGE_PAGE);
        if wanted < alignment {
            return Err(MapError::Misaligned {
                what: "address",
                value: address,
                alignment,
            });
        }
        let no_space = MapError::NoSpace { len, alignment };
        let shape = Shape {
            // A gap of one byte is none to the kernel.
            len: len.max(2),
            alignment: wanted,
            offset: address % PAGE_SIZE,
        };
        if !shape.is_monotonic() {
            return self.fit_gap_by_gap(shape).ok_or(no_space);
        }
        let mut search = match self.searches.iter().position(|s| s.shape == shape) {
            Some(index) => self.searches.remove(index),
            None => Search::new(shape),
        };
        let found = search.run(self);
        // The most recent search is the last; the oldest goes.
        self.searches.push(search);
        if self.searches.len() > Search::KEPT {
            self.searches.remove(0);
        }
        found.ok_or(no_space)
    }

    /// Where mappings may go, ascending.
    fn windows(&self) -> impl Iterator<Item = AddrRange> {
        let everything = self.allowed.is_empty().then_some(AddrRange::ALL);
        let allowed = self.allowed.iter().filter_map(addr_range);
        everything.into_iter().chain(allowed)
    }

    /// As the kernel searches: at the start of each gap, and nowhere else in it.
    fn fit_gap_by_gap(&self, shape: Shape) -> Option<u64> {
        let fit = |start, last| {
            let fit = shape.place(start)?;
            (fit.last() <= last).then_some(fit.start())
        };
        for window in self.windows() {
            let last = window.last().min(Search::LAST);
            let Some(mut at) = fit(window.start().max(Search::FIRST), last) else {
                continue;
            };
            while let Some(rest) = AddrRange::new(at, last) {
                let area = self.overlapping(rest).next().map(|(area, _)| area);
                let reserved = self.reserved.overlapping(&span(rest)).next();
                let reserved = reserved.and_then(addr_range);
                let obstacle = [area, reserved].into_iter().flatten().min();
                let gap_last = match obstacle {
                    None => Some(last),
                    Some(obstacle) if obstacle.start() > at => Some(obstacle.start() - 1),
                    Some(_) => None,
                };
                if let Some(fit) = gap_last.and_then(|gap_last| fit(at, gap_last)) {
                    return Some(fit);
                }
                match obstacle.and_then(|obstacle| obstacle.last().checked_add(1)) {
                    Some(after) => at = after,
                    None => break,
                }
            }
        }
        None
    }

    /// The lowest fit of `shape` whose start lies in `from..=to`.
    fn first_fit(&self, shape: Shape, from: u64, to: u64) -> Option<u64> {
        for window in self.windows() {
            let mut start = window.start().max(from);
            while let Some(range) = shape.place(start) {
                if range.start() > to {
                    return None;
                }
                if range.last() > window.last().min(Search::LAST) {
                    break;
                }
                // Whatever starts before the end of the highest obstacle would meet it.
                let area = self.highest_in(range).map(AddrRange::last);
                let reserved = self
                    .reserved
                    .overlapping(&span(range))
                    .map(|r| *r.end())
                    .max();
                match area.max(reserved) {
                    None => return Some(range.start()),
                    Some(u64::MAX) => break,
                    Some(obstacle) => start = obstacle + 1,
                }
            }
        }
        None
    }
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Shape {
    /// Bytes that must be free.
    len: u64,
    alignment: u64,
    /// Offset in the page.
    offset: u64,
}

impl Shape {
    /// Whether [`Shape::place`] never goes down as `from` goes up, so that the first fit is the
    /// lowest: not where bits of the offset are set above the alignment.
    fn is_monotonic(self) -> bool {
        self.offset == 0 || self.offset == self.alignment
    }

    /// The range of this shape that the kernel tries in a gap that starts at `from`.
    fn place(self, from: u64) -> Option<AddrRange> {
        let start = from.checked_next_multiple_of(self.alignment)? | self.offset;
        AddrRange::from_len(start, self.len)
    }
}

/// Remembers what was searched in vain, so that the next search of the same shape need not walk
/// over every area again. The answer is the same first fit.
#[derive(Debug)]
struct Search {
    shape: Shape,
    /// Nothing of this shape fits below, except in `gaps`.
    frontier: u64,
    /// Where gaps opened below the frontier since it passed: start to inclusive last.
    gaps: BTreeMap<u64, u64>,
}

impl Search {
    /// Shapes remembered at a time.
    const KEPT: usize = 8;
    /// The first page is never chosen, so that an IOVA of 0 can mean "none"...
    const FIRST: u64 = PAGE_SIZE;
    /// ... nor the last, where `iova + len` would wrap.
    const LAST: u64 = u64::MAX - PAGE_SIZE;

    fn new(shape: Shape) -> Self {
        Search {
            shape,
            frontier: Self::FIRST,
            gaps: BTreeMap::new(),
        }
    }

    /// An area went, and the gap where it was is `start..=last` now; `areas` are left.
    fn opened(&mut self, start: u64, last: u64, areas: usize) {
        if start >= self.frontier {
            return;
        }
        let known = self.gaps.entry(start.max(Self::FIRST)).or_insert(last);
        *known = last.max(*known);
        if self.gaps.len() > areas + 64 {
            // More gaps than there can be: start over from the lowest.
            self.frontier = self.gaps.keys().next().copied().unwrap_or(Self::FIRST);
            self.gaps.clear();
        }
    }

    fn run<T>(&mut self, space: &IovaSpace<T>) -> Option<u64> {
        // What was mapped in a gap since it opened is walked over like anywhere else.
        while let Some((start, last)) = self.gaps.pop_first() {
            let fit = space.first_fit(self.shape, start, last);
            if let Some(fit) = fit.filter(|fit| *fit < self.frontier) {
                self.gaps.insert(fit, last);
                return Some(fit);
            }
        }
        let fit = space.first_fit(self.shape, self.frontier, u64::MAX);
        self.frontier = fit.unwrap_or(u64::MAX);
        fit
    }
}

#[cfg(test)]
#[path = "iova_model.rs"]
mod model;
