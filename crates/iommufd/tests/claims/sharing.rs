//! One address space, one table: whole devices and children, manual and automatic page tables.

use std::sync::Arc;

use ioasid_core::{Prot, inspect::Inspect};
use ioasid_iommu::{OwnershipError, TableFormat};
use ioasid_iommufd::{
    AttachError, BoundDevice, Context, Error, HwptAlloc, HwptFlags, MapArgs, MapError, ObjectError,
    ObjectId, RangeError,
};

use crate::machine::*;

#[test]
fn a_device_and_a_child_on_one_ioas_get_one_page_table_and_one_domain() {
    for pdev_first in [true, false] {
        let m = machine();
        let (pdev, mdev) = (m.pdev(1), m.mdev(2, 5));
        let ioas = m.ioas();
        let pages = m.map(ioas, 0x10000, PAGE);
        let (first, second) = if pdev_first {
            (&pdev, &mdev)
        } else {
            (&mdev, &pdev)
        };
        assert_eq!(
            m.domains().len(),
            0,
            "no page table before the first attach"
        );
        let hwpt = first.attach(ioas).unwrap();
        assert_eq!(second.attach(ioas), Ok(hwpt));
        assert_eq!(
            m.routes(),
            [
                (pdev.device().address(), None),
                (mdev.device().address(), Some(pasid(5)))
            ]
        );
        assert!(dma_write(&pdev, None, 0x10000, 7) && byte(&pages, 0) == 7);
        assert!(dma_write(&mdev, None, 0x10000, 8) && byte(&pages, 0) == 8);
        let later = m.map(ioas, 0x20000, PAGE);
        assert!(dma_write(&pdev, None, 0x20000, 1) && dma_write(&mdev, None, 0x20001, 2));
        assert_eq!(
            (byte(&later, 0), byte(&later, 1)),
            (1, 2),
            "one map serves both"
        );
        assert_eq!(m.context.ioas_unmap(ioas, 0x20000, PAGE), Ok(PAGE));
        assert!(
            !reaches(&pdev, 0x20000) && !reaches(&mdev, 0x20000),
            "one unmap stops both"
        );
        first.detach();
        assert!(!reaches(first, 0x10000) && reaches(second, 0x10000));
        second.detach();
        assert_eq!(
            m.domains().len(),
            0,
            "the domain goes with the last attachment"
        );
        assert_eq!(
            m.context.destroy(hwpt),
            Err(ObjectError::Missing(hwpt).into())
        );
    }
}

/// A manual page table with `flags` for `manual`, the IOAS id for `automatic`: every order of
/// attaching, detaching and destroying.
fn manual_beside_automatic(
    m: &Machine,
    flags: HwptFlags,
    manual: &BoundDevice,
    automatic: &BoundDevice,
    (manual_first, manual_leaves_first): (bool, bool),
) {
    let ioas = m.ioas();
    m.map(ioas, 0x10000, PAGE);
    let attach_manual = || {
        let alloc = HwptAlloc::new(manual.id(), ioas).with_flags(flags);
        let hwpt = m.context.hwpt_alloc(alloc).unwrap();
        assert_eq!(manual.attach(hwpt), Ok(hwpt));
        hwpt
    };
    let (hwpt, auto_hwpt) = if manual_first {
        let hwpt = attach_manual();
        (hwpt, automatic.attach(ioas).unwrap())
    } else {
        let auto_hwpt = automatic.attach(ioas).unwrap();
        (attach_manual(), auto_hwpt)
    };
    assert_ne!(hwpt, auto_hwpt, "two page tables as programs see them");
    assert_eq!(m.routes().len(), 2, "one domain");
    assert!(reaches(manual, 0x10000) && reaches(automatic, 0x10000));
    if manual_leaves_first {
        manual.detach();
        assert_eq!(m.context.destroy(hwpt), Ok(()));
        assert!(!reaches(manual, 0x10000) && reaches(automatic, 0x10000));
        automatic.detach();
    } else {
        automatic.detach();
        assert!(reaches(manual, 0x10000) && !reaches(automatic, 0x10000));
        manual.detach();
        assert_eq!(m.domains().len(), 1, "a manual page table keeps the domain");
        assert_eq!(m.context.destroy(hwpt), Ok(()));
    }
    assert_eq!(m.domains().len(), 0);
    assert_eq!(m.context.destroy(ioas), Ok(()));
}

