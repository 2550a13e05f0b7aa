//! Two stages: what the guest or its parent took away is not used once the call has returned.

use std::sync::Arc;

use ioasid_core::{AddrRange, sync::thread};
use ioasid_iommu::{Device, DeviceConfig, DmaSource, Domain, DomainConfig, Invalidate, Iommu, Tlb};

use super::{
    IOVA, MARK, check,
    common::{
        guest::{A, D, Guest, P, Place, RW, US},
        *,
    },
};

/// What moves the bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    Caching,
    /// Under guards that may block, with the guest's tables in another process.
    Blocking,
}

const KINDS: [Kind; 3] = [Kind::Plain, Kind::Caching, Kind::Blocking];

struct Setup {
    iommu: Arc<Iommu>,
    device: Arc<Device>,
    guest: Guest,
    nested: Arc<Domain>,
    route: DmaSource,
    page: u64,
    /// The entry that leads to the leaves, and the leaf.
    link: u64,
    leaf: u64,
    tlb: Option<Arc<Tlb>>,
}

fn setup(kind: Kind) -> Setup {
    let iommu = machine();
    let device = iommu
        .add_device(DeviceConfig {
            pasid_bits: 2,
            ..DeviceConfig::new(address(1))
        })
        .unwrap();
    let tlb = (kind == Kind::Caching).then(Tlb::new);
    if let Some(tlb) = &tlb {
        device.enable_ats(tlb.clone());
    }
    let place = match kind {
        Kind::Blocking => Place::Private,
        _ => Place::Own,
    };
    let config = DomainConfig::unmanaged(FORMAT);
    let mut guest = Guest::with(&iommu, 6 * 4096, place, config);
    let table = guest.table(4);
    let page = guest.page();
    // Bits in another process's memory are set in two steps: there they are set already.
    let leaf = guest.map(table, IOVA, page, 0, RW | US | A | D);
    let entries = guest.entries(table, IOVA, 0);
    for entry in &entries[..3] {
        guest.write(*entry, guest.read(*entry) | A);
    }
    if kind != Kind::Blocking {
        guest.write(leaf, page | P | RW | US);
    }
    let nested = guest.parent.nest(table).unwrap();
    let route = source(&device, 1);
    route.attach(&nested, &sink()).unwrap();
    Setup {
        iommu,
        device,
        guest,
        nested,
        route,
        page,
        link: entries[2],
        leaf,
        tlb,
    }
}

impl Setup {
    /// Three writes on a thread of its own, landing or not.
    fn engine(&self, kind: Kind) -> thread::JoinHandle<()> {
        let (device, pasid, tlb) = (Arc::clone(&self.device), self.route.pasid, self.tlb.clone());
        thread::spawn(move || {
            let mut port = match &tlb {
                Some(tlb) => device.port_with_tlb(tlb),
                None => device.port(),
            };
            for byte in 1..=3 {
                let mut guard = match kind {
                    Kind::Blocking => port.enter_blocking(pasid),
                    _ => port.enter(pasid),
                };
                let _ = guard.write(IOVA, &[byte]);
            }
        })
    }

    /// Takes the page away while an engine writes to it: nothing is written afterwards.
    fn race(&self, kind: Kind, take_away: impl FnOnce(&Self)) {
        let engine = self.engine(kind);
        take_away(self);
        let offset = self.guest.offset(self.page) as usize;
        self.guest.memory.write(offset, &[MARK]);
        engine.join().unwrap();
        let found = self.guest.bytes(self.page, 1);
        assert_eq!(found, [MARK], "written after the return");
        self.iommu.grace().collect();
        assert_eq!(self.iommu.grace().retired_items(), 0);
    }
}

#[test]
fn an_invalidation_waits_for_dma_and_drops_what_was_kept() {
    for kind in KINDS {
        for what in [Invalidate::Leaves, Invalidate::Tables] {
            check(move || {
                let setup = setup(kind);
                setup.race(kind, |setup| {
                    let entry = match what {
                        Invalidate::Leaves => setup.leaf,
                        Invalidate::Tables => setup.link,
                    };
                    setup.guest.write(entry, 0);
                    setup.nested.invalidate(AddrRange::ALL, what);
                    assert_eq!(setup.guest.read(entry), 0);
                });
            });
        }
    }
}

#[test]
fn an_unmap_of_the_parent_waits_for_guards_of_nested_domains() {
    for kind in KINDS {
        check(move || {
            let setup = setup(kind);
            setup.race(kind, |setup| {
                let page = range(setup.page, 4096);
                assert_eq!(setup.guest.parent.unmap(page), 4096);
            });
        });
    }
}

#[test]
fn a_nested_domain_that_is_replaced_by_its_parent_or_destroyed_writes_no_more() {
    for kind in KINDS {
        for destroyed in [false, true] {
            check(move || {
                let mut setup = setup(kind);
                let parent = Arc::clone(&setup.guest.parent);
                let nested = std::mem::replace(&mut setup.nested, Arc::clone(&parent));
                setup.race(kind, |setup| {
                    match destroyed {
                        true => setup.route.detach(),
                        false => setup.route.replace(&parent, &sink()).unwrap(),
                    }
                    assert_eq!(Arc::strong_count(&nested), 1);
                    drop(nested);
                });
            });
        }
    }
}
