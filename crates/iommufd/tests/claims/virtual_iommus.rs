//! Virtual IOMMUs: their devices, events, hardware queues and pages to map.

use std::sync::Arc;

use ioasid_core::memory::OwnPages;
use ioasid_iommufd::{
    AccessError, AllocError, Error, EventError, EventFile, HwQueueAlloc, HwptAlloc, HwptFlags,
    Invalidated, MmapError, MmapRequest, ObjectError, ObjectId, Refusal, UnmapError, UserArray,
    UserDataError, VeventqAlloc, ViommuAlloc,
};

use crate::{backend::*, machine::*};

#[test]
fn virtual_iommus_are_refused_in_the_kernels_order() {
    let s = setup();
    let context = &s.m.context;
    let args = s.viommu_args();
    let alloc = |args| context.viommu_alloc(args);
    let unknown = ViommuAlloc {
        kind: KIND + 1,
        device: NOBODY,
        hwpt: NOBODY,
        ..args
    };
    assert_eq!(
        alloc(unknown),
        Err(ObjectError::Missing(NOBODY).into()),
        "the device"
    );
    let unknown = ViommuAlloc {
        device: s.device.id(),
        ..unknown
    };
    assert_matches!(
        alloc(unknown),
        Err(Error::Alloc(AllocError::TypeNotSupported(_)))
    );
    let plain = s.m.pdev(2);
    let of_software = ViommuAlloc {
        device: plain.id(),
        ..args
    };
    assert_matches!(
        alloc(of_software),
        Err(Error::Alloc(AllocError::TypeNotSupported(_)))
    );
    let no_parent = ViommuAlloc {
        hwpt: NOBODY,
        ..args
    };
    assert_eq!(alloc(no_parent), Err(ObjectError::Missing(NOBODY).into()));
    let automatic = s.device.attach(s.ioas).unwrap();
    let no_parent = ViommuAlloc {
        hwpt: automatic,
        ..args
    };
    assert_eq!(
        alloc(no_parent),
        Err(AllocError::NotAParent(automatic).into())
    );
    let short = ViommuAlloc {
        data: s.data(4),
        ..args
    };
    assert_matches!(
        alloc(short),
        Err(Error::UserData(UserDataError::Length { .. })),
        "the back end's word"
    );
    let id = alloc(args).unwrap();
    assert_eq!(id.get(), automatic.get() + 1, "no id is lost on the way");
    assert_eq!(
        context.destroy(s.parent),
        Err(ObjectError::InUse(s.parent).into())
    );
    context.destroy(id).unwrap();
    assert_eq!(context.destroy(s.parent), Ok(()));
}

#[test]
fn a_device_has_one_number_and_a_number_one_device() {
    let s = setup();
    let context = &s.m.context;
    let bind = |number, instance| {
        let device = s.m.device(number);
        context
            .bind_device_with(&device, sink(), Toy::new(instance))
            .unwrap()
    };
    let (other, foreign) = (bind(2, 0), bind(3, 1));
    let (viommu, second) = (s.viommu(), s.viommu());
    let alloc = |viommu, device, number| context.vdevice_alloc(viommu, device, number);
    let unknown = Err(ObjectError::Missing(NOBODY).into());
    assert_eq!(alloc(NOBODY, NOBODY, 1), unknown);
    assert_eq!(alloc(viommu, NOBODY, 1), unknown);
    assert_matches!(
        alloc(viommu, foreign.id(), 1),
        Err(Error::Alloc(AllocError::OtherIommu { .. }))
    );
    let vdevice = alloc(viommu, s.device.id(), 1).unwrap();
    assert_matches!(
        alloc(second, s.device.id(), 2),
        Err(Error::Alloc(AllocError::DeviceHasNumber(_)))
    );
    assert_matches!(
        alloc(viommu, other.id(), 1),
        Err(Error::Alloc(AllocError::NumberTaken { .. }))
    );
    assert_eq!(
        context.destroy(viommu),
        Err(ObjectError::InUse(viommu).into())
    );
    assert_eq!(context.destroy(vdevice), Ok(()));
    assert_eq!(alloc(viommu, other.id(), 1), Ok(vdevice), "free again");
    assert!(alloc(second, s.device.id(), u64::MAX).is_ok());
}

