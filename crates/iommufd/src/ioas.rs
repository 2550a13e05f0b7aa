//! An I/O address space: what is mapped where, in every page table of it.
//!
//! Two locks. `change` is held by whoever maps, unmaps, or adds or removes a domain, for as long as
//! that takes, pinning and barrier included: one change of an IOAS at a time. `state` is held only
//! for lookups and bookkeeping, so that inspection and COPY from this IOAS never wait for a peer.

use std::{collections::BTreeMap, sync::Arc};

use ioasid_core::{
    AddrRange, Prot, failpoint,
    inspect::{Inspect, Node},
    memory::PAGE_SIZE,
    sync::Mutex,
};

use crate::{
    access::{AccessObject, AreaUse},
    domains::{IoasDomain, Tables},
    error::Error,
    iova::{IovaSpace, Owner},
    object::ObjectId,
    pages::{Pages, Run},
};

/// Where and how to map pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapArgs {
    /// The IOVA, or `None` to let the IOAS choose one.
    pub iova: Option<u64>,
    /// Bytes to map.
    pub len: u64,
    /// Bytes of the page source to skip: where the mapping starts inside it.
    pub offset: u64,
    /// What devices may do.
    pub prot: Prot,
}

impl MapArgs {
    /// `len` bytes from the start of the source, at `iova`.
    pub const fn fixed(iova: u64, len: u64, prot: Prot) -> Self {
        MapArgs {
            iova: Some(iova),
            len,
            offset: 0,
            prot,
        }
    }

    /// `len` bytes from the start of the source, where there is room.
    pub const fn anywhere(len: u64, prot: Prot) -> Self {
        MapArgs {
            iova: None,
            len,
            offset: 0,
            prot,
        }
    }
}

/// What to copy from one IOAS to another (or the same).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyArgs {
    /// The IOAS to map in.
    pub dst: ObjectId,
    /// The IOAS that has the pages.
    pub src: ObjectId,
    /// The IOVA in `dst`, or `None` to let it choose one.
    pub dst_iova: Option<u64>,
    /// The IOVA in `src`.
    pub src_iova: u64,
    /// Bytes.
    pub len: u64,
    /// What devices may do.
    pub prot: Prot,
}

/// What can be mapped in an IOAS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IovaRanges {
    /// The ranges, ascending.
    pub ranges: Vec<AddrRange>,
    /// What start and length of a mapping must be multiples of, in bytes; 1 if anything goes.
    pub alignment: u64,
}

/// One mapping.
#[derive(Clone, Debug)]
pub(crate) struct Area {
    pub(crate) pages: Arc<Pages>,
    /// Where the area starts in its pages, in bytes.
    pub(crate) offset: u64,
    pub(crate) prot: Prot,
    /// System physical addresses, while the IOAS has a domain.
    pub(crate) run: Option<Arc<Run>>,
    /// Who else holds its pages.
    pub(crate) usage: Arc<AreaUse>,
}

/// Bytes of some pages, to become an area.
#[derive(Clone, Debug)]
pub(crate) struct Part {
    pub(crate) pages: Arc<Pages>,
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// The bookkeeping of an IOAS.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) space: IovaSpace<Area>,
    pub(crate) tables: Tables,
    /// The access objects that are attached.
    pub(crate) accesses: BTreeMap<ObjectId, Arc<AccessObject>>,
    large_pages: bool,
}

impl State {
    /// What mappings must be aligned to.
    pub(crate) fn alignment(&self) -> u64 {
        let pins = self.accesses.values().any(|access| access.pins());
        let least = if self.large_pages && !pins {
            1
        } else {
            PAGE_SIZE
        };
        self.tables.alignment().max(least)
    }

    /// Whether leaves may be larger than a page.
    pub(crate) fn large_pages(&self) -> bool {
        self.large_pages
    }

    /// Whether every area is aligned to `alignment`.
    pub(crate) fn is_aligned(&self, alignment: u64) -> bool {
        alignment == 1
            || self.space.areas().all(|(range, area)| {
                range.is_aligned(alignment) && area.offset & (alignment - 1) == 0
            })
    }
}

/// An I/O address space object.
#[derive(Debug)]
pub(crate) struct Ioas {
    id: ObjectId,
    pub(crate) change: Mutex<()>,
    pub(crate) state: Mutex<State>,
}

