//! Ids, use counts, DESTROY, HWPT_ALLOC, options and the end of a file.

use ioasid_core::inspect::{Inspect, Value};
use ioasid_iommu::TableFormat;
use ioasid_iommufd::{
    AllocError, Error, HwData, HwInfo, HwptAlloc, HwptFlags, ObjectError, ObjectId, OptionError,
    UserData, UserDataError, VtdRegisters,
};

use crate::{machine::*, program::Program};

#[test]
fn ids_are_the_lowest_free_numbers_from_one_for_all_types() {
    let m = machine();
    let pdev = m.pdev(1);
    let (one, two) = (m.ioas(), m.ioas());
    assert_eq!([pdev.id().get(), one.get(), two.get()], [1, 2, 3]);
    let hwpt = pdev.attach(two).unwrap();
    assert_eq!(hwpt.get(), 4);
    assert_eq!(m.context.destroy(one), Ok(()));
    assert_eq!(
        m.context.destroy(one),
        Err(ObjectError::Missing(one).into())
    );
    let manual = m
        .context
        .hwpt_alloc(HwptAlloc::new(pdev.id(), two))
        .unwrap();
    assert_eq!(manual, one, "reused by another type");
    assert_eq!(m.ioas().get(), 5);
    let zero = ObjectId::from_raw(0);
    assert_eq!(
        m.context.destroy(zero),
        Err(ObjectError::Missing(zero).into())
    );
}

#[test]
fn what_is_in_use_is_not_destroyed() {
    let m = machine();
    let pdev = m.pdev(1);
    let ioas = m.ioas();
    let manual = m
        .context
        .hwpt_alloc(HwptAlloc::new(pdev.id(), ioas))
        .unwrap();
    assert_eq!(
        m.context.destroy(ioas),
        Err(ObjectError::InUse(ioas).into())
    );
    assert_eq!(
        m.context.destroy(pdev.id()),
        Err(ObjectError::InUse(pdev.id()).into())
    );
    pdev.attach(manual).unwrap();
    assert_eq!(
        m.context.destroy(manual),
        Err(ObjectError::InUse(manual).into())
    );
    pdev.detach();
    assert_eq!(m.context.destroy(manual), Ok(()));
    assert_eq!(m.context.destroy(ioas), Ok(()));
    assert_eq!(m.domains().len(), 0);
}

#[test]
fn a_command_wants_an_object_of_its_type() {
    let m = machine();
    let pdev = m.pdev(1);
    let ioas = m.ioas();
    let hwpt = pdev.attach(ioas).unwrap();
    for id in [pdev.id(), hwpt, NOBODY] {
        let missing = Error::from(ObjectError::Missing(id));
        assert_eq!(m.context.ioas_unmap_all(id), Err(missing));
        assert_eq!(m.context.ioas_iova_ranges(id), Err(missing));
        assert_eq!(m.context.ioas_huge_pages(id), Err(missing));
        assert_eq!(m.context.set_vfio_ioas(Some(id)), Err(missing));
    }
    assert_eq!(
        m.context.hw_info(ioas),
        Err(ObjectError::Missing(ioas).into())
    );
    let dirty = m.context.hwpt_set_dirty_tracking(ioas, true);
    assert_eq!(dirty, Err(ObjectError::Missing(ioas).into()));
}