#[test]
fn the_number_of_a_device_that_goes_stays_taken_as_an_id() {
    let s = setup();
    let viommu = s.viommu();
    let context = &s.m.context;
    let vdevice = context.vdevice_alloc(viommu, s.device.id(), 5).unwrap();
    let device = s.device.id();
    drop(s.device);
    assert_eq!(
        context.destroy(vdevice),
        Err(ObjectError::Missing(vdevice).into())
    );
    assert!(context.viommu(viommu).unwrap().device(5).is_none());
    assert_eq!(s.m.ioas(), device, "the device's own id is free");
    let fresh: Vec<_> = (0..3).map(|_| s.m.ioas()).collect();
    assert!(!fresh.contains(&vdevice));
    assert_eq!(context.destroy(viommu), Ok(()), "no longer used");
}

#[test]
fn nested_on_a_virtual_iommu_needs_the_device_to_have_a_number_there() {
    let s = setup();
    let context = &s.m.context;
    let viommu = s.viommu();
    let nested = s.nested(viommu, HwptFlags::NONE).unwrap();
    assert_eq!(
        context.destroy(viommu),
        Err(ObjectError::InUse(viommu).into())
    );
    let refused = Err(Error::Refused(Refusal::NotFound));
    assert_eq!(s.device.attach(nested), refused);
    let elsewhere = s.viommu();
    let wrong = context.vdevice_alloc(elsewhere, s.device.id(), 1).unwrap();
    assert_eq!(s.device.attach(nested), refused, "a number on another one");
    context.destroy(wrong).unwrap();
    context.vdevice_alloc(viommu, s.device.id(), 0x99).unwrap();
    assert_eq!(s.device.attach(nested), Ok(nested));
    assert_eq!(*s.toy.virt_id.lock().unwrap(), Some(0x99));
    let array = |count| UserArray::new(&s.program, KIND, 0x200, 8, count).unwrap();
    s.program.put(0x200, &0x99u64.to_ne_bytes());
    let done = context.hwpt_invalidate(viommu, &array(1));
    assert_eq!((done.done, done.result), (1, Ok(())));
    let stopped = Invalidated::stopped(1, Refusal::Io.into());
    assert_eq!(context.hwpt_invalidate(viommu, &array(2)), stopped);
}

#[test]
fn another_iommu_is_nothing_to_nest_on() {
    let s = setup();
    let viommu = s.viommu();
    let device = s.m.device(3);
    let context = &s.m.context;
    let foreign = context
        .bind_device_with(&device, sink(), Toy::new(1))
        .unwrap();
    let args = HwptAlloc::new(foreign.id(), viommu);
    let alloc = context.hwpt_alloc_with(args, Some(&s.data(4)));
    assert_matches!(alloc, Err(Error::Alloc(AllocError::OtherIommu { .. })));
}

fn queue(s: &Setup, viommu: ObjectId, depth: u32) -> (ObjectId, Arc<dyn EventFile>) {
    let args = VeventqAlloc {
        viommu,
        kind: KIND,
        depth,
    };
    s.m.context.veventq_alloc(args).unwrap()
}

#[test]
fn there_is_one_queue_for_each_type_of_event() {
    let s = setup();
    let context = &s.m.context;
    let viommu = s.viommu();
    let args = VeventqAlloc {
        viommu,
        kind: KIND,
        depth: 1,
    };
    let alloc = |args| context.veventq_alloc(args).map(|(id, _)| id);
    for depth in [0, (1 << 19) + 1] {
        let args = VeventqAlloc {
            depth,
            viommu: NOBODY,
            ..args
        };
        assert_matches!(alloc(args), Err(Error::Alloc(AllocError::BadDepth { .. })));
    }
    let unknown = VeventqAlloc {
        viommu: s.ioas,
        ..args
    };
    assert_eq!(alloc(unknown), Err(ObjectError::Missing(s.ioas).into()));
    let (id, file) = context.veventq_alloc(args).unwrap();
    assert_matches!(
        alloc(args),
        Err(Error::Alloc(AllocError::QueueExists { .. }))
    );
    let other_type = VeventqAlloc { kind: 999, ..args };
    assert!(alloc(other_type).is_ok(), "only events decide what exists");
    assert_eq!(
        context.destroy(id),
        Err(ObjectError::InUse(id).into()),
        "the file is open"
    );
    assert_eq!(
        context.destroy(viommu),
        Err(ObjectError::InUse(viommu).into())
    );
    file.closed();
    file.closed();
    assert_eq!(context.destroy(id), Ok(()));
    assert!(alloc(args).is_ok());
}

