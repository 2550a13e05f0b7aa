//! Guests' first-stage tables on devices behind a VT-d: what is refused, with which errno, in which order,
//! and that nothing has changed then (Linux 7.2: drivers/iommu/iommufd/{device,hw_pagetable,viommu}.c,
//! drivers/iommu/intel/{iommu,nested,pasid}.c).

use ioasid_core::inspect::{Inspect, Node};
use ioasid_iommu::{DeviceConfig, FaultLog, TableFormat};
use ioasid_iommufd::{BoundDevice, HwptFlags, ObjectId};
use ioasid_uapi::{Errno, spec::iommufd as spec};

use crate::machine::*;

mod alloc;
mod invalidate;

/// `IOMMU_HWPT_ALLOC_NEST_PARENT` and so on.
const NEST_PARENT: u32 = HwptFlags::NEST_PARENT.bits();
const DIRTY: u32 = HwptFlags::DIRTY_TRACKING.bits();
const FAULTS: u32 = HwptFlags::FAULT_ID_VALID.bits();
const PASID: u32 = HwptFlags::PASID.bits();

/// `IOMMU_HWPT_DATA_VTD_S1`.
const VTD_S1: u32 = 1;
/// Bytes of `struct iommu_hwpt_vtd_s1` and `struct iommu_hwpt_vtd_s1_invalidate`.
const LEN: u32 = 24;
/// Nothing can be read there.
const UNREADABLE: u64 = 0x1000;
/// A table for addresses of 39 bits, which no IOMMU walks.
const ODD: u64 = DATA + 0x100;
/// A table that is good.
const GOOD: u64 = DATA;
/// A table with all bits set that mean nothing.
const NOISY: u64 = DATA + 0x200;
/// Entries of HWPT_INVALIDATE.
const ENTRIES: u64 = DATA + 0x300;

/// Devices, and page tables of one IOAS.
struct Scene {
    m: Machine,
    /// On the automatic page table, which would go otherwise.
    _child: BoundDevice,
    pdev: BoundDevice,
    /// Makes no page requests.
    mute: BoundDevice,
    /// A virtual function.
    vf: BoundDevice,
    /// First-stage tables alone.
    first: BoundDevice,
    /// Behind an IOMMU of another kind.
    amd: BoundDevice,
    ioas: u32,
    automatic: u32,
    plain: u32,
    parent: u32,
    nested: u32,
    /// Nested, without the PASID flag.
    without_pasids: u32,
    /// Nested, with a fault queue.
    asking: u32,
}

fn stage_one(flags: u64, root: u64, width: u32, reserved: u32) -> Vec<u8> {
    let mut bytes = [flags.to_ne_bytes(), root.to_ne_bytes()].concat();
    bytes.extend([width.to_ne_bytes(), reserved.to_ne_bytes()].concat());
    bytes
}

fn scene() -> Scene {
    let m = Machine::new();
    let bind = |address: &str, change: fn(&mut DeviceConfig)| {
        let mut config = DeviceConfig::new(address.parse().unwrap());
        change(&mut config);
        let device = m.iommu.add_device(config).unwrap();
        m.context.bind_device(&device, FaultLog::new(8)).unwrap()
    };
    let mute = bind("0000:01:00.0", |config| config.page_requests = false);
    let vf = bind("0000:01:00.1", |config| config.virtual_function = true);
    let first = bind("0000:02:00.0", |config| {
        config.format = TableFormat::X86_64Stage1;
        config.page_requests = false;
    });
    let amd = bind("0000:03:00.0", |config| config.format = TableFormat::AmdV1);
    let (pdev, ioas) = (m.pdev(), m.ioas());
    let child = m.mdev();
    let automatic = child.attach(ObjectId::from_raw(ioas)).unwrap().get();
    m.put(GOOD, &stage_one(0, 0x5000, 48, 0));
    m.put(ODD, &stage_one(0, 0x5000, 39, 0));
    m.put(NOISY, &stage_one(!7, u64::MAX, 57, u32::MAX));
    let mut scene = Scene {
        m,
        _child: child,
        pdev,
        mute,
        vf,
        first,
        amd,
        ioas,
        automatic,
        plain: 0,
        parent: 0,
        nested: 0,
        without_pasids: 0,
        asking: 0,
    };
    let on_ioas = |flags| spec::HwptAlloc {
        flags,
        ..scene.on_ioas()
    };
    let plain = scene.made(on_ioas(0));
    let parent = scene.made(on_ioas(NEST_PARENT | PASID));
    (scene.plain, scene.parent) = (plain, parent);
    let nested = |flags, fault_id| spec::HwptAlloc {
        flags,
        fault_id,
        ..scene.on_parent()
    };
    let (queue, _file) = scene.m.context.fault_queue_alloc().unwrap();
    let made = [
        scene.made(nested(PASID, 0)),
        scene.made(nested(0, 0)),
        scene.made(nested(PASID | FAULTS, queue.get())),
    ];
    [scene.nested, scene.without_pasids, scene.asking] = made;
    scene
}