impl Ioas {
    pub(crate) fn new(id: ObjectId) -> Arc<Self> {
        Arc::new(Ioas {
            id,
            change: Mutex::new(()),
            state: Mutex::new(State {
                space: IovaSpace::default(),
                tables: Tables::default(),
                accesses: BTreeMap::new(),
                large_pages: true,
            }),
        })
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    pub(crate) fn iova_ranges(&self) -> IovaRanges {
        let state = self.state.lock();
        IovaRanges {
            ranges: state.space.usable(),
            alignment: state.alignment(),
        }
    }

    pub(crate) fn allow_iovas(&self, ranges: &[AddrRange]) -> Result<(), Error> {
        let _change = self.change.lock();
        self.state.lock().space.set_allowed(ranges)
    }

    /// Maps `parts` one behind the other, all or nothing, and returns the IOVA of the first.
    pub(crate) fn map(&self, parts: &[Part], iova: Option<u64>, prot: Prot) -> Result<u64, Error> {
        let _change = self.change.lock();
        let (start, domains, large_pages) = {
            let mut state = self.state.lock();
            let start = place(&mut state, parts, iova, prot)?;
            (start, state.tables.domains(), state.large_pages)
        };
        let mut areas = Vec::with_capacity(parts.len());
        let mut next = start;
        for part in parts {
            failpoint::allocation()?;
            let range = AddrRange::from_len(next, part.len).ok_or(Error::Overflow)?;
            next = range.last().wrapping_add(1);
            let area = Area {
                pages: Arc::clone(&part.pages),
                offset: part.offset,
                prot,
                run: None,
                usage: Arc::default(),
            };
            areas.push((range, area));
        }
        for index in 0..areas.len() {
            let (range, area) = &mut areas[index];
            if let Err(error) = fill(&domains, *range, area, large_pages) {
                take_down(&domains, &areas[..=index]);
                return Err(error);
            }
        }
        let mut state = self.state.lock();
        for (range, area) in areas {
            state.space.insert(range, area);
        }
        Ok(start)
    }

    /// The pages behind `len` bytes from `iova`, which must all be mapped.
    pub(crate) fn parts(&self, iova: u64, len: u64) -> Result<Vec<Part>, Error> {
        if len == 0 {
            return Err(Error::Empty);
        }
        let range = AddrRange::from_len(iova, len).ok_or(Error::Overflow)?;
        let state = self.state.lock();
        let mut parts = Vec::new();
        let mut next = Some(range.start());
        for (area_range, area) in state.space.overlapping(range) {
            if next.is_none_or(|next| area_range.start() > next) {
                return Err(Error::NotMapped);
            }
            let Some(shared) = area_range.intersect(range) else {
                continue;
            };
            failpoint::allocation()?;
            parts.push(Part {
                pages: Arc::clone(&area.pages),
                offset: area.offset + (shared.start() - area_range.start()),
                len: shared.len_saturating(),
            });
            next = shared.last().checked_add(1);
        }
        let end = parts.iter().map(|part| part.len).sum::<u64>();
        if end == len {
            Ok(parts)
        } else {
            Err(Error::NotMapped)
        }
    }

    /// Unmaps the areas that lie wholly in `range`, and returns their bytes. When it returns no DMA
    /// through them is in flight, and no access object holds their pages.
    ///
    /// # Errors
    /// [`Error::NotMapped`] if an area lies across an edge, [`Error::AreaLocked`] if hardware owns
    /// one, [`Error::StillHeld`] if an access object does not let go of one; those before it are
    /// unmapped then, as in the kernel.
    pub(crate) fn unmap(&self, range: AddrRange) -> Result<u64, Error> {
        let (bytes, result) = self.unmap_counting(range);
        result.map(|()| bytes)
    }

    /// As [`Ioas::unmap`]; the bytes that were unmapped are told in any case.
    pub(crate) fn unmap_counting(&self, range: AddrRange) -> (u64, Result<(), Error>) {
        let mut bytes = 0u64;
        let mut kicks = Kicks::default();
        loop {
            let change = self.change.lock();
            let (areas, domains, end) = {
                let mut state = self.state.lock();
                let mut whole = Vec::new();
                let mut end = End::Done;
                for (area_range, area) in state.space.overlapping(range) {
                    if area.usage.is_locked() {
                        end = End::Error(Error::AreaLocked);
                    } else if !range.covers(area_range) {
                        end = End::Error(Error::NotMapped);
                    } else if area.usage.refuse_new() {
                        end = End::Held(area_range);
                    } else {
                        whole.push(area_range);
                        continue;
                    }
                    break;
                }
                let areas: Vec<_> = if whole.len() == state.space.len() {
                    state.space.clear()
                } else {
                    let remove =
                        |range: AddrRange| Some((range, state.space.remove(range.start())?));
                    whole.into_iter().filter_map(remove).collect()
                };
                (areas, state.tables.domains(), end)
            };
            take_down(&domains, &areas);
            bytes = bytes.saturating_add(total(&areas));
            drop(areas);
            drop(change);
            match end {
                End::Done => return (bytes, Ok(())),
                End::Error(error) => return (bytes, Err(error)),
                // No lock is held: whoever is told lets go of the pages before it returns.
                End::Held(area) => match kicks.count(area) {
                    Ok(()) => self.tell_accesses(area),
                    Err(error) => return (bytes, Err(error)),
                },
            }
        }
    }

    /// Unmaps everything and returns how many bytes that were.
    ///
    /// # Errors
    /// As [`Ioas::unmap`].
    pub(crate) fn unmap_all(&self) -> Result<u64, Error> {
        self.unmap(AddrRange::ALL)
    }

    /// Takes pages that their exporter has taken back out of every domain; returns after the barrier.
    /// The areas stay, and lead nowhere.
    pub(crate) fn revoke(&self, pages: &Arc<Pages>) {
        let _change = self.change.lock();
        let (areas, domains) = {
            let mut state = self.state.lock();
            let shown = state.space.areas_mut_with_ranges();
            let shown = shown.filter(|(_, area)| Arc::ptr_eq(&area.pages, pages));
            let areas: Vec<_> = shown
                .map(|(range, area)| {
                    let shown = area.clone();
                    area.run = None;
                    (range, shown)
                })
                .collect();
            (areas, state.tables.domains())
        };
        take_down(&domains, &areas);
    }

    /// Cuts the area that has both `last` and the address after it in two, so that one part can be
    /// unmapped. Neither pins nor page tables change.
    ///
    /// # Errors
    /// [`Error::Changing`] while the area is about to go, [`Error::CannotCut`] for pages of a device,
    /// [`Error::Misaligned`], [`Error::TooLate`] if an access object holds pages of the area, or if
    /// it is in a page table with leaves that may be large.
    pub(crate) fn cut_after(&self, last: u64) -> Result<(), Error> {
        let _change = self.change.lock();
        let mut state = self.state.lock();
        let at = AddrRange::new(last, last).ok_or(Error::Overflow)?;
        let Some((range, area)) = state.space.overlapping(at).next() else {
            return Ok(());
        };
        if last == range.start() || last == range.last() {
            return Ok(());
        }
        if area.usage.refuses_new() {
            return Err(Error::Changing);
        }
        if area.pages.source().is_device() {
            return Err(Error::CannotCut);
        }
        let alignment = state.alignment();
        let left = last - range.start() + 1;
        let offset = area.offset.wrapping_add(left);
        if (last + 1) & (alignment - 1) != 0 || offset & (alignment - 1) != 0 {
            return Err(Error::Misaligned { alignment });
        }
        if area.usage.is_used() || (area.run.is_some() && state.large_pages) {
            return Err(Error::TooLate);
        }
        failpoint::allocation()?;
        let right = Area {
            offset,
            usage: Arc::default(),
            ..area.clone()
        };
        state.space.split(range.start(), last, right);
        Ok(())
    }

    /// Asks every access object to let go of the pages behind `area`.
    fn tell_accesses(&self, area: AddrRange) {
        let accesses: Vec<_> = self.state.lock().accesses.values().cloned().collect();
        for access in accesses {
            access.tell(area);
        }
    }

    pub(crate) fn large_pages(&self) -> bool {
        self.state.lock().large_pages
    }

    /// Allows or forbids leaves larger than a page.
    pub(crate) fn set_large_pages(&self, on: bool) -> Result<(), Error> {
        let _change = self.change.lock();
        let mut state = self.state.lock();
        if !on && state.large_pages {
            if !state.tables.is_empty() && state.space.len() > 0 {
                return Err(Error::TooLate);
            }
            if !state.is_aligned(PAGE_SIZE) {
                return Err(Error::AddressInUse);
            }
        }
        state.large_pages = on;
        Ok(())
    }

    /// Keeps `ranges` unmapped for a device attached by its RID.
    pub(crate) fn reserve(&self, device: ObjectId, ranges: Vec<AddrRange>) -> Result<(), Error> {
        let _change = self.change.lock();
        self.state
            .lock()
            .space
            .reserve(Owner::Device(device), ranges)
    }

    pub(crate) fn unreserve(&self, device: ObjectId) {
        let _change = self.change.lock();
        self.state.lock().space.unreserve(Owner::Device(device));
    }
}

/// How a pass of [`Ioas::unmap`] ended.
enum End {
    Done,
    Error(Error),
    /// An access object holds pages of the area.
    Held(AddrRange),
}

/// How often the holders of one area were told to let go.
#[derive(Default)]
struct Kicks {
    area: Option<AddrRange>,
    times: u32,
}

impl Kicks {
    /// The kernel gives up after as many (`iopt_unmap_iova_range`).
    const MOST: u32 = 100;

