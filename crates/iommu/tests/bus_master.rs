//! What a device must not issue is held back, all of it and nothing else, and goes on afterwards.
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;

use std::sync::Arc;

use common::{
    race::{IOVA, LEN, race, races},
    *,
};
use ioasid_core::Pasid;
use ioasid_iommu::{Device, DmaGuard, DmaPort, DmaSource, Requests, Stop, Transfer};

/// Whether one byte could be written; otherwise it is withheld.
fn writes(port: &mut DmaPort, pasid: Option<Pasid>) -> bool {
    let transfer = port.enter(pasid).write(IOVA, &[1]);
    match transfer.stop {
        None => true,
        Some(Stop::Withheld) => false,
        Some(other) => panic!("{other}"),
    }
}

#[test]
fn no_byte_is_written_after_withhold_returned() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, memory) = mapped(&iommu, IOVA, LEN);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    source(&device, 77).attach(&domain, &sink()).unwrap();
    let ways = [
        (None, Requests::All),
        (pasid(77), Requests::All),
        (pasid(77), Requests::Of(pasid(77).unwrap())),
    ];
    for (pasid, of) in ways {
        race(
            &iommu,
            || device.port(),
            pasid,
            races() / 8,
            &memory,
            || device.release(of),
            || assert!(device.withhold(of)),
        );
        device.release(of);
    }
}

#[test]
fn what_is_withheld_is_no_fault_and_goes_on_where_it_stopped() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, memory) = mapped(&iommu, IOVA, LEN);
    let (log, faults) = log();
    DmaSource::new(&device, None)
        .attach(&domain, &faults)
        .unwrap();
    let mut port = device.port();
    let bytes: Vec<u8> = (0..100).collect();
    let mut done = 0;
    port.enter(None)
        .write_on(IOVA, &bytes[..60], &mut done)
        .unwrap();
    assert!(device.withhold(Requests::All));
    let stop = port.enter(None).write_on(IOVA, &bytes, &mut done);
    assert!(matches!(stop, Err(Stop::Withheld)) && done == 60);
    let operations: [fn(&mut DmaGuard<'_>) -> Transfer; 6] = [
        |guard| guard.copy(IOVA, IOVA + 100, 10),
        |guard| guard.copy(IOVA + 5, IOVA, 10),
        |guard| guard.fill(IOVA, 0, 10),
        |guard| guard.compare(IOVA, IOVA + 1, 10).0,
        |guard| guard.read(IOVA, &mut [0]),
        |guard| guard.write(IOVA, &[0]),
    ];
    for operation in operations {
        let held = |transfer: Transfer| {
            matches!(transfer.stop, Some(Stop::Withheld)) && transfer.done == 0
        };
        assert!(held(operation(&mut port.enter(None))));
        assert!(held(operation(&mut port.enter_untranslated(None))));
        assert!(held(operation(&mut port.enter_blocking(None))));
    }
    device.release(Requests::All);
    port.enter(None).write_on(IOVA, &bytes, &mut done).unwrap();
    assert_eq!(contents(&memory, 100), bytes);
    assert_eq!((log.total(), device.fault_log().total()), (0, 0));
}

#[test]
fn what_is_withheld_may_be_attached_and_reset_meanwhile() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, memory) = mapped(&iommu, IOVA, LEN);
    let (other, other_memory) = mapped(&iommu, IOVA, LEN);
    let mut port = device.port();
    assert!(device.withhold(Requests::All));
    assert!(
        !writes(&mut port, None),
        "nothing is attached, and no fault"
    );
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    assert!(!writes(&mut port, None));
    DmaSource::new(&device, None)
        .replace(&other, &sink())
        .unwrap();
    drop(device.begin_reset());
    assert!(!writes(&mut port, None), "a reset ends nothing of it");
    let reset = device.begin_reset();
    device.release(Requests::All);
    let transfer = port.enter(None).write(IOVA, &[1]);
    assert!(transfer.fault().is_some(), "blocked by the reset");
    drop(reset);
    assert!(writes(&mut port, None));
    assert_eq!(contents(&memory, 1), [0]);
    assert_eq!(contents(&other_memory, 1), [1]);
}

#[test]
fn the_requests_of_one_pasid_are_withheld_apart_and_all_together() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, _memory) = mapped(&iommu, IOVA, LEN);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    for pasid in [5, 6] {
        source(&device, pasid).attach(&domain, &sink()).unwrap();
    }
    let mut port = device.port();
    let mut reach = |device: &Arc<Device>, changes: &dyn Fn(&Arc<Device>)| {
        changes(device);
        [None, pasid(5), pasid(6)].map(|pasid| writes(&mut port, pasid))
    };
    let of = Requests::Of(pasid(5).unwrap());
    let one = reach(&device, &|device| assert!(device.withhold(of)));
    assert_eq!(one, [true, false, true]);
    let all = reach(&device, &|device| assert!(device.withhold(Requests::All)));
    assert_eq!(all, [false; 3]);
    let still = reach(&device, &|device| device.release(Requests::All));
    assert_eq!(still, [true, false, true]);
    let none = reach(&device, &|device| device.release(of));
    assert_eq!(none, [true; 3]);
}

#[test]
fn a_detach_that_is_under_way_hides_nothing() {
    // The claim itself is explored under a scheduler (`shuttle.rs`); here it is the account of routes
    // that are left, which must be empty in the end.
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, _memory) = mapped(&iommu, IOVA, LEN);
    let route = DmaSource::new(&device, None);
    for _ in 0..3 {
        route.attach(&domain, &sink()).unwrap();
        assert!(device.withhold(Requests::All));
        route.detach();
        device.release(Requests::All);
        let transfer = device.port().enter(None).write(IOVA, &[1]);
        assert!(transfer.fault().is_some(), "not attached is a fault again");
    }
}
