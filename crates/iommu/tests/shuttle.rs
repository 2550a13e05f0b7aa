//! The barrier under a scheduler that explores interleavings:
//! `RUSTFLAGS="--cfg ioasid_shuttle" cargo test -p ioasid-iommu --target-dir target-shuttle`.
#![cfg(ioasid_shuttle)]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;
#[path = "shuttle/nested.rs"]
mod nested;
#[path = "shuttle/page_requests.rs"]
mod page_requests;

use std::sync::Arc;

use common::*;
use ioasid_core::{
    AddrRange, Prot,
    memory::OwnPages,
    sync::{Mutex, thread},
};
use ioasid_iommu::{
    Device, DeviceConfig, DmaSource, Domain, DomainConfig, Iommu, Requests, Stop, Tlb, WriteSink,
};

const IOVA: u64 = 0x1000;
const MARK: u8 = 0xee;

/// Runs a scenario under many interleavings (`IOASID_SHUTTLE` sets how many): random ones, and ones
/// with few preemptions at random places, which reach what a random walk hardly does.
fn check(scenario: impl Fn() + Send + Sync + Clone + 'static) {
    let iterations = std::env::var("IOASID_SHUTTLE")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(4000);
    shuttle::check_random(scenario.clone(), iterations / 2);
    shuttle::check_pct(scenario, iterations / 2, 3);
}

struct Setup {
    iommu: Arc<Iommu>,
    device: Arc<Device>,
    domain: Arc<Domain>,
    memory: OwnPages,
}

fn setup() -> Setup {
    let iommu = machine();
    let device = iommu
        .add_device(DeviceConfig {
            pasid_bits: 2,
            ..DeviceConfig::new(address(1))
        })
        .unwrap();
    let config = DomainConfig {
        dirty_tracking: true,
        ..DomainConfig::unmanaged(FORMAT)
    };
    let domain = iommu.alloc_domain(config).unwrap();
    let memory = pages(&iommu, 4096);
    domain.map(IOVA, memory.spa(), 4096, Prot::RW).unwrap();
    Setup {
        iommu,
        device,
        domain,
        memory,
    }
}

impl Setup {
    fn route(&self, with_pasid: bool) -> DmaSource {
        DmaSource::new(&self.device, if with_pasid { pasid(3) } else { None })
    }

    /// Two writes on a thread of its own, landing or not.
    fn engine(&self, route: &DmaSource) -> thread::JoinHandle<()> {
        let route = route.clone();
        thread::spawn(move || {
            let mut port = route.device.port();
            for byte in 1..=2 {
                let _ = port.enter(route.pasid).write(IOVA, &[byte]);
            }
        })
    }

    fn mark(&self) {
        self.memory.memory().write(0, &[MARK]);
    }

    fn assert_marked(&self) {
        assert_eq!(
            contents(&self.memory, 1),
            [MARK],
            "written after the return"
        );
    }
}

fn page() -> AddrRange {
    range(IOVA, 4096)
}

#[test]
fn unmap_waits_for_dma_in_flight() {
    check(|| {
        let setup = setup();
        let route = setup.route(false);
        route.attach(&setup.domain, &sink()).unwrap();
        let engine = setup.engine(&route);
        assert_eq!(setup.domain.unmap(page()), 4096);
        setup.mark();
        engine.join().unwrap();
        setup.assert_marked();
    });
}

#[test]
fn what_a_device_keeps_is_not_used_after_unmap_or_detach_or_replace() {
    for how in 0..3 {
        check(move || {
            let setup = setup();
            let tlb = Tlb::new();
            setup.device.enable_ats(tlb.clone());
            let other = setup
                .iommu
                .alloc_domain(DomainConfig::unmanaged(FORMAT))
                .unwrap();
            let route = setup.route(how == 1);
            route.attach(&setup.domain, &sink()).unwrap();
            let engine = {
                let route = route.clone();
                thread::spawn(move || {
                    let mut port = route.device.port_with_tlb(&tlb);
                    for byte in 1..=3 {
                        let _ = port.enter(route.pasid).write(IOVA, &[byte]);
                    }
                })
            };
            match how {
                0 => assert_eq!(setup.domain.unmap(page()), 4096),
                1 => route.detach(),
                _ => route.replace(&other, &sink()).unwrap(),
            }
            setup.mark();
            engine.join().unwrap();
            setup.assert_marked();
        });
    }
}

#[test]
fn detach_waits_for_dma_in_flight() {
    for with_pasid in [false, true] {
        check(move || {
            let setup = setup();
            let route = setup.route(with_pasid);
            route.attach(&setup.domain, &sink()).unwrap();
            let engine = setup.engine(&route);
            route.detach();
            setup.mark();
            engine.join().unwrap();
            setup.assert_marked();
        });
    }
}

