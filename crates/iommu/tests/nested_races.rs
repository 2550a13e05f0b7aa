//! Nested domains on real threads: when a page has been taken away in either stage, nothing is written
//! through it any more. `IOASID_RACES` sets the number of races (20 000 by default), of which each claim makes an eighth
//! for each kind of port.
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, Ordering},
};

use common::{
    guest::{A, D, Guest, P, Place, RW, US},
    race::{Entered, IOVA, LEN, race, races_or},
    *,
};
use ioasid_core::{AddrRange, Prot, memory::OwnPages};
use ioasid_iommu::{
    Device, DmaPort, DmaSource, Domain, DomainConfig, FirstStage, Invalidate, Iommu, Tlb,
};

/// Where the memory that is written lies in the guest.
const DATA: u64 = 0x20_0000_0000;
const LEN64: u64 = LEN as u64;

/// Races of each claim and each kind of port.
fn races() -> u64 {
    races_or(20_000) / 8
}

/// What moves the bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    /// A device with a TLB.
    Caching,
    /// Under guards that may block: the guest's tables lie in another process.
    Blocking,
}

struct Scene {
    iommu: Arc<Iommu>,
    device: Arc<Device>,
    tlb: Option<Arc<Tlb>>,
    guest: Guest,
    table: FirstStage,
    /// The entry that leads to the table with the leaves, and the leaves.
    link: u64,
    leaves: [u64; 2],
    memory: OwnPages,
    kind: Kind,
    route: DmaSource,
}

/// Runs `test` for every kind of port, with a PASID or without.
fn each(test: impl Fn(Scene)) {
    for kind in [Kind::Plain, Kind::Caching, Kind::Blocking] {
        let iommu = machine();
        let device = device(&iommu, 1);
        let tlb = (kind == Kind::Caching).then(|| {
            let tlb = Tlb::new();
            device.enable_ats(tlb.clone());
            tlb
        });
        let place = match kind {
            Kind::Blocking => Place::Private,
            _ => Place::Own,
        };
        let config = DomainConfig::unmanaged(FORMAT);
        let mut guest = Guest::with(&iommu, 32 << 12, place, config);
        let memory = pages(&iommu, LEN);
        guest
            .parent
            .map(DATA, memory.spa(), LEN64, Prot::RW)
            .unwrap();
        let table = guest.table(4);
        let leaves = [IOVA, IOVA + 4096].map(|iova| guest.entry(table, iova, 0));
        let link = guest.entry(table, IOVA, 1);
        let pasid = pasid(5).filter(|_| kind != Kind::Plain);
        let route = DmaSource::new(&device, pasid);
        test(Scene {
            iommu,
            device,
            tlb,
            guest,
            table,
            link,
            leaves,
            memory,
            kind,
            route,
        });
    }
}

impl Scene {
    fn port(&self) -> DmaPort {
        match &self.tlb {
            Some(tlb) => self.device.port_with_tlb(tlb),
            None => self.device.port(),
        }
    }

    /// The guest enters its two pages. Bits that are set in another process's memory are set in two steps: there
    /// the guest sets them beforehand, as a stock kernel does.
    fn enter_pages(&self) {
        let marked = match self.kind {
            Kind::Blocking => A | D,
            _ => 0,
        };
        for (number, leaf) in (0..).zip(self.leaves) {
            self.guest
                .write(leaf, (DATA + 4096 * number) | P | RW | US | marked);
        }
    }

    fn mark_links(&self) {
        if self.kind == Kind::Blocking {
            for level in 1..4 {
                let at = self.link_at(level);
                self.guest.write(at, self.guest.read(at) | A);
            }
        }
    }

    /// The entry of a level above the leaves: all exist.
    fn link_at(&self, level: u32) -> u64 {
        let mut at = self.table.root;
        for above in (level + 1..4).rev() {
            at = self.guest.read(at + 8 * (IOVA >> (12 + 9 * above) & 511)) & !0xfff;
        }
        at + 8 * (IOVA >> (12 + 9 * level) & 511)
    }

    fn nest(&self) -> Arc<Domain> {
        self.mark_links();
        self.guest.parent.nest(self.table).unwrap()
    }

    /// A domain on the same parent whose table leads nowhere.
    fn elsewhere(&mut self) -> Arc<Domain> {
        let empty = self.guest.table(4);
        self.guest.parent.nest(empty).unwrap()
    }

    fn race(&self, races: u64, begin: impl Fn(), end: impl Fn()) {
        let requests = Entered {
            pasid: self.route.pasid,
            blocking: self.kind == Kind::Blocking,
        };
        let port = || self.port();
        race(&self.iommu, port, requests, races, &self.memory, begin, end);
        if let Some(tlb) = &self.tlb {
            assert!(tlb.lookups().0 > 0, "its TLB was of use");
        }
    }
}

