//! What a port keeps from one guard to the next is not used once it has changed.
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;

use common::*;
use ioasid_core::{Access, Prot};
use ioasid_iommu::{DmaSource, DomainConfig, FaultReason};

const IOVA: u64 = 0x20_0000;
const LEN: u64 = 0x4000;

#[test]
fn an_address_that_is_mapped_anew_leads_to_the_new_memory() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, old) = mapped(&iommu, IOVA, LEN as usize);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let mut port = device.port();
    for byte in [1, 2] {
        write(&mut port, None, IOVA, &[byte]).unwrap();
    }
    assert_eq!(domain.unmap(range(IOVA, LEN)), LEN);
    let fault = write(&mut port, None, IOVA, &[3]).unwrap_err();
    assert_eq!(fault.reason, FaultReason::NotPresent);
    let new = pages(&iommu, LEN as usize);
    domain.map(IOVA, new.spa(), LEN, Prot::RW).unwrap();
    write(&mut port, None, IOVA, &[4]).unwrap();
    assert_eq!((contents(&old, 1), contents(&new, 1)), (vec![2], vec![4]));
    // The permission of the new mapping counts as well.
    domain.unmap(range(IOVA, LEN));
    domain.map(IOVA, new.spa(), LEN, Prot::READ).unwrap();
    let fault = write(&mut port, None, IOVA, &[5]).unwrap_err();
    assert_eq!(
        (fault.reason, fault.access),
        (FaultReason::Permission, Access::Write)
    );
}

#[test]
fn each_route_leads_to_its_own_domain_and_to_the_one_that_it_has_now() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let spaces: Vec<_> = (0..3).map(|_| mapped(&iommu, IOVA, LEN as usize)).collect();
    let routes = [
        DmaSource::new(&device, None),
        source(&device, 5),
        // Another one of the same domain.
        source(&device, 6),
    ];
    for (route, space) in routes.iter().zip([0, 1, 1]) {
        route.attach(&spaces[space].0, &sink()).unwrap();
    }
    let mut port = device.port();
    let mut written = [0; 3];
    for (byte, route) in (1..).zip([0, 1, 0, 2, 1, 0, 0, 2, 2, 1]) {
        write(&mut port, routes[route].pasid, IOVA, &[byte]).unwrap();
        written[route.min(1)] = byte;
        for (space, byte) in spaces.iter().zip(written) {
            assert_eq!(contents(&space.1, 1), [byte]);
        }
    }
    routes[1].replace(&spaces[2].0, &sink()).unwrap();
    write(&mut port, pasid(5), IOVA, &[99]).unwrap();
    assert_eq!(contents(&spaces[2].1, 1), [99]);
    routes[0].detach();
    assert!(write(&mut port, None, IOVA, &[98]).is_err());
}

#[test]
fn a_page_is_dirty_again_after_each_report_of_it() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let config = DomainConfig {
        dirty_tracking: true,
        ..DomainConfig::unmanaged(FORMAT)
    };
    let domain = iommu.alloc_domain(config).unwrap();
    let memory = pages(&iommu, LEN as usize);
    domain.map(IOVA, memory.spa(), LEN, Prot::RW).unwrap();
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let mut port = device.port();
    write(&mut port, None, IOVA, &[1]).unwrap();
    domain.set_dirty_tracking(true);
    let dirty = |clear| {
        let mut found = Vec::new();
        domain.read_dirty(range(IOVA, LEN), clear, &mut |range| found.push(range));
        found
    };
    for clear in [true, false, true, true] {
        for _ in 0..2 {
            write(&mut port, None, IOVA, &[1]).unwrap();
        }
        assert_eq!(dirty(clear), [range(IOVA, 4096)]);
    }
    assert_eq!(dirty(true), []);
    // What is kept for reading allows no write, and a page beside it is one of its own.
    let mut byte = [0];
    assert!(port.enter(None).read(IOVA + 4096, &mut byte).is_complete());
    assert_eq!(dirty(true), []);
    write(&mut port, None, IOVA + 4096, &[1]).unwrap();
    assert_eq!(dirty(true), [range(IOVA + 4096, 4096)]);
}

#[test]
fn memory_that_is_gone_is_no_memory_though_its_mapping_stays() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, memory) = mapped(&iommu, IOVA, LEN as usize);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let mut port = device.port();
    for byte in [1, 2] {
        write(&mut port, None, IOVA, &[byte]).unwrap();
    }
    drop(memory);
    let fault = write(&mut port, None, IOVA, &[3]).unwrap_err();
    assert_eq!(fault.reason, FaultReason::Unregistered);
}

#[test]
fn the_interrupt_window_is_no_memory_beside_what_is_kept() {
    const WINDOW: u64 = 0xfee0_0000;
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, _memory) = mapped(&iommu, WINDOW - 0x2000, 0x4000);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    source(&device, 5).attach(&domain, &sink()).unwrap();
    let mut port = device.port();
    for _ in 0..2 {
        write(&mut port, None, WINDOW - 0x1001, &[1]).unwrap();
        write(&mut port, None, WINDOW - 1, &[1]).unwrap();
        for (start, bytes) in [(WINDOW, 1), (WINDOW - 1, 2), (WINDOW - 0x1000, 0x1001)] {
            let fault = write(&mut port, None, start, &vec![1; bytes]).unwrap_err();
            assert_eq!(
                (fault.reason, fault.iova),
                (FaultReason::InterruptWindow, WINDOW)
            );
        }
        // With a PASID it is an address like any other.
        write(&mut port, pasid(5), WINDOW - 1, &[1; 2]).unwrap();
    }
}
