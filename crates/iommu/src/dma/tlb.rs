//! A TLB for devices: translations that ports keep between guards, in step with invalidations
//! ([`DeviceTlb`] describes the order).

use std::{cell::Cell, collections::VecDeque, sync::Arc};

use ioasid_core::{
    Access, AddrRange, DomainId, Pasid, Prot,
    inspect::{Inspect, Node},
    lock_order::OrderedMutex,
    sync::atomic::{AtomicU64, Ordering},
};
use ioasid_pgtable::Translation;

use crate::{base::locks, events::ats::DeviceTlb};

/// Translations that one port keeps for large leaves, and for small ones.
const LARGE_SLOTS: usize = 32;
const SMALL_SLOTS: usize = 64;
/// A run of this many bytes or more is kept as a large one.
const LARGE: u64 = 64 << 10;
/// Log2 of the distance of two large slots, and of two small ones.
const LARGE_SHIFT: u32 = 21;
const SMALL_SHIFT: u32 = 12;
/// Invalidations that are kept for the ports. A port that has missed more drops everything.
const RECENT: usize = 16;

/// One invalidation.
#[derive(Clone, Copy, Debug)]
struct Request {
    pasid: Option<Pasid>,
    range: AddrRange,
}

#[derive(Debug, Default)]
struct Requests {
    /// The last ones.
    recent: VecDeque<Request>,
}

/// The TLB of one device: what its ports have in common. See [`crate::Device::port_with_tlb`].
#[derive(Debug)]
pub struct Tlb {
    /// How many invalidations there were.
    version: AtomicU64,
    requests: OrderedMutex<Requests>,
    hits: AtomicU64,
    misses: AtomicU64,
}

impl Tlb {
    /// An empty one.
    pub fn new() -> Arc<Self> {
        Arc::new(Tlb {
            version: AtomicU64::new(0),
            requests: OrderedMutex::new(&locks::INVALIDATIONS, Requests::default()),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        })
    }

    /// Invalidations so far.
    pub fn invalidations(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Translations that were found, and those that had to be asked for. Counted by each port when it
    /// goes or catches up with an invalidation.
    pub fn lookups(&self) -> (u64, u64) {
        (
            self.hits.load(Ordering::Relaxed),
            self.misses.load(Ordering::Relaxed),
        )
    }
}

impl Inspect for Tlb {
    fn inspect(&self) -> Node {
        let (hits, misses) = self.lookups();
        Node::new()
            .with("hits", hits)
            .with("misses", misses)
            .with("invalidations", self.invalidations())
    }
}

impl DeviceTlb for Tlb {
    fn invalidate(&self, pasid: Option<Pasid>, range: AddrRange) {
        let mut requests = self.requests.lock();
        if requests.recent.len() == RECENT {
            requests.recent.pop_front();
        }
        requests.recent.push_back(Request { pasid, range });
        // Before the caller's barrier looks for guards: one that it does not see sees this.
        self.version.fetch_add(1, Ordering::SeqCst);
    }
}

/// A translation that is kept.
#[derive(Clone, Copy)]
struct Entry {
    domain: Option<DomainId>,
    pasid: Option<Pasid>,
    supervisor: bool,
    access: Access,
    start: u64,
    found: Translation,
}

impl Entry {
    const NONE: Entry = Entry {
        domain: None,
        pasid: None,
        supervisor: false,
        access: Access::Read,
        start: 0,
        found: Translation {
            spa: 0,
            len: 0,
            prot: Prot::RW,
        },
    };

    fn overlaps(&self, request: &Request) -> bool {
        let last = self.start.saturating_add(self.found.len.saturating_sub(1));
        self.pasid == request.pasid
            && self.start <= request.range.last()
            && last >= request.range.start()
    }
}

/// The part of a TLB that one port has for itself.
pub(crate) struct PortTlb {
    shared: Arc<Tlb>,
    seen: Cell<u64>,
    large: [Cell<Entry>; LARGE_SLOTS],
    small: [Cell<Entry>; SMALL_SLOTS],
    hits: Cell<u64>,
    misses: Cell<u64>,
}

impl PortTlb {
    pub(crate) fn new(shared: &Arc<Tlb>) -> Box<Self> {
        Box::new(PortTlb {
            shared: Arc::clone(shared),
            seen: Cell::new(shared.version.load(Ordering::SeqCst)),
            large: [const { Cell::new(Entry::NONE) }; LARGE_SLOTS],
            small: [const { Cell::new(Entry::NONE) }; SMALL_SLOTS],
            hits: Cell::new(0),
            misses: Cell::new(0),
        })
    }

    /// Drops what was invalidated. To be called by every guard once its marker is published.
    #[inline]
    pub(crate) fn catch_up(&self) {
        let version = self.shared.version.load(Ordering::SeqCst);
        if version != self.seen.get() {
            self.drop_invalid();
        }
    }

    #[cold]
    fn drop_invalid(&self) {
        let requests = self.shared.requests.lock();
        let version = self.shared.version.load(Ordering::SeqCst);
        let missed = version.wrapping_sub(self.seen.replace(version));
        let all = missed > requests.recent.len() as u64;
        for slot in self.large.iter().chain(&self.small) {
            let entry = slot.get();
            let recent = requests.recent.iter().rev().take(missed as usize);
            if all || recent.into_iter().any(|request| entry.overlaps(request)) {
                slot.set(Entry::NONE);
            }
        }
        drop(requests);
        self.count();
    }

    fn count(&self) {
        let shared = &self.shared;
        shared.hits.fetch_add(self.hits.take(), Ordering::Relaxed);
        shared
            .misses
            .fetch_add(self.misses.take(), Ordering::Relaxed);
    }

    /// What `walk` finds for `iova`, from what is kept if it is there.
    #[inline]
    pub(crate) fn translate<E>(
        &self,
        (domain, pasid, supervisor): (DomainId, Option<Pasid>, bool),
        iova: u64,
        access: Access,
        walk: impl FnOnce() -> Result<Translation, E>,
    ) -> Result<Translation, E> {
        for slot in [self.large(iova, access), self.small(iova, access)] {
            let entry = slot.get();
            let offset = iova.wrapping_sub(entry.start);
            if offset < entry.found.len
                && entry.domain == Some(domain)
                && entry.pasid == pasid
                && entry.supervisor == supervisor
                && entry.access == access
            {
                self.hits.set(self.hits.get() + 1);
                return Ok(Translation {
                    spa: entry.found.spa.wrapping_add(offset),
                    len: entry.found.len - offset,
                    prot: entry.found.prot,
                });
            }
        }
        let found = walk()?;
        self.misses.set(self.misses.get() + 1);
        let slot = match found.len >= LARGE {
            true => self.large(iova, access),
            false => self.small(iova, access),
        };
        slot.set(Entry {
            domain: Some(domain),
            pasid,
            supervisor,
            access,
            start: iova,
            found,
        });
        Ok(found)
    }

    fn large(&self, iova: u64, access: Access) -> &Cell<Entry> {
        let number = (iova >> LARGE_SHIFT) as usize * 2 + usize::from(access == Access::Write);
        &self.large[number % LARGE_SLOTS]
    }

    fn small(&self, iova: u64, access: Access) -> &Cell<Entry> {
        let number = (iova >> SMALL_SHIFT) as usize * 2 + usize::from(access == Access::Write);
        &self.small[number % SMALL_SLOTS]
    }
}

impl Drop for PortTlb {
    fn drop(&mut self) {
        self.count();
    }
}
