//! Nested page tables, virtual IOMMUs and their queues.

use ioasid_selftest::spec::{self, op};
use ioasid_uapi::{Errno, spec::iommufd as uapi};
use zerocopy::IntoBytes;

use crate::machine::*;

const NEST_PARENT: u32 = 1 << 0;

struct Nest {
    m: Machine,
    mock: Mock,
    parent: u32,
    viommu: u32,
}

impl Nest {
    fn new() -> Self {
        let m = Machine::new();
        let ioas = m.ioas();
        let mock = m.mock(ioas);
        let (result, parent) = hwpt(&m, mock.idev_id, ioas, NEST_PARENT, &[]);
        assert_eq!(result, Ok(0));
        let args = uapi::ViommuAlloc {
            kind: spec::SELFTEST,
            dev_id: mock.idev_id,
            hwpt_id: parent,
            ..uapi::ViommuAlloc::default()
        };
        let (result, args) = m.command("VIOMMU_ALLOC", args);
        assert_eq!(result, Ok(0));
        Nest {
            m,
            mock,
            parent,
            viommu: args.out_viommu_id,
        }
    }

    fn nested(&self, on: u32) -> u32 {
        let (result, id) = hwpt(&self.m, self.mock.idev_id, on, 0, &[0x77]);
        assert_eq!(result, Ok(0));
        id
    }

    fn iotlb(&self, hwpt: u32, id: u32, value: u32) -> Result<u64, Errno> {
        let args = spec::CheckEntry { id, value };
        self.m.check(op::MD_CHECK_IOTLB, hwpt, args)
    }

    fn cache(&self, id: u32, value: u32) -> Result<u64, Errno> {
        let args = spec::CheckEntry { id, value };
        self.m.check(op::DEV_CHECK_CACHE, self.mock.idev_id, args)
    }

    /// Invalidates; how many entries were done.
    fn invalidate<const N: usize>(
        &self,
        id: u32,
        kind: u32,
        entries: &[[u32; N]],
    ) -> (Result<u64, Errno>, u32) {
        self.m.put(OTHER, entries);
        let args = uapi::HwptInvalidate {
            hwpt_id: id,
            data_uptr: OTHER,
            data_type: kind,
            entry_len: 4 * N as u32,
            entry_num: entries.len() as u32,
            ..uapi::HwptInvalidate::default()
        };
        let (result, args) = self.m.command("HWPT_INVALIDATE", args);
        (result, args.entry_num)
    }

    fn vdevice(&self, virt_id: u64) -> Result<u64, Errno> {
        let args = uapi::VdeviceAlloc {
            viommu_id: self.viommu,
            dev_id: self.mock.idev_id,
            virt_id,
            ..uapi::VdeviceAlloc::default()
        };
        self.m.command("VDEVICE_ALLOC", args).0
    }

    fn attach(&self, pt_id: u32) -> Result<u64, Errno> {
        let args = spec::MockDomainReplace { pt_id };
        self.m
            .check(op::MOCK_DOMAIN_REPLACE, self.mock.stdev_id, args)
    }
}

fn hwpt(
    m: &Machine,
    dev_id: u32,
    pt_id: u32,
    flags: u32,
    data: &[u32],
) -> (Result<u64, Errno>, u32) {
    m.put(OTHER, data);
    let args = uapi::HwptAlloc {
        flags,
        dev_id,
        pt_id,
        data_type: if data.is_empty() { 0 } else { spec::HWPT_DATA },
        data_len: size_of_val(data) as u32,
        data_uptr: OTHER,
        ..uapi::HwptAlloc::default()
    };
    let (result, args) = m.command("HWPT_ALLOC", args);
    (result, args.out_hwpt_id)
}

#[test]
fn an_iotlb_is_invalidated_entry_by_entry_up_to_the_first_bad_one() {
    let n = Nest::new();
    let nested = n.nested(n.parent);
    assert_eq!(n.iotlb(nested, 3, 0x77), Ok(0));
    assert_eq!(n.iotlb(nested, 4, 0x77), Err(Errno::EINVAL));
    assert_eq!(n.iotlb(n.parent, 0, 0x77), Err(Errno::ENOENT));
    let run = |entries: &[[u32; 2]]| n.invalidate(nested, spec::SELFTEST, entries);
    assert_eq!(run(&[]), (Ok(0), 0));
    assert_eq!(run(&[[0, 1], [2, 0], [0, 2]]), (Err(Errno::EOPNOTSUPP), 1));
    assert_eq!(
        (n.iotlb(nested, 1, 0), n.iotlb(nested, 2, 0x77)),
        (Ok(0), Ok(0))
    );
    assert_eq!(run(&[[0, 4]]), (Err(Errno::EINVAL), 0));
    assert_eq!(run(&[[spec::INVALIDATE_ALL, 99]]), (Ok(0), 1));
    assert_eq!(n.iotlb(nested, 3, 0), Ok(0));
    let other_type = n.invalidate(nested, 1, &[[0, 0]]);
    assert_eq!(other_type, (Err(Errno::EINVAL), 0));
    let long = n.invalidate(nested, spec::SELFTEST, &[[0, 0, 0]]);
    assert_eq!(long, (Err(Errno::EINVAL), 0));
}

