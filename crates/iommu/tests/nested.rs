//! Nested domains: guests' tables, walked through the parent.
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;
#[path = "nested/copies.rs"]
mod copies;
#[path = "nested/faults.rs"]
mod faults;
#[path = "nested/private.rs"]
mod private;
#[path = "nested/rights.rs"]
mod rights;
#[path = "nested/routes.rs"]
mod routes;

use std::sync::Arc;

use common::{
    guest::{A, BASE, D, EA, Guest, P, RW, US},
    *,
};
use ioasid_core::{AddrRange, Prot};
use ioasid_iommu::{
    Device, DmaSource, Domain, DomainKind, FaultReason, FirstStage, FirstStageFault, Invalidate,
    Iommu, NestError, NestedFault, TableFormat, Tlb,
};

const IOVA: u64 = 0x7f12_3456_7000;

fn attach(device: &Arc<Device>, domain: &Arc<Domain>) -> DmaSource {
    let source = DmaSource::new(device, None);
    source.attach(domain, &sink()).unwrap();
    source
}

/// A guest with one page at `IOVA`, a device behind its table, and the page.
fn one_page(bits: u64) -> (Arc<Iommu>, Arc<Device>, Guest, FirstStage, u64, u64) {
    let iommu = machine();
    let device = device(&iommu, 1);
    let mut guest = Guest::new(&iommu, 64 << 12);
    let table = guest.table(4);
    let page = guest.page();
    let entry = guest.map(table, IOVA, page, 0, bits);
    (iommu, device, guest, table, page, entry)
}

fn reason(result: Result<(), ioasid_iommu::Fault>) -> Option<FaultReason> {
    result.err().map(|fault| fault.reason)
}

#[test]
fn dma_goes_through_both_stages_and_marks_what_it_used() {
    let (_iommu, device, guest, table, page, entry) = one_page(RW | US);
    let nested = guest.parent.nest(table).unwrap();
    assert_eq!(nested.kind(), DomainKind::Nested);
    assert!(Arc::ptr_eq(nested.parent().unwrap(), &guest.parent));
    assert_eq!(nested.first_stage(), Some(table));
    attach(&device, &nested);
    let mut port = device.port();
    let mut found = [0; 4];
    assert!(port.enter(None).read(IOVA + 0x10, &mut found).is_complete());
    assert_eq!(guest.read(entry) & (A | D | EA), A);
    write(&mut port, None, IOVA + 0x10, b"here").unwrap();
    assert_eq!(guest.read(entry) & (A | D | EA), A | D);
    assert_eq!(&guest.bytes(page + 0x10, 4), b"here");
    assert!(port.enter(None).read(IOVA + 0x10, &mut found).is_complete());
    assert_eq!(&found, b"here");
    assert_eq!(nested.dma_operations(), 3);
    assert_eq!(guest.parent.attachments(), []);
    let after = write(&mut port, None, IOVA + 0x1000, &[1]);
    let fault = FaultReason::Nested(NestedFault::FirstStage(FirstStageFault::NotPresent));
    assert_eq!(reason(after), Some(fault));
}

#[test]
fn what_a_guest_takes_away_is_gone_when_the_invalidation_returns() {
    let (_iommu, device, guest, table, page, entry) = one_page(RW | US);
    let nested = guest.parent.nest(table).unwrap();
    attach(&device, &nested);
    let mut port = device.port();
    write(&mut port, None, IOVA, b"one").unwrap();
    guest.write(entry, 0);
    nested.invalidate(range(IOVA, 4096), Invalidate::Leaves);
    assert!(write(&mut port, None, IOVA, b"two").is_err());
    guest.write(entry, page | P | RW | US);
    write(&mut port, None, IOVA, b"six").unwrap();
    let upper = table.root + 8 * (IOVA >> 39 & 511);
    let link = guest.read(upper);
    guest.write(upper, 0);
    nested.invalidate(AddrRange::ALL, Invalidate::Tables);
    assert!(write(&mut port, None, IOVA, b"two").is_err());
    guest.write(upper, link);
    write(&mut port, None, IOVA, b"two").unwrap();
    assert_eq!(&guest.bytes(page, 3), b"two");
    guest.parent.unmap(range(page, 4096));
    let fault = reason(write(&mut port, None, IOVA, b"xxx"));
    assert_eq!(fault, Some(FaultReason::Nested(NestedFault::NotMapped)));
    assert_eq!(&guest.bytes(page, 3), b"two");
}

#[test]
fn only_a_second_stage_can_be_nested_on() {
    let iommu = machine();
    let config = ioasid_iommu::DomainConfig::unmanaged(TableFormat::X86_64Stage1);
    let first_stage = iommu.alloc_domain(config).unwrap();
    let refused = first_stage.nest(FirstStage::new(0));
    assert!(matches!(refused, Err(NestError::NoSecondStage { .. })));
    let guest = Guest::new(&iommu, 4096);
    let nested = guest.parent.nest(FirstStage::new(BASE)).unwrap();
    assert!(nested.nest(FirstStage::new(BASE)).is_err());
    assert!(nested.map(0, 0, 4096, Prot::RW).is_err());
    assert_eq!(iommu.paging_domains(), 2);
}

#[test]
fn any_address_of_a_large_page_invalidates_all_of_it() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let tlb = Tlb::new();
    device.enable_ats(tlb.clone());
    let mut guest = Guest::new(&iommu, 4 << 20);
    let table = guest.table(4);
    let large = 0x4000_0000;
    let entry = guest.map(table, large, BASE + (2 << 20), 1, RW | US | A | D);
    let nested = guest.parent.nest(table).unwrap();
    attach(&device, &nested);
    let mut port = device.port_with_tlb(&tlb);
    write(&mut port, None, large + 0x5000, b"kept").unwrap();
    guest.write(entry, 0);
    nested.invalidate(range(large, 4096), Invalidate::Leaves);
    assert!(write(&mut port, None, large + 0x5008, b"gone").is_err());
}
