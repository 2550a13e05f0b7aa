//! Cutting mappings in two, for VFIO's first version of unmap.

use ioasid_iommufd::{AccessKind, CutError, Error, ObjectError, UnmapError};

use crate::machine::*;

const START: u64 = 0x10_0000;

/// An IOAS with one mapping of four pages, without large pages.
fn small_pages(m: &Machine) -> ioasid_iommufd::ObjectId {
    let ioas = m.ioas();
    m.context.set_ioas_huge_pages(ioas, false).unwrap();
    m.map(ioas, START, 4 * PAGE);
    ioas
}

#[test]
fn the_parts_of_a_cut_mapping_go_one_by_one() {
    let m = machine();
    let ioas = small_pages(&m);
    let device = m.pdev(1);
    device.attach(ioas).unwrap();
    let unmap = |iova| m.context.ioas_unmap(ioas, iova, PAGE);
    assert_matches!(
        unmap(START + PAGE),
        Err(Error::Unmap(UnmapError::Cuts { .. })),
        "in one piece"
    );
    let writes = m.domains()[0].pte_writes();
    for last in [START + PAGE - 1, START + 2 * PAGE - 1] {
        assert_eq!(m.context.ioas_cut_after(ioas, last), Ok(()));
    }
    assert_eq!(m.domains()[0].pte_writes(), writes, "nothing moved");
    assert_eq!(unmap(START + PAGE), Ok(PAGE));
    let reached: Vec<bool> = (0..4)
        .map(|page| reaches(&device, START + page * PAGE))
        .collect();
    assert_eq!(reached, [true, false, true, true]);
    device.detach();
    device.attach(ioas).unwrap();
    assert!(reaches(&device, START + 3 * PAGE), "filled anew");
    assert_eq!(m.context.ioas_unmap_all(ioas), Ok(3 * PAGE));
}

#[test]
fn where_nothing_crosses_nothing_is_cut() {
    let m = machine();
    let ioas = small_pages(&m);
    let cut = |last| m.context.ioas_cut_after(ioas, last);
    for last in [0, START - 1, START, START + 4 * PAGE - 1, u64::MAX] {
        assert_eq!(cut(last), Ok(()), "{last:#x}");
    }
    assert_eq!(m.context.ioas_unmap(ioas, START, 4 * PAGE), Ok(4 * PAGE));
    assert_eq!(
        m.context.ioas_cut_after(NOBODY, 0),
        Err(ObjectError::Missing(NOBODY).into())
    );
}

#[test]
fn a_cut_inside_a_page_or_of_large_or_used_pages_is_refused() {
    let m = machine();
    let ioas = small_pages(&m);
    let middle = START + PAGE - 1;
    assert_matches!(
        m.context.ioas_cut_after(ioas, START + 100),
        Err(Error::Cut(CutError::Misaligned {
            alignment: PAGE,
            ..
        }))
    );
    let access = m.context.create_access(AccessKind::Locks).unwrap();
    access.attach(ioas).unwrap();
    let pins = access.pin(START, PAGE, false).unwrap();
    assert_matches!(
        m.context.ioas_cut_after(ioas, middle),
        Err(Error::Cut(CutError::InUse { .. }))
    );
    drop(pins);
    assert_eq!(m.context.ioas_cut_after(ioas, middle), Ok(()));
    let large = m.ioas();
    m.map(large, START, 4 * PAGE);
    let device = m.pdev(1);
    device.attach(large).unwrap();
    assert_matches!(
        m.context.ioas_cut_after(large, middle),
        Err(Error::Cut(CutError::InUse { .. }))
    );
    device.detach();
    assert_eq!(
        m.context.ioas_cut_after(large, middle),
        Ok(()),
        "in no table"
    );
}