#[test]
fn caches_of_a_device_are_invalidated_by_its_number() {
    let n = Nest::new();
    let run = |entries: &[[u32; 3]]| n.invalidate(n.viommu, spec::SELFTEST, entries);
    assert_eq!(n.cache(0, spec::CACHE_DEFAULT), Ok(0));
    assert_eq!(
        run(&[[0, 0x99, 0]]),
        (Err(Errno::EINVAL), 0),
        "no such device"
    );
    n.vdevice(0x99).unwrap();
    assert_eq!(run(&[[0, 0x99, 1], [0, 0x99, 4]]), (Err(Errno::EINVAL), 1));
    assert_eq!(
        (n.cache(1, 0), n.cache(2, spec::CACHE_DEFAULT)),
        (Ok(0), Ok(0))
    );
    assert_eq!(run(&[[spec::INVALIDATE_ALL, 0x99, 0]]), (Ok(0), 1));
    assert_eq!(n.cache(3, 0), Ok(0));
    assert_eq!(n.cache(4, 0), Err(Errno::EINVAL));
}

#[test]
fn a_guests_page_table_needs_the_devices_number() {
    let n = Nest::new();
    let nested = n.nested(n.viommu);
    assert_eq!(n.attach(nested), Err(Errno::ENOENT));
    n.vdevice(0x99).unwrap();
    assert_eq!(n.vdevice(0x99), Err(Errno::EEXIST));
    assert_eq!(n.attach(nested), Ok(0));
    assert_eq!(n.m.destroy(nested), Err(Errno::EBUSY));
}

#[test]
fn events_of_a_device_reach_the_queue_of_its_virtual_iommu() {
    let n = Nest::new();
    let nested = n.nested(n.viommu);
    n.vdevice(0x99).unwrap();
    let dev_id = n.mock.idev_id;
    let trigger = || {
        n.m.check(op::TRIGGER_VEVENT, 0, spec::TriggerVevent { dev_id })
    };
    assert_eq!(trigger(), Err(Errno::ENOENT), "not attached there");
    n.attach(nested).unwrap();
    assert_eq!(trigger(), Err(Errno::EOPNOTSUPP), "no queue");
    let args = uapi::VeventqAlloc {
        viommu_id: n.viommu,
        kind: spec::VEVENTQ,
        veventq_depth: 4,
        ..uapi::VeventqAlloc::default()
    };
    let (result, args) = n.m.command("VEVENTQ_ALLOC", args);
    assert_eq!(result, Ok(0));
    assert_eq!(trigger(), Ok(0));
    use ioasid_uapi::Program as _;
    let file = n.m.program.event_file(args.out_veventq_fd as i32).unwrap();
    let event = file.read(100).unwrap();
    assert_eq!(event, [0u32, 0, 0x99].as_bytes());
}

#[test]
fn everything_that_nests_goes_with_the_file() {
    let n = Nest::new();
    let nested = n.nested(n.viommu);
    n.vdevice(0x99).unwrap();
    n.attach(nested).unwrap();
    n.m.map(1, BUFFER, PAGE, START).unwrap();
    let queue = uapi::HwQueueAlloc {
        viommu_id: n.viommu,
        kind: spec::SELFTEST,
        nesting_parent_iova: START,
        length: PAGE,
        ..uapi::HwQueueAlloc::default()
    };
    assert_eq!(n.m.command("HW_QUEUE_ALLOC", queue).0, Ok(0));
    n.m.context.close();
    assert_eq!(n.m.check_refs(BUFFER, PAGE, 0), Ok(0));
    let iommu = &n.m.iommu;
    assert_eq!((iommu.devices().len(), iommu.domains().len()), (0, 0));
}

#[test]
fn hardware_queues_come_in_order_and_own_their_memory() {
    let n = Nest::new();
    let ioas = 1;
    let alloc = |index, iova| {
        let args = uapi::HwQueueAlloc {
            viommu_id: n.viommu,
            kind: spec::SELFTEST,
            index,
            nesting_parent_iova: iova,
            length: PAGE,
            ..uapi::HwQueueAlloc::default()
        };
        let (result, args) = n.m.command("HW_QUEUE_ALLOC", args);
        result.map(|_| args.out_hw_queue_id)
    };
    assert_eq!(alloc(0, START), Err(Errno::ENOENT));
    n.m.map(ioas, BUFFER, PAGE, START).unwrap();
    assert_eq!(alloc(1, START), Err(Errno::EIO));
    assert_eq!(alloc(2, START), Err(Errno::EINVAL));
    let first = alloc(0, START).unwrap();
    assert_eq!(alloc(0, START), Err(Errno::EEXIST));
    assert_eq!(n.m.unmap(ioas, START, PAGE), Err(Errno::EBUSY));
    let second = alloc(1, START).unwrap();
    assert_eq!(n.m.destroy(first), Err(Errno::EBUSY));
    assert_eq!(n.m.destroy(second), Ok(0));
    assert_eq!(n.m.destroy(first), Ok(0));
    assert_eq!(n.m.unmap(ioas, START, PAGE), Ok(0));
}
