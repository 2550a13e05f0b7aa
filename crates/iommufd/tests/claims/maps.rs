//! MAP, UNMAP and COPY, with no device and with one: the rules are the same but for alignment.

use std::sync::Arc;

use ioasid_core::Prot;
use ioasid_iommufd::{
    BoundDevice, CopyArgs, Error, MapArgs, MapError, ObjectError, ObjectId, OptionError,
    RangeError, UnmapError,
};

use crate::machine::*;

/// An IOAS with nothing attached, with a whole device, and with a child.
fn each_attachment(test: impl Fn(&Machine, ObjectId)) {
    type Attach = fn(&Machine) -> Option<BoundDevice>;
    let attach: [Attach; 3] = [|_| None, |m| Some(m.pdev(1)), |m| Some(m.mdev(1, 5))];
    for attach in attach {
        let m = machine();
        let device = attach(&m);
        let ioas = m.ioas();
        if let Some(device) = &device {
            device.attach(ioas).unwrap();
        }
        test(&m, ioas);
    }
}

#[test]
fn mappings_do_not_overlap_and_unmap_takes_whole_ones() {
    each_attachment(|m, ioas| {
        let unmap = |iova, len| m.context.ioas_unmap(ioas, iova, len);
        m.map(ioas, 0x10000, 4 * PAGE);
        m.map(ioas, 0x14000, PAGE);
        m.map(ioas, 0x20000, PAGE);
        let pages = m.pages(16 * PAGE);
        for (iova, len) in [
            (0x10000, PAGE),
            (0x13000, PAGE),
            (0xf000, 2 * PAGE),
            (0xf000, 16 * PAGE),
        ] {
            let args = MapArgs::fixed(iova, len, Prot::RW);
            let again = m.context.ioas_map(ioas, Arc::new(pages.clone()), args);
            assert_matches!(again, Err(Error::Map(MapError::Exists { .. })), "{iova:#x}");
        }
        assert_matches!(
            unmap(0x10000, 2 * PAGE),
            Err(Error::Unmap(UnmapError::Cuts { .. })),
            "a part of a mapping"
        );
        assert_matches!(
            unmap(0x12000, 2 * PAGE),
            Err(Error::Unmap(UnmapError::Cuts { .. }))
        );
        assert_matches!(
            unmap(0x30000, PAGE),
            Err(Error::Unmap(UnmapError::NotMapped { .. })),
            "nothing there"
        );
        assert_matches!(unmap(0x10000, 0), Err(Error::Unmap(UnmapError::Empty)));
        assert_matches!(
            unmap(u64::MAX - PAGE, 2 * PAGE),
            Err(Error::Unmap(UnmapError::Overflow { .. }))
        );
        assert_eq!(
            unmap(0xf000, 0x8000),
            Ok(5 * PAGE),
            "several at once, holes and all"
        );
        assert_eq!(m.context.ioas_unmap_all(ioas), Ok(PAGE));
        assert_eq!(m.context.ioas_unmap_all(ioas), Ok(0));
    });
}

#[test]
fn areas_before_one_that_is_cut_are_gone_all_the_same() {
    each_attachment(|m, ioas| {
        m.map(ioas, 0x10000, PAGE);
        m.map(ioas, 0x11000, 2 * PAGE);
        assert_matches!(
            m.context.ioas_unmap(ioas, 0x10000, 2 * PAGE),
            Err(Error::Unmap(UnmapError::Cuts { .. }))
        );
        m.map(ioas, 0x10000, PAGE);
        assert_eq!(m.context.ioas_unmap_all(ioas), Ok(3 * PAGE));
    });
}

#[test]
fn what_cannot_be_a_mapping_is_refused() {
    each_attachment(|m, ioas| {
        let pages = m.pages(PAGE);
        let map = |args| m.context.ioas_map(ioas, Arc::new(pages.clone()), args);
        let fixed = |iova, len| MapArgs::fixed(iova, len, Prot::RW);
        assert_matches!(map(fixed(0x1000, 0)), Err(Error::Map(MapError::Empty)));
        assert_matches!(
            map(MapArgs::fixed(0x1000, PAGE, Prot::NONE)),
            Err(Error::Map(MapError::NoPermission))
        );
        let wraps = map(fixed(u64::MAX - PAGE + 1, 2 * PAGE));
        assert_matches!(wraps, Err(Error::Map(MapError::Overflow { .. })));
        let nowhere = m
            .context
            .ioas_map(NOBODY, Arc::new(pages.clone()), fixed(0, PAGE));
        assert_eq!(nowhere, Err(ObjectError::Missing(NOBODY).into()));
        assert_eq!(m.context.ioas_unmap_all(ioas), Ok(0));
    });
}

