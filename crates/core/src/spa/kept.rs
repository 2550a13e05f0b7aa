//! Places that a reader keeps from one guard to the next.
//!
//! # Safety argument
//! Bytes are lent under a guard, and only if no registration has gone since they were found. A
//! registration that goes empties its cells, then counts ([`SpaSpace::gone`]), then looks for
//! guards, and its memory stays until those are gone. A reader publishes its guard before it looks at
//! the count. So if it finds the old count, the one that goes finds the guard, as with any cell
//! (`grace`). And what is kept belongs to the count that was seen before its cell was loaded: a later
//! count would have shown the cell empty.
// UNSAFETY: bytes are kept longer than the guard that they were found under; see the argument above.
#![allow(unsafe_code)]

use std::{cell::Cell, fmt, mem, sync::Arc};

use super::SpaSpace;
use crate::{access::Access, grace::Guard, memory::RawBytes, sync::atomic::Ordering};

/// Bytes that were found, and the first of the addresses that led there.
#[derive(Default)]
struct Kept {
    first: Cell<u64>,
    len: Cell<u64>,
    bytes: Cell<Option<RawBytes<'static>>>,
}

/// The places of one access: a source and the list that names it, or a target and the record of it.
#[derive(Default)]
struct Pair {
    places: [Kept; 2],
    /// Which of them was used last.
    last: Cell<usize>,
}

impl Pair {
    /// The place that has `want` bytes at `address`, and the offset of the first.
    #[inline(always)]
    fn find(&self, address: u64, want: u64) -> Option<(&Kept, u64)> {
        let last = self.last.get();
        for way in [last, last ^ 1] {
            let place = &self.places[way & 1];
            let offset = address.wrapping_sub(place.first.get());
            if place.len.get().checked_sub(offset) >= Some(want) {
                self.last.set(way);
                return Some((place, offset));
            }
        }
        None
    }

    /// The other one than was used last: to be used now.
    #[inline]
    fn replace(&self) -> &Kept {
        let way = self.last.get() ^ 1;
        self.last.set(way);
        &self.places[way & 1]
    }
}

/// The last two places that addresses of one reader led to, for reading and for writing each.
///
/// The addresses are the reader's own (I/O virtual ones), and so are the reasons why they lead
/// elsewhere now: it [forgets](KeptPlaces::forget) then. That memory is not registered any more is found
/// out here.
pub struct KeptPlaces {
    space: Arc<SpaSpace>,
    /// The count that all places belong to.
    gone: Cell<u64>,
    reads: Pair,
    writes: Pair,
}

impl KeptPlaces {
    /// Nothing is kept of `space` yet.
    pub fn new(space: &Arc<SpaSpace>) -> Self {
        KeptPlaces {
            space: Arc::clone(space),
            gone: Cell::new(0),
            reads: Pair::default(),
            writes: Pair::default(),
        }
    }

    /// Drops what is kept.
    #[inline]
    pub fn forget(&self) {
        for place in self.reads.places.iter().chain(&self.writes.places) {
            place.len.set(0);
            place.bytes.set(None);
        }
    }

    /// The `want` bytes at `address`, if the place kept for `access` has them all.
    ///
    /// # Panics
    /// If the guard belongs to another machine: a defect of the caller, never of a peer.
    #[inline(always)]
    pub fn find<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        access: Access,
        address: u64,
        want: u64,
    ) -> Option<RawBytes<'g>> {
        self.space.assert_reader(guard);
        let (place, offset) = self.pair(access).find(address, want)?;
        if self.gone.get() != self.space.gone.load(Ordering::Acquire) {
            return None;
        }
        let bytes = place.bytes.get()?;
        bytes.slice(usize::try_from(offset).ok()?, usize::try_from(want).ok()?)
    }

    /// As [`SpaSpace::resolve_direct`]; the place is kept for `access` at `address` and what follows.
    ///
    /// # Panics
    /// As [`KeptPlaces::find`].
    #[inline]
    pub fn resolve<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        access: Access,
        address: u64,
        (spa, len): (u64, u64),
    ) -> Option<RawBytes<'g>> {
        // Before the cell: see the safety argument.
        let gone = self.space.gone.load(Ordering::Acquire);
        if self.gone.replace(gone) != gone {
            self.forget();
        }
        let bytes = self.space.resolve_direct(guard, spa, len)?;
        // SAFETY: `find` lends the bytes for the lifetime of a guard that keeps them, as the module's
        // safety argument says; nothing else reads the cell.
        let kept = unsafe { mem::transmute::<RawBytes<'g>, RawBytes<'static>>(bytes) };
        let place = self.pair(access).replace();
        place.first.set(address);
        place.len.set(bytes.len() as u64);
        place.bytes.set(Some(kept));
        Some(bytes)
    }

    #[inline(always)]
    fn pair(&self, access: Access) -> &Pair {
        match access {
            Access::Read => &self.reads,
            Access::Write => &self.writes,
        }
    }
}

