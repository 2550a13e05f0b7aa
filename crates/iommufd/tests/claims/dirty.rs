//! Dirty tracking: whichever device wrote, whichever page table asks.

use ioasid_core::AddrRange;
use ioasid_iommufd::{
    BoundDevice, DirtyError, DirtyRequest, Error, HwptAlloc, HwptFlags, ObjectId,
};

use crate::machine::*;

const IOVA: u64 = 0x10_0000;
const PAGES: u64 = 16;

fn request(hwpt: ObjectId) -> DirtyRequest {
    DirtyRequest {
        hwpt,
        iova: IOVA,
        len: PAGES * PAGE,
        page_size: PAGE,
        no_clear: false,
    }
}

fn tracking(m: &Machine, device: &BoundDevice, ioas: ObjectId) -> ObjectId {
    let args = HwptAlloc::new(device.id(), ioas).with_flags(HwptFlags::DIRTY_TRACKING);
    m.context.hwpt_alloc(args).unwrap()
}

/// The dirty pages, counted from `IOVA`.
fn dirty(m: &Machine, request: DirtyRequest) -> Result<Vec<u64>, Error> {
    let mut pages = Vec::new();
    m.context.hwpt_get_dirty(request, &mut |range: AddrRange| {
        let first = (range.start() - IOVA) / PAGE;
        let last = (range.last() - IOVA) / PAGE;
        pages.extend(first..=last);
    })?;
    pages.sort_unstable();
    pages.dedup();
    Ok(pages)
}

#[test]
fn writes_through_a_device_and_through_a_child_are_both_seen() {
    for manual_first in [true, false] {
        let m = machine();
        let (pdev, mdev) = (m.pdev(1), m.mdev(2, 5));
        let ioas = m.ioas();
        m.map(ioas, IOVA, PAGES * PAGE);
        if !manual_first {
            mdev.attach(ioas).unwrap();
        }
        let hwpt = tracking(&m, &pdev, ioas);
        pdev.attach(hwpt).unwrap();
        mdev.attach(ioas).unwrap();
        assert_eq!(m.routes().len(), 2, "one domain");
        assert_matches!(
            dirty(&m, request(hwpt)),
            Err(Error::Dirty(DirtyError::Off(_))),
            "not tracking yet"
        );
        assert!(reaches(&pdev, IOVA));
        m.context.hwpt_set_dirty_tracking(hwpt, true).unwrap();
        assert_eq!(
            dirty(&m, request(hwpt)),
            Ok(vec![]),
            "starts with nothing dirty"
        );
        assert!(reaches(&pdev, IOVA + 3 * PAGE) && reaches(&mdev, IOVA + 5 * PAGE));
        let keep = DirtyRequest {
            no_clear: true,
            ..request(hwpt)
        };
        assert_eq!(dirty(&m, keep), Ok(vec![3, 5]));
        assert_eq!(dirty(&m, request(hwpt)), Ok(vec![3, 5]));
        assert_eq!(dirty(&m, request(hwpt)), Ok(vec![]), "cleared");
        assert!(reaches(&mdev, IOVA + 5 * PAGE));
        assert_eq!(dirty(&m, request(hwpt)), Ok(vec![5]), "and set again");
        m.context.hwpt_set_dirty_tracking(hwpt, false).unwrap();
        assert_matches!(
            dirty(&m, request(hwpt)),
            Err(Error::Dirty(DirtyError::Off(_)))
        );
    }
}