#[test]
fn events_go_to_the_queue_of_their_type() {
    let s = setup();
    let viommu = s.viommu();
    let (id, file) = queue(&s, viommu, 2);
    let viommu = s.m.context.viommu(viommu).unwrap();
    assert_matches!(
        viommu.report_event(KIND + 1, &[1; 4]),
        Err(Error::Alloc(AllocError::TypeNotSupported(_)))
    );
    assert!(!file.is_readable() && !file.is_writable());
    assert_eq!(file.read(100), Ok(Vec::new()));
    assert_eq!(viommu.report_event(KIND, &[1; 4]), Ok(()));
    assert!(file.is_readable());
    assert_eq!(file.read(100).unwrap().len(), 8 + 4);
    assert_matches!(
        file.write(&[0; 8]),
        Err(Error::Event(EventError::NotWritable))
    );
    file.closed();
    s.m.context.destroy(id).unwrap();
    assert_matches!(
        viommu.report_event(KIND, &[1; 4]),
        Err(Error::Alloc(AllocError::TypeNotSupported(_)))
    );
}

#[test]
fn an_open_file_of_events_keeps_the_objects_of_a_closed_context() {
    let s = setup();
    let viommu = s.viommu();
    let (_, file) = queue(&s, viommu, 2);
    drop(s.device);
    s.m.context.close();
    assert!(s.m.context.viommu(viommu).is_ok());
    file.closed();
    assert!(s.m.context.viommu(viommu).is_err());
    assert!(s.m.domains().is_empty());
}

fn hw_queue(s: &Setup, viommu: ObjectId, index: u32) -> HwQueueAlloc {
    let _ = s;
    HwQueueAlloc {
        viommu,
        kind: KIND,
        index,
        iova: 0x10_0000,
        len: PAGE,
    }
}

#[test]
fn a_hardware_queue_locks_its_area_and_takes_an_id_for_its_access() {
    let s = setup();
    let context = &s.m.context;
    let viommu = s.viommu();
    let args = hw_queue(&s, viommu, 0);
    assert_matches!(
        context.hw_queue_alloc(args),
        Err(Error::Access(AccessError::NotMapped { .. }))
    );
    s.map(0x10_0000, PAGE);
    let id = context.hw_queue_alloc(args).unwrap();
    assert_eq!(id.get(), viommu.get() + 1);
    let access = ObjectId::from_raw(id.get() + 1);
    assert_eq!(
        context.destroy(access),
        Err(ObjectError::InUse(access).into())
    );
    let unmapped = context.ioas_unmap(s.ioas, 0x10_0000, PAGE);
    assert_matches!(unmapped, Err(Error::Unmap(UnmapError::Locked { .. })));
    assert_eq!(
        context.destroy(viommu),
        Err(ObjectError::InUse(viommu).into())
    );
    assert_eq!(context.destroy(id), Ok(()));
    assert!(is_unknown(&s, access), "it went with its queue");
    assert_eq!(context.ioas_unmap(s.ioas, 0x10_0000, PAGE), Ok(PAGE));
    assert_eq!(context.destroy(viommu), Ok(()));
}

#[test]
fn hardware_queues_are_refused_in_the_kernels_order() {
    let s = setup();
    let context = &s.m.context;
    let viommu = s.viommu();
    let args = hw_queue(&s, viommu, 0);
    let alloc = |args| context.hw_queue_alloc(args);
    let nobodys = HwQueueAlloc {
        viommu: NOBODY,
        kind: KIND + 1,
        ..args
    };
    assert_matches!(
        alloc(HwQueueAlloc { len: 0, ..nobodys }),
        Err(Error::Alloc(AllocError::RingEmpty))
    );
    let wraps = HwQueueAlloc {
        iova: u64::MAX,
        len: 2,
        ..nobodys
    };
    assert_matches!(
        alloc(wraps),
        Err(Error::Alloc(AllocError::RingOverflow { .. }))
    );
    assert_eq!(alloc(nobodys), Err(ObjectError::Missing(NOBODY).into()));
    let unknown = HwQueueAlloc {
        kind: KIND + 1,
        ..args
    };
    assert_matches!(
        alloc(unknown),
        Err(Error::Alloc(AllocError::TypeNotSupported(_)))
    );
    let last_page = HwQueueAlloc {
        iova: 0,
        len: u64::MAX - 1,
        ..args
    };
    assert_matches!(
        alloc(last_page),
        Err(Error::Alloc(AllocError::RingInLastPage { .. }))
    );
    // Two pieces of memory at neighbouring addresses.
    s.map(0x10_0000, PAGE);
    s.map(0x10_0000 + PAGE, PAGE);
    let split = HwQueueAlloc {
        len: 2 * PAGE,
        ..args
    };
    assert_matches!(
        alloc(split),
        Err(Error::Alloc(AllocError::NotContiguous { .. }))
    );
    let inside = HwQueueAlloc {
        iova: 0x10_0000 + 0x800,
        len: 0x800,
        ..args
    };
    let id = alloc(inside).unwrap();
    assert_eq!(id.get(), viommu.get() + 1, "no id is lost on the way");
}

