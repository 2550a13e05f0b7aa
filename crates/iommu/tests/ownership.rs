//! DMA ownership: a driver or a user, never both; and the default-PASID child, which claims nothing.
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;

use common::*;
use ioasid_core::Prot;
use ioasid_iommu::{DmaSource, FaultReason, OwnerId, OwnershipError, PasidQuota};

const IOVA: u64 = 0x1_0000;

#[test]
fn a_driver_keeps_users_out_and_a_user_keeps_drivers_out() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (alice, bob) = (OwnerId::new(), OwnerId::new());
    let group = device.group();

    // Driver first: a claim is refused.
    let api = device.use_dma_api().unwrap();
    let group_id = group.id();
    assert_eq!(
        group.claim_dma_owner(alice).unwrap_err(),
        OwnershipError::DriverInUse { group: group_id }
    );
    drop(api);

    // Claim first: a driver is refused, and another user too.
    let claim = group.claim_dma_owner(alice).unwrap();
    let owned = OwnershipError::Owned { group: group_id };
    assert_eq!(device.use_dma_api().unwrap_err(), owned);
    assert_eq!(
        group.claim_dma_owner(bob).unwrap_err(),
        OwnershipError::OtherOwner { group: group_id }
    );

    // The same user claims again; the group is free with the last claim.
    let again = group.claim_dma_owner(alice).unwrap();
    drop(claim);
    assert_eq!(device.use_dma_api().unwrap_err(), owned);
    drop(again);
    drop(group.claim_dma_owner(bob).unwrap());
    let _api = device.use_dma_api().unwrap();
}

#[test]
fn a_group_that_is_attached_without_an_owner_cannot_be_claimed() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let domain = domain(&iommu);
    let owner = OwnerId::new();
    source(&device, 3).attach(&domain, &sink()).unwrap();
    assert_eq!(
        device.group().claim_dma_owner(owner).unwrap_err(),
        OwnershipError::Attached {
            group: device.group().id(),
            pasid: pasid(3),
            domain: domain.id()
        }
    );
    source(&device, 3).detach();
    drop(device.group().claim_dma_owner(owner).unwrap());
}

#[test]
fn a_claim_blocks_the_device_and_its_release_gives_the_default_domain_back() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let memory = pages(&iommu, 4096);
    let mut port = device.port();
    let mapping = {
        let api = device.use_dma_api().unwrap();
        api.map(&memory, 0, 4096, Prot::RW).unwrap()
    };
    write(&mut port, None, mapping.iova(), b"driver").unwrap();
    let claim = device.group().claim_dma_owner(OwnerId::new()).unwrap();
    let fault = write(&mut port, None, mapping.iova(), b"x").unwrap_err();
    assert_eq!(fault.reason, FaultReason::Blocked);
    let (user, user_memory) = mapped(&iommu, IOVA, 4096);
    DmaSource::new(&device, None)
        .attach(&user, &sink())
        .unwrap();
    write(&mut port, None, IOVA, b"user").unwrap();
    assert_eq!(&contents(&user_memory, 4), b"user");
    // Released with a domain still attached: it goes, and the default domain is back.
    drop(claim);
    assert!(user.attachments().is_empty());
    assert!(write(&mut port, None, IOVA, b"x").is_err());
    write(&mut port, None, mapping.iova(), b"DRIVER").unwrap();
    assert_eq!(&contents(&memory, 6), b"DRIVER");
}

#[test]
fn a_default_pasid_child_attaches_while_the_parents_driver_works() {
    let iommu = machine();
    let parent = device(&iommu, 1);
    let api = parent.use_dma_api().unwrap();
    let buffer = api.alloc_coherent(4096).unwrap();
    assert_eq!(iommu.paging_domains(), 1);

    // The child claims nothing; binding the parent itself is refused.
    let child = iommu.pasids().alloc(&PasidQuota::unlimited()).unwrap();
    let (vm, vm_memory) = mapped(&iommu, IOVA, 4096);
    DmaSource::new(&parent, Some(child.pasid()))
        .attach(&vm, &sink())
        .unwrap();
    assert_eq!(
        parent.group().claim_dma_owner(OwnerId::new()).unwrap_err(),
        OwnershipError::DriverInUse {
            group: parent.group().id()
        }
    );
    let mut port = parent.port();
    write(&mut port, None, buffer.iova(), b"parent").unwrap();
    write(&mut port, Some(child.pasid()), IOVA, b"child").unwrap();
    assert_eq!(&contents(buffer.pages(), 6), b"parent");
    assert_eq!(&contents(&vm_memory, 5), b"child");
    // Neither reaches the other's addresses.
    assert!(write(&mut port, None, IOVA, b"x").is_err());
    assert!(write(&mut port, Some(child.pasid()), buffer.iova(), b"x").is_err());

    assert!(
        iommu.remove_device(&parent).is_err(),
        "the child goes first"
    );
    DmaSource::new(&parent, Some(child.pasid())).detach();
    drop(vm);
    assert_eq!(iommu.paging_domains(), 1, "the parent's own is left");
    write(&mut port, None, buffer.iova(), b"PARENT").unwrap();
}

#[test]
fn a_second_driver_user_joins_while_children_are_attached() {
    let iommu = machine();
    let parent = device(&iommu, 1);
    let first = parent.use_dma_api().unwrap();
    let vm = domain(&iommu);
    source(&parent, 1).attach(&vm, &sink()).unwrap();
    let second = parent.use_dma_api().unwrap();
    assert_eq!(first.domain().id(), second.domain().id());
    drop(first);
    assert!(parent.group().dma_api_in_use());
}
