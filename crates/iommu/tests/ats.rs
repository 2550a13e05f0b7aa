//! Devices that keep translations themselves: none of them is used after it has been taken away.
//! `IOASID_RACES` sets the number of races (100 000 by default).
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;

use std::sync::{Arc, Mutex};

use common::{
    race::{IOVA, LEN, WAITED, race, races},
    *,
};
use ioasid_core::{AddrRange, Pasid, Prot};
use ioasid_iommu::{
    AttachError, Device, DeviceTlb, DmaSource, Domain, DomainConfig, FaultReason, Tlb,
};

/// A device with a TLB, and the TLB.
fn caching(device: &Device) -> Arc<Tlb> {
    let tlb = Tlb::new();
    device.enable_ats(tlb.clone());
    tlb
}

fn route(device: &Arc<Device>, pasid: Option<Pasid>) -> DmaSource {
    DmaSource::new(device, pasid)
}

#[test]
fn no_byte_is_written_through_a_kept_translation_after_unmap_returned() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let tlb = caching(&device);
    for pasid in [None, pasid(77)] {
        let (domain, memory) = (domain(&iommu), pages(&iommu, LEN));
        let route = route(&device, pasid);
        route.attach(&domain, &sink()).unwrap();
        race(
            &iommu,
            || device.port_with_tlb(&tlb),
            pasid,
            races() / 2,
            &memory,
            || {
                domain
                    .map(IOVA, memory.spa(), LEN as u64, Prot::RW)
                    .unwrap();
            },
            || assert_eq!(domain.unmap(range(IOVA, LEN as u64)), LEN as u64),
        );
        route.detach();
    }
    // Each race that waits for two rounds of the engine has a miss and then a hit. How many more
    // there are is up to the scheduler.
    let least = 2 * (races() / 2 / WAITED);
    let (hits, misses) = tlb.lookups();
    assert!(
        hits >= least && misses >= least,
        "{hits} hits, {misses} misses, {least} of each expected"
    );
}

#[test]
fn no_byte_is_written_through_a_kept_translation_after_detach_or_replace_returned() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let tlb = caching(&device);
    let port = || device.port_with_tlb(&tlb);
    let (domain, memory) = mapped(&iommu, IOVA, LEN);
    let (other, _other_memory) = mapped(&iommu, IOVA, LEN);
    for pasid in [None, pasid(5)] {
        let route = route(&device, pasid);
        let begin = || route.attach(&domain, &sink()).unwrap();
        race(&iommu, port, pasid, races() / 8, &memory, begin, || {
            route.detach();
        });
        route.attach(&other, &sink()).unwrap();
        let begin = || route.replace(&domain, &sink()).unwrap();
        let end = || route.replace(&other, &sink()).unwrap();
        race(&iommu, port, pasid, races() / 8, &memory, begin, end);
        route.detach();
    }
}

#[test]
fn an_unmap_takes_away_what_it_unmaps_and_nothing_else() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let tlb = caching(&device);
    let (domain, memory) = mapped(&iommu, IOVA, 0x4000);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let mut port = device.port_with_tlb(&tlb);
    for page in 0..4 {
        write(&mut port, None, IOVA + page * 0x1000, &[1]).unwrap();
    }
    assert_eq!(domain.unmap(range(IOVA + 0x1000, 0x1000)), 0x1000);
    for page in [0, 2, 3] {
        write(&mut port, None, IOVA + page * 0x1000, &[2]).unwrap();
    }
    let fault = write(&mut port, None, IOVA + 0x1000, &[2]).unwrap_err();
    assert_eq!(fault.reason, FaultReason::NotPresent);
    assert_eq!(contents(&memory, 0x1001)[0x1000], 1);
    drop(port);
    assert_eq!(tlb.invalidations(), 1);
}

