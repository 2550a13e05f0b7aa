//! An I/O address space: what is mapped where, in every page table of it.
//!
//! Two locks. `change` is held through a whole map, unmap, or adding or removing of a domain,
//! pinning and barrier included: one change of an IOAS at a time. `state` is held only for lookups
//! and bookkeeping, so that inspection and COPY from this IOAS never wait for a peer.

use std::{collections::BTreeMap, sync::Arc};

use ioasid_core::{
    AddrRange, Prot, failpoint,
    inspect::{Inspect, Node},
    memory::{PAGE_SIZE, PinBatch},
    sync::Mutex,
};

use super::{
    access::AccessObject,
    area::{Area, Part, fill, take_down},
    domains::{IoasDomain, Tables},
    iova::{IovaSpace, Owner, ReservedRange},
    pages::Pages,
};
use crate::base::{
    error::{Error, MapError, OptionError, RangeError},
    id::ObjectId,
};

mod access;
mod dirty;
mod page_tables;
mod unmap;

pub(crate) use access::{AttachedAccess, CopyPart};

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
    pub(crate) fn map<P>(&self, parts: P, iova: Option<u64>, prot: Prot) -> Result<u64, Error>
    where
        P: AsRef<[Part]> + IntoIterator<Item = Part>,
    {
        let _change = self.change.lock();
        let is_one = parts.as_ref().len() == 1;
        let mut state = self.state.lock();
        let start = place(&mut state, parts.as_ref(), iova, prot)?;
        let mut next = start;
        let mut areas = parts.into_iter().map(|part| {
            failpoint::allocation()?;
            let range = AddrRange::from_len(next, part.len);
            let range = range.ok_or(MapError::Overflow {
                start: next,
                len: part.len,
            })?;
            next = range.last().wrapping_add(1);
            Ok((range, Area::new(part.pages, part.offset, prot)))
        });
        if !is_one {
            let domains = (state.tables.domains(), state.large_pages);
            drop(state);
            let areas = areas.collect::<Result<Vec<_>, Error>>()?;
            self.fill(areas, &domains.0, domains.1)?;
        } else if let Some(area) = areas.next().transpose()? {
            if state.tables.is_empty() {
                // There is nothing to write, and nothing to wait for.
                state.space.insert(area.0, area.1);
                return Ok(start);
            }
            let domains = (state.tables.domains(), state.large_pages);
            drop(state);
            self.fill([area], &domains.0, domains.1)?;
        }
        Ok(start)
    }

    /// Writes areas to all domains and enters them; all or nothing.
    fn fill<A>(
        &self,
        mut areas: A,
        domains: &[Arc<IoasDomain>],
        large_pages: bool,
    ) -> Result<(), Error>
    where
        A: AsMut<[(AddrRange, Area)]> + IntoIterator<Item = (AddrRange, Area)>,
    {
        let slice = areas.as_mut();
        let mut batch = match slice.len() {
            1 => PinBatch::single(),
            _ => PinBatch::new(),
        };
        for index in 0..slice.len() {
            let (range, area) = &mut slice[index];
            if let Err(error) = fill(domains, *range, area, large_pages, &mut batch) {
                take_down(domains, slice[..=index].iter().map(|(range, _)| *range));
                return Err(error);
            }
        }
        let mut state = self.state.lock();
        for (range, area) in areas {
            state.space.insert(range, area);
        }
        Ok(())
    }

    /// The pages behind `len` bytes from `iova`, which must all be mapped.
    pub(crate) fn parts(&self, iova: u64, len: u64) -> Result<Vec<Part>, Error> {
        if len == 0 {
            return Err(MapError::Empty.into());
        }
        let range = AddrRange::from_len(iova, len);
        let range = range.ok_or(MapError::Overflow { start: iova, len })?;
        let state = self.state.lock();
        let mut parts = Vec::new();
        let mut next = Some(range.start());
        for (area_range, area) in state.space.overlapping(range) {
            if next.is_none_or(|next| area_range.start() > next) {
                return Err(MapError::SourceHole { range }.into());
            }
            let Some(shared) = area_range.intersect(range) else {
                continue;
            };
            failpoint::allocation()?;
            parts.push(Part {
                pages: Arc::clone(area.pages()),
                offset: area.offset + (shared.start() - area_range.start()),
                len: shared.len_saturating(),
            });
            next = shared.last().checked_add(1);
        }
        let end = parts.iter().map(|part| part.len).sum::<u64>();
        if end == len {
            Ok(parts)
        } else {
            Err(MapError::SourceHole { range }.into())
        }
    }

    /// The pages of its areas that have pinned an address of `page`.
    pub(crate) fn pinning(&self, page: AddrRange) -> Vec<Arc<Pages>> {
        let state = self.state.lock();
        let pages = state.space.areas().map(|(_, area)| area.pages());
        pages.filter(|pages| pages.holds(page)).cloned().collect()
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
                return Err(OptionError::Mapped { ioas: self.id }.into());
            }
            if !state.is_aligned(PAGE_SIZE) {
                return Err(RangeError::MisalignedAreas {
                    alignment: PAGE_SIZE,
                }
                .into());
            }
        }
        state.large_pages = on;
        Ok(())
    }

    /// Keeps `ranges` unmapped for a device attached by its RID.
    pub(crate) fn reserve(
        &self,
        device: ObjectId,
        ranges: Vec<ReservedRange>,
    ) -> Result<(), Error> {
        let _change = self.change.lock();
        self.state
            .lock()
            .space
            .reserve(Owner::Device(device), ranges)
    }

    /// Keeps a range unmapped for good.
    pub(crate) fn reserve_permanently(&self, range: AddrRange) -> Result<(), Error> {
        let _change = self.change.lock();
        self.state.lock().space.reserve_permanently(range)
    }

    pub(crate) fn unreserve(&self, device: ObjectId) {
        let _change = self.change.lock();
        self.state.lock().space.unreserve(Owner::Device(device));
    }
}

/// Checks a mapping and chooses its address.
fn place(
    state: &mut State,
    parts: &[Part],
    iova: Option<u64>,
    prot: Prot,
) -> Result<u64, MapError> {
    let alignment = state.alignment();
    let len = parts
        .iter()
        .try_fold(0u64, |sum, part| sum.checked_add(part.len))
        .ok_or(MapError::Overflow {
            start: iova.unwrap_or(0),
            len: u64::MAX,
        })?;
    let (Some(first), 1..) = (parts.first(), len) else {
        return Err(MapError::Empty);
    };
    let aligned = |what, value: u64| match value & (alignment - 1) {
        0 => Ok(()),
        _ => Err(MapError::Misaligned {
            what,
            value,
            alignment,
        }),
    };
    aligned("length", len)?;
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
            return Err(MapError::ReadOnlyPages);
        }
        aligned("offset of the memory in its page", part.offset % PAGE_SIZE)?;
    }
    Ok(start)
}

impl Inspect for Ioas {
    fn inspect(&self) -> Node {
        let state = self.state.lock();
        let mut pages: Vec<_> = state.space.areas().map(|(_, area)| area.pages()).collect();
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