#[test]
fn page_tables_are_refused_in_the_kernels_order() {
    let m = machine();
    let pdev = m.pdev(1);
    let ioas = m.ioas();
    let automatic = pdev.attach(ioas).unwrap();
    let alloc = |args| m.context.hwpt_alloc(args);
    let args = HwptAlloc::new(pdev.id(), ioas);
    let unknown = HwptFlags::from_raw(1 << 31);
    assert_eq!(
        alloc(HwptAlloc::new(NOBODY, NOBODY).with_flags(unknown)),
        Err(ObjectError::Missing(NOBODY).into())
    );
    for parent in [NOBODY, pdev.id()] {
        let args = HwptAlloc::new(pdev.id(), parent).with_flags(unknown);
        assert_eq!(alloc(args), Err(AllocError::NotAParent(parent).into()));
    }
    assert_matches!(
        alloc(args.with_flags(unknown)),
        Err(Error::Alloc(AllocError::FlagsNotSupported(_)))
    );
    let both = HwptFlags::FAULT_ID_VALID.with(HwptFlags::NEST_PARENT);
    assert_matches!(
        alloc(args.with_flags(both)),
        Err(Error::Alloc(AllocError::FlagsNotSupported(_)))
    );
    let faults = HwptAlloc {
        fault_id: 9,
        ..args.with_flags(HwptFlags::FAULT_ID_VALID)
    };
    assert_eq!(
        alloc(faults),
        Err(ObjectError::Missing(ObjectId::from_raw(9)).into())
    );
    let program = Program::new(64);
    let data = UserData::new(&program, 1, 0, 8);
    let nested = |parent| {
        let args = HwptAlloc::new(pdev.id(), parent);
        m.context.hwpt_alloc_with(args, Some(&data))
    };
    assert_matches!(
        nested(ioas),
        Err(Error::Alloc(AllocError::TypeNotSupported(_))),
        "an IOAS takes no data"
    );
    assert_eq!(
        nested(automatic),
        Err(AllocError::NotAParent(automatic).into())
    );
    let plain = alloc(args).unwrap();
    assert_eq!(nested(plain), Err(AllocError::NotAParent(plain).into()));
    assert_matches!(
        alloc(HwptAlloc::new(pdev.id(), plain)),
        Err(Error::Alloc(AllocError::NoData))
    );
    let parent = alloc(args.with_flags(HwptFlags::NEST_PARENT)).unwrap();
    assert_matches!(
        nested(parent),
        Err(Error::UserData(UserDataError::Length { .. })),
        "a first-stage table is described by 24 bytes"
    );
}

fn vtd(data: HwData) -> VtdRegisters {
    match data {
        HwData::Vtd(registers) => registers,
        other => panic!("{other:?} is no VT-d"),
    }
}

#[test]
fn devices_say_what_they_can_do() {
    let m = machine();
    let mut narrow = config(2);
    narrow.pasid_bits = 8;
    narrow.dirty = false;
    narrow.page_requests = false;
    (narrow.pasid_execute, narrow.pasid_privileged) = (true, true);
    narrow.format = TableFormat::X86_64Stage1;
    let narrow = m.iommu.add_device(narrow).unwrap();
    narrow.enable_ats(ioasid_iommu::Tlb::new());
    let narrow = m.context.bind_device(&narrow, sink()).unwrap();
    let (wide, child) = (m.pdev(1), m.mdev(3, 5));
    let info = m.context.hw_info(wide.id()).unwrap();
    assert_eq!((info.max_pasid_log2, info.dirty_tracking), (20, true));
    let others = |info: &HwInfo| [info.ats, info.pasid_execute, info.pasid_privileged];
    assert_eq!(others(&info), [false; 3]);
    // As Linux names them, drivers/iommu/intel/iommu.h.
    let stages = |VtdRegisters { cap, ecap }| {
        let (nest, smts, slts, flts) = (ecap >> 26, ecap >> 43, ecap >> 46, ecap >> 47);
        let (srs, eafs, fl1gp, fl5lp) = (ecap >> 31, ecap >> 34, cap >> 56, cap >> 60);
        [nest, smts, slts, flts, srs, eafs, fl1gp, fl5lp].map(|bit: u64| bit & 1)
    };
    let registers = vtd(info.data);
    let ecap = registers.ecap;
    assert_eq!(
        (ecap >> 40 & 1, ecap >> 35 & 0x1f),
        (1, 19),
        "20-bit PASIDs"
    );
    assert_eq!(ecap >> 29 & 1, 1, "page requests");
    assert_eq!(stages(registers), [1; 8], "two stages");
    let info = m.context.hw_info(narrow.id()).unwrap();
    assert_eq!((info.max_pasid_log2, info.dirty_tracking), (8, false));
    assert_eq!(others(&info), [true; 3]);
    let registers = vtd(info.data);
    let ecap = registers.ecap;
    assert_eq!(
        (ecap >> 35 & 0x1f, ecap >> 45 & 1, ecap >> 29 & 1),
        (7, 0, 0)
    );
    let alone = [0, 1, 0, 1, 0, 0, 1, 0];
    assert_eq!(stages(registers), alone, "the first stage alone");
    let info = m.context.hw_info(child.id()).unwrap();
    assert_eq!(
        info.max_pasid_log2, 0,
        "no program chooses PASIDs at a child"
    );
}