#[test]
fn what_is_withheld_has_landed_or_waits_for_the_release() {
    for with_pasid in [false, true] {
        check(move || {
            let setup = setup();
            let route = setup.route(with_pasid);
            route.attach(&setup.domain, &sink()).unwrap();
            let engine = {
                let route = route.clone();
                thread::spawn(move || {
                    let mut port = route.device.port();
                    for byte in 1..=2 {
                        let stop = port.enter(route.pasid).write(IOVA, &[byte]).stop;
                        assert!(matches!(stop, None | Some(Stop::Withheld)), "{stop:?}");
                    }
                })
            };
            let of = route.pasid.map_or(Requests::All, Requests::Of);
            assert!(setup.device.withhold(of));
            setup.mark();
            thread::yield_now();
            assert_eq!(contents(&setup.memory, 1), [MARK]);
            // Whoever finds the route empty sees it withheld or filled again: never unattached.
            setup.device.release(of);
            engine.join().unwrap();
        });
    }
}

#[test]
fn withholding_beside_a_detach_waits_for_dma_in_flight() {
    check(|| {
        let setup = setup();
        let route = setup.route(false);
        route.attach(&setup.domain, &sink()).unwrap();
        let engine = setup.engine(&route);
        let detach = {
            let route = route.clone();
            thread::spawn(move || route.detach())
        };
        // Whether the route is still there or on its way out.
        assert!(setup.device.withhold(Requests::All));
        setup.mark();
        engine.join().unwrap();
        setup.assert_marked();
        detach.join().unwrap();
    });
}

#[test]
fn replace_waits_for_dma_in_the_old_domain_and_shows_no_gap() {
    check(|| {
        let setup = setup();
        let route = setup.route(true);
        route.attach(&setup.domain, &sink()).unwrap();
        let next = domain(&setup.iommu);
        let next_memory = pages(&setup.iommu, 4096);
        next.map(IOVA, next_memory.spa(), 4096, Prot::RW).unwrap();
        let engine = {
            let route = route.clone();
            thread::spawn(move || {
                let mut port = route.device.port();
                for byte in 1..=2 {
                    let transfer = port.enter(route.pasid).write(IOVA, &[byte]);
                    assert!(transfer.is_complete(), "a window without a translation");
                }
            })
        };
        route.replace(&next, &sink()).unwrap();
        setup.mark();
        engine.join().unwrap();
        setup.assert_marked();
    });
}

#[test]
fn destroy_leaves_no_dma_and_no_reference() {
    check(|| {
        let setup = setup();
        let route = setup.route(true);
        route.attach(&setup.domain, &sink()).unwrap();
        let engine = setup.engine(&route);
        let Setup {
            iommu,
            device,
            domain,
            memory,
        } = setup;
        route.detach();
        assert_eq!(Arc::strong_count(&domain), 1);
        drop(domain);
        assert_eq!(iommu.paging_domains(), 0);
        memory.memory().write(0, &[MARK]);
        engine.join().unwrap();
        assert_eq!(contents(&memory, 1), [MARK]);
        drop((iommu, device));
    });
}

#[test]
fn an_unmap_beside_a_detach_waits_for_dma_in_flight() {
    check(|| {
        let setup = setup();
        let route = setup.route(false);
        route.attach(&setup.domain, &sink()).unwrap();
        let engine = setup.engine(&route);
        let detach = {
            let route = route.clone();
            thread::spawn(move || route.detach())
        };
        // Whether the route is still there or on its way out: the unmap is a barrier.
        setup.domain.unmap(page());
        setup.mark();
        engine.join().unwrap();
        detach.join().unwrap();
        setup.assert_marked();
    });
}

#[test]
fn an_attach_beside_an_unmap_sees_the_mapping_gone() {
    check(|| {
        let setup = setup();
        let route = setup.route(true);
        let attach = {
            let (route, domain) = (route.clone(), Arc::clone(&setup.domain));
            thread::spawn(move || {
                route.attach(&domain, &sink()).unwrap();
                let _ = route.device.port().enter(route.pasid).write(IOVA, &[1]);
            })
        };
        // Nobody is attached, or somebody just now: the shortcut must not be taken then.
        setup.domain.unmap(page());
        setup.mark();
        attach.join().unwrap();
        setup.assert_marked();
    });
}

#[test]
fn a_write_is_in_memory_before_its_page_is_read_or_dirty_again() {
    check(|| {
        let setup = setup();
        let route = setup.route(false);
        setup.domain.set_dirty_tracking(true);
        route.attach(&setup.domain, &sink()).unwrap();
        let engine = setup.engine(&route);
        setup.domain.read_dirty(page(), true, &mut |_| {});
        let copied = contents(&setup.memory, 1);
        engine.join().unwrap();
        let last = contents(&setup.memory, 1);
        let mut dirty = false;
        setup
            .domain
            .read_dirty(page(), false, &mut |_| dirty = true);
        assert!(copied == last || dirty, "a write was lost");
    });
}

#[test]
fn a_dirty_read_does_not_bring_an_unmapped_page_back() {
    check(|| {
        let setup = setup();
        let route = setup.route(false);
        setup.domain.set_dirty_tracking(true);
        route.attach(&setup.domain, &sink()).unwrap();
        let engine = setup.engine(&route);
        let reader = {
            let domain = Arc::clone(&setup.domain);
            thread::spawn(move || domain.read_dirty(page(), true, &mut |_| {}))
        };
        setup.domain.unmap(page());
        setup.mark();
        engine.join().unwrap();
        reader.join().unwrap();
        setup.assert_marked();
        assert!(setup.domain.iova_to_phys(IOVA).is_none());
    });
}

