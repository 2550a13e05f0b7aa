//! Mock devices: ids, flags, what they are attached to.

use ioasid_selftest::spec::{self, device_flag, op};
use ioasid_uapi::{Errno, spec::iommufd as uapi};

use crate::machine::*;

fn pasid(m: &Machine, operation: u32, stdev: u32, pasid: u32, pt_id: u32) -> Result<u64, Errno> {
    m.check(operation, stdev, spec::PasidArgs { pasid, pt_id })
}

fn hwpt_with_pasids(m: &Machine, device: &Mock, ioas: u32) -> u32 {
    const ALLOC_PASID: u32 = 1 << 3;
    let args = uapi::HwptAlloc {
        flags: ALLOC_PASID,
        dev_id: device.idev_id,
        pt_id: ioas,
        ..uapi::HwptAlloc::default()
    };
    let (result, args) = m.command("HWPT_ALLOC", args);
    assert_eq!(result, Ok(0));
    args.out_hwpt_id
}

#[test]
fn the_ioctl_is_there_only_with_the_mock() {
    let m = Machine::new();
    assert_eq!(m.without_mock(TEST_CMD), Err(Errno::ENOTTY));
    assert_eq!(m.check(99, 0, [0u32; 2]), Err(Errno::EOPNOTSUPP));
    assert_eq!(m.raw(TEST_CMD | 1 << 30, 0), Err(Errno::EFAULT));
    m.put(BUFFER, &67u32);
    assert_eq!(m.raw(TEST_CMD, BUFFER), Err(Errno::EINVAL));
    m.put(BUFFER, &[68u32, op::SET_TEMP_MEMORY_LIMIT, 0, 0, 12]);
    assert_eq!(m.raw(TEST_CMD, BUFFER), Ok(0), "an older program");
    m.put(BUFFER + 72, &1u8);
    m.put(BUFFER, &73u32);
    assert_eq!(m.raw(TEST_CMD, BUFFER), Err(Errno::E2BIG));
}

#[test]
fn ids_are_given_in_the_kernels_order_and_come_back() {
    let m = Machine::new();
    let ioas = m.ioas();
    let first = m.mock(ioas);
    let ids = |mock: &Mock| (mock.stdev_id, mock.idev_id, mock.hwpt_id);
    assert_eq!((ioas, ids(&first)), (1, (2, 3, 4)));
    let second = m.mock(ioas);
    assert_eq!(ids(&second), (5, 6, 4), "one page table");
    assert_eq!(m.destroy(first.idev_id), Err(Errno::EBUSY));
    assert_eq!(m.destroy(ioas), Err(Errno::EBUSY));
    assert_eq!(m.destroy(first.stdev_id), Ok(0));
    assert_eq!(m.destroy(second.stdev_id), Ok(0));
    assert_eq!(
        m.destroy(first.hwpt_id),
        Err(Errno::ENOENT),
        "gone with the last"
    );
    assert_eq!(m.iommu.devices().len(), 0);
    assert_eq!(m.destroy(ioas), Ok(0));
    assert_eq!(m.ioas(), 1);
}

#[test]
fn a_device_that_cannot_be_made_leaves_nothing() {
    let m = Machine::new();
    let ioas = m.ioas();
    let bad = Mock {
        dev_flags: 1 << 1,
        ..Mock::default()
    };
    assert_eq!(
        m.check(op::MOCK_DOMAIN_FLAGS, ioas, bad),
        Err(Errno::EINVAL)
    );
    assert_eq!(m.check(op::MOCK_DOMAIN, NOBODY, bad), Err(Errno::ENOENT));
    m.map(ioas, BUFFER, PAGE, START - PAGE).unwrap();
    assert_eq!(m.check(op::MOCK_DOMAIN, ioas, bad), Err(Errno::EADDRINUSE));
    assert_eq!(m.iommu.devices().len(), 0);
    assert_eq!(m.ioas(), ioas + 1, "no id is taken");
}

#[test]
fn all_goes_with_the_file() {
    let m = Machine::new();
    let ioas = m.ioas();
    m.mock(ioas);
    m.mock(ioas);
    m.map(ioas, BUFFER, PAGE, START).unwrap();
    assert_eq!(m.check_refs(BUFFER, PAGE, 1), Ok(0));
    m.context.close();
    assert_eq!(m.check_refs(BUFFER, PAGE, 0), Ok(0));
    assert_eq!((m.iommu.devices().len(), m.iommu.domains().len()), (0, 0));
}

#[test]
fn the_address_space_is_the_mocks() {
    let m = Machine::new();
    let ioas = m.ioas();
    let id = ioasid_iommufd::ObjectId::from_raw(ioas);
    // What a container tells: of no table everything, of an AMD table of 38 bits with pages of 2 KiB
    // every power of two below that, from a page of the processor on.
    assert_eq!(m.context.ioas_page_sizes(id), Ok(!0xfff));
    m.mock(ioas);
    assert_eq!(m.context.ioas_page_sizes(id), Ok(0x1f_ffff_f000));
    let usable = m.context.ioas_iova_ranges(id).unwrap();
    assert_eq!(usable.alignment, spec::PAGE_SIZE);
    let ranges: Vec<_> = usable
        .ranges
        .iter()
        .map(|r| (r.start(), r.last()))
        .collect();
    assert_eq!(ranges, [(spec::APERTURE_START, spec::APERTURE_LAST)]);
}

