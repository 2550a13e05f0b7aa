//! Attach, replace, detach; PASIDs that programs choose; groups; reserved ranges.

use std::sync::Arc;

use ioasid_core::{AddrRange, Prot};
use ioasid_iommufd::{
    AttachError, BoundDevice, Error, HwptAlloc, HwptFlags, MapArgs, MapError, ObjectError,
    ObjectId, RangeError,
};

use crate::machine::*;

/// A page table of a new IOAS that maps a page at 0x10000.
fn pasid_hwpt(m: &Machine, device: &BoundDevice) -> ObjectId {
    let ioas = m.ioas();
    m.map(ioas, 0x10000, PAGE);
    let args = HwptAlloc::new(device.id(), ioas).with_flags(HwptFlags::PASID);
    m.context.hwpt_alloc(args).unwrap()
}

#[test]
fn a_chosen_pasid_needs_page_tables_made_for_pasids() {
    let m = machine();
    let pdev = m.pdev(1);
    let ioas = m.ioas();
    let plain = m
        .context
        .hwpt_alloc(HwptAlloc::new(pdev.id(), ioas))
        .unwrap();
    let (one, two) = (pasid_hwpt(&m, &pdev), pasid_hwpt(&m, &pdev));
    assert_matches!(
        pdev.attach_pasid(ioas, 4),
        Err(Error::Attach(AttachError::NotForPasids { .. }))
    );
    assert_matches!(
        pdev.attach_pasid(plain, 4),
        Err(Error::Attach(AttachError::NotForPasids { .. }))
    );
    // A device that is attached otherwise has no PASIDs to give.
    for pt in [ioas, plain] {
        pdev.attach(pt).unwrap();
        assert_matches!(
            pdev.attach_pasid(one, 4),
            Err(Error::Attach(AttachError::NotForPasids { .. }))
        );
        pdev.detach();
    }
    assert_eq!(pdev.attach_pasid(one, 4), Ok(one));
    assert_matches!(
        pdev.attach(ioas),
        Err(Error::Attach(AttachError::NotForPasids { .. }))
    );
    assert_matches!(
        pdev.attach(plain),
        Err(Error::Attach(AttachError::NotForPasids { .. }))
    );
    assert_eq!(pdev.attach(two), Ok(two));
    assert_matches!(
        pdev.attach(plain),
        Err(Error::Attach(AttachError::NotForPasids { .. })),
        "nor by replacing"
    );
    assert_eq!(pdev.attached(None), Some(two), "what was attached stays");
    assert!(dma_write(&pdev, Some(pasid(4)), 0x10000, 1));
    assert_eq!(
        pdev.attach_pasid(two, 4),
        Ok(two),
        "a second attach replaces"
    );
    pdev.detach_pasid(4);
    pdev.detach_pasid(4);
    assert!(!dma_write(&pdev, Some(pasid(4)), 0x10000, 1));
    assert_eq!(pdev.attach(plain), Ok(plain), "no PASIDs, no rule");
}

#[test]
fn pasid_numbers_that_are_none_are_refused() {
    let m = machine();
    let mut narrow = config(1);
    narrow.pasid_bits = 4;
    let narrow = m.iommu.add_device(narrow).unwrap();
    let pdev = m.context.bind_device(&narrow, sink()).unwrap();
    let hwpt = pasid_hwpt(&m, &pdev);
    assert_matches!(
        pdev.attach_pasid(hwpt, 0),
        Err(Error::Attach(AttachError::NoSuchPasid { .. }))
    );
    assert_matches!(
        pdev.attach_pasid(hwpt, 16),
        Err(Error::Attach(AttachError::NoSuchPasid { .. }))
    );
    assert_matches!(
        pdev.attach_pasid(hwpt, 1 << 30),
        Err(Error::Attach(AttachError::NoSuchPasid { .. }))
    );
    assert_matches!(
        pdev.attach_pasid(hwpt, 1 << 31),
        Err(Error::Attach(AttachError::PasidSpace(_)))
    );
    assert_eq!(
        pdev.attach_pasid(NOBODY, 0),
        Err(ObjectError::Missing(NOBODY).into())
    );
    assert_eq!(pdev.attach_pasid(hwpt, 15), Ok(hwpt));
    let mut none = config(2);
    none.pasid_bits = 0;
    let none = m.iommu.add_device(none).unwrap();
    let without = m.context.bind_device(&none, sink()).unwrap();
    assert_matches!(
        without.attach_pasid(hwpt, 1),
        Err(Error::Attach(AttachError::NoSuchPasid { .. }))
    );
    assert_matches!(
        m.context.bind_pasid(&none, pasid(1), sink()).unwrap_err(),
        Error::Attach(AttachError::NoSuchPasid { .. })
    );
    let child = m.mdev(3, 5);
    assert_matches!(
        child.attach_pasid(hwpt, 1),
        Err(Error::Attach(AttachError::NoPasids(_)))
    );
    assert_eq!(
        child.attach(hwpt),
        Ok(hwpt),
        "its own PASID may stand on any page table"
    );
}

