//! dma-bufs: memory that can be taken back.

use ioasid_selftest::spec::{self, op};
use ioasid_uapi::{Errno, spec::iommufd as uapi};

use crate::machine::*;

fn dmabuf(m: &Machine, length: u32) -> Result<i32, Errno> {
    let args = spec::DmabufGet {
        length,
        open_flags: 0,
    };
    m.check(op::DMABUF_GET, 0, args).map(|fd| fd as i32)
}

fn map(m: &Machine, ioas: u32, fd: i32, length: u64, iova: u64) -> Result<u64, Errno> {
    let args = uapi::IoasMapFile {
        flags: uapi::MAP_FIXED_IOVA | uapi::MAP_READABLE,
        ioas_id: ioas,
        fd,
        length,
        iova,
        ..uapi::IoasMapFile::default()
    };
    m.command("IOAS_MAP_FILE", args).0
}

fn revoke(m: &Machine, fd: i32, revoked: bool) -> Result<u64, Errno> {
    let revoked = revoked.into();
    m.check(op::DMABUF_REVOKE, 0, spec::DmabufRevoke { fd, revoked })
}

#[test]
fn only_what_is_inside_can_be_mapped() {
    let m = Machine::new();
    let ioas = m.ioas();
    assert_eq!(dmabuf(&m, 0), Err(Errno::EINVAL));
    assert_eq!(dmabuf(&m, 513 * 4096), Err(Errno::EINVAL));
    let fd = dmabuf(&m, 2 * 4096 - 1).unwrap();
    assert_eq!(map(&m, ioas, fd, 0, START), Err(Errno::EINVAL));
    assert_eq!(map(&m, ioas, fd, 2 * PAGE + 1, START), Err(Errno::EINVAL));
    assert_eq!(map(&m, ioas, fd, 2 * PAGE, START), Ok(0));
}

#[test]
fn a_revoked_buffer_is_in_no_page_table_and_its_area_stays() {
    let m = Machine::new();
    let ioas = m.ioas();
    let mock = m.mock(ioas);
    let fd = dmabuf(&m, 4096).unwrap();
    map(&m, ioas, fd, PAGE, START).unwrap();
    let hwpt = ioasid_iommufd::ObjectId::from_raw(mock.hwpt_id);
    let domain = m.context.hwpt_domain(hwpt).unwrap();
    assert!(domain.iova_to_phys(START).is_some());
    assert_eq!(revoke(&m, fd, true), Ok(0));
    assert_eq!(domain.iova_to_phys(START), None);
    assert_eq!(
        map(&m, ioas, fd, PAGE, START),
        Err(Errno::ENODEV),
        "before EEXIST"
    );
    assert_eq!(revoke(&m, fd, false), Ok(0));
    assert_eq!(domain.iova_to_phys(START), None, "for good");
    assert_eq!(map(&m, ioas, fd, PAGE, START + PAGE), Ok(0));
    assert_eq!(m.unmap(ioas, START, 2 * PAGE), Ok(0));
    assert_eq!(revoke(&m, 77, true), Err(Errno::EBADF));
}

#[test]
fn a_page_table_that_comes_later_passes_over_it() {
    let m = Machine::new();
    let ioas = m.ioas();
    let fd = dmabuf(&m, 4096).unwrap();
    map(&m, ioas, fd, PAGE, START).unwrap();
    revoke(&m, fd, true).unwrap();
    revoke(&m, fd, false).unwrap();
    let mock = m.mock(ioas);
    let hwpt = ioasid_iommufd::ObjectId::from_raw(mock.hwpt_id);
    let domain = m.context.hwpt_domain(hwpt).unwrap();
    assert_eq!(domain.iova_to_phys(START), None);
}