impl fmt::Debug for KeptPlaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeptPlaces")
    }
}

/// Bytes that a reader keeps under numbers of its own, each until a registration has gone.
///
/// Which of the bytes still mean what they meant is the reader's business; that they are still registered is
/// found out here.
pub struct KeptSlots {
    space: Arc<SpaSpace>,
    slots: Box<[Slot]>,
}

/// The count that bytes belong to, and the bytes.
#[derive(Default)]
struct Slot {
    gone: Cell<u64>,
    bytes: Cell<Option<RawBytes<'static>>>,
}

impl KeptSlots {
    /// `count` slots without bytes.
    pub fn new(space: &Arc<SpaSpace>, count: usize) -> Self {
        KeptSlots {
            space: Arc::clone(space),
            slots: (0..count).map(|_| Slot::default()).collect(),
        }
    }

    /// The bytes in a slot; `None` if there are none, or if a registration has gone since.
    ///
    /// # Panics
    /// If the guard belongs to another machine: a defect of the caller, never of a peer.
    #[inline]
    pub fn get<'g>(&'g self, guard: &'g Guard<'_>, slot: usize) -> Option<RawBytes<'g>> {
        self.space.assert_reader(guard);
        let slot = self.slots.get(slot)?;
        if slot.gone.get() != self.space.gone.load(Ordering::Acquire) {
            return None;
        }
        slot.bytes.get()
    }

    /// As [`SpaSpace::resolve_direct`]; what is found is kept in the slot.
    ///
    /// # Panics
    /// As [`KeptSlots::get`].
    pub fn resolve<'g>(
        &'g self,
        guard: &'g Guard<'_>,
        slot: usize,
        (spa, len): (u64, u64),
    ) -> Option<RawBytes<'g>> {
        // Before the cell: see the safety argument.
        let gone = self.space.gone.load(Ordering::Acquire);
        let bytes = self.space.resolve_direct(guard, spa, len)?;
        if let Some(slot) = self.slots.get(slot) {
            // SAFETY: as in `KeptPlaces::resolve`; `get` lends them.
            let kept = unsafe { mem::transmute::<RawBytes<'g>, RawBytes<'static>>(bytes) };
            slot.gone.set(gone);
            slot.bytes.set(Some(kept));
        }
        Some(bytes)
    }
}

impl fmt::Debug for KeptSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeptSlots")
    }
}

#[cfg(all(test, not(ioasid_shuttle)))]
mod tests {
    use super::*;
    use crate::{
        grace::Grace,
        memory::{OwnMemory, PAGE_SIZE},
    };

    const KEY: u64 = 0x7000_0000;

    fn first(bytes: Option<RawBytes<'_>>) -> Option<u8> {
        let mut byte = [0];
        bytes?.read(&mut byte).ok()?;
        Some(byte[0])
    }

    #[test]
    fn what_is_kept_is_found_for_its_addresses_and_its_access_alone() {
        let space = SpaSpace::new(Grace::new());
        let memory = OwnMemory::new(8192);
        memory.write(5, &[7]);
        let range = space.register(memory, 0).unwrap();
        let kept = KeptPlaces::new(&space);
        let mut slot = space.grace().slot();
        let spa = (range.start(), 2 * PAGE_SIZE);
        {
            let guard = slot.enter();
            assert!(kept.find(&guard, Access::Read, KEY, 1).is_none());
            let found = kept.resolve(&guard, Access::Read, KEY, spa);
            assert_eq!(found.map(|bytes| bytes.len()), Some(8192));
        }
        let guard = slot.enter();
        let find = |access, address, want| kept.find(&guard, access, address, want);
        assert_eq!(first(find(Access::Read, KEY + 5, 1)), Some(7));
        let len = |bytes: RawBytes<'_>| bytes.len();
        assert_eq!(find(Access::Read, KEY, 8192).map(len), Some(8192));
        assert_eq!(find(Access::Read, KEY + 8191, 1).map(len), Some(1));
        assert!(find(Access::Read, KEY + 1, 8192).is_none(), "not all of it");
        assert!(find(Access::Read, KEY + 8192, 1).is_none());
        assert!(find(Access::Read, KEY - 1, 1).is_none());
        assert!(find(Access::Write, KEY, 1).is_none());
        kept.forget();
        assert!(kept.find(&guard, Access::Read, KEY, 1).is_none());
    }