#[test]
fn the_capabilities_are_those_of_the_flags() {
    let m = Machine::new();
    let ioas = m.ioas();
    let info = |mock: &Mock, data_type| {
        let args = uapi::HwInfo {
            flags: uapi::HW_INFO_FLAG_INPUT_TYPE,
            dev_id: mock.idev_id,
            data_len: 12,
            data_uptr: OTHER,
            data_type,
            ..uapi::HwInfo::default()
        };
        m.command("GET_HW_INFO", args)
    };
    let plain = m.mock(ioas);
    m.put(OTHER, &[7u32; 3]);
    let (result, found) = info(&plain, 0);
    assert_eq!(
        (result, found.data_type, found.data_len),
        (Ok(0), spec::HW_INFO, 8)
    );
    assert_eq!(m.get::<[u32; 3]>(OTHER), [0, spec::HW_INFO_REGISTER, 0]);
    assert_eq!(found.out_max_pasid_log2, 0);
    assert!(found.out_capabilities & uapi::HW_CAP_DIRTY_TRACKING != 0);
    assert_eq!(info(&plain, spec::HW_INFO + 1).0, Err(Errno::EOPNOTSUPP));
    let other = m.mock_with(ioas, device_flag::NO_DIRTY | device_flag::PASID);
    let (result, found) = info(&other, spec::HW_INFO);
    assert_eq!((result, found.out_max_pasid_log2), (Ok(0), 20));
    assert!(found.out_capabilities & uapi::HW_CAP_DIRTY_TRACKING == 0);
}

#[test]
fn pasids_are_attached_replaced_and_detached_by_the_kernels_rules() {
    let m = Machine::new();
    let ioas = m.ioas();
    let mock = m.mock_with(ioas, device_flag::PASID);
    let (one, two) = (
        hwpt_with_pasids(&m, &mock, ioas),
        hwpt_with_pasids(&m, &mock, ioas),
    );
    let stdev = mock.stdev_id;
    let attach = |at, pt| pasid(&m, op::PASID_ATTACH, stdev, at, pt);
    let replace = |at, pt| pasid(&m, op::PASID_REPLACE, stdev, at, pt);
    let check = |at, pt| pasid(&m, op::PASID_CHECK_HWPT, stdev, at, pt);
    assert_eq!(
        attach(100, one),
        Err(Errno::EINVAL),
        "the device is elsewhere"
    );
    let moved = spec::MockDomainReplace { pt_id: one };
    assert_eq!(m.check(op::MOCK_DOMAIN_REPLACE, stdev, moved), Ok(0));
    assert_eq!(replace(100, one), Err(Errno::EINVAL), "nothing there");
    assert_eq!(attach(100, one), Ok(0));
    assert_eq!(
        (check(100, one), check(100, two)),
        (Ok(0), Err(Errno::EINVAL))
    );
    assert_eq!(attach(100, two), Err(Errno::EBUSY));
    assert_eq!(replace(100, ioas), Err(Errno::EINVAL), "automatic");
    assert_eq!(replace(100, two), Ok(0));
    assert_eq!(check(100, two), Ok(0));
    assert_eq!(pasid(&m, op::PASID_DETACH, stdev, 100, 0), Ok(0));
    assert_eq!(
        (check(100, 0), check(100, NOBODY)),
        (Ok(0), Err(Errno::ENOENT))
    );
    assert_eq!(attach(1 << 20, one), Err(Errno::EINVAL));
}

#[test]
fn the_pasid_that_fails_fails_once_and_keeps_what_it_had() {
    let m = Machine::new();
    let ioas = m.ioas();
    let mock = m.mock_with(ioas, device_flag::PASID);
    let (one, two) = (
        hwpt_with_pasids(&m, &mock, ioas),
        hwpt_with_pasids(&m, &mock, ioas),
    );
    let moved = spec::MockDomainReplace { pt_id: one };
    m.check(op::MOCK_DOMAIN_REPLACE, mock.stdev_id, moved)
        .unwrap();
    let at = spec::FAILING_PASID;
    let run = |operation, pt| pasid(&m, operation, mock.stdev_id, at, pt);
    assert_eq!(run(op::PASID_ATTACH, one), Ok(0));
    assert_eq!(run(op::PASID_REPLACE, two), Err(Errno::ENOMEM));
    assert_eq!(run(op::PASID_CHECK_HWPT, one), Ok(0));
    assert_eq!(run(op::PASID_DETACH, 0), Ok(0));
    assert_eq!(run(op::PASID_ATTACH, one), Ok(0), "armed anew");
}

#[test]
fn reserved_ranges_stay_and_keep_mappings_out() {
    let m = Machine::new();
    let ioas = m.ioas();
    let reserve =
        |id, start, length| m.check(op::ADD_RESERVED, id, spec::AddReserved { start, length });
    assert_eq!(reserve(ioas, 0, 0), Err(Errno::EINVAL));
    assert_eq!(reserve(ioas, u64::MAX, 2), Err(Errno::EOVERFLOW));
    assert_eq!(reserve(NOBODY, 0, 1), Err(Errno::ENOENT));
    m.map(ioas, BUFFER, PAGE, 0x9000).unwrap();
    assert_eq!(reserve(ioas, 0x9fff, 1), Err(Errno::EADDRINUSE));
    assert_eq!(reserve(ioas, 0x1000, 0x2000), Ok(0));
    assert_eq!(reserve(ioas, 0x2000, 0x2000), Ok(0), "over another");
    assert_eq!(m.map(ioas, BUFFER, PAGE, 0x3000), Err(Errno::EINVAL));
}