#[test]
fn options_are_kept() {
    let m = machine();
    assert!(!m.context.rlimit_per_process());
    assert_eq!(m.context.set_rlimit_per_process(true), Ok(()));
    let ioas = m.ioas();
    assert_matches!(
        m.context.set_rlimit_per_process(false),
        Err(Error::Option(OptionError::HasObjects))
    );
    assert!(m.context.rlimit_per_process());
    assert_matches!(
        m.context.vfio_ioas(),
        Err(Error::Option(OptionError::NoVfioIoas))
    );
    assert_eq!(m.context.set_vfio_ioas(Some(ioas)), Ok(()));
    assert_eq!(m.context.vfio_ioas(), Ok(ioas));
    assert_eq!(m.context.destroy(ioas), Ok(()));
    assert_matches!(
        m.context.vfio_ioas(),
        Err(Error::Option(OptionError::NoVfioIoas))
    );
}

#[test]
fn everything_goes_with_the_file() {
    let m = machine();
    let (pdev, mdev) = (m.pdev(1), m.mdev(2, 5));
    let ioas = m.ioas();
    m.map(ioas, 0x10000, PAGE);
    let manual = m
        .context
        .hwpt_alloc(HwptAlloc::new(pdev.id(), ioas))
        .unwrap();
    pdev.attach(manual).unwrap();
    mdev.attach(ioas).unwrap();
    m.context.close();
    assert!(reaches(&pdev, 0x10000), "bound devices keep the file");
    assert_matches!(
        m.context.ioas_alloc(),
        Err(Error::Object(ObjectError::Closed))
    );
    drop(pdev);
    assert!(reaches(&mdev, 0x10000));
    drop(mdev);
    assert_eq!(m.domains().len(), 0);
    assert_eq!(m.iommu.space().used_windows(), 0);
    assert_eq!(
        m.context.ioas_unmap_all(ioas),
        Err(ObjectError::Missing(ioas).into())
    );
}

#[test]
fn the_tree_shows_mappings_and_domains() {
    let m = machine();
    let (pdev, mdev) = (m.pdev(1), m.mdev(2, 5));
    let ioas = m.ioas();
    m.map(ioas, 0x10000, 2 * PAGE);
    m.map(ioas, 0x20000, PAGE);
    let show = |field: &str| {
        let tree = m.context.inspect();
        let Some(Value::List(spaces)) = tree.field("ioas") else {
            panic!("a list of address spaces")
        };
        let Value::Node(space) = &spaces[0] else {
            panic!("an address space is a node")
        };
        space.field(field).cloned()
    };
    assert_eq!(show("areas"), Some(Value::Count(2)));
    assert_eq!(show("mapped_bytes"), Some(Value::Count(3 * PAGE)));
    assert_eq!(show("pinned_bytes"), Some(Value::Count(0)));
    pdev.attach(ioas).unwrap();
    mdev.attach(ioas).unwrap();
    assert_eq!(show("pinned_bytes"), Some(Value::Count(3 * PAGE)));
    let another = HwptAlloc::new(pdev.id(), ioas);
    m.context.hwpt_alloc(another).unwrap();
    let domain = u64::from(m.domains()[0].id().get());
    let tree = m.context.inspect();
    let Some(Value::List(tables)) = tree.field("hwpts") else {
        panic!("a list of page tables")
    };
    assert!(
        tables.len() >= 2,
        "the automatic one and another: {tables:?}"
    );
    assert_eq!(
        show("domains"),
        Some(Value::Count(1)),
        "one for all of them"
    );
    assert_eq!(
        show("domain_ids"),
        Some(Value::List(vec![Value::Count(domain)]))
    );
}