#[test]
fn what_was_unmapped_while_detached_is_not_used_after_attaching_again() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let tlb = caching(&device);
    let mut port = device.port_with_tlb(&tlb);
    for pasid in [None, pasid(6)] {
        let (domain, memory) = mapped(&iommu, IOVA, LEN);
        let route = route(&device, pasid);
        route.attach(&domain, &sink()).unwrap();
        write(&mut port, pasid, IOVA, &[1]).unwrap();
        route.detach();
        domain.unmap(range(IOVA, LEN as u64));
        route.attach(&domain, &sink()).unwrap();
        let fault = write(&mut port, pasid, IOVA, &[2]).unwrap_err();
        assert_eq!(fault.reason, FaultReason::NotPresent);
        assert_eq!(contents(&memory, 1), [1]);
        route.detach();
    }
}

#[test]
fn a_port_that_missed_many_invalidations_forgets_everything() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let tlb = caching(&device);
    let (domain, _memory) = mapped(&iommu, IOVA, 64 * 4096);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let mut port = device.port_with_tlb(&tlb);
    for page in 0..64 {
        write(&mut port, None, IOVA + page * 4096, &[1]).unwrap();
    }
    for page in 0..40 {
        domain.unmap(range(IOVA + page * 4096, 4096));
    }
    for page in 0..64 {
        let done = write(&mut port, None, IOVA + page * 4096, &[2]);
        assert_eq!(done.is_ok(), page >= 40, "{page}");
    }
}

#[test]
fn a_kept_translation_allows_no_more_than_it_was_asked_for() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let tlb = caching(&device);
    let (domain, memory) = (domain(&iommu), pages(&iommu, 0x1000));
    domain.map(IOVA, memory.spa(), 0x1000, Prot::READ).unwrap();
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let mut port = device.port_with_tlb(&tlb);
    assert!(port.enter(None).read(IOVA, &mut [0; 8]).is_complete());
    let fault = write(&mut port, None, IOVA, &[1]).unwrap_err();
    assert_eq!(fault.reason, FaultReason::Permission);
}

#[test]
fn a_dirty_page_is_reported_again_though_its_translation_was_kept() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let tlb = caching(&device);
    let config = DomainConfig {
        dirty_tracking: true,
        ..DomainConfig::unmanaged(FORMAT)
    };
    let domain = iommu.alloc_domain(config).unwrap();
    let memory = pages(&iommu, 0x1000);
    domain.map(IOVA, memory.spa(), 0x1000, Prot::RW).unwrap();
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let mut port = device.port_with_tlb(&tlb);
    write(&mut port, None, IOVA, &[1]).unwrap();
    domain.set_dirty_tracking(true);
    for round in 0..4 {
        write(&mut port, None, IOVA, &[round]).unwrap();
        let mut dirty = Vec::new();
        domain.read_dirty(range(IOVA, 0x1000), true, &mut |found| dirty.push(found));
        assert_eq!(dirty, [range(IOVA, 0x1000)], "{round}");
    }
}

/// Writes down what it is told.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<(Option<Pasid>, AddrRange)>>);

impl DeviceTlb for Told {
    fn invalidate(&self, pasid: Option<Pasid>, range: AddrRange) {
        self.0.lock().unwrap().push((pasid, range));
    }
}

#[test]
fn every_device_of_a_domain_is_told_for_each_of_its_routes() {
    let iommu = machine();
    let devices = [1, 2, 3].map(|number| device(&iommu, number));
    let told: [Arc<Told>; 2] = Default::default();
    // The third keeps nothing and is not told anything.
    for (device, told) in devices.iter().zip(&told) {
        device.enable_ats(told.clone());
    }
    let (domain, _memory) = mapped(&iommu, IOVA, LEN);
    let routes = [
        route(&devices[0], None),
        route(&devices[0], pasid(9)),
        route(&devices[1], pasid(4)),
        route(&devices[2], None),
    ];
    for route in &routes {
        route.attach(&domain, &sink()).unwrap();
    }
    let taken = || {
        told.each_ref()
            .map(|told| std::mem::take(&mut *told.0.lock().unwrap()))
    };
    let gone = range(IOVA, LEN as u64);
    assert_eq!(domain.unmap(gone), LEN as u64);
    assert_eq!(
        taken(),
        [vec![(None, gone), (pasid(9), gone)], vec![(pasid(4), gone)]]
    );
    routes[1].detach();
    assert_eq!(taken(), [vec![(pasid(9), AddrRange::ALL)], vec![]]);
    devices[1].disable_ats();
    routes[2].detach();
    assert_eq!(taken(), [vec![], vec![]]);
}