impl Scene {
    fn on_ioas(&self) -> spec::HwptAlloc {
        spec::HwptAlloc {
            dev_id: self.pdev.id().get(),
            pt_id: self.ioas,
            ..Default::default()
        }
    }

    fn on_parent(&self) -> spec::HwptAlloc {
        spec::HwptAlloc {
            dev_id: self.pdev.id().get(),
            pt_id: self.parent,
            data_type: VTD_S1,
            data_len: LEN,
            data_uptr: GOOD,
            ..Default::default()
        }
    }

    fn made(&self, args: spec::HwptAlloc) -> u32 {
        let (result, args) = self.m.run("HWPT_ALLOC", args);
        assert_eq!(result, Ok(0), "{args:?}");
        args.out_hwpt_id
    }

    /// Objects, mappings, attachments, domains and routes.
    fn state(&self) -> (Node, Node) {
        (self.m.context.inspect(), self.m.iommu.inspect())
    }

    fn refused(&self, row: &str, result: Result<u64, Errno>, errno: Errno, before: &(Node, Node)) {
        assert_eq!(result, Err(errno), "{row}");
        assert_eq!(self.state(), *before, "{row}: nothing has changed");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "one table")]
fn attaches_are_refused_in_the_order_of_linux_and_the_old_route_stays() {
    let s = scene();
    let odd = s.made(spec::HwptAlloc {
        flags: PASID,
        data_uptr: ODD,
        ..s.on_parent()
    });
    let odd_asking = {
        let (queue, _file) = s.m.context.fault_queue_alloc().unwrap();
        s.made(spec::HwptAlloc {
            flags: PASID | FAULTS,
            data_uptr: ODD,
            fault_id: queue.get(),
            ..s.on_parent()
        })
    };
    for device in [&s.pdev, &s.mute] {
        device.attach(ObjectId::from_raw(s.parent)).unwrap();
        device
            .attach_pasid(ObjectId::from_raw(s.nested), 3)
            .unwrap();
    }
    let attach = |device: &BoundDevice, pasid: Option<u32>, to: u32| {
        let to = ObjectId::from_raw(to);
        let attached = match pasid {
            None => device.attach(to),
            Some(pasid) => device.attach_pasid(to, pasid),
        };
        attached.map(|id| u64::from(id.get())).map_err(Errno::from)
    };
    let before = s.state();
    for (row, errno, device, pasid, to) in [
        ("no page table", Errno::ENOENT, &s.pdev, None, NOBODY),
        ("39 bits", Errno::EINVAL, &s.pdev, None, odd),
        ("39 bits at a PASID", Errno::EINVAL, &s.pdev, Some(3), odd),
        (
            "39 bits, nothing there",
            Errno::EINVAL,
            &s.pdev,
            Some(4),
            odd,
        ),
        (
            "no PASID flag at a PASID",
            Errno::EINVAL,
            &s.pdev,
            Some(3),
            s.without_pasids,
        ),
        (
            "no PASID flag beside a PASID, before the fault queue",
            Errno::EINVAL,
            &s.mute,
            None,
            s.without_pasids,
        ),
        (
            "no such PASID, before the fault queue",
            Errno::EINVAL,
            &s.mute,
            Some(1 << 20),
            s.asking,
        ),
        (
            "the parent's tables, before the fault queue",
            Errno::EINVAL,
            &s.first,
            None,
            s.asking,
        ),
        (
            "first stages alone",
            Errno::EINVAL,
            &s.first,
            None,
            s.nested,
        ),
        ("another kind", Errno::EINVAL, &s.amd, None, s.nested),
        ("no page requests", Errno::ENODEV, &s.mute, None, s.asking),
        (
            "the page requests of a physical function",
            Errno::EINVAL,
            &s.vf,
            None,
            s.asking,
        ),
        (
            "no page requests at a PASID",
            Errno::ENODEV,
            &s.mute,
            Some(5),
            s.asking,
        ),
        (
            "no page requests, before the width",
            Errno::ENODEV,
            &s.mute,
            None,
            odd_asking,
        ),
    ] {
        s.refused(row, attach(device, pasid, to), errno, &before);
    }
    for (row, id) in [("under a nested one", s.parent), ("attached", s.nested)] {
        let destroyed = s.m.result(
            "DESTROY",
            spec::Destroy {
                id,
                ..Default::default()
            },
        );
        s.refused(row, destroyed, Errno::EBUSY, &before);
    }
    assert_eq!(
        attach(&s.pdev, Some(3), s.nested),
        Ok(s.nested.into()),
        "to what it is attached to"
    );
    assert_eq!(s.state(), before);
    assert_eq!(attach(&s.pdev, None, s.asking), Ok(s.asking.into()));
}