#[test]
fn replacing_moves_the_reserved_ranges_or_nothing() {
    let m = machine();
    let pdev = m.pdev(1);
    let (from, to, blocked) = (m.ioas(), m.ioas(), m.ioas());
    let whole = m.context.ioas_iova_ranges(to).unwrap();
    m.map(from, 0x10000, PAGE);
    m.map(to, 0x20000, PAGE);
    m.map(blocked, 0xfee0_0000, PAGE);
    let old = pdev.attach(from).unwrap();
    let narrow = m.context.ioas_iova_ranges(from).unwrap();
    let msi = AddrRange::new(0xfee0_0000, 0xfeef_ffff).unwrap();
    assert!(narrow.ranges.iter().all(|range| !range.overlaps(msi)));
    assert_eq!(narrow.ranges[0], AddrRange::new(0, 0xfedf_ffff).unwrap());
    assert_eq!(narrow.ranges[1].start(), 0xfef0_0000);
    assert_eq!((narrow.alignment, whole.alignment), (PAGE, 1));
    assert_matches!(
        pdev.attach(blocked),
        Err(Error::Range(RangeError::Mapped { .. }))
    );
    assert_eq!(pdev.attached(None), Some(old));
    assert!(
        reaches(&pdev, 0x10000),
        "a failed replace keeps the old page table"
    );
    pdev.attach(to).unwrap();
    assert!(reaches(&pdev, 0x20000) && !reaches(&pdev, 0x10000));
    assert_eq!(m.context.ioas_iova_ranges(from), Ok(whole.clone()));
    assert_eq!(m.context.ioas_iova_ranges(to), Ok(narrow));
    pdev.detach();
    assert_eq!(m.context.ioas_iova_ranges(to), Ok(whole));
    assert_eq!(m.domains().len(), 0);
}

#[test]
fn attaching_a_pasid_reserves_nothing_for_the_device() {
    let m = machine();
    let pdev = m.pdev(1);
    let hwpt = pasid_hwpt(&m, &pdev);
    let ioas = ObjectId::from_raw(hwpt.get() - 1);
    let before = m.context.ioas_iova_ranges(ioas).unwrap();
    pdev.attach_pasid(hwpt, 4).unwrap();
    assert_eq!(m.context.ioas_iova_ranges(ioas), Ok(before.clone()));
    pdev.attach(hwpt).unwrap();
    let narrow = m.context.ioas_iova_ranges(ioas).unwrap();
    assert_ne!(narrow, before);
    // Nor do PASIDs that come, fail to come, move or go lift what the device itself reserves.
    let elsewhere = pasid_hwpt(&m, &pdev);
    assert!(pdev.attach_pasid(hwpt, 1 << 20).is_err());
    assert!(pdev.attach_pasid(elsewhere, 4).is_ok() && pdev.attach_pasid(hwpt, 4).is_ok());
    pdev.detach_pasid(4);
    assert_eq!(m.context.ioas_iova_ranges(ioas), Ok(narrow));
}

#[test]
fn an_allowed_range_keeps_a_device_out_that_would_reserve_it() {
    let m = machine();
    let pdev = m.pdev(1);
    let ioas = m.ioas();
    let range = |start, last| AddrRange::new(start, last).unwrap();
    let allow = |ranges: &[AddrRange]| m.context.ioas_allow_iovas(ioas, ranges);
    assert_matches!(
        allow(&[range(0, 9), range(5, 20)]),
        Err(Error::Range(RangeError::Overlaps { .. }))
    );
    assert_matches!(
        allow(&[range(5, 5)]),
        Err(Error::Range(RangeError::Empty { .. }))
    );
    assert_eq!(allow(&[range(0xfee0_0000, 0xfee0_0fff)]), Ok(()));
    assert_matches!(
        pdev.attach(ioas),
        Err(Error::Range(RangeError::Allowed { .. }))
    );
    assert_eq!(allow(&[]), Ok(()));
    pdev.attach(ioas).unwrap();
    assert_matches!(
        allow(&[range(0xfee0_0000, 0xfee0_0fff)]),
        Err(Error::Range(RangeError::Reserved { .. }))
    );
    assert_eq!(allow(&[range(0x5000, 0x8fff)]), Ok(()));
    let pages = m.pages(PAGE);
    let map = |len| {
        let args = MapArgs::anywhere(len, Prot::RW);
        m.context.ioas_map(ioas, Arc::new(pages.clone()), args)
    };
    let placed: Vec<_> = (0..4).map(|_| map(PAGE)).collect();
    assert_eq!(placed, [Ok(0x5000), Ok(0x6000), Ok(0x7000), Ok(0x8000)]);
    assert_matches!(map(PAGE), Err(Error::Map(MapError::NoSpace { .. })));
    m.map(ioas, 0x100_0000, PAGE);
}

