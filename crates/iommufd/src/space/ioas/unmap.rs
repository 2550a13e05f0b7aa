//! Taking mappings away: UNMAP, pages that their exporter takes back, and mappings cut in two.

use std::sync::Arc;

use ioasid_core::{AddrRange, failpoint};

use super::Ioas;
use crate::{
    base::error::{CutError, Error, UnmapError},
    space::{
        area::{Area, Taken, take_down},
        iova::IovaSpace,
        pages::Pages,
    },
};

impl Ioas {
    /// Unmaps the areas that lie wholly in `range`, and returns their bytes. When it returns no DMA
    /// through them is in flight, and no access object holds their pages.
    ///
    /// # Errors
    /// [`UnmapError::Cuts`] if an area lies across an edge, [`UnmapError::Locked`] if hardware owns
    /// one, [`UnmapError::StillHeld`] if an access object does not release one; those before it are
    /// unmapped then, as in the kernel.
    pub(crate) fn unmap(&self, range: AddrRange) -> Result<u64, UnmapError> {
        let (bytes, result) = self.unmap_counting(range);
        result.map(|()| bytes)
    }

    /// As [`Ioas::unmap`]; the bytes that were unmapped are returned in any case.
    pub(crate) fn unmap_counting(&self, range: AddrRange) -> (u64, Result<(), UnmapError>) {
        let mut bytes = 0u64;
        let mut requests = Requests::default();
        loop {
            let change = self.change.lock();
            let (areas, domains, end) = {
                let mut state = self.state.lock();
                let (areas, end) = take(&mut state.space, range);
                let domains = (!state.tables.is_empty()).then(|| state.tables.domains());
                (areas, domains, end)
            };
            if let Some(domains) = domains {
                take_down(&domains, areas.ranges());
            }
            bytes = bytes.saturating_add(areas.bytes());
            drop(areas);
            drop(change);
            match end {
                End::Done => return (bytes, Ok(())),
                End::Error(error) => return (bytes, Err(error)),
                // No lock is held: an access object releases the pages before it returns.
                End::Held(area) => match requests.count(area) {
                    Ok(()) => self.ask_accesses(area),
                    Err(error) => return (bytes, Err(error)),
                },
            }
        }
    }

    /// Unmaps everything and returns how many bytes that were.
    ///
    /// # Errors
    /// As [`Ioas::unmap`].
    pub(crate) fn unmap_all(&self) -> Result<u64, UnmapError> {
        self.unmap(AddrRange::ALL)
    }

    /// Takes pages that their exporter has taken back out of every domain; returns after the
    /// barrier. The areas stay, and lead nowhere.
    pub(crate) fn revoke(&self, pages: &Arc<Pages>) {
        let _change = self.change.lock();
        let (areas, domains) = {
            let mut state = self.state.lock();
            let shown = state.space.areas_mut_with_ranges();
            let shown = shown.filter(|(_, area)| Arc::ptr_eq(area.pages(), pages));
            let areas: Vec<_> = shown.map(|(range, area)| (range, area.unpin())).collect();
            (areas, state.tables.domains())
        };
        take_down(&domains, areas.iter().map(|(range, _)| *range));
    }

    /// Cuts the area that has both `last` and the address after it in two, so that one part can be
    /// unmapped. Neither pins nor page tables change.
    ///
    /// # Errors
    /// [`CutError::Changing`] while the area is about to go, [`CutError::DevicePages`],
    /// [`CutError::Misaligned`], [`CutError::InUse`] if an access object holds pages of the area,
    /// or if it is in a page table with leaves that may be large.
    pub(crate) fn cut_after(&self, last: u64) -> Result<(), Error> {
        let _change = self.change.lock();
        let mut state = self.state.lock();
        let at = AddrRange::new(last, last);
        let Some((range, area)) = at.and_then(|at| state.space.overlapping(at).next()) else {
            return Ok(());
        };
        if last == range.start() || last == range.last() {
            return Ok(());
        }
        if area.refuses_new() {
            return Err(CutError::Changing { area: range }.into());
        }
        if area.pages().source().is_device() {
            return Err(CutError::DevicePages { area: range }.into());
        }
        let alignment = state.alignment();
        let left = last - range.start() + 1;
        let offset = area.offset.wrapping_add(left);
        if (last + 1) & (alignment - 1) != 0 || offset & (alignment - 1) != 0 {
            return Err(CutError::Misaligned {
                area: range,
                last,
                alignment,
            }
            .into());
        }
        if area.is_used() || (area.is_pinned() && state.large_pages) {
            return Err(CutError::InUse { area: range }.into());
        }
        failpoint::allocation()?;
        let right = area.part(offset);
        state.space.split(range.start(), last, right);
        Ok(())
    }

    /// Asks every access object to release the pages behind `area`.
    fn ask_accesses(&self, area: AddrRange) {
        let accesses: Vec<_> = self.state.lock().accesses.values().cloned().collect();
        for access in accesses {
            access.ask_back(area);
        }
    }
}

/// Takes the areas out that lie wholly in `range`, in order, as far as nothing keeps them.
fn take(space: &mut IovaSpace<Area>, range: AddrRange) -> (Taken, End) {
    let mut taken = Taken::default();
    let mut end = End::Done;
    let mut starts = Vec::new();
    let mut exact = false;
    for (area_range, area) in space.overlapping(range) {
        if area.is_locked() {
            end = End::Error(UnmapError::Locked { area: area_range });
        } else if !range.covers(area_range) {
            end = End::Error(UnmapError::Cuts {
                range,
                area: area_range,
            });
        } else if area.refuse_new() {
            end = End::Held(area_range);
        } else {
            // Nothing else is there.
            exact = area_range == range;
            if !exact {
                starts.push(area_range.start());
                continue;
            }
        }
        break;
    }
    if exact {
        taken.one = space.remove(range.start());
    } else if starts.len() == space.len() {
        taken.all = space.clear();
    } else {
        let remove = |start| space.remove(start);
        taken.some = starts.into_iter().filter_map(remove).collect();
    }
    (taken, end)
}

/// How a pass of [`Ioas::unmap`] ended.
enum End {
    Done,
    Error(UnmapError),
    /// An access object holds pages of the area.
    Held(AddrRange),
}

/// How often the users of one area were asked to release it.
#[derive(Default)]
struct Requests {
    area: Option<AddrRange>,
    times: u32,
}

impl Requests {
    /// The kernel gives up after this many (`iopt_unmap_iova_range`).
    const MOST: u32 = 100;

    fn count(&mut self, area: AddrRange) -> Result<(), UnmapError> {
        if self.area != Some(area) {
            *self = Requests {
                area: Some(area),
                times: 0,
            };
        }
        self.times += 1;
        if self.times > Self::MOST {
            return Err(UnmapError::StillHeld { area });
        }
        Ok(())
    }
}