    fn count(&mut self, area: AddrRange) -> Result<(), Error> {
        if self.area != Some(area) {
            *self = Kicks {
                area: Some(area),
                times: 0,
            };
        }
        self.times += 1;
        if self.times > Self::MOST {
            return Err(Error::StillHeld);
        }
        Ok(())
    }
}

/// Checks a mapping and chooses its address.
fn place(state: &mut State, parts: &[Part], iova: Option<u64>, prot: Prot) -> Result<u64, Error> {
    let alignment = state.alignment();
    let len = parts
        .iter()
        .try_fold(0u64, |sum, part| sum.checked_add(part.len))
        .ok_or(Error::Overflow)?;
    let (Some(first), 1..) = (parts.first(), len) else {
        return Err(Error::Empty);
    };
    if len & (alignment - 1) != 0 {
        return Err(Error::Misaligned { alignment });
    }
    let start = match iova {
        Some(iova) => state.space.check(iova, len, alignment)?.start(),
        None => {
            let address = first.pages.source().alignment_hint();
            let address = address.wrapping_add(first.offset);
            state.space.find(address, len, alignment)?
        }
    };
    for part in parts {
        if prot.write && !part.pages.writable() {
            return Err(Error::ReadOnlyPages);
        }
        if (part.offset % PAGE_SIZE) & (alignment - 1) != 0 {
            return Err(Error::Misaligned { alignment });
        }
    }
    Ok(start)
}

/// Gives an area system physical addresses and writes it to every domain. What was written stays on
/// failure, for the caller to take down.
pub(crate) fn fill(
    domains: &[Arc<IoasDomain>],
    range: AddrRange,
    area: &mut Area,
    large_pages: bool,
) -> Result<(), Error> {
    if domains.is_empty() || area.pages.is_revoked() {
        return Ok(());
    }
    let len = range.len_saturating();
    let run = match area.run.take() {
        Some(run) => run,
        None => area.pages.pin(area.offset, len)?,
    };
    let pieces = run.pieces(area.offset, len);
    area.run = Some(run);
    for domain in domains {
        let mut iova = range.start();
        for (spa, len) in &pieces {
            domain.map(iova, *spa, *len, area.prot, large_pages)?;
            iova = iova.wrapping_add(*len);
        }
    }
    Ok(())
}

/// Takes areas out of every domain: one barrier each. The caller drops the areas, and with them the
/// pins, afterwards.
fn take_down(domains: &[Arc<IoasDomain>], areas: &[(AddrRange, Area)]) {
    if domains.is_empty() || areas.is_empty() {
        return;
    }
    let mut ranges: Vec<AddrRange> = Vec::new();
    for (range, _) in areas {
        match ranges.last_mut() {
            Some(last) if last.last().checked_add(1) == Some(range.start()) => {
                if let Some(joined) = AddrRange::new(last.start(), range.last()) {
                    *last = joined;
                }
            }
            _ => ranges.push(*range),
        }
    }
    for domain in domains {
        domain.unmap(&ranges);
    }
}

fn total(areas: &[(AddrRange, Area)]) -> u64 {
    areas.iter().fold(0, |sum, (range, _)| {
        sum.saturating_add(range.len_saturating())
    })
}

impl Inspect for Ioas {
    fn inspect(&self) -> Node {
        let state = self.state.lock();
        let mut pages: Vec<_> = state.space.areas().map(|(_, area)| &area.pages).collect();
        pages.sort_by_key(|pages| Arc::as_ptr(pages));
        pages.dedup_by_key(|pages| Arc::as_ptr(pages));
        let pinned: u64 = pages.iter().map(|pages| pages.pinned_bytes()).sum();
        let domains = state.tables.domains();
        // Numbers of domains, not how many: `2` beside the name must not be read as two of them.
        let numbers: Vec<u32> = domains.iter().map(|domain| domain.id().get()).collect();
        Node::new()
            .with("id", self.id.get())
            .with("areas", state.space.len())
            .with("mapped_bytes", state.space.mapped())
            .with("pinned_bytes", pinned)
            .with("alignment", state.alignment())
            .with("domains", domains.len())
            .with("domain_ids", numbers)
    }
}