#[test]
fn no_byte_is_written_through_an_entry_after_its_invalidation_returned() {
    each(|scene| {
        let nested = scene.nest();
        scene.route.attach(&nested, &sink()).unwrap();
        let guest = &scene.guest;
        let clear = || scene.leaves.map(|leaf| guest.write(leaf, 0));
        scene.race(
            races(),
            || scene.enter_pages(),
            || {
                clear();
                nested.invalidate(range(IOVA, LEN64), Invalidate::Leaves);
                for leaf in scene.leaves {
                    assert_eq!(guest.read(leaf), 0, "no bit is set in it any more");
                }
            },
        );
        // Either of the two above, by its table.
        scene.enter_pages();
        let link = guest.read(scene.link);
        guest.write(scene.link, 0);
        nested.invalidate(AddrRange::ALL, Invalidate::Tables);
        scene.race(
            races(),
            || guest.write(scene.link, link),
            || {
                guest.write(scene.link, 0);
                nested.invalidate(AddrRange::ALL, Invalidate::Tables);
                assert_eq!(guest.read(scene.link), 0);
            },
        );
    });
}

#[test]
fn no_byte_is_written_after_the_parents_unmap_returned_where_all_routes_are_nested() {
    each(|scene| {
        scene.enter_pages();
        let nested = scene.nest();
        scene.route.attach(&nested, &sink()).unwrap();
        let parent = &scene.guest.parent;
        assert_eq!(parent.unmap(range(DATA, LEN64)), LEN64);
        let spa = scene.memory.spa();
        scene.race(
            races(),
            || parent.map(DATA, spa, LEN64, Prot::RW).unwrap(),
            || assert_eq!(parent.unmap(range(DATA, LEN64)), LEN64),
        );
    });
}

#[test]
fn no_byte_is_written_through_tables_that_the_parent_has_unmapped() {
    each(|scene| {
        scene.enter_pages();
        let nested = scene.nest();
        scene.route.attach(&nested, &sink()).unwrap();
        let (guest, leaves) = (&scene.guest, scene.leaves[0] & !0xfff);
        guest.parent.unmap(range(leaves, 4096));
        scene.race(
            races(),
            || guest.map_parent(leaves, Prot::RW),
            || assert_eq!(guest.parent.unmap(range(leaves, 4096)), 4096),
        );
    });
}

#[test]
fn no_byte_is_written_to_the_old_domain_after_a_replace_between_parent_and_nested() {
    each(|mut scene| {
        scene.enter_pages();
        let (nested, elsewhere) = (scene.nest(), scene.elsewhere());
        let parent = &scene.guest.parent;
        let replace = |domain: &Arc<Domain>| scene.route.replace(domain, &sink()).unwrap();
        scene.route.attach(parent, &sink()).unwrap();
        scene.race(races(), || replace(&nested), || replace(parent));
        replace(&elsewhere);
        let spa = scene.memory.spa();
        parent.map(IOVA, spa, LEN64, Prot::RW).unwrap();
        scene.race(races(), || replace(parent), || replace(&elsewhere));
    });
}

#[test]
fn no_byte_is_written_to_the_old_domain_after_a_replace_of_one_nested_by_another() {
    each(|mut scene| {
        scene.enter_pages();
        let (nested, elsewhere) = (scene.nest(), scene.elsewhere());
        let replace = |domain: &Arc<Domain>| scene.route.replace(domain, &sink()).unwrap();
        scene.route.attach(&elsewhere, &sink()).unwrap();
        scene.race(races(), || replace(&nested), || replace(&elsewhere));
    });
}

#[test]
fn no_byte_is_written_after_a_nested_domain_was_detached() {
    each(|scene| {
        scene.enter_pages();
        let nested = scene.nest();
        scene.race(
            races(),
            || scene.route.attach(&nested, &sink()).unwrap(),
            || scene.route.detach(),
        );
    });
}

#[test]
fn no_byte_is_written_after_a_nested_domain_was_destroyed() {
    each(|scene| {
        scene.enter_pages();
        drop(scene.nest());
        let domain = Mutex::new(None);
        let destroyed = AtomicU64::new(0);
        let live = || scene.iommu.domains().len();
        let others = live();
        scene.race(
            races(),
            || {
                let nested = scene.guest.parent.nest(scene.table).unwrap();
                scene.route.attach(&nested, &sink()).unwrap();
                *domain.lock().unwrap() = Some(nested);
            },
            || {
                scene.route.detach();
                let nested = domain.lock().unwrap().take().unwrap();
                assert_eq!(Arc::strong_count(&nested), 1);
                drop(nested);
                assert_eq!(live(), others);
                destroyed.fetch_add(1, Ordering::Relaxed);
            },
        );
        assert_eq!(destroyed.into_inner(), races());
    });
}
