//! Commands on nested page tables and virtual IOMMUs.

use ioasid_iommufd::MmapRequest;
use ioasid_uapi::{Errno, spec::iommufd as spec};

use crate::{
    backend::{DATA_LEN, KIND},
    machine::*,
};

#[test]
fn invalidation_writes_back_how_much_was_done_on_errors_too() {
    let m = Machine::new();
    let (_toy, parent, viommu) = m.viommu();
    m.put(DATA, &[0; 12]);
    m.put(DATA + 8, &[1]);
    let good = spec::HwptInvalidate {
        hwpt_id: viommu,
        data_uptr: DATA,
        data_type: KIND,
        entry_len: 4,
        entry_num: 2,
        ..Default::default()
    };
    let run = |args: spec::HwptInvalidate| {
        let (result, reply) = m.run("HWPT_INVALIDATE", args);
        (result, reply.entry_num)
    };
    assert_eq!(run(good), (Ok(0), 2));
    let bad = |entry_num| spec::HwptInvalidate { entry_num, ..good };
    assert_eq!(run(bad(3)), (Err(Errno::EIO), 2));
    let unknown = spec::HwptInvalidate {
        hwpt_id: NOBODY,
        ..good
    };
    assert_eq!(run(unknown), (Err(Errno::ENOENT), 0));
    let reserved = spec::HwptInvalidate {
        reserved: 1,
        entry_len: 0,
        ..unknown
    };
    assert_eq!(run(reserved), (Err(Errno::EOPNOTSUPP), 0));
    for malformed in [
        spec::HwptInvalidate {
            data_uptr: 0,
            ..unknown
        },
        spec::HwptInvalidate {
            entry_len: 0,
            ..unknown
        },
        spec::HwptInvalidate {
            entry_len: 4097,
            ..unknown
        },
        spec::HwptInvalidate {
            entry_num: (1 << 19) + 1,
            ..unknown
        },
    ] {
        assert_eq!(run(malformed), (Err(Errno::EINVAL), 0));
    }
    let probe = |data_type| spec::HwptInvalidate {
        entry_num: 0,
        data_uptr: 0,
        entry_len: 0,
        data_type,
        ..good
    };
    assert_eq!(run(probe(KIND)), (Ok(0), 0));
    assert_eq!(run(probe(KIND + 1)), (Err(Errno::EINVAL), 0));
    let of_paging = spec::HwptInvalidate {
        hwpt_id: parent,
        ..good
    };
    assert_eq!(run(of_paging), (Err(Errno::EINVAL), 0));
    let outside = spec::HwptInvalidate {
        data_uptr: READ_ONLY + PAGE - 4,
        ..good
    };
    assert_eq!(run(outside), (Err(Errno::EFAULT), 1));
    let too_long = spec::HwptInvalidate {
        entry_len: 5,
        data_uptr: DATA + 4,
        entry_num: 1,
        ..good
    };
    assert_eq!(run(too_long), (Err(Errno::E2BIG), 0));
}

#[test]
fn virtual_iommus_tell_their_owner_where_to_map_them() {
    let m = Machine::new();
    let (toy, parent, first) = m.viommu();
    let good = spec::ViommuAlloc {
        kind: KIND,
        dev_id: toy.id().get(),
        hwpt_id: parent,
        data_len: 8,
        data_uptr: DATA,
        ..Default::default()
    };
    let run = |args| m.result("VIOMMU_ALLOC", args);
    for unsupported in [
        spec::ViommuAlloc {
            flags: 1,
            dev_id: NOBODY,
            ..good
        },
        spec::ViommuAlloc {
            kind: 0,
            dev_id: NOBODY,
            ..good
        },
        spec::ViommuAlloc {
            kind: KIND + 1,
            hwpt_id: NOBODY,
            ..good
        },
    ] {
        assert_eq!(run(unsupported), Err(Errno::EOPNOTSUPP));
    }
    let nobody = spec::ViommuAlloc {
        dev_id: NOBODY,
        ..good
    };
    assert_eq!(run(nobody), Err(Errno::ENOENT));
    let ioas = m.ioas();
    let no_parent = spec::ViommuAlloc {
        hwpt_id: ioas,
        ..good
    };
    assert_eq!(run(no_parent), Err(Errno::ENOENT));
    let unwritable = spec::ViommuAlloc {
        data_uptr: READ_ONLY,
        ..good
    };
    assert_eq!(run(unwritable), Err(Errno::EFAULT));
    assert_eq!(run(good), Ok(0));
    let offset: u64 = m.get(DATA);
    assert_eq!(offset, 2 * PAGE, "behind that of the first");
    let mmap = |offset, shared, executable| {
        let request = MmapRequest {
            offset,
            len: PAGE,
            shared,
            executable,
        };
        m.context.mmap(request).map(drop).map_err(Errno::from)
    };
    assert_eq!(mmap(offset, true, false), Ok(()));
    assert_eq!(mmap(offset, false, false), Err(Errno::EINVAL));
    assert_eq!(mmap(offset, true, true), Err(Errno::EPERM));
    assert_eq!(mmap(offset + PAGE, true, false), Err(Errno::ENXIO));
    let _ = first;
}