fn moves(device: &Arc<Device>, pasid: Option<Pasid>) -> bool {
    write(&mut device.port(), pasid, IOVA, &[1]).is_ok()
}

#[test]
fn a_device_in_reset_is_blocked_takes_no_attachment_and_gets_its_own_back() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let ((first, _m1), (second, _m2)) = (mapped(&iommu, IOVA, LEN), mapped(&iommu, IOVA, LEN));
    let (own, tagged) = (route(&device, None), route(&device, pasid(3)));
    own.attach(&first, &sink()).unwrap();
    let (log, faults) = log();
    tagged.attach(&second, &faults).unwrap();
    let outer = device.begin_reset();
    let inner = device.begin_reset();
    assert!(!moves(&device, None) && !moves(&device, pasid(3)));
    let busy = Err(AttachError::Resetting {
        device: device.address(),
    });
    assert_eq!(route(&device, pasid(4)).attach(&first, &sink()), busy);
    assert_eq!(own.replace(&second, &sink()), busy);
    assert_eq!(tagged.replace(&first, &sink()), busy);
    // Still attached, as far as anybody can ask.
    assert_eq!(device.attachments().len(), 2);
    assert_eq!(first.attachments(), [(device.address(), None)]);
    drop(outer);
    assert!(!moves(&device, None), "resets nest");
    drop(inner);
    assert!(moves(&device, None) && moves(&device, pasid(3)));
    own.replace(&second, &sink()).unwrap();
    assert_eq!(log.total(), 0);
    let beyond = IOVA + LEN as u64;
    assert!(
        !device
            .port()
            .enter(pasid(3))
            .write(beyond, &[1])
            .is_complete()
    );
    let mut port = device.port();
    let transfer = port.enter(pasid(3)).write(beyond, &[1]);
    port.report(transfer.fault().unwrap());
    assert_eq!(log.total(), 1, "faults go to the same owner as before");
}

#[test]
fn what_is_detached_during_a_reset_does_not_come_back() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, _memory) = mapped(&iommu, IOVA, LEN);
    let (own, tagged) = (route(&device, None), route(&device, pasid(3)));
    own.attach(&domain, &sink()).unwrap();
    tagged.attach(&domain, &sink()).unwrap();
    let reset = device.begin_reset();
    tagged.detach();
    assert_eq!(domain.attachments(), [(device.address(), None)]);
    drop(reset);
    assert!(moves(&device, None) && !moves(&device, pasid(3)));
}

#[test]
fn no_byte_is_written_after_a_reset_began() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let tlb = caching(&device);
    let (domain, memory) = mapped(&iommu, IOVA, LEN);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let reset = Mutex::new(Some(device.begin_reset()));
    race(
        &iommu,
        || device.port_with_tlb(&tlb),
        None,
        races() / 8,
        &memory,
        || drop(reset.lock().unwrap().take()),
        || *reset.lock().unwrap() = Some(device.begin_reset()),
    );
}

#[test]
fn a_domain_with_a_caching_device_costs_the_others_nothing_to_keep() {
    let iommu = machine();
    let (caching_device, plain) = (device(&iommu, 1), device(&iommu, 2));
    let tlb = caching(&caching_device);
    let (shared, _m) = mapped(&iommu, IOVA, LEN);
    let (apart, _n): (Arc<Domain>, _) = mapped(&iommu, IOVA, LEN);
    DmaSource::new(&caching_device, None)
        .attach(&shared, &sink())
        .unwrap();
    DmaSource::new(&plain, None)
        .attach(&apart, &sink())
        .unwrap();
    apart.unmap(range(IOVA, LEN as u64));
    assert_eq!(tlb.invalidations(), 0, "another domain is not its business");
    shared.unmap(range(IOVA, LEN as u64));
    assert_eq!(tlb.invalidations(), 1);
}
