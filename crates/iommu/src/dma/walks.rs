//! What a port keeps of walks through the two stages of nested domains: pages that were found, and tables of
//! guests that were read on the way.
//!
//! Every entry says for which domain and for which count of its changes it holds, and whoever looks it up
//! does so under a guard and with the count of now ([`super::recent`] has the argument). Pages go with any
//! change of the domain or its parent; tables with changes of the parent and with invalidations that are not
//! about pages alone (Intel VT-d specification, 6.2.3, paging-structure caches).

use std::{cell::Cell, sync::Arc};

use ioasid_core::{
    Access, DomainId,
    grace::Guard,
    memory::{PAGE_SIZE, RawBytes},
    spa::{KeptSlots, SpaSpace},
};
use ioasid_pgtable::{
    first_stage::{Request, Step},
    spec::entry_shift,
};

/// Pages that are kept, small ones and large ones.
const SMALL_SLOTS: usize = 128;
const LARGE_SLOTS: usize = 32;
/// A page of so many bytes or more is a large one.
const LARGE: u64 = 64 << 10;
/// Log2 of the distance of two slots for small pages, and for large ones.
const SMALL_SHIFT: u32 = 12;
const LARGE_SHIFT: u32 = 21;

/// Tables that are kept of each of the lowest levels, and where the slots of a level begin.
const TABLE_SLOTS: [usize; 3] = [64, 16, 4];
const FIRST_SLOT: [usize; 3] = [0, TABLE_SLOTS[0], TABLE_SLOTS[0] + TABLE_SLOTS[1]];
const ALL_TABLE_SLOTS: usize = TABLE_SLOTS[0] + TABLE_SLOTS[1] + TABLE_SLOTS[2];

/// A domain in one state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State {
    pub(super) domain: DomainId,
    pub(super) changes: u64,
}

/// A page: where input addresses from `start` on lead.
#[derive(Clone, Copy)]
struct Page {
    state: State,
    request: Request,
    start: u64,
    spa: u64,
    len: u64,
}

/// A table: where a walk for addresses with this prefix comes to.
#[derive(Clone, Copy)]
struct Table {
    state: State,
    prefix: u64,
    step: Step,
}

/// What one port keeps.
pub(super) struct Walks {
    small: [Cell<Option<Page>>; SMALL_SLOTS],
    large: [Cell<Option<Page>>; LARGE_SLOTS],
    tables: [Cell<Option<Table>>; ALL_TABLE_SLOTS],
    /// The memory of `tables`.
    bytes: KeptSlots,
}

impl Walks {
    pub(super) fn new(space: &Arc<SpaSpace>) -> Box<Self> {
        Box::new(Walks {
            small: [const { Cell::new(None) }; SMALL_SLOTS],
            large: [const { Cell::new(None) }; LARGE_SLOTS],
            tables: [const { Cell::new(None) }; ALL_TABLE_SLOTS],
            bytes: KeptSlots::new(space, ALL_TABLE_SLOTS),
        })
    }

    /// The system physical address that `iova` leads to, and bytes from there.
    #[inline]
    pub(super) fn page(&self, state: State, request: Request, iova: u64) -> Option<(u64, u64)> {
        let found = [self.large(iova, request), self.small(iova, request)];
        found.into_iter().find_map(|slot| {
            let page = slot.get()?;
            let offset = iova.wrapping_sub(page.start);
            let holds = offset < page.len && page.state == state && page.request == request;
            holds.then(|| (page.spa + offset, page.len - offset))
        })
    }

    /// Keeps that `len` bytes from `start` lead to `spa` and what follows.
    pub(super) fn keep_page(
        &self,
        state: State,
        request: Request,
        start: u64,
        (spa, len): (u64, u64),
    ) {
        let slot = match len >= LARGE {
            true => self.large(start, request),
            false => self.small(start, request),
        };
        slot.set(Some(Page {
            state,
            request,
            start,
            spa,
            len,
        }));
    }

    fn small(&self, iova: u64, request: Request) -> &Cell<Option<Page>> {
        let number = (iova >> SMALL_SHIFT) as usize * 2 + usize::from(writes(request));
        &self.small[number % SMALL_SLOTS]
    }

    fn large(&self, iova: u64, request: Request) -> &Cell<Option<Page>> {
        let number = (iova >> LARGE_SHIFT) as usize * 2 + usize::from(writes(request));
        &self.large[number % LARGE_SLOTS]
    }

    /// The lowest table that is kept for `iova`, and its memory.
    #[inline]
    pub(super) fn lowest_table<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        state: State,
        iova: u64,
    ) -> Option<(Step, RawBytes<'g>)> {
        (0..TABLE_SLOTS.len() as u32).find_map(|level| {
            let slot = table_slot(level, iova)?;
            let table = self.tables[slot].get()?;
            if table.state != state
                || table.prefix != prefix(level, iova)
                || table.step.level() != level
            {
                return None;
            }
            Some((table.step, self.bytes.get(guard, slot)?))
        })
    }

    /// The memory of the table at the system physical address `spa`, to which a walk for `iova` has come; it
    /// is kept, if tables of its level are.
    pub(super) fn table<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        state: State,
        iova: u64,
        step: Step,
        spa: u64,
    ) -> Option<RawBytes<'g>> {
        let level = step.level();
        let slot = table_slot(level, iova)?;
        self.tables[slot].set(None);
        let bytes = self.bytes.resolve(guard, slot, (spa, PAGE_SIZE))?;
        if bytes.len() as u64 == PAGE_SIZE {
            self.tables[slot].set(Some(Table {
                state,
                prefix: prefix(level, iova),
                step,
            }));
        }
        Some(bytes)
    }
}

fn writes(request: Request) -> bool {
    request.access == Access::Write
}

/// The bits of `iova` that decide to which table of a level a walk comes.
fn prefix(level: u32, iova: u64) -> u64 {
    iova >> entry_shift(level + 1)
}

fn table_slot(level: u32, iova: u64) -> Option<usize> {
    let slots = TABLE_SLOTS.get(level as usize)?;
    Some(FIRST_SLOT[level as usize] + prefix(level, iova) as usize % slots)
}