#[test]
fn a_group_stands_on_one_page_table() {
    let m = machine();
    let group = m.iommu.add_group();
    let [one, two] = [1, 2]
        .map(|number| {
            let mut config = config(number);
            config.group = Some(Arc::clone(&group));
            m.iommu.add_device(config).unwrap()
        })
        .map(|device| m.context.bind_device(&device, sink()).unwrap());
    let (ioas, other) = (m.ioas(), m.ioas());
    m.map(ioas, 0x10000, PAGE);
    m.map(other, 0x20000, PAGE);
    let hwpt = one.attach(ioas).unwrap();
    assert_matches!(
        two.attach(other),
        Err(Error::Attach(AttachError::GroupElsewhere { .. }))
    );
    assert_eq!(two.attach(ioas), Ok(hwpt));
    one.attach(other).unwrap();
    assert!(reaches(&two, 0x20000), "replacing moves the whole group");
    assert_eq!(two.attached(None), one.attached(None));
    one.detach();
    assert!(
        reaches(&two, 0x20000),
        "the page table is the group's until the last leaves"
    );
    two.detach();
    assert!(!reaches(&two, 0x20000));
    assert_eq!(m.domains().len(), 0);
}

#[test]
fn only_address_spaces_and_page_tables_can_be_attached_to() {
    let m = machine();
    let pdev = m.pdev(1);
    assert_eq!(
        pdev.attach(NOBODY),
        Err(ObjectError::Missing(NOBODY).into())
    );
    assert_eq!(
        pdev.attach(pdev.id()),
        Err(AttachError::NotAttachable(pdev.id()).into())
    );
    pdev.detach();
    assert_eq!(pdev.attached(None), None);
}

#[test]
fn a_page_table_that_tracks_dirty_pages_refuses_devices_that_cannot() {
    let m = machine();
    let mut blind = config(2);
    blind.dirty = false;
    let blind = m.iommu.add_device(blind).unwrap();
    let (pdev, blind) = (m.pdev(1), m.context.bind_device(&blind, sink()).unwrap());
    let ioas = m.ioas();
    let args = HwptAlloc::new(pdev.id(), ioas).with_flags(HwptFlags::DIRTY_TRACKING);
    let hwpt = m.context.hwpt_alloc(args).unwrap();
    assert_matches!(
        blind.attach(hwpt),
        Err(Error::Attach(AttachError::Incompatible(_)))
    );
    assert!(!m.context.hw_info(blind.id()).unwrap().dirty_tracking);
    assert_eq!(pdev.attach(hwpt), Ok(hwpt));
}

#[test]
fn dropping_a_device_detaches_it_everywhere() {
    let m = machine();
    let (pdev, mdev) = (m.pdev(1), m.mdev(2, 5));
    let hwpt = pasid_hwpt(&m, &pdev);
    pdev.attach(hwpt).unwrap();
    pdev.attach_pasid(hwpt, 7).unwrap();
    mdev.attach(hwpt).unwrap();
    assert_eq!(m.routes().len(), 3);
    let (id, device) = (pdev.id(), Arc::clone(pdev.device()));
    drop(pdev);
    assert_eq!(m.routes(), [(mdev.device().address(), Some(pasid(5)))]);
    assert_eq!(m.context.hw_info(id), Err(ObjectError::Missing(id).into()));
    assert!(device.use_dma_api().is_ok(), "the group has no owner again");
    assert_eq!(
        m.context.destroy(hwpt),
        Err(ObjectError::InUse(hwpt).into())
    );
    drop(mdev);
    assert_eq!(m.context.destroy(hwpt), Ok(()));
}