#[test]
fn concurrent_changes_of_one_route_leave_one_of_their_domains() {
    check(|| {
        let setup = setup();
        let route = setup.route(true);
        let other = domain(&setup.iommu);
        route.attach(&setup.domain, &sink()).unwrap();
        let replacer = {
            let (route, other) = (route.clone(), Arc::clone(&other));
            thread::spawn(move || {
                let _ = route.replace(&other, &sink());
            })
        };
        let engine = setup.engine(&route);
        route.detach();
        replacer.join().unwrap();
        engine.join().unwrap();
        let routes = setup.domain.attachments().len() + other.attachments().len();
        assert_eq!(routes, setup.device.attachments().len());
        route.detach();
        assert!(setup.device.attachments().is_empty());
        assert!(other.attachments().is_empty());
    });
}

/// A worker that copies from a client's memory into the page at [`IOVA`], and the client's answer.
fn blocked_worker(setup: &Setup, route: &DmaSource) -> (Arc<Stuck>, thread::JoinHandle<()>) {
    let far = IOVA + 4096;
    let (stuck, range) = Stuck::map(&setup.iommu, &setup.domain, far);
    let worker = {
        let route = route.clone();
        thread::spawn(move || {
            let _range = range;
            let mut port = route.device.port();
            for _ in 0..2 {
                let _ = port.enter_blocking(route.pasid).copy(IOVA, far, 1);
            }
        })
    };
    (stuck, worker)
}

#[test]
fn a_copy_that_blocked_writes_nothing_through_what_was_unmapped_meanwhile() {
    check(|| {
        let setup = setup();
        let route = setup.route(true);
        route.attach(&setup.domain, &sink()).unwrap();
        let (stuck, worker) = blocked_worker(&setup, &route);
        let answer = thread::spawn(move || stuck.answer());
        assert_eq!(setup.domain.unmap(page()), 4096);
        setup.mark();
        worker.join().unwrap();
        answer.join().unwrap();
        setup.assert_marked();
    });
}

#[test]
fn a_copy_that_blocked_writes_nothing_after_its_route_was_detached() {
    check(|| {
        let setup = setup();
        let route = setup.route(true);
        route.attach(&setup.domain, &sink()).unwrap();
        let (stuck, worker) = blocked_worker(&setup, &route);
        let answer = thread::spawn(move || stuck.answer());
        route.detach();
        setup.mark();
        worker.join().unwrap();
        answer.join().unwrap();
        setup.assert_marked();
    });
}

#[test]
fn a_blocked_worker_does_not_hold_back_what_another_client_gives_up() {
    check(|| {
        let setup = setup();
        let route = setup.route(true);
        route.attach(&setup.domain, &sink()).unwrap();
        let (stuck, worker) = blocked_worker(&setup, &route);
        stuck.wait_until_asked();
        let other = domain(&setup.iommu);
        let other_memory = pages(&setup.iommu, 4096);
        other.map(IOVA, other_memory.spa(), 4096, Prot::RW).unwrap();
        let own = setup.route(false);
        own.attach(&other, &sink()).unwrap();
        let engine = setup.engine(&own);
        other.unmap(page());
        own.detach();
        let bytes = Arc::clone(other_memory.memory());
        drop(other_memory);
        engine.join().unwrap();
        setup.iommu.grace().collect();
        assert_eq!(setup.iommu.grace().retired_items(), 0);
        assert_eq!(Arc::strong_count(&bytes), 1);
        stuck.answer();
        worker.join().unwrap();
    });
}

/// Bytes that were written and nobody has been told of yet.
#[derive(Debug, Default)]
struct Dirty(Mutex<bool>);

impl WriteSink for Dirty {
    fn wrote(&self, _range: AddrRange) {
        *self.0.lock() = true;
    }
}

/// A program that copies memory which is in use: it asks what was written, then copies that.
#[test]
fn no_write_is_lost_between_one_report_and_the_next() {
    for with_pasid in [false, true] {
        check(move || {
            let setup = setup();
            let route = setup.route(with_pasid);
            route.attach(&setup.domain, &sink()).unwrap();
            let engine = setup.engine(&route);
            let dirty = Arc::<Dirty>::default();
            let writes = route.pasid.map_or(Requests::All, Requests::Of);
            let watch = setup.device.watch_writes(writes, dirty.clone());
            // From here on everything is told.
            let mut copied = contents(&setup.memory, 1);
            for _ in 0..2 {
                let seen = contents(&setup.memory, 1);
                watch.flush();
                let told = std::mem::take(&mut *dirty.0.lock());
                assert!(told || seen == copied, "what could be seen was not told");
                if told {
                    copied = contents(&setup.memory, 1);
                }
            }
            engine.join().unwrap();
            watch.flush();
            if *dirty.0.lock() {
                copied = contents(&setup.memory, 1);
            }
            assert_eq!(copied, contents(&setup.memory, 1), "a write is lost");
        });
    }
}
