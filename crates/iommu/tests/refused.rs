//! Who watches a machine is told of all DMA that it refuses, and why.
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;

use std::sync::Arc;

use common::*;
use ioasid_core::{Prot, sync::Mutex};
use ioasid_iommu::{DmaPort, DmaRefusal, DmaSource, DmaWatcher, Requests, Stop};

const IOVA: u64 = 0x10_0000;

/// What was told, as sentences.
#[derive(Debug, Default)]
struct Told(Mutex<Vec<String>>);

impl DmaWatcher for Told {
    fn refused(&self, refusal: &DmaRefusal) {
        self.0.lock().push(refusal.to_string());
    }
}

impl Told {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock())
    }
}

/// Writes a byte and gives a fault up, as an engine does.
fn write(port: &mut DmaPort, pasid: Option<ioasid_core::Pasid>, iova: u64) {
    let mut guard = port.enter(pasid);
    if let Some(Stop::Fault(fault)) = guard.write(iova, &[1]).stop {
        guard.report(&fault);
    }
}

#[test]
fn each_fault_is_told_with_its_device_address_and_reason() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let told = Arc::new(Told::default());
    let watcher: Arc<dyn DmaWatcher> = told.clone();
    iommu.watch_refused_dma(&watcher);
    let mut port = device.port();
    let address = device.address();
    write(&mut port, None, IOVA);
    write(&mut port, pasid(7), IOVA);
    let (domain, _memory) = mapped(&iommu, IOVA, 0x1000);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    write(&mut port, None, IOVA);
    write(&mut port, None, 2 * IOVA);
    write(&mut port, None, 0xfee0_0000);
    let said = told.take();
    let wanted = [
        format!("{address}: write at 0x100000: nothing is attached to the device"),
        format!("{address} PASID 7: write at 0x100000: nothing is attached at this PASID"),
        format!("{address}: write at 0x200000: nothing is mapped at this address"),
        format!("{address}: write at 0xfee00000: the interrupt window is no memory"),
    ];
    assert_eq!(said.len(), wanted.len(), "{said:?}");
    for (said, wanted) in said.iter().zip(wanted) {
        assert!(said.starts_with(&wanted), "{said}");
    }
    drop((told, watcher));
    write(&mut port, None, 2 * IOVA);
}

#[test]
fn that_requests_wait_for_bus_master_is_told_once() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let told = Arc::new(Told::default());
    let watcher: Arc<dyn DmaWatcher> = told.clone();
    iommu.watch_refused_dma(&watcher);
    let (domain, _memory) = mapped(&iommu, IOVA, 0x1000);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let mut port = device.port();
    for _ in 0..2 {
        assert!(device.withhold(Requests::All));
        for _ in 0..3 {
            write(&mut port, None, IOVA);
        }
        let said = told.take();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].contains("bus mastering is off"), "{said:?}");
        device.release(Requests::All);
        write(&mut port, None, IOVA);
        assert_eq!(told.take(), [] as [String; 0]);
    }
}

#[test]
fn a_write_to_a_mapping_for_reading_says_so() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let told = Arc::new(Told::default());
    let watcher: Arc<dyn DmaWatcher> = told.clone();
    iommu.watch_refused_dma(&watcher);
    let (domain, memory) = mapped(&iommu, IOVA, 0x1000);
    let again = 2 * IOVA;
    domain.map(again, memory.spa(), 0x1000, Prot::READ).unwrap();
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    write(&mut device.port(), None, again);
    let said = told.take();
    assert!(said[0].contains("does not allow this access"), "{said:?}");
}