#[test]
fn a_page_table_needs_whole_pages_and_an_ioas_without_one_does_not() {
    let m = machine();
    let pdev = m.pdev(1);
    let ioas = m.ioas();
    let pages = m.pages(2 * PAGE);
    let map = |args| m.context.ioas_map(ioas, Arc::new(pages.clone()), args);
    assert_eq!(map(MapArgs::fixed(0x1001, 3, Prot::RW)), Ok(0x1001));
    assert_matches!(
        pdev.attach(ioas),
        Err(Error::Range(RangeError::MisalignedAreas { .. }))
    );
    assert_eq!(m.context.ioas_unmap(ioas, 0x1001, 3), Ok(3));
    pdev.attach(ioas).unwrap();
    assert_matches!(
        map(MapArgs::fixed(0x1001, PAGE, Prot::RW)),
        Err(Error::Map(MapError::Misaligned {
            alignment: PAGE,
            ..
        }))
    );
    assert_matches!(
        map(MapArgs::fixed(0x1000, PAGE - 1, Prot::RW)),
        Err(Error::Map(MapError::Misaligned {
            alignment: PAGE,
            ..
        }))
    );
    let mut inside = MapArgs::fixed(0x1000, PAGE, Prot::RW);
    inside.offset = 8;
    assert_matches!(
        map(inside),
        Err(Error::Map(MapError::Misaligned {
            alignment: PAGE,
            ..
        }))
    );
    let reserved = map(MapArgs::fixed(0xfee0_0000, PAGE, Prot::RW));
    assert_matches!(reserved, Err(Error::Map(MapError::Reserved { .. })));
    let last = m.context.ioas_iova_ranges(ioas).unwrap().ranges[1].last();
    assert_eq!(
        map(MapArgs::fixed(last - PAGE + 1, PAGE, Prot::RW)),
        Ok(last - PAGE + 1)
    );
    assert_matches!(
        map(MapArgs::fixed(last + 1, PAGE, Prot::RW)),
        Err(Error::Map(MapError::Reserved { .. }))
    );
}

#[test]
fn a_copy_shows_the_same_bytes_and_asks_for_no_more_than_the_original() {
    each_attachment(|m, src| {
        let pdev = m.pdev(9);
        let dst = m.ioas();
        pdev.attach(dst).unwrap();
        let first = m.map(src, 0x10000, 2 * PAGE);
        let second = m.map(src, 0x12000, PAGE);
        let args = CopyArgs {
            dst,
            src,
            dst_iova: Some(0x40000),
            src_iova: 0x11000,
            len: 2 * PAGE,
            prot: Prot::RW,
        };
        let copy = |args| m.context.ioas_copy(args);
        assert_eq!(copy(args), Ok(0x40000), "across neighbours");
        assert!(dma_write(&pdev, None, 0x40000, 1) && dma_write(&pdev, None, 0x41000, 2));
        assert_eq!((byte(&first, 4096), byte(&second, 0)), (1, 2));
        assert_matches!(copy(args), Err(Error::Map(MapError::Exists { .. })));
        let hole = CopyArgs {
            len: 3 * PAGE,
            ..args
        };
        assert_matches!(copy(hole), Err(Error::Map(MapError::SourceHole { .. })));
        assert_matches!(
            copy(CopyArgs {
                src_iova: 0xf000,
                ..args
            }),
            Err(Error::Map(MapError::SourceHole { .. }))
        );
        assert_matches!(
            copy(CopyArgs { len: 0, ..args }),
            Err(Error::Map(MapError::Empty))
        );
        assert_eq!(
            copy(CopyArgs {
                src: NOBODY,
                ..args
            }),
            Err(ObjectError::Missing(NOBODY).into())
        );
        assert_eq!(
            copy(CopyArgs {
                dst: NOBODY,
                ..args
            }),
            Err(ObjectError::Missing(NOBODY).into())
        );
        let read_only = MapArgs::fixed(0x80000, PAGE, Prot::READ);
        let pages = m.pages(PAGE);
        m.context.ioas_map(src, Arc::new(pages), read_only).unwrap();
        let args = CopyArgs {
            dst_iova: None,
            src_iova: 0x80000,
            len: PAGE,
            ..args
        };
        assert_matches!(copy(args), Err(Error::Map(MapError::ReadOnlyPages)));
        let placed = copy(CopyArgs {
            prot: Prot::READ,
            ..args
        })
        .unwrap();
        assert!(!dma_write(&pdev, None, placed, 1), "read-only it is");
        assert_eq!(m.context.ioas_unmap(src, 0x10000, 2 * PAGE), Ok(2 * PAGE));
        assert!(
            dma_write(&pdev, None, 0x40000, 3),
            "the copy keeps the pages"
        );
    });
}

