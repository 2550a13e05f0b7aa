//! What the operations say about the memory behind mappings.

use ioasid_selftest::spec::{self, op};
use ioasid_uapi::{Errno, spec::iommufd as uapi};

use crate::machine::*;

#[test]
fn what_is_mapped_is_the_memory_at_that_address_and_no_other() {
    let m = Machine::new();
    let ioas = m.ioas();
    let mock = m.mock(ioas);
    m.map(ioas, BUFFER, 4 * PAGE, START).unwrap();
    let check = |iova, len, uptr| m.check_map(mock.hwpt_id, iova, len, uptr);
    assert_eq!(check(START, 4 * PAGE, BUFFER), Ok(0));
    assert_eq!(check(START + 2048, 2048, BUFFER + 2048), Ok(0));
    assert_eq!(check(START, PAGE, BUFFER + PAGE), Err(Errno::EINVAL));
    assert_eq!(check(START, PAGE, OTHER), Err(Errno::EINVAL));
    assert_eq!(check(START + 4 * PAGE, PAGE, BUFFER), Err(Errno::EINVAL));
    assert_eq!(check(START, 1024, BUFFER), Err(Errno::EINVAL), "unaligned");
    assert_eq!(check(START, PAGE, PAGE), Err(Errno::EFAULT));
    assert_eq!(
        check(START, 2 * PAGE, 0u64.wrapping_sub(PAGE)),
        Err(Errno::EINVAL)
    );
    assert_eq!(m.check_map(ioas, START, PAGE, BUFFER), Err(Errno::ENOENT));
}

#[test]
fn a_page_counts_once_for_each_map_that_is_in_use() {
    let m = Machine::new();
    let (ioas, idle) = (m.ioas(), m.ioas());
    m.mock(ioas);
    let refs = |pages: u64, refs| m.check_refs(BUFFER, pages * PAGE, refs);
    assert_eq!(refs(4, 0), Ok(0));
    m.map(idle, BUFFER, 4 * PAGE, START).unwrap();
    assert_eq!(refs(4, 0), Ok(0), "nobody needs them");
    m.map(ioas, BUFFER, 2 * PAGE, START).unwrap();
    assert_eq!(refs(2, 1), Ok(0));
    assert_eq!(refs(4, 1), Err(Errno::EIO));
    m.mock(ioas);
    m.mock(idle);
    assert_eq!(refs(2, 2), Ok(0), "two maps, three page tables");
    m.unmap(ioas, START, 2 * PAGE).unwrap();
    assert_eq!(refs(4, 1), Ok(0));
    assert_eq!(m.check_refs(BUFFER + 1, PAGE, 1), Err(Errno::EINVAL));
}

#[test]
fn a_write_that_is_pretended_is_found_once_by_dirty_tracking() {
    const DIRTY_TRACKING: u32 = 1 << 1;
    let m = Machine::new();
    let ioas = m.ioas();
    let mock = m.mock(ioas);
    m.map(ioas, BUFFER, 4 * PAGE, START).unwrap();
    let args = uapi::HwptAlloc {
        flags: DIRTY_TRACKING,
        dev_id: mock.idev_id,
        pt_id: ioas,
        ..uapi::HwptAlloc::default()
    };
    let (result, args) = m.command("HWPT_ALLOC", args);
    assert_eq!(result, Ok(0));
    let hwpt = args.out_hwpt_id;
    m.put(OTHER, &0b0100_0001u8);
    let dirty = spec::Dirty {
        iova: START,
        length: 8 * 2048,
        page_size: 2048,
        uptr: OTHER,
        ..spec::Dirty::default()
    };
    let off = m.check(op::DIRTY, hwpt, dirty);
    assert_eq!(off, Err(Errno::EINVAL), "not tracked");
    let track = uapi::HwptSetDirtyTracking {
        flags: 1,
        hwpt_id: hwpt,
        ..uapi::HwptSetDirtyTracking::default()
    };
    assert_eq!(m.command("HWPT_SET_DIRTY_TRACKING", track).0, Ok(0));
    let (result, written) = m.test(op::DIRTY, hwpt, dirty);
    assert_eq!((result, written.nr_dirty), (Ok(0), 2));
    for expected in [0b0100_0001, 0] {
        m.put(OTHER + PAGE, &0u64);
        let get = uapi::HwptGetDirtyBitmap {
            hwpt_id: hwpt,
            iova: START,
            length: 4 * PAGE,
            page_size: 2048,
            data: OTHER + PAGE,
            ..uapi::HwptGetDirtyBitmap::default()
        };
        assert_eq!(m.command("HWPT_GET_DIRTY_BITMAP", get).0, Ok(0));
        assert_eq!(m.get::<u64>(OTHER + PAGE), expected);
    }
}
