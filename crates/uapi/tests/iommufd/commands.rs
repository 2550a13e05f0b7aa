//! Commands on objects, devices, page tables and options.

use ioasid_iommufd::ObjectId;
use ioasid_uapi::{Errno, spec::iommufd as spec};
use zerocopy::IntoBytes;

use crate::machine::*;

#[test]
fn ioas_alloc_has_no_flags_and_destroy_needs_an_idle_object() {
    let m = Machine::new();
    let flags = spec::IoasAlloc {
        flags: 1,
        ..Default::default()
    };
    assert_eq!(m.result("IOAS_ALLOC", flags), Err(Errno::EOPNOTSUPP));
    let (result, reply) = m.run("IOAS_ALLOC", spec::IoasAlloc::default());
    assert_eq!((result, reply.out_ioas_id), (Ok(0), 1));
    let pdev = m.pdev();
    let hwpt = pdev.attach(ObjectId::from_raw(1)).unwrap();
    let destroy = |id| {
        let args = spec::Destroy {
            id,
            ..Default::default()
        };
        m.result("DESTROY", args)
    };
    assert_eq!(destroy(0), Err(Errno::ENOENT));
    assert_eq!(destroy(NOBODY), Err(Errno::ENOENT));
    for busy in [1, pdev.id().get(), hwpt.get()] {
        assert_eq!(destroy(busy), Err(Errno::EBUSY));
    }
    pdev.detach();
    assert_eq!(destroy(hwpt.get()), Err(Errno::ENOENT));
    assert_eq!((destroy(1), destroy(1)), (Ok(0), Err(Errno::ENOENT)));
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one case after another, each on what the last one left"
)]
fn hwpt_alloc_checks_in_the_kernels_order() {
    let m = Machine::new();
    let (pdev, mdev) = (m.pdev(), m.mdev());
    let ioas = m.ioas();
    let good = spec::HwptAlloc {
        dev_id: pdev.id().get(),
        pt_id: ioas,
        ..Default::default()
    };
    let run = |args| m.run("HWPT_ALLOC", args);
    let nobody = spec::HwptAlloc {
        dev_id: NOBODY,
        pt_id: NOBODY,
        flags: 1 << 31,
        ..good
    };
    assert_eq!(
        run(spec::HwptAlloc {
            reserved: 1,
            data_len: 1,
            ..nobody
        })
        .0,
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(
        run(spec::HwptAlloc {
            data_len: 1,
            ..nobody
        })
        .0,
        Err(Errno::EINVAL)
    );
    assert_eq!(
        run(spec::HwptAlloc {
            data_type: 1,
            ..nobody
        })
        .0,
        Err(Errno::EINVAL)
    );
    assert_eq!(run(nobody).0, Err(Errno::ENOENT));
    let device = spec::HwptAlloc {
        dev_id: pdev.id().get(),
        ..nobody
    };
    assert_eq!(
        run(device).0,
        Err(Errno::EINVAL),
        "a missing parent is not ENOENT"
    );
    assert_eq!(
        run(spec::HwptAlloc {
            pt_id: ioas,
            ..device
        })
        .0,
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(
        run(spec::HwptAlloc {
            flags: 4 | 1,
            ..good
        })
        .0,
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(
        run(spec::HwptAlloc {
            flags: 4,
            fault_id: 9,
            ..good
        })
        .0,
        Err(Errno::ENOENT)
    );
    assert_eq!(
        run(spec::HwptAlloc {
            data_type: 1,
            data_len: 8,
            ..good
        })
        .0,
        Err(Errno::EOPNOTSUPP)
    );
    let (result, reply) = run(good);
    assert_eq!(result, Ok(0));
    let hwpt = reply.out_hwpt_id;
    let nested = spec::HwptAlloc {
        pt_id: hwpt,
        data_type: 1,
        data_len: 8,
        ..good
    };
    assert_eq!(run(nested).0, Err(Errno::EINVAL), "not a nesting parent");
    let child = spec::HwptAlloc {
        dev_id: mdev.id().get(),
        ..good
    };
    let (result, reply) = run(child);
    assert_eq!(result, Ok(0));
    assert_ne!(reply.out_hwpt_id, hwpt);
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one case after another, each on what the last one left"
)]
fn hw_info_is_cut_or_filled_with_zeros() {
    let m = Machine::new();
    let pdev = m.pdev();
    let args = |data_len| spec::HwInfo {
        dev_id: pdev.id().get(),
        data_len,
        data_uptr: DATA,
        ..Default::default()
    };
    let run = |args| m.run("GET_HW_INFO", args);
    m.put(DATA, &[0xaa; 64]);
    let (result, reply) = run(args(40));
    assert_eq!(result, Ok(0));
    assert_eq!(
        (reply.data_len, reply.data_type),
        (24, spec::HW_INFO_TYPE_INTEL_VTD)
    );
    assert_eq!(reply.out_max_pasid_log2, 20);
    assert_ne!(reply.out_capabilities & spec::HW_CAP_DIRTY_TRACKING, 0);
    let vtd: spec::HwInfoVtd = m.get(DATA);
    assert!(vtd.cap_reg != 0 && vtd.ecap_reg != 0 && vtd.flags == 0);
    assert_eq!(
        m.get::<[u8; 16]>(DATA + 24),
        [0; 16],
        "zeros behind the data"
    );
    assert_eq!(
        m.get::<[u8; 24]>(DATA + 40),
        [0xaa; 24],
        "nothing behind the buffer"
    );
    m.put(DATA, &[0xaa; 64]);
    let (result, reply) = run(args(10));
    assert_eq!((result, reply.data_len), (Ok(0), 24));
    assert_eq!(m.get::<[u8; 10]>(DATA), vtd.as_bytes()[..10]);
    assert_eq!(m.get::<[u8; 54]>(DATA + 10), [0xaa; 54]);
    assert_eq!(
        run(spec::HwInfo {
            data_uptr: 0,
            ..args(0)
        })
        .0,
        Ok(0)
    );
    assert_eq!(
        run(spec::HwInfo {
            data_uptr: 0,
            ..args(8)
        })
        .0,
        Err(Errno::EFAULT)
    );
    assert_eq!(
        run(spec::HwInfo {
            data_uptr: u64::MAX,
            ..args(64)
        })
        .0,
        Err(Errno::EFAULT)
    );
    assert_eq!(run(args(u32::MAX)).0, Err(Errno::EFAULT));
    let typed = |data_type| spec::HwInfo {
        flags: spec::HW_INFO_FLAG_INPUT_TYPE,
        data_type,
        ..args(0)
    };
    assert_eq!((run(typed(0)).0, run(typed(1)).0), (Ok(0), Ok(0)));
    assert_eq!(run(typed(2)).0, Err(Errno::EOPNOTSUPP));
    assert_eq!(
        run(spec::HwInfo {
            data_type: 2,
            ..args(0)
        })
        .0,
        Ok(0),
        "not an input"
    );
    assert_eq!(
        run(spec::HwInfo {
            flags: 2,
            dev_id: NOBODY,
            ..args(0)
        })
        .0,
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(
        run(spec::HwInfo {
            reserved: [0, 1, 0],
            ..args(0)
        })
        .0,
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(
        run(spec::HwInfo {
            dev_id: NOBODY,
            ..args(0)
        })
        .0,
        Err(Errno::ENOENT)
    );
}

#[test]
fn options_write_back_their_value_and_nothing_else() {
    let m = Machine::new();
    let rlimit = |op, val64| spec::Opt {
        option_id: spec::OPTION_RLIMIT_MODE,
        op,
        val64,
        ..Default::default()
    };
    let run = |args| m.run("OPTION", args);
    let (get, set) = (spec::OPTION_OP_GET, spec::OPTION_OP_SET);
    assert_eq!(run(rlimit(set, 2)).0, Err(Errno::EINVAL));
    assert_eq!(run(rlimit(set, 1)).0, Ok(0));
    let (result, reply) = run(rlimit(get, 9));
    assert_eq!((result, reply.val64), (Ok(0), 1));
    assert_eq!(run(rlimit(2, 0)).0, Err(Errno::EOPNOTSUPP));
    assert_eq!(
        run(spec::Opt {
            object_id: 1,
            ..rlimit(get, 0)
        })
        .0,
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(
        run(spec::Opt {
            reserved: 1,
            ..rlimit(get, 0)
        })
        .0,
        Err(Errno::EOPNOTSUPP)
    );
    assert_eq!(
        run(spec::Opt {
            option_id: 2,
            ..rlimit(get, 0)
        })
        .0,
        Err(Errno::EOPNOTSUPP)
    );
    let ioas = m.ioas();
    assert_eq!(run(rlimit(set, 0)).0, Err(Errno::EBUSY));
    assert_eq!(
        run(rlimit(set, 2)).0,
        Err(Errno::EBUSY),
        "objects come before the value"
    );
    let huge = |op, val64| spec::Opt {
        option_id: spec::OPTION_HUGE_PAGES,
        object_id: ioas,
        ..rlimit(op, val64)
    };
    let (result, reply) = run(huge(get, 7));
    assert_eq!((result, reply.val64), (Ok(0), 1));
    assert_eq!(run(huge(set, 2)).0, Err(Errno::EINVAL));
    assert_eq!(run(huge(set, 0)).0, Ok(0));
    assert_eq!(run(huge(get, 7)).1.val64, 0);
    assert_eq!(run(huge(3, 0)).0, Err(Errno::EOPNOTSUPP));
    assert_eq!(
        run(spec::Opt {
            object_id: NOBODY,
            ..huge(get, 0)
        })
        .0,
        Err(Errno::ENOENT)
    );
}

#[test]
fn the_vfio_ioas_is_set_read_and_cleared() {
    let m = Machine::new();
    let ioas = m.ioas();
    let run = |op, ioas_id| {
        let args = spec::VfioIoas {
            op,
            ioas_id,
            ..Default::default()
        };
        m.run("VFIO_IOAS", args)
    };
    assert_eq!(run(spec::VFIO_IOAS_GET, 0).0, Err(Errno::ENODEV));
    assert_eq!(run(spec::VFIO_IOAS_SET, NOBODY).0, Err(Errno::ENOENT));
    assert_eq!(run(spec::VFIO_IOAS_SET, ioas).0, Ok(0));
    assert_eq!(run(spec::VFIO_IOAS_GET, 0).1.ioas_id, ioas);
    assert_eq!(run(3, 0).0, Err(Errno::EOPNOTSUPP));
    assert_eq!(run(spec::VFIO_IOAS_CLEAR, 0).0, Ok(0));
    assert_eq!(run(spec::VFIO_IOAS_GET, 0).0, Err(Errno::ENODEV));
}

#[test]
#[expect(
    clippy::too_many_lines,
    reason = "one case after another, each on what the last one left"
)]
fn dirty_bits_are_added_to_the_programs_bitmap() {
    let m = Machine::new();
    let (pdev, ioas) = (m.pdev(), m.ioas());
    let map = spec::IoasMap {
        flags: 7,
        ioas_id: ioas,
        user_va: DATA,
        length: 16 * PAGE,
        iova: 1 << 20,
        ..Default::default()
    };
    assert_eq!(m.result("IOAS_MAP", map), Ok(0));
    let alloc = |flags| {
        let args = spec::HwptAlloc {
            flags,
            dev_id: pdev.id().get(),
            pt_id: ioas,
            ..Default::default()
        };
        m.run("HWPT_ALLOC", args).1.out_hwpt_id
    };
    let (plain, hwpt) = (alloc(0), alloc(2));
    pdev.attach(ObjectId::from_raw(hwpt)).unwrap();
    let track = |flags, hwpt_id| {
        let args = spec::HwptSetDirtyTracking {
            flags,
            hwpt_id,
            ..Default::default()
        };
        m.result("HWPT_SET_DIRTY_TRACKING", args)
    };
    assert_eq!(track(2, NOBODY), Err(Errno::EOPNOTSUPP));
    assert_eq!(track(1, NOBODY), Err(Errno::ENOENT));
    assert_eq!(track(1, plain), Err(Errno::EOPNOTSUPP));
    assert_eq!(track(1, hwpt), Ok(0));
    for page in [1, 3, 10] {
        let mut port = pdev.device().port();
        let write = port.enter(None).write((1 << 20) + page * PAGE, &[1]);
        assert!(write.stop.is_none());
    }
    const BITMAP: u64 = BASE + 0x100;
    let good = spec::HwptGetDirtyBitmap {
        hwpt_id: hwpt,
        iova: 1 << 20,
        length: 16 * PAGE,
        page_size: PAGE,
        data: BITMAP,
        ..Default::default()
    };
    let run = |args| m.result("HWPT_GET_DIRTY_BITMAP", args);
    let bits = || m.get::<[u8; 3]>(BITMAP);
    m.put(BITMAP, &[0x80, 0, 0xff]);
    let keep = spec::HwptGetDirtyBitmap { flags: 1, ..good };
    assert_eq!((run(keep), bits()), (Ok(0), [0x8a, 0x04, 0xff]));
    m.put(BITMAP, &[0, 0, 0]);
    let coarse = spec::HwptGetDirtyBitmap {
        page_size: 4 * PAGE,
        ..keep
    };
    assert_eq!((run(coarse), bits()), (Ok(0), [0b0101, 0, 0]));
    m.put(BITMAP, &[0, 0, 0]);
    assert_eq!((run(good), bits()), (Ok(0), [0x0a, 0x04, 0]));
    m.put(BITMAP, &[0, 0, 0]);
    assert_eq!((run(good), bits()), (Ok(0), [0, 0, 0]), "cleared");
    for (bad, errno) in [
        (
            spec::HwptGetDirtyBitmap { flags: 2, ..good },
            Errno::EOPNOTSUPP,
        ),
        (
            spec::HwptGetDirtyBitmap {
                reserved: 1,
                ..good
            },
            Errno::EOPNOTSUPP,
        ),
        (
            spec::HwptGetDirtyBitmap {
                hwpt_id: ioas,
                ..good
            },
            Errno::ENOENT,
        ),
        (
            spec::HwptGetDirtyBitmap {
                page_size: 0,
                ..good
            },
            Errno::EINVAL,
        ),
        (spec::HwptGetDirtyBitmap { iova: 1, ..good }, Errno::EINVAL),
        (
            spec::HwptGetDirtyBitmap {
                length: 32 * PAGE,
                ..good
            },
            Errno::EINVAL,
        ),
        (
            spec::HwptGetDirtyBitmap {
                iova: u64::MAX,
                ..good
            },
            Errno::EOVERFLOW,
        ),
        (
            spec::HwptGetDirtyBitmap {
                hwpt_id: plain,
                ..good
            },
            Errno::EOPNOTSUPP,
        ),
    ] {
        assert_eq!(run(bad), Err(errno), "{bad:?}");
    }
    let mut port = pdev.device().port();
    assert!(port.enter(None).write(1 << 20, &[1]).stop.is_none());
    assert_eq!(
        run(spec::HwptGetDirtyBitmap { data: 0, ..good }),
        Err(Errno::EFAULT)
    );
}

#[test]
fn a_process_changes_only_with_maps_of_files() {
    let m = Machine::new();
    let ioas = m.ioas();
    let run = |reserved| {
        m.result(
            "IOAS_CHANGE_PROCESS",
            spec::IoasChangeProcess { size: 0, reserved },
        )
    };
    assert_eq!(run(1), Err(Errno::EOPNOTSUPP));
    assert_eq!(run(0), Ok(0));
    let file = spec::IoasMapFile {
        flags: 7,
        ioas_id: ioas,
        fd: FILE,
        length: PAGE,
        ..Default::default()
    };
    assert_eq!(m.result("IOAS_MAP_FILE", file), Ok(0));
    assert_eq!(run(0), Ok(0));
    let map = spec::IoasMap {
        flags: 6,
        ioas_id: ioas,
        user_va: DATA,
        length: PAGE,
        ..Default::default()
    };
    assert_eq!(m.result("IOAS_MAP", map), Ok(0));
    assert_eq!(run(0), Err(Errno::EINVAL));
}