#[test]
fn a_hardware_queue_outlives_what_needs_it() {
    let s = setup();
    let context = &s.m.context;
    let viommu = s.viommu();
    s.map(0x10_0000, PAGE);
    let first = context.hw_queue_alloc(hw_queue(&s, viommu, 0)).unwrap();
    let args = hw_queue(&s, viommu, first.get());
    let second = context.hw_queue_alloc(args).unwrap();
    assert_eq!(
        context.destroy(first),
        Err(ObjectError::InUse(first).into())
    );
    context.destroy(second).unwrap();
    assert_eq!(context.destroy(first), Ok(()));
}

#[test]
fn a_file_that_closes_takes_everything_with_it() {
    let s = setup();
    let context = &s.m.context;
    let viommu = s.viommu();
    let pages: OwnPages = s.map(0x10_0000, PAGE);
    context.hw_queue_alloc(hw_queue(&s, viommu, 0)).unwrap();
    context.vdevice_alloc(viommu, s.device.id(), 1).unwrap();
    let nested = s.nested(viommu, HwptFlags::NONE).unwrap();
    s.device.attach(nested).unwrap();
    let (_, file) = queue(&s, viommu, 2);
    drop(file);
    drop(s.device);
    context.close();
    assert!(s.m.domains().is_empty());
    let page = ioasid_core::AddrRange::from_len(pages.spa(), PAGE).unwrap();
    assert_eq!(context.pins_of(page), 0);
    assert!(context.ioas_exists(s.ioas).is_err());
}

#[test]
fn pages_of_a_virtual_iommu_are_mapped_whole_shared_and_not_executable() {
    let s = setup();
    let context = &s.m.context;
    let args = ViommuAlloc {
        data: s.data(8),
        ..s.viommu_args()
    };
    let viommu = context.viommu_alloc(args).unwrap();
    let offset = u64::from_ne_bytes(s.data(8).read(KIND, 8).unwrap());
    assert_eq!(offset, PAGE, "the first page is never given");
    let good = MmapRequest {
        offset,
        len: LENT,
        shared: true,
        executable: false,
    };
    let mmap = |request| context.mmap(request).map(drop);
    let private = MmapRequest {
        shared: false,
        executable: true,
        offset: 0,
        ..good
    };
    assert_matches!(mmap(private), Err(Error::Mmap(MmapError::Private)));
    let odd = MmapRequest { len: 5, ..good };
    assert_matches!(mmap(odd), Err(Error::Mmap(MmapError::NotWholePages { .. })));
    let executable = MmapRequest {
        executable: true,
        offset: 0,
        ..good
    };
    assert_matches!(mmap(executable), Err(Error::Mmap(MmapError::Executable)));
    for (offset, len) in [(0, LENT), (offset + PAGE, LENT), (offset, 2 * LENT)] {
        let elsewhere = MmapRequest {
            offset,
            len,
            ..good
        };
        assert_matches!(
            mmap(elsewhere),
            Err(Error::Mmap(MmapError::NoSuchOffset { .. }))
        );
    }
    let mapped = context.mmap(good).unwrap();
    let forked = mapped.clone();
    assert_eq!(
        context.destroy(viommu),
        Err(ObjectError::InUse(viommu).into())
    );
    drop(mapped);
    assert_eq!(
        context.destroy(viommu),
        Err(ObjectError::InUse(viommu).into())
    );
    drop(forked);
    assert_eq!(context.destroy(viommu), Ok(()));
    assert_matches!(mmap(good), Err(Error::Mmap(MmapError::NoSuchOffset { .. })));
    let again = context.viommu_alloc(args).unwrap();
    assert_eq!(context.mmap(good).map(drop), Ok(()), "lowest offset again");
    context.destroy(again).unwrap();
}
