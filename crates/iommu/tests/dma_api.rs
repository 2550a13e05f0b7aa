//! The DMA API: the driver's own mappings on the default domain.
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;

use common::*;
use ioasid_core::{Prot, memory::PAGE_SIZE};
use ioasid_iommu::{DmaMapError, DomainKind, FaultReason};

#[test]
fn a_driver_copies_through_mapped_buffers_and_faults_after_unmap() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let api = device.use_dma_api().unwrap();
    assert_eq!(api.domain().kind(), DomainKind::Dma);
    let (source, target) = (pages(&iommu, 16 << 10), pages(&iommu, 16 << 10));
    let data: Vec<u8> = (0..16 << 10).map(|i| (i * 7) as u8).collect();
    source.memory().write(0, &data);
    let from = api.map(&source, 0, 16 << 10, Prot::READ).unwrap();
    let to = api.map(&target, 0, 16 << 10, Prot::WRITE).unwrap();
    let mut port = device.port();
    copy(&mut port, None, to.iova(), from.iova(), 16 << 10).unwrap();
    assert_eq!(contents(&target, 16 << 10), data);
    // Directions are kept.
    let fault = write(&mut port, None, from.iova(), b"x").unwrap_err();
    assert_eq!(fault.reason, FaultReason::Permission);
    let (to_iova, from_iova) = (to.iova(), from.iova());
    to.unmap();
    let fault = copy(&mut port, None, to_iova, from_iova, 64).unwrap_err();
    assert_eq!(
        (fault.iova, fault.reason),
        (to_iova, FaultReason::NotPresent)
    );
    assert_eq!(device.fault_log().total(), 2, "faults go to the driver");
}

#[test]
fn a_buffer_inside_a_page_is_mapped_with_its_page_offset() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let api = device.use_dma_api().unwrap();
    let memory = pages(&iommu, 16 << 10);
    let mapping = api.map(&memory, 0x1ff0, 0x20, Prot::RW).unwrap();
    assert_eq!(mapping.iova() % PAGE_SIZE, 0xff0);
    write(&mut device.port(), None, mapping.iova(), &[1; 0x20]).unwrap();
    assert_eq!(&contents(&memory, 0x2010)[0x1ff0..], &[1; 0x20]);
    assert_eq!(
        api.map(&memory, 0, 0, Prot::RW).unwrap_err(),
        DmaMapError::BadLength { offset: 0, len: 0 }
    );
    assert!(api.map(&memory, 0, 1 << 40, Prot::RW).is_err());
    assert!(api.map(&memory, u64::MAX, 1, Prot::RW).is_err());
}

#[test]
fn addresses_avoid_reserved_regions_and_are_reused_after_unmap() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let api = device.use_dma_api().unwrap();
    let memory = pages(&iommu, 4 << 20);
    let mut held = Vec::new();
    for _ in 0..64 {
        let mapping = api.map(&memory, 0, 4 << 20, Prot::RW).unwrap();
        let range = range(mapping.iova(), 4 << 20);
        for region in device.reserved_regions() {
            assert!(!region.range.overlaps(range), "{range}");
        }
        held.push(mapping);
    }
    let first = held[0].iova();
    assert_eq!(api.domain().mapped_bytes(), 64 * (4 << 20));
    held.clear();
    assert_eq!(api.domain().mapped_bytes(), 0);
    assert_eq!(
        api.map(&memory, 0, 4 << 20, Prot::RW).unwrap().iova(),
        first
    );
}

#[test]
fn the_drivers_domain_can_also_stand_at_a_pasid_of_the_same_device() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let api = device.use_dma_api().unwrap();
    source(&device, 6).attach(api.domain(), &sink()).unwrap();
    let buffer = api.alloc_coherent(100).unwrap();
    let mut port = device.port();
    write(&mut port, None, buffer.iova(), b"rid").unwrap();
    write(&mut port, pasid(6), buffer.iova() + 3, b"+pasid").unwrap();
    assert_eq!(&contents(buffer.pages(), 9), b"rid+pasid");
    assert_eq!(
        api.domain().attachments(),
        [(device.address(), None), (device.address(), pasid(6))]
    );
    assert_eq!(iommu.paging_domains(), 1);
}