#[test]
fn two_page_tables_on_one_domain_clear_for_themselves() {
    let m = machine();
    let (pdev, mdev) = (m.pdev(1), m.mdev(2, 5));
    let ioas = m.ioas();
    m.map(ioas, IOVA, PAGES * PAGE);
    let (one, two) = (tracking(&m, &pdev, ioas), tracking(&m, &mdev, ioas));
    pdev.attach(one).unwrap();
    mdev.attach(two).unwrap();
    assert_eq!(m.routes().len(), 2, "one domain");
    m.context.hwpt_set_dirty_tracking(one, true).unwrap();
    assert!(reaches(&pdev, IOVA));
    m.context.hwpt_set_dirty_tracking(two, true).unwrap();
    assert!(reaches(&mdev, IOVA + 2 * PAGE));
    let part = DirtyRequest {
        len: PAGE,
        ..request(one)
    };
    assert_eq!(dirty(&m, part), Ok(vec![0]), "from before the other began");
    assert_eq!(dirty(&m, request(two)), Ok(vec![2]));
    assert_eq!(dirty(&m, request(two)), Ok(vec![]));
    assert_eq!(
        dirty(&m, request(one)),
        Ok(vec![2]),
        "the other's clearing took nothing"
    );
    assert!(reaches(&pdev, IOVA + 7 * PAGE));
    assert_eq!(dirty(&m, request(two)), Ok(vec![7]));
    m.context.ioas_unmap_all(ioas).unwrap();
    m.map(ioas, IOVA, PAGES * PAGE);
    assert_eq!(
        dirty(&m, request(one)),
        Ok(vec![]),
        "new mappings are clean"
    );
    pdev.detach();
    m.context.destroy(one).unwrap();
    assert!(reaches(&mdev, IOVA + PAGE));
    assert_eq!(dirty(&m, request(two)), Ok(vec![1]));
}

#[test]
fn only_mapped_ranges_of_tracking_page_tables_can_be_asked_about() {
    let m = machine();
    let pdev = m.pdev(1);
    let ioas = m.ioas();
    m.map(ioas, IOVA, PAGES * PAGE);
    let plain = m
        .context
        .hwpt_alloc(HwptAlloc::new(pdev.id(), ioas))
        .unwrap();
    let set = m.context.hwpt_set_dirty_tracking(plain, true);
    assert_matches!(set, Err(Error::Dirty(DirtyError::NotSupported(_))));
    assert_matches!(
        dirty(&m, request(plain)),
        Err(Error::Dirty(DirtyError::NotSupported(_)))
    );
    let hwpt = tracking(&m, &pdev, ioas);
    m.context.hwpt_set_dirty_tracking(hwpt, true).unwrap();
    let good = request(hwpt);
    assert_eq!(dirty(&m, good), Ok(vec![]));
    assert_matches!(
        dirty(
            &m,
            DirtyRequest {
                page_size: 0,
                ..good
            }
        ),
        Err(Error::Dirty(DirtyError::Misaligned { .. }))
    );
    assert_matches!(
        dirty(
            &m,
            DirtyRequest {
                page_size: 1 << 30,
                ..good
            }
        ),
        Err(Error::Dirty(DirtyError::Misaligned { .. }))
    );
    assert_matches!(
        dirty(
            &m,
            DirtyRequest {
                iova: IOVA + 1,
                ..good
            }
        ),
        Err(Error::Dirty(DirtyError::Misaligned { .. }))
    );
    assert_matches!(
        dirty(
            &m,
            DirtyRequest {
                len: 17 * PAGE,
                ..good
            }
        ),
        Err(Error::Dirty(DirtyError::NotMapped { .. }))
    );
    assert_matches!(
        dirty(
            &m,
            DirtyRequest {
                iova: IOVA - PAGE,
                ..good
            }
        ),
        Err(Error::Dirty(DirtyError::NotMapped { .. }))
    );
    assert_matches!(
        dirty(
            &m,
            DirtyRequest {
                iova: 0,
                len: 0,
                ..good
            }
        ),
        Err(Error::Dirty(DirtyError::Empty))
    );
    let wraps = DirtyRequest {
        iova: u64::MAX - PAGE + 1,
        len: 2 * PAGE,
        ..good
    };
    assert_matches!(
        dirty(&m, wraps),
        Err(Error::Dirty(DirtyError::Overflow { .. }))
    );
}