#[test]
fn chosen_addresses_are_a_first_fit_with_large_leaves_in_mind() {
    each_attachment(|m, ioas| {
        let map = |len| {
            let args = MapArgs::anywhere(len, Prot::RW);
            m.context.ioas_map(ioas, Arc::new(m.pages(len)), args)
        };
        assert_eq!(map(PAGE), Ok(PAGE), "the first page is never chosen");
        assert_eq!(map(PAGE), Ok(2 * PAGE));
        assert_eq!(
            map(3 * PAGE),
            Ok(4 * PAGE),
            "aligned to the next power of two"
        );
        assert_eq!(map(PAGE), Ok(3 * PAGE));
        assert_eq!(map(4 << 20), Ok(2 << 20), "2 MiB is enough");
        assert_eq!(m.context.ioas_unmap(ioas, 2 * PAGE, PAGE), Ok(PAGE));
        assert_eq!(map(PAGE), Ok(2 * PAGE), "a hole is found again");
        assert_eq!(map(PAGE), Ok(7 * PAGE));
    });
}

#[test]
fn tens_of_thousands_of_pages_map_and_unmap_one_by_one() {
    const COUNT: u64 = 65_536;
    let m = machine();
    let mdev = m.mdev(1, 5);
    let ioas = m.ioas();
    mdev.attach(ioas).unwrap();
    let pages = m.pages(PAGE);
    for index in 0..COUNT {
        let args = MapArgs::anywhere(PAGE, Prot::RW);
        let placed = m.context.ioas_map(ioas, Arc::new(pages.clone()), args);
        assert_eq!(placed, Ok((index + 1) * PAGE));
    }
    assert!(reaches(&mdev, COUNT * PAGE));
    for index in (0..COUNT).step_by(2) {
        assert_eq!(
            m.context.ioas_unmap(ioas, (index + 1) * PAGE, PAGE),
            Ok(PAGE)
        );
    }
    assert_eq!(m.context.ioas_unmap_all(ioas), Ok(COUNT / 2 * PAGE));
    assert!(!reaches(&mdev, COUNT * PAGE));
}

#[test]
fn without_huge_pages_every_leaf_is_one_page() {
    let m = machine();
    let (pdev, ioas) = (m.pdev(1), m.ioas());
    let leaves = || {
        let domain = m.domains().remove(0);
        domain.pte_writes()
    };
    assert_eq!(m.context.ioas_huge_pages(ioas), Ok(true));
    pdev.attach(ioas).unwrap();
    let before = leaves();
    m.map(ioas, 2 << 20, 2 << 20);
    let large = leaves() - before;
    assert_matches!(
        m.context.set_ioas_huge_pages(ioas, false),
        Err(Error::Option(OptionError::Mapped { .. }))
    );
    m.context.ioas_unmap_all(ioas).unwrap();
    assert_eq!(m.context.set_ioas_huge_pages(ioas, false), Ok(()));
    let before = leaves();
    m.map(ioas, 2 << 20, 2 << 20);
    assert!(leaves() - before >= 512 && large < 512);
    assert!(reaches(&pdev, (4 << 20) - 1));
    let odd = m.ioas();
    let args = MapArgs::fixed(1, 1, Prot::RW);
    m.context
        .ioas_map(odd, Arc::new(m.pages(PAGE)), args)
        .unwrap();
    assert_matches!(
        m.context.set_ioas_huge_pages(odd, false),
        Err(Error::Range(RangeError::MisalignedAreas { .. }))
    );
}