#[test]
fn manual_and_automatic_page_tables_stand_on_one_domain_in_every_order() {
    // A VMM with a virtual IOMMU makes a page table to nest on, and for PASIDs, where one without
    // makes a plain one: the guest's memory is one domain all the same.
    let nesting = HwptFlags::NEST_PARENT.with(HwptFlags::PASID);
    let all = nesting.with(HwptFlags::DIRTY_TRACKING);
    for flags in [HwptFlags::NONE, HwptFlags::NEST_PARENT, nesting, all] {
        for order in 0..8 {
            let m = machine();
            let (pdev, mdev) = (m.pdev(1), m.mdev(2, 5));
            let (manual, automatic) = if order & 4 == 0 {
                (&pdev, &mdev)
            } else {
                (&mdev, &pdev)
            };
            let orders = (order & 1 == 0, order & 2 == 0);
            manual_beside_automatic(&m, flags, manual, automatic, orders);
        }
    }
}

#[test]
fn moving_between_page_tables_on_one_domain_changes_nothing_for_the_device() {
    let m = machine();
    let (pdev, mdev) = (m.pdev(1), m.mdev(2, 5));
    let ioas = m.ioas();
    m.map(ioas, 0x10000, PAGE);
    let hwpt = m
        .context
        .hwpt_alloc(HwptAlloc::new(pdev.id(), ioas))
        .unwrap();
    pdev.attach(hwpt).unwrap();
    let auto_hwpt = mdev.attach(ioas).unwrap();
    assert_eq!(pdev.attach(ioas), Ok(auto_hwpt), "a second attach replaces");
    assert_eq!(pdev.attached(None), Some(auto_hwpt));
    assert_eq!(m.routes().len(), 2);
    assert!(reaches(&pdev, 0x10000));
    assert_eq!(m.context.destroy(hwpt), Ok(()));
    mdev.detach();
    assert_eq!(
        m.routes().len(),
        1,
        "the automatic page table has the other device still"
    );
}

#[test]
fn page_requests_alone_divide_the_page_tables_of_one_format() {
    let m = machine();
    let pdev = m.pdev(1);
    let ioas = m.ioas();
    let (queue, _file) = m.context.fault_queue_alloc().unwrap();
    let alloc = HwptAlloc {
        fault_id: queue.get(),
        ..HwptAlloc::new(pdev.id(), ioas)
    };
    for (flags, domains) in [
        (HwptFlags::NONE, 1),
        (HwptFlags::PASID, 1),
        (HwptFlags::NEST_PARENT, 1),
        (HwptFlags::DIRTY_TRACKING, 1),
        (HwptFlags::PASID.with(HwptFlags::DIRTY_TRACKING), 1),
        (HwptFlags::FAULT_ID_VALID, 2),
        (HwptFlags::FAULT_ID_VALID, 3),
        (HwptFlags::NONE, 3),
    ] {
        m.context.hwpt_alloc(alloc.with_flags(flags)).unwrap();
        assert_eq!(m.domains().len(), domains, "{flags:?}");
    }
}

#[test]
fn a_device_with_another_table_format_gets_an_automatic_page_table_of_its_own() {
    let m = machine();
    let mut other = config(2);
    other.format = TableFormat::AmdV1;
    let other = m.iommu.add_device(other).unwrap();
    let (vtd, amd) = (m.pdev(1), m.context.bind_device(&other, sink()).unwrap());
    let ioas = m.ioas();
    let pages = m.map(ioas, 0x10000, PAGE);
    let first = vtd.attach(ioas).unwrap();
    assert_ne!(amd.attach(ioas), Ok(first));
    assert_eq!(m.domains().len(), 2);
    assert!(dma_write(&vtd, None, 0x10000, 1) && dma_write(&amd, None, 0x10001, 2));
    assert_eq!(
        (byte(&pages, 0), byte(&pages, 1)),
        (1, 2),
        "both hold the mapping"
    );
    assert_eq!(m.context.ioas_unmap(ioas, 0x10000, PAGE), Ok(PAGE));
    assert!(!reaches(&vtd, 0x10000) && !reaches(&amd, 0x10000));
}