#[test]
fn a_first_stage_at_the_device_itself_reserves_the_interrupt_window_in_the_parent() {
    let s = scene();
    let ioas = s.m.ioas();
    let map = spec::IoasMap {
        flags: 0b101,
        ioas_id: ioas,
        user_va: DATA,
        length: PAGE,
        iova: 0xfee0_0000,
        ..Default::default()
    };
    assert_eq!(s.m.result("IOAS_MAP", map), Ok(0), "read-only");
    let parent = s.made(spec::HwptAlloc {
        flags: NEST_PARENT | PASID,
        pt_id: ioas,
        ..s.on_ioas()
    });
    let nested = s.made(spec::HwptAlloc {
        flags: PASID,
        pt_id: parent,
        ..s.on_parent()
    });
    let nested = ObjectId::from_raw(nested);
    let before = s.state();
    let attached = s.pdev.attach(nested).map(|_| 0).map_err(Errno::from);
    s.refused("a map in the window", attached, Errno::EADDRINUSE, &before);
    assert_eq!(
        s.pdev.attach_pasid(nested, 1),
        Ok(nested),
        "a PASID does not"
    );
    let elsewhere = spec::IoasMap {
        iova: 0x10_0000,
        ..map
    };
    assert_eq!(
        s.m.result("IOAS_MAP", elsewhere),
        Ok(0),
        "below a parent too"
    );
}

#[test]
fn there_is_no_virtual_iommu_and_dirty_pages_are_the_parents() {
    let s = scene();
    let before = s.state();
    for kind in [1, 2, 3, u32::MAX] {
        let viommu = spec::ViommuAlloc {
            kind,
            dev_id: s.pdev.id().get(),
            hwpt_id: NOBODY,
            ..Default::default()
        };
        let row = format!("type {kind}, before the page table");
        let result = s.m.result("VIOMMU_ALLOC", viommu);
        s.refused(&row, result, Errno::EOPNOTSUPP, &before);
        let viommu = spec::ViommuAlloc {
            dev_id: NOBODY,
            ..viommu
        };
        let result = s.m.result("VIOMMU_ALLOC", viommu);
        s.refused("the device", result, Errno::ENOENT, &before);
    }
    let vdevice = spec::VdeviceAlloc {
        viommu_id: s.nested,
        dev_id: s.pdev.id().get(),
        ..Default::default()
    };
    let result = s.m.result("VDEVICE_ALLOC", vdevice);
    s.refused("a number", result, Errno::ENOENT, &before);
    let dirty = spec::HwptSetDirtyTracking {
        flags: 1,
        hwpt_id: s.nested,
        ..Default::default()
    };
    let result = s.m.result("HWPT_SET_DIRTY_TRACKING", dirty);
    s.refused("dirty tracking", result, Errno::ENOENT, &before);
}

#[test]
fn the_erratum_of_read_only_mappings_is_not_told() {
    let s = scene();
    s.m.put(DATA + 0x400, &[0xff; 24]);
    let info = spec::HwInfo {
        dev_id: s.pdev.id().get(),
        data_len: 24,
        data_uptr: DATA + 0x400,
        ..Default::default()
    };
    let (result, info) = s.m.run("GET_HW_INFO", info);
    assert_eq!((result, info.data_type, info.data_len), (Ok(0), 1, 24));
    let told: spec::HwInfoVtd = s.m.get(DATA + 0x400);
    assert_eq!(told.flags, 0);
    assert_eq!(told.ecap_reg >> 26 & 1, 1, "nested translation");
}
