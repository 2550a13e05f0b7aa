//! Random sequences of all commands, against the reference in `model.rs`: same answers, same ids.
//!
//! The long form: `PROPTEST_CASES=100000 cargo test -p ioasid-uapi --test iommufd reference`.

use std::sync::Arc;

use ioasid_iommu::{Device, DeviceConfig, FaultLog};
use ioasid_iommufd::{BoundDevice, EventFile, ObjectId, SoftwareIommu};
use ioasid_uapi::{Errno, spec::iommufd as spec};
use proptest::prelude::*;

use crate::{
    backend::{DATA_LEN, KIND, Toy},
    machine::*,
    model::{DIRTY, FAULT, How, Model, NEST_PARENT, Object, PASID, PLAIN},
};

const DEVICES: usize = 3;
/// Mappings start at multiples of this.
const SLOT: u64 = 0x10_0000;

/// One command. Its ids are mostly those of objects that it is for.
#[derive(Clone, Debug)]
enum Op {
    Destroy(Id),
    IoasAlloc,
    IovaRanges(Id),
    Map(Id, u64, u64),
    Unmap(Id, u64, u64),
    UnmapAll(Id),
    Copy((Id, u64), (Id, u64)),
    HwInfo(Id),
    HwptAlloc {
        device: Id,
        pt: Id,
        flags: u32,
        on: On,
        fault: Id,
    },
    Attach(usize, Id, u32, How),
    Detach(usize, u32),
    Rebind(usize),
    FaultAlloc,
    CloseFile(usize),
    ViommuAlloc(Id, Id),
    VdeviceAlloc(Id, Id, u64),
    VeventqAlloc(Id, u32, u32),
    HwQueueAlloc(Id, u64),
    Invalidate(Id),
    SetDirty(Id, bool),
    GetDirty(Id, u64),
    SetLarge(Id, u64),
    RlimitMode,
    VfioGet,
    VfioSet(Id),
    VfioClear,
    ChangeProcess,
}

/// A number, and whether it is one of the suitable objects that is meant, or an id as it is.
#[derive(Clone, Copy, Debug)]
struct Id(u32, bool);

/// What a page table is to be made on.
#[derive(Clone, Copy, Debug)]
enum On {
    Ioas,
    Parent,
    Viommu,
    /// Anything, with data or without.
    Any(bool),
}

fn id() -> impl Strategy<Value = Id> {
    (0..24u32, prop::bool::weighted(0.95)).prop_map(|(id, suitable)| Id(id, suitable))
}