#[test]
fn a_child_claims_nothing_while_its_parents_driver_works() {
    let m = machine();
    let parent = m.device(1);
    let driver = parent.use_dma_api().unwrap();
    let before = m.iommu.paging_domains();
    let child = m.context.bind_pasid(&parent, pasid(9), sink()).unwrap();
    assert_matches!(
        m.context.bind_device(&parent, sink()).unwrap_err(),
        Error::Attach(AttachError::NotOwner(_))
    );
    let ioas = m.ioas();
    m.map(ioas, 0x10000, PAGE);
    child.attach(ioas).unwrap();
    assert_eq!(m.iommu.paging_domains(), before + 1);
    assert!(reaches(&child, 0x10000));
    drop(child);
    assert_eq!(m.iommu.paging_domains(), before);
    drop(driver);
    assert!(m.context.bind_device(&parent, sink()).is_ok());
}

#[test]
fn two_files_cannot_have_one_device_and_one_file_can_have_a_group() {
    let m = machine();
    let group = m.iommu.add_group();
    let [one, two] = [1, 2].map(|number| {
        let mut config = config(number);
        config.group = Some(Arc::clone(&group));
        m.iommu.add_device(config).unwrap()
    });
    let first = m.context.bind_device(&one, sink()).unwrap();
    let other = Context::new(&m.iommu);
    assert_matches!(
        other.bind_device(&two, sink()).unwrap_err(),
        Error::Attach(AttachError::NotOwner(_))
    );
    let second = m.context.bind_device(&two, sink()).unwrap();
    let group = one.group().id();
    assert_eq!(
        one.use_dma_api().unwrap_err(),
        OwnershipError::Owned { group }
    );
    drop((first, second));
    assert!(other.bind_device(&two, sink()).is_ok());
}

#[test]
fn a_child_attached_over_the_interrupt_window_keeps_a_device_out() {
    let m = machine();
    let (pdev, mdev) = (m.pdev(1), m.mdev(2, 5));
    let ioas = m.ioas();
    let pages = m.map(ioas, 0xfee0_0000, PAGE);
    let hwpt = mdev.attach(ioas).unwrap();
    let before = m.context.inspect();
    let ranges = m.context.ioas_iova_ranges(ioas).unwrap();
    assert_matches!(
        pdev.attach(ioas),
        Err(Error::Range(RangeError::Mapped { .. }))
    );
    assert_matches!(
        pdev.attach(hwpt),
        Err(Error::Range(RangeError::Mapped { .. }))
    );
    let manual = m
        .context
        .hwpt_alloc(HwptAlloc::new(pdev.id(), ioas))
        .unwrap();
    assert_matches!(
        pdev.attach(manual),
        Err(Error::Range(RangeError::Mapped { .. }))
    );
    assert_eq!(m.context.destroy(manual), Ok(()));
    assert_eq!(m.context.inspect(), before, "all as before");
    assert_eq!(m.context.ioas_iova_ranges(ioas), Ok(ranges));
    assert!(dma_write(&mdev, None, 0xfee0_0000, 3) && byte(&pages, 0) == 3);
    assert_eq!(m.context.ioas_unmap(ioas, 0xfee0_0000, PAGE), Ok(PAGE));
    assert_eq!(pdev.attach(ioas), Ok(hwpt));
    let args = MapArgs::fixed(0xfee0_0000, PAGE, Prot::RW);
    let again = m.context.ioas_map(ioas, Arc::new(pages), args);
    assert_matches!(again, Err(Error::Map(MapError::Reserved { .. })));
}

#[test]
fn a_new_page_table_that_cannot_be_attached_leaves_nothing() {
    let m = machine();
    let pdev = m.pdev(1);
    let ioas = m.ioas();
    m.map(ioas, 0xfee0_0000, PAGE);
    let next = ObjectId::from_raw(ioas.get() + 1);
    assert_matches!(
        pdev.attach(ioas),
        Err(Error::Range(RangeError::Mapped { .. }))
    );
    assert_eq!(m.domains().len(), 0);
    assert_eq!(m.context.ioas_alloc(), Ok(next), "the id is free again");
}