    #[test]
    fn two_places_are_kept_and_the_one_used_last_stays() {
        let space = SpaSpace::new(Grace::new());
        let memory = OwnMemory::new(8192);
        memory.write(0, &[1, 2, 3]);
        let range = space.register(memory, 0).unwrap();
        let kept = KeptPlaces::new(&space);
        let mut slot = space.grace().slot();
        let guard = slot.enter();
        let keep = |number: u64| {
            let place = (range.start() + number, 1);
            kept.resolve(&guard, Access::Write, KEY * number, place)
        };
        let found = |number: u64| first(kept.find(&guard, Access::Write, KEY * number, 1));
        assert_eq!((first(keep(0)), first(keep(1))), (Some(1), Some(2)));
        for _ in 0..2 {
            assert_eq!((found(1), found(0)), (Some(2), Some(1)));
        }
        keep(2).unwrap();
        assert_eq!((found(0), found(1), found(2)), (Some(1), None, Some(3)));
    }

    #[test]
    fn what_is_kept_goes_with_its_registration_and_its_memory_after_the_guard() {
        let space = SpaSpace::new(Grace::new());
        let (memory, other) = (OwnMemory::new(4096), OwnMemory::new(4096));
        let range = space.register(memory.clone(), 0).unwrap();
        let _other = space.register(other, 0).unwrap();
        let kept = KeptPlaces::new(&space);
        let mut slot = space.grace().slot();
        let spa = (range.start(), PAGE_SIZE);
        drop(slot.enter());
        let guard = slot.enter();
        kept.resolve(&guard, Access::Write, KEY, spa).unwrap();
        let lent = kept.find(&guard, Access::Write, KEY, 1);
        drop(range);
        assert!(kept.find(&guard, Access::Write, KEY, 1).is_none());
        assert!(kept.resolve(&guard, Access::Write, KEY, spa).is_none());
        assert!(lent.is_some_and(|bytes| bytes.write(&[1]).is_ok()));
        assert!(Arc::strong_count(&memory) > 1, "a guard is in flight");
        drop(guard);
        space.grace().collect();
        assert_eq!(Arc::strong_count(&memory), 1);
    }

    #[test]
    fn a_slot_keeps_bytes_until_a_registration_has_gone() {
        let space = SpaSpace::new(Grace::new());
        let (memory, other) = (OwnMemory::new(4096), OwnMemory::new(4096));
        memory.write(8, &[7]);
        let range = space.register(memory, 0).unwrap();
        let gone = space.register(other, 0).unwrap();
        let kept = KeptSlots::new(&space, 2);
        let mut slot = space.grace().slot();
        let guard = slot.enter();
        assert!(kept.get(&guard, 0).is_none() && kept.get(&guard, 2).is_none());
        let place = (range.start() + 8, 16);
        assert_eq!(first(kept.resolve(&guard, 0, place)), Some(7));
        assert_eq!(first(kept.resolve(&guard, 2, place)), Some(7), "not kept");
        assert_eq!(first(kept.get(&guard, 0)), Some(7));
        assert!(kept.get(&guard, 1).is_none() && kept.get(&guard, 2).is_none());
        drop(gone);
        assert!(kept.get(&guard, 0).is_none());
        assert_eq!(first(kept.resolve(&guard, 0, place)), Some(7));
        assert_eq!(first(kept.get(&guard, 0)), Some(7));
    }

    #[test]
    #[should_panic(expected = "guard of another machine")]
    fn a_guard_of_another_machine_finds_nothing() {
        let kept = KeptPlaces::new(&SpaSpace::new(Grace::new()));
        let mut slot = Grace::new().slot();
        let _ = kept.find(&slot.enter(), Access::Read, 0, 1);
    }
}