fn flags() -> impl Strategy<Value = u32> {
    prop_oneof![
        4 => Just(0u32),
        4 => Just(NEST_PARENT),
        2 => Just(DIRTY),
        2 => Just(PASID),
        2 => Just(FAULT),
        1 => Just(PASID | FAULT),
        1 => 0..32u32,
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let slot = || 1..5u64;
    let pasid = || prop_oneof![3 => Just(0u32), 1 => 1..3u32];
    let how = prop_oneof![
        2 => Just(How::Either),
        1 => Just(How::First),
        1 => Just(How::Replace),
    ];
    let on = prop_oneof![
        4 => Just(On::Ioas),
        2 => Just(On::Parent),
        2 => Just(On::Viommu),
        1 => any::<bool>().prop_map(On::Any),
    ];
    let hwpt = (id(), id(), flags(), on, id());
    let hwpt = hwpt.prop_map(|(device, pt, flags, on, fault)| Op::HwptAlloc {
        device,
        pt,
        flags,
        on,
        fault,
    });
    // In two parts: a choice has a limit of ten alternatives.
    let objects = prop_oneof![
        3 => id().prop_map(Op::Destroy),
        2 => Just(Op::IoasAlloc),
        8 => hwpt,
        2 => Just(Op::FaultAlloc),
        3 => (0..6usize).prop_map(Op::CloseFile),
        4 => (id(), id()).prop_map(|(device, hwpt)| Op::ViommuAlloc(device, hwpt)),
        3 => (id(), id(), 0..3u64).prop_map(|(v, d, virt)| Op::VdeviceAlloc(v, d, virt)),
        2 => (id(), 1..3u32, 0..3u32).prop_map(|(v, kind, depth)| Op::VeventqAlloc(v, kind, depth)),
        3 => (id(), slot()).prop_map(|(viommu, slot)| Op::HwQueueAlloc(viommu, slot)),
        1 => (1..DEVICES).prop_map(Op::Rebind),
    ];
    let attaching = prop_oneof![
        6 => (0..DEVICES, id(), pasid(), how).prop_map(|(d, pt, pasid, how)| {
            Op::Attach(d, pt, pasid, how)
        }),
        2 => (0..DEVICES, pasid()).prop_map(|(device, pasid)| Op::Detach(device, pasid)),
    ];
    let maps = prop_oneof![
        4 => (id(), slot(), 1..3u64).prop_map(|(ioas, slot, pages)| Op::Map(ioas, slot, pages)),
        2 => (id(), slot(), 1..3u64).prop_map(|(ioas, slot, pages)| Op::Unmap(ioas, slot, pages)),
        1 => id().prop_map(Op::UnmapAll),
        1 => ((id(), slot()), (id(), slot())).prop_map(|(src, dst)| Op::Copy(src, dst)),
        1 => (id(), any::<bool>()).prop_map(|(hwpt, on)| Op::SetDirty(hwpt, on)),
        1 => (id(), slot()).prop_map(|(hwpt, slot)| Op::GetDirty(hwpt, slot)),
    ];
    let rest = prop_oneof![
        id().prop_map(Op::IovaRanges),
        id().prop_map(Op::HwInfo),
        id().prop_map(Op::Invalidate),
        (id(), 0..3u64).prop_map(|(ioas, value)| Op::SetLarge(ioas, value)),
        Just(Op::RlimitMode),
        Just(Op::VfioGet),
        id().prop_map(Op::VfioSet),
        Just(Op::VfioClear),
        Just(Op::ChangeProcess),
    ];
    prop_oneof![10 => objects, 4 => attaching, 5 => maps, 2 => rest]
}

/// What the rarer commands need: a page table to nest on and a virtual IOMMU.
fn start() -> Vec<Op> {
    let any = Id(0, true);
    // The second device is the first of the back end's.
    let device = Id(1, true);
    let parent = Op::HwptAlloc {
        device,
        pt: any,
        flags: NEST_PARENT,
        on: On::Ioas,
        fault: any,
    };
    vec![Op::IoasAlloc, parent, Op::ViommuAlloc(device, any)]
}

/// The system under test, and the reference.
struct Pair {
    m: Machine,
    model: Model,
    devices: Vec<Arc<Device>>,
    bound: Vec<BoundDevice>,
    /// Open files of events, with the queue's id.
    files: Vec<(Arc<dyn EventFile>, u32)>,
}

impl Pair {
    fn new() -> Self {
        let m = Machine::new();
        let devices = (1..=DEVICES).map(|number| {
            let address = format!("0000:70:0{number}.0").parse().unwrap();
            m.iommu.add_device(DeviceConfig::new(address)).unwrap()
        });
        let mut pair = Pair {
            devices: devices.collect(),
            m,
            model: Model::default(),
            bound: Vec::new(),
            files: Vec::new(),
        };
        for number in 0..DEVICES {
            let bound = pair.bind(number);
            pair.bound.push(bound);
        }
        pair
    }

    fn bind(&mut self, number: usize) -> BoundDevice {
        let device = &self.devices[number];
        let faults = FaultLog::new(8);
        let context = &self.m.context;
        let bound = if number == PLAIN {
            context.bind_device_with(device, faults, SoftwareIommu::new(device))
        } else {
            context.bind_device_with(device, faults, Arc::new(Toy))
        };
        let bound = bound.unwrap();
        assert_eq!(bound.id().get(), self.model.bind(number));
        bound
    }

    fn find(&self, id: Id, wanted: impl Fn(&Object) -> bool) -> u32 {
        let Id(id, suitable) = id;
        if suitable {
            self.model.pick(id, wanted)
        } else {
            id
        }
    }

    fn ioas(&self, id: Id) -> u32 {
        self.find(id, |object| matches!(object, Object::Ioas { .. }))
    }

    fn device(&self, id: Id) -> u32 {
        self.find(id, |object| matches!(object, Object::Device { .. }))
    }

    fn paging(&self, id: Id, with: u32) -> u32 {
        self.find(id, |object| match object {
            Object::Paging { flags, .. } => flags & with == with,
            _ => false,
        })
    }

    fn viommu(&self, id: Id) -> u32 {
        self.find(id, |object| matches!(object, Object::Viommu { .. }))
    }

    fn fault(&self, id: Id) -> u32 {
        self.find(id, |object| *object == Object::Fault)
    }

    /// Anything that a page table can be made on or a device attached to.
    fn base(&self, id: Id) -> u32 {
        self.find(id, |object| {
            matches!(
                object,
                Object::Ioas { .. }
                    | Object::Paging { .. }
                    | Object::Nested { .. }
                    | Object::Viommu { .. }
            )
        })
    }

    /// Runs a command on both; their answers.
    #[expect(
        clippy::too_many_lines,
        reason = "a decoder: one arm for each operation"
    )]
    fn step(&mut self, op: &Op) -> (Result<u64, Errno>, Result<u64, Errno>) {
        let unit = |answer: Result<(), Errno>| answer.map(|()| 0);
        let id = |answer: Result<u32, Errno>| answer.map(u64::from);
        match *op {
            Op::Destroy(object) => {
                let object = self.find(object, |object| !matches!(object, Object::Device { .. }));
                let args = spec::Destroy {
                    id: object,
                    ..Default::default()
                };
                let ours = self.m.result("DESTROY", args);
                (ours, unit(self.model.destroy(object)))
            }
            Op::IoasAlloc => {
                let (ours, reply) = self.m.run("IOAS_ALLOC", spec::IoasAlloc::default());
                let ours = ours.map(|_| reply.out_ioas_id.into());
                (ours, Ok(self.model.ioas_alloc().into()))
            }
            Op::IovaRanges(ioas) => {
                let ioas = self.ioas(ioas);
                let args = spec::IoasIovaRanges {
                    ioas_id: ioas,
                    num_iovas: 64,
                    allowed_iovas: DATA,
                    ..Default::default()
                };
                let ours = self.m.result("IOAS_IOVA_RANGES", args);
                (ours, unit(self.model.ioas_exists(ioas)))
            }
            Op::Map(ioas, slot, pages) => {
                let ioas = self.ioas(ioas);
                let args = spec::IoasMap {
                    flags: spec::MAP_FIXED_IOVA | spec::MAP_READABLE | spec::MAP_WRITEABLE,
                    ioas_id: ioas,
                    user_va: DATA,
                    length: pages * PAGE,
                    iova: slot * SLOT,
                    ..Default::default()
                };
                let ours = self.m.result("IOAS_MAP", args);
                (ours, unit(self.model.map(ioas, slot, pages)))
            }
            Op::Unmap(ioas, slot, pages) => {
                let ioas = self.ioas(ioas);
                let args = spec::IoasUnmap {
                    ioas_id: ioas,
                    iova: slot * SLOT,
                    length: pages * PAGE,
                    ..Default::default()
                };
                let (ours, reply) = self.m.run("IOAS_UNMAP", args);
                let ours = ours.map(|_| reply.length / PAGE);
                (ours, self.model.unmap(ioas, slot, pages))
            }
            Op::UnmapAll(ioas) => {
                let ioas = self.ioas(ioas);
                let args = spec::IoasUnmap {
                    ioas_id: ioas,
                    length: u64::MAX,
                    ..Default::default()
                };
                let (ours, reply) = self.m.run("IOAS_UNMAP", args);
                let ours = ours.map(|_| reply.length / PAGE);
                (ours, self.model.unmap_all(ioas))
            }
            Op::Copy((src, from), (dst, to)) => {
                let (src, dst) = (self.ioas(src), self.ioas(dst));
                let args = spec::IoasCopy {
                    flags: spec::MAP_FIXED_IOVA | spec::MAP_READABLE,
                    dst_ioas_id: dst,
                    src_ioas_id: src,
                    length: PAGE,
                    dst_iova: to * SLOT,
                    src_iova: from * SLOT,
                    ..Default::default()
                };
                let ours = self.m.result("IOAS_COPY", args);
                (ours, unit(self.model.copy((src, from), (dst, to))))
            }
            Op::HwInfo(device) => {
                let device = self.device(device);
                let args = spec::HwInfo {
                    dev_id: device,
                    ..Default::default()
                };
                let ours = self.m.result("GET_HW_INFO", args);
                (ours, unit(self.model.device_exists(device)))
            }
            Op::HwptAlloc {
                device,
                pt,
                flags,
                on,
                fault,
            } => {
                let (device, fault) = (self.device(device), self.fault(fault));
                let (pt, flags, data) = match on {
                    On::Ioas => (self.ioas(pt), flags, false),
                    On::Parent => (self.paging(pt, NEST_PARENT), flags & (FAULT | PASID), true),
                    On::Viommu => (self.viommu(pt), flags & (FAULT | PASID), true),
                    On::Any(data) => (self.base(pt), flags, data),
                };
                let args = spec::HwptAlloc {
                    flags,
                    dev_id: device,
                    pt_id: pt,
                    data_type: if data { KIND } else { 0 },
                    data_len: if data { DATA_LEN } else { 0 },
                    data_uptr: DATA,
                    fault_id: fault,
                    ..Default::default()
                };
                let (ours, reply) = self.m.run("HWPT_ALLOC", args);
                let ours = ours.map(|_| reply.out_hwpt_id.into());
                (
                    ours,
                    id(self.model.hwpt_alloc(device, pt, flags, data, fault)),
                )
            }
            Op::Attach(device, pt, pasid, how) => {
                let pt = self.base(pt);
                let bound = &self.bound[device];
                let target = ObjectId::from_raw(pt);
                let ours = match (how, pasid) {
                    (How::Either, 0) => bound.attach(target),
                    (How::Either, pasid) => bound.attach_pasid(target, pasid),
                    (How::First, pasid) => bound.attach_first(target, pasid),
                    (How::Replace, pasid) => bound.replace(target, pasid),
                };
                let ours = ours.map(|hwpt| hwpt.get().into()).map_err(Errno::from);
                let device = bound.id().get();
                (ours, id(self.model.attach(device, pt, pasid, how)))
            }
            Op::Detach(device, pasid) => {
                let bound = &self.bound[device];
                match pasid {
                    0 => bound.detach(),
                    pasid => bound.detach_pasid(pasid),
                }
                self.model.detach(bound.id().get(), pasid);
                (Ok(0), Ok(0))
            }
            Op::Rebind(number) => {
                self.model.unbind(self.bound[number].id().get());
                let last = self.bound.len() - 1;
                self.bound.swap(number, last);
                drop(self.bound.pop());
                let bound = self.bind(number);
                self.bound.push(bound);
                self.bound.swap(number, last);
                (Ok(0), Ok(0))
            }
            Op::FaultAlloc => {
                let (ours, reply) = self.m.run("FAULT_QUEUE_ALLOC", spec::FaultAlloc::default());
                let file = self.m.program.event_file(reply.out_fault_fd);
                self.files.push((file, reply.out_fault_id));
                let ours = ours.map(|_| reply.out_fault_id.into());
                (ours, Ok(self.model.fault_alloc().into()))
            }
            Op::CloseFile(index) => {
                if index < self.files.len() {
                    let (file, queue) = self.files.remove(index);
                    file.closed();
                    self.model.close_file(queue);
                }
                (Ok(0), Ok(0))
            }
            Op::ViommuAlloc(device, hwpt) => {
                let (device, hwpt) = (self.device(device), self.paging(hwpt, NEST_PARENT));
                let args = spec::ViommuAlloc {
                    kind: KIND,
                    dev_id: device,
                    hwpt_id: hwpt,
                    ..Default::default()
                };
                let (ours, reply) = self.m.run("VIOMMU_ALLOC", args);
                let ours = ours.map(|_| reply.out_viommu_id.into());
                (ours, id(self.model.viommu_alloc(device, hwpt)))
            }
            Op::VdeviceAlloc(viommu, device, virt) => {
                let (viommu, device) = (self.viommu(viommu), self.device(device));
                let args = spec::VdeviceAlloc {
                    viommu_id: viommu,
                    dev_id: device,
                    virt_id: virt,
                    ..Default::default()
                };
                let (ours, reply) = self.m.run("VDEVICE_ALLOC", args);
                let ours = ours.map(|_| reply.out_vdevice_id.into());
                (ours, id(self.model.vdevice_alloc(viommu, device, virt)))
            }
            Op::VeventqAlloc(viommu, kind, depth) => {
                let viommu = self.viommu(viommu);
                let args = spec::VeventqAlloc {
                    viommu_id: viommu,
                    kind,
                    veventq_depth: depth,
                    ..Default::default()
                };
                let (ours, reply) = self.m.run("VEVENTQ_ALLOC", args);
                if ours.is_ok() {
                    let file = self.m.program.event_file(reply.out_veventq_fd);
                    self.files.push((file, reply.out_veventq_id));
                }
                let ours = ours.map(|_| reply.out_veventq_id.into());
                (ours, id(self.model.veventq_alloc(viommu, kind, depth)))
            }
            Op::HwQueueAlloc(viommu, slot) => {
                let viommu = self.viommu(viommu);
                let args = spec::HwQueueAlloc {
                    viommu_id: viommu,
                    kind: KIND,
                    nesting_parent_iova: slot * SLOT,
                    length: PAGE,
                    ..Default::default()
                };
                let (ours, reply) = self.m.run("HW_QUEUE_ALLOC", args);
                let ours = ours.map(|_| reply.out_hw_queue_id.into());
                (ours, id(self.model.hw_queue_alloc(viommu, slot)))
            }
            Op::Invalidate(object) => {
                let object = self.base(object);
                let args = spec::HwptInvalidate {
                    hwpt_id: object,
                    data_type: KIND,
                    ..Default::default()
                };
                let ours = self.m.result("HWPT_INVALIDATE", args);
                (ours, unit(self.model.invalidate(object)))
            }
            Op::SetDirty(hwpt, on) => {
                let hwpt = self.paging(hwpt, DIRTY);
                let args = spec::HwptSetDirtyTracking {
                    flags: on.into(),
                    hwpt_id: hwpt,
                    ..Default::default()
                };
                let ours = self.m.result("HWPT_SET_DIRTY_TRACKING", args);
                (ours, unit(self.model.set_dirty(hwpt, on)))
            }
            Op::GetDirty(hwpt, slot) => {
                let hwpt = self.paging(hwpt, DIRTY);
                let args = spec::HwptGetDirtyBitmap {
                    hwpt_id: hwpt,
                    iova: slot * SLOT,
                    length: PAGE,
                    page_size: PAGE,
                    data: DATA,
                    ..Default::default()
                };
                let ours = self.m.result("HWPT_GET_DIRTY_BITMAP", args);
                (ours, unit(self.model.get_dirty(hwpt, slot)))
            }
            Op::SetLarge(ioas, value) => {
                let ioas = self.ioas(ioas);
                let args = spec::Opt {
                    option_id: spec::OPTION_HUGE_PAGES,
                    op: spec::OPTION_OP_SET,
                    object_id: ioas,
                    val64: value,
                    ..Default::default()
                };
                let ours = self.m.result("OPTION", args);
                (ours, unit(self.model.set_large(ioas, value)))
            }
            Op::RlimitMode => {
                let args = spec::Opt {
                    option_id: spec::OPTION_RLIMIT_MODE,
                    op: spec::OPTION_OP_SET,
                    val64: 1,
                    ..Default::default()
                };
                // A device is always bound.
                (self.m.result("OPTION", args), Err(Errno::EBUSY))
            }
            Op::VfioGet => {
                let args = spec::VfioIoas {
                    op: spec::VFIO_IOAS_GET,
                    ..Default::default()
                };
                let (ours, reply) = self.m.run("VFIO_IOAS", args);
                let ours = ours.map(|_| reply.ioas_id.into());
                (ours, id(self.model.vfio_get()))
            }
            Op::VfioSet(ioas) => {
                let ioas = self.ioas(ioas);
                let args = spec::VfioIoas {
                    ioas_id: ioas,
                    op: spec::VFIO_IOAS_SET,
                    ..Default::default()
                };
                let ours = self.m.result("VFIO_IOAS", args);
                (ours, unit(self.model.vfio_set(ioas)))
            }
            Op::VfioClear => {
                let args = spec::VfioIoas {
                    op: spec::VFIO_IOAS_CLEAR,
                    ..Default::default()
                };
                self.model.vfio_clear();
                (self.m.result("VFIO_IOAS", args), Ok(0))
            }
            Op::ChangeProcess => {
                let args = spec::IoasChangeProcess::default();
                let ours = self.m.result("IOAS_CHANGE_PROCESS", args);
                (ours, unit(self.model.change_process()))
            }
        }
    }
}

proptest! {
    #[test]
    fn every_command_answers_as_the_reference_does(
        rich in any::<bool>(),
        ops in prop::collection::vec(op(), 1..120),
    ) {
        let mut pair = Pair::new();
        let start = if rich { start() } else { Vec::new() };
        for op in start.iter().chain(&ops) {
            let (ours, expected) = pair.step(op);
            prop_assert_eq!(ours, expected, "{:?}", op);
        }
        // What is left: each id is there or not, used or not.
        for id in 1..100 {
            let (ours, expected) = pair.step(&Op::Destroy(Id(id, false)));
            prop_assert_eq!(ours, expected, "{} at the end", id);
        }
        pair.files.iter().for_each(|(file, _)| file.closed());
        pair.bound.clear();
        pair.m.context.close();
        prop_assert_eq!(pair.m.iommu.paging_domains(), 0);
    }
}