#[test]
fn a_program_that_predates_data_of_virtual_iommus_has_none() {
    let m = Machine::new();
    let (toy, parent, _) = m.viommu();
    let args = spec::ViommuAlloc {
        size: 24,
        kind: KIND,
        dev_id: toy.id().get(),
        hwpt_id: parent,
        data_len: 99,
        ..Default::default()
    };
    m.put(BASE, zerocopy::IntoBytes::as_bytes(&args));
    assert_eq!(m.at(request("VIOMMU_ALLOC"), BASE), Ok(0));
}

#[test]
fn virtual_devices_are_refused_in_the_kernels_order() {
    let m = Machine::new();
    let (toy, _, viommu) = m.viommu();
    let good = spec::VdeviceAlloc {
        viommu_id: viommu,
        dev_id: toy.id().get(),
        virt_id: 0x99,
        ..Default::default()
    };
    let run = |args| m.result("VDEVICE_ALLOC", args);
    assert_eq!(run(spec::VdeviceAlloc::default()), Err(Errno::ENOENT));
    let nobody = spec::VdeviceAlloc {
        dev_id: NOBODY,
        ..good
    };
    assert_eq!(run(nobody), Err(Errno::ENOENT));
    let (result, reply) = m.run("VDEVICE_ALLOC", good);
    assert_eq!((result, reply.out_vdevice_id), (Ok(0), viommu + 1));
    assert_eq!(run(good), Err(Errno::EEXIST));
}

#[test]
fn hardware_queues_lock_what_they_read() {
    let m = Machine::new();
    let (_toy, _, viommu) = m.viommu();
    let good = spec::HwQueueAlloc {
        viommu_id: viommu,
        kind: KIND,
        nesting_parent_iova: 0x10_0000,
        length: PAGE,
        ..Default::default()
    };
    let run = |args| m.run("HW_QUEUE_ALLOC", args);
    let unmapped = run(good).0;
    assert_eq!(unmapped, Err(Errno::ENOENT));
    let nobodys = spec::HwQueueAlloc {
        viommu_id: NOBODY,
        ..good
    };
    for (args, errno) in [
        (
            spec::HwQueueAlloc {
                flags: 1,
                ..nobodys
            },
            Errno::EOPNOTSUPP,
        ),
        (spec::HwQueueAlloc { kind: 0, ..nobodys }, Errno::EOPNOTSUPP),
        (
            spec::HwQueueAlloc {
                length: 0,
                ..nobodys
            },
            Errno::EINVAL,
        ),
        (
            spec::HwQueueAlloc {
                length: u64::MAX,
                ..nobodys
            },
            Errno::EOVERFLOW,
        ),
        (nobodys, Errno::ENOENT),
        (
            spec::HwQueueAlloc {
                kind: KIND + 1,
                ..good
            },
            Errno::EOPNOTSUPP,
        ),
    ] {
        assert_eq!(run(args).0, Err(errno), "{args:?}");
    }
    let ioas = m.ioas_of(viommu);
    let map = spec::IoasMap {
        flags: spec::MAP_FIXED_IOVA | spec::MAP_READABLE,
        ioas_id: ioas,
        user_va: DATA,
        length: PAGE,
        iova: 0x10_0000,
        ..Default::default()
    };
    assert_eq!(m.result("IOAS_MAP", map), Ok(0));
    let (result, reply) = run(good);
    assert_eq!((result, reply.out_hw_queue_id), (Ok(0), viommu + 1));
    let unmap = spec::IoasUnmap {
        ioas_id: ioas,
        iova: 0x10_0000,
        length: PAGE,
        ..Default::default()
    };
    assert_eq!(m.result("IOAS_UNMAP", unmap), Err(Errno::EBUSY));
}

#[test]
fn nested_page_tables_take_data() {
    let m = Machine::new();
    let (toy, parent, viommu) = m.viommu();
    let good = spec::HwptAlloc {
        dev_id: toy.id().get(),
        pt_id: parent,
        data_type: KIND,
        data_len: DATA_LEN,
        data_uptr: DATA,
        ..Default::default()
    };
    let run = |args| m.result("HWPT_ALLOC", args);
    let none = spec::HwptAlloc {
        data_type: 0,
        data_len: 0,
        ..good
    };
    assert_eq!(run(none), Err(Errno::EOPNOTSUPP));
    for contradiction in [
        spec::HwptAlloc {
            data_type: 0,
            dev_id: NOBODY,
            ..good
        },
        spec::HwptAlloc {
            data_len: 0,
            dev_id: NOBODY,
            ..good
        },
    ] {
        assert_eq!(run(contradiction), Err(Errno::EINVAL));
    }
    let outside = spec::HwptAlloc {
        data_uptr: 0,
        ..good
    };
    assert_eq!(run(outside), Err(Errno::EFAULT));
    assert_eq!(run(good), Ok(0));
    let on_viommu = spec::HwptAlloc {
        pt_id: viommu,
        ..good
    };
    assert_eq!(run(on_viommu), Ok(0));
    let info = spec::HwInfo {
        dev_id: toy.id().get(),
        data_len: 8,
        data_uptr: DATA,
        ..Default::default()
    };
    let (result, reply) = m.run("GET_HW_INFO", info);
    assert_eq!((result, reply.data_type, reply.data_len), (Ok(0), KIND, 4));
    assert_eq!(m.get::<[u8; 8]>(DATA), [1, 2, 3, 4, 0, 0, 0, 0]);
}
