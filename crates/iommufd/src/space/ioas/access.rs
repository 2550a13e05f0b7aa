//! What access objects do with an IOAS: join and leave it, pin its pages, copy its bytes.

use std::sync::Arc;

use ioasid_core::{
    AddrRange, failpoint,
    memory::{MemoryGone, PAGE_SIZE, PinBatch},
};

use super::Ioas;
use crate::{
    base::error::{AccessError, Error, RangeError},
    space::{
        access::{AccessObject, PinnedPages},
        area::{Area, AreaHold},
    },
};

/// An access object while it is attached to an IOAS. Dropping it asks back what was pinned, and
/// detaches.
#[derive(Debug)]
pub(crate) struct AttachedAccess {
    ioas: Arc<Ioas>,
    access: Arc<AccessObject>,
}

impl AttachedAccess {
    /// Attaches `access` to `ioas`.
    ///
    /// # Errors
    /// [`RangeError::MisalignedAreas`] if it pins pages and a mapping is not aligned to pages.
    pub(crate) fn new(ioas: Arc<Ioas>, access: &Arc<AccessObject>) -> Result<Self, Error> {
        ioas.join(access)?;
        Ok(AttachedAccess {
            ioas,
            access: Arc::clone(access),
        })
    }

    pub(crate) fn ioas(&self) -> &Arc<Ioas> {
        &self.ioas
    }
}

impl Drop for AttachedAccess {
    fn drop(&mut self) {
        self.access.ask_back(AddrRange::ALL);
        self.ioas.state.lock().accesses.remove(&self.access.id());
    }
}

/// Copies bytes of an area: the offset in its pages, and how many.
pub(crate) type CopyPart<'a> = dyn FnMut(&Area, u64, usize) -> Result<(), MemoryGone> + 'a;

/// Takes one area: the offset in its pages, the bytes, and whether the range ends there.
type Visit<'a> = dyn FnMut(&mut Area, u64, u64, bool) -> Result<(), Error> + 'a;

impl Ioas {
    fn join(&self, access: &Arc<AccessObject>) -> Result<(), Error> {
        let _change = self.change.lock();
        let mut state = self.state.lock();
        if access.pins() && !state.is_aligned(PAGE_SIZE) {
            return Err(RangeError::MisalignedAreas {
                alignment: PAGE_SIZE,
            }
            .into());
        }
        failpoint::allocation()?;
        state.accesses.insert(access.id(), Arc::clone(access));
        Ok(())
    }

    /// Pins the pages of `range` for an access object; to be written too if `write`.
    ///
    /// # Errors
    /// Those of [`AccessError`], area by area, and [`Error::Pin`].
    pub(crate) fn pin(
        &self,
        range: AddrRange,
        write: bool,
        locks: bool,
    ) -> Result<PinnedPages, Error> {
        let mut pinned = PinnedPages::new(range);
        let mut batch = PinBatch::new();
        // No unmap between the look at an area and the pin of its pages.
        let _change = self.change.lock();
        self.walk(range, write, true, &mut |area, offset, len, is_last| {
            // Whole pages only: at the start, and at the end of all areas but the last.
            let misaligned = |at: u64| !at.is_multiple_of(PAGE_SIZE);
            let end = offset.wrapping_add(len);
            if misaligned(offset) || misaligned(end) && !is_last {
                return Err(AccessError::PartialPage { offset, len }.into());
            }
            failpoint::allocation()?;
            let (run, pieces) = area.pages().pin(&mut batch, offset, len)?;
            pinned.push(AreaHold::new(area.usage(), locks), run, pieces);
            Ok(())
        })?;
        Ok(pinned)
    }

    /// Calls `copy` for each part of `range`, to be written if `write`.
    ///
    /// # Errors
    /// Those of [`AccessError`], area by area. What comes before is copied.
    pub(crate) fn copy(
        &self,
        range: AddrRange,
        write: bool,
        copy: &mut CopyPart<'_>,
    ) -> Result<(), Error> {
        // The memory may block, and with it maps and unmaps of this IOAS: it is of the same
        // program.
        let _change = self.change.lock();
        self.walk(range, write, false, &mut |area, offset, len, _| {
            failpoint::allocation()?;
            // A slice is at most half of the address space.
            copy(area, offset, len as usize).map_err(AccessError::MemoryGone)?;
            Ok(())
        })
    }

    /// Calls `visit` with each area that has an address in `range`, in order; to be used if `uses`.
    /// The state is not locked meanwhile.
    ///
    /// # Errors
    /// What `visit` says, [`AccessError::Leaving`], [`AccessError::DevicePages`],
    /// [`AccessError::Permission`], and [`AccessError::NotMapped`] at a hole.
    fn walk(
        &self,
        range: AddrRange,
        write: bool,
        uses: bool,
        visit: &mut Visit<'_>,
    ) -> Result<(), Error> {
        let mut next = range.start();
        loop {
            let hole = AccessError::NotMapped { range, at: next };
            let rest = AddrRange::new(next, range.last()).ok_or(hole)?;
            let (area_range, mut area) = {
                let mut state = self.state.lock();
                let first = state.space.overlapping(rest).next();
                let first = first.filter(|(area, _)| area.contains(next));
                let (range, _) = first.ok_or(hole)?;
                let area = state.space.area_mut(range.start()).ok_or(hole)?;
                if uses {
                    // Before it is cloned: the area and its clone have the same users.
                    area.usage();
                }
                (range, area.clone())
            };
            if area.refuses_new() {
                return Err(AccessError::Leaving { area: area_range }.into());
            }
            if !area.pages().is_accessible() {
                return Err(AccessError::DevicePages { area: area_range }.into());
            }
            let allowed = if write {
                area.prot.write && area.pages().writable()
            } else {
                area.prot.read
            };
            if !allowed {
                return Err(AccessError::Permission {
                    area: area_range,
                    write,
                }
                .into());
            }
            let last = area_range.last().min(range.last());
            let offset = area.offset.wrapping_add(next - area_range.start());
            let is_last = last == range.last();
            visit(&mut area, offset, last - next + 1, is_last)?;
            if is_last {
                return Ok(());
            }
            next = last + 1;
        }
    }
}
