//! Nested page tables, virtual IOMMUs, their devices, events and queues.

use std::sync::Arc;

use ioasid_core::memory::OwnPages;
use ioasid_iommufd::{
    Error, EventFile, HwQueueAlloc, HwptAlloc, HwptFlags, Invalidated, MmapRequest, ObjectId,
    Refusal, UserArray, UserData, VeventqAlloc, ViommuAlloc,
};

use crate::{backend::*, machine::*};

fn is_unknown(s: &Scene, id: ObjectId) -> bool {
    s.m.context.destroy(id) == Err(Error::NoObject(id))
}

#[test]
fn a_nested_page_table_uses_its_parent_and_no_other_command_knows_it() {
    let s = scene();
    let context = &s.m.context;
    s.program.put(0x100, &77u32.to_ne_bytes());
    let nested = s.nested(s.parent, HwptFlags::NONE).unwrap();
    let ops: Arc<dyn std::any::Any + Send + Sync> = context.hwpt_nested(nested).unwrap();
    assert_eq!(
        ops.downcast_ref::<Nested>().map(|nested| nested.0),
        Some(77)
    );
    assert_eq!(context.destroy(s.parent), Err(Error::InUse(s.parent)));
    assert_eq!(s.device.attach(nested), Ok(nested));
    assert_eq!(context.destroy(nested), Err(Error::InUse(nested)));
    let unknown = Error::NoObject(nested);
    assert_eq!(context.hwpt_set_dirty_tracking(nested, true), Err(unknown));
    let on_nested = ViommuAlloc {
        hwpt: nested,
        ..s.viommu_args()
    };
    assert_eq!(context.viommu_alloc(on_nested), Err(unknown));
    let again = s.nested(nested, HwptFlags::NONE);
    assert_eq!(again, Err(Error::NotAParent(nested)));
    s.device.detach();
    assert_eq!(context.destroy(nested), Ok(()));
    assert_eq!(context.destroy(s.parent), Ok(()));
    let seen = s.toy.seen.lock().unwrap();
    assert_eq!(*seen, [(None, Some(nested)), (None, None)]);
}

#[test]
fn nested_page_tables_are_refused_in_the_kernels_order() {
    let s = scene();
    let context = &s.m.context;
    let unsupported = Err(Error::FlagsNotSupported);
    let dirty = HwptFlags::DIRTY_TRACKING;
    assert_eq!(s.nested(s.parent, dirty), unsupported);
    let args = HwptAlloc::new(s.device.id(), s.parent);
    assert_eq!(context.hwpt_alloc(args), unsupported, "without data");
    let plain = context
        .hwpt_alloc(HwptAlloc::new(s.device.id(), s.ioas))
        .unwrap();
    let not_a_parent = Err(Error::NotAParent(plain));
    assert_eq!(s.nested(plain, HwptFlags::NONE), not_a_parent);
    let short = s.data(2);
    let bad = context.hwpt_alloc_with(args, Some(&short));
    assert_eq!(bad, Err(Error::BadUserData));
    let other = UserData::new(&s.program, KIND + 1, 0x100, 4);
    let bad = context.hwpt_alloc_with(args, Some(&other));
    assert_eq!(bad, Err(Error::BadUserData));
    let outside = UserData::new(&s.program, KIND, u64::MAX, 4);
    let bad = context.hwpt_alloc_with(args, Some(&outside));
    assert_eq!(bad, Err(Error::UserMemory));
    let next = s.nested(s.parent, HwptFlags::NONE).unwrap();
    assert_eq!(next.get(), plain.get() + 1, "no id is lost on the way");
}

#[test]
fn what_a_back_end_refuses_leaves_the_old_attachment() {
    let s = scene();
    let nested = s.nested(s.parent, HwptFlags::NONE).unwrap();
    s.device.attach(s.parent).unwrap();
    *s.toy.refuses.lock().unwrap() = Some(Refusal::NoMemory);
    let refused = Err(Error::Refused(Refusal::NoMemory));
    assert_eq!(s.device.replace(nested, 0), refused);
    assert_eq!(s.device.attached(None), Some(s.parent));
    assert_eq!(s.device.attach(s.ioas), refused, "no new page table either");
    assert_eq!(s.device.attached(None), Some(s.parent));
    assert_eq!(s.m.domains().len(), 1);
    *s.toy.refuses.lock().unwrap() = None;
    assert_eq!(s.device.replace(nested, 0), Ok(nested));
}

#[test]
fn attach_and_replace_each_need_their_side() {
    let s = scene();
    let nothing = Err(Error::NothingToReplace);
    assert_eq!(s.device.replace(s.parent, 0), nothing);
    assert_eq!(s.device.replace(s.ioas, 0), nothing);
    assert_eq!(s.device.attach_first(s.parent, 0), Ok(s.parent));
    let busy = Err(Error::DeviceBusy);
    assert_eq!(s.device.attach_first(s.parent, 0), busy);
    assert_eq!(s.device.attach_first(s.ioas, 0), busy);
    assert_eq!(s.device.replace(s.parent, 0), Ok(s.parent), "to itself");
    assert_eq!(s.device.replace(s.parent, 9), nothing, "another PASID");
    let args = HwptAlloc::new(s.device.id(), s.ioas).with_flags(HwptFlags::PASID);
    let pasids = s.m.context.hwpt_alloc(args).unwrap();
    let unsuited = Err(Error::NotForPasids);
    assert_eq!(
        s.device.attach_first(pasids, 9),
        unsuited,
        "the device's own"
    );
    assert_eq!(s.device.replace(pasids, 0), Ok(pasids));
    assert_eq!(s.device.attach_first(pasids, 9), Ok(pasids));
    assert_eq!(s.device.attach_first(pasids, 9), busy);
    assert_eq!(s.device.attach_first(s.ioas, 10), unsuited);
    let beyond = Err(Error::NoSuchPasid);
    assert_eq!(s.device.attach_first(pasids, 1 << 20), beyond);
    assert_eq!(s.device.replace(s.parent, 0), unsuited);
}

#[test]
fn invalidation_tells_how_far_it_came() {
    let s = scene();
    let context = &s.m.context;
    let nested = s.nested(s.parent, HwptFlags::NONE).unwrap();
    s.program.put(0x200, &1u32.to_ne_bytes());
    s.program.put(0x204, &9u32.to_ne_bytes());
    let entries = |count| UserArray::new(&s.program, KIND, 0x200, 4, count).unwrap();
    let invalidate = |id, count| context.hwpt_invalidate(id, &entries(count));
    let good = |done| Invalidated {
        done,
        result: Ok(()),
    };
    assert_eq!(invalidate(nested, 0), good(0));
    assert_eq!(invalidate(nested, 1), good(1));
    let refused = Error::Refused(Refusal::Invalid);
    assert_eq!(invalidate(nested, 2), Invalidated::stopped(1, refused));
    let unknown = Invalidated::stopped(0, Error::NoObject(NOBODY));
    assert_eq!(invalidate(NOBODY, 1), unknown);
    let nothing = Invalidated::stopped(0, Error::NothingCached);
    assert_eq!(invalidate(s.parent, 1), nothing);
    assert_eq!(invalidate(s.ioas, 1), nothing);
}

#[test]
fn entries_longer_than_known_must_end_in_zeros() {
    let s = scene();
    let nested = s.nested(s.parent, HwptFlags::NONE).unwrap();
    let long = UserArray::new(&s.program, KIND, 0x200, 8, 2).unwrap();
    assert_eq!(s.m.context.hwpt_invalidate(nested, &long).done, 2);
    s.program.put(0x20f, &[1]);
    let stopped = Invalidated::stopped(1, Error::UserDataTooLong);
    assert_eq!(s.m.context.hwpt_invalidate(nested, &long), stopped);
    for (address, len, count) in [
        (0, 4, 1),
        (0x200, 0, 1),
        (0x200, UserArray::MAX_ENTRY + 1, 1),
        (0x200, 4, UserArray::MAX_ENTRIES + 1),
    ] {
        let array = UserArray::new(&s.program, KIND, address, len, count);
        assert_eq!(array.map(drop), Err(Error::BadUserData));
    }
    assert!(UserArray::new(&s.program, KIND, 0, 0, 0).is_ok(), "a probe");
}

#[test]
fn virtual_iommus_are_refused_in_the_kernels_order() {
    let s = scene();
    let context = &s.m.context;
    let args = s.viommu_args();
    let alloc = |args| context.viommu_alloc(args);
    let unknown = ViommuAlloc {
        kind: KIND + 1,
        device: NOBODY,
        hwpt: NOBODY,
        ..args
    };
    assert_eq!(alloc(unknown), Err(Error::NoObject(NOBODY)), "the device");
    let unknown = ViommuAlloc {
        device: s.device.id(),
        ..unknown
    };
    assert_eq!(alloc(unknown), Err(Error::TypeNotSupported));
    let plain = s.m.pdev(2);
    let of_software = ViommuAlloc {
        device: plain.id(),
        ..args
    };
    assert_eq!(alloc(of_software), Err(Error::TypeNotSupported));
    let no_parent = ViommuAlloc {
        hwpt: NOBODY,
        ..args
    };
    assert_eq!(alloc(no_parent), Err(Error::NoObject(NOBODY)));
    let automatic = s.device.attach(s.ioas).unwrap();
    let no_parent = ViommuAlloc {
        hwpt: automatic,
        ..args
    };
    assert_eq!(alloc(no_parent), Err(Error::NotAParent(automatic)));
    let short = ViommuAlloc {
        data: s.data(4),
        ..args
    };
    assert_eq!(alloc(short), Err(Error::BadUserData), "the back end's word");
    let id = alloc(args).unwrap();
    assert_eq!(id.get(), automatic.get() + 1, "no id is lost on the way");
    assert_eq!(context.destroy(s.parent), Err(Error::InUse(s.parent)));
    context.destroy(id).unwrap();
    assert_eq!(context.destroy(s.parent), Ok(()));
}

#[test]
fn a_device_has_one_number_and_a_number_one_device() {
    let s = scene();
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
    let unknown = Err(Error::NoObject(NOBODY));
    assert_eq!(alloc(NOBODY, NOBODY, 1), unknown);
    assert_eq!(alloc(viommu, NOBODY, 1), unknown);
    assert_eq!(alloc(viommu, foreign.id(), 1), Err(Error::OtherIommu));
    let vdevice = alloc(viommu, s.device.id(), 1).unwrap();
    assert_eq!(alloc(second, s.device.id(), 2), Err(Error::Exists));
    assert_eq!(alloc(viommu, other.id(), 1), Err(Error::Exists));
    assert_eq!(context.destroy(viommu), Err(Error::InUse(viommu)));
    assert_eq!(context.destroy(vdevice), Ok(()));
    assert_eq!(alloc(viommu, other.id(), 1), Ok(vdevice), "free again");
    assert!(alloc(second, s.device.id(), u64::MAX).is_ok());
}

#[test]
fn the_number_of_a_device_that_goes_stays_taken_as_an_id() {
    let s = scene();
    let viommu = s.viommu();
    let context = &s.m.context;
    let vdevice = context.vdevice_alloc(viommu, s.device.id(), 5).unwrap();
    let device = s.device.id();
    drop(s.device);
    assert_eq!(context.destroy(vdevice), Err(Error::NoObject(vdevice)));
    assert!(context.viommu(viommu).unwrap().device(5).is_none());
    assert_eq!(s.m.ioas(), device, "the device's own id is free");
    let fresh: Vec<_> = (0..3).map(|_| s.m.ioas()).collect();
    assert!(!fresh.contains(&vdevice));
    assert_eq!(context.destroy(viommu), Ok(()), "no longer used");
}

#[test]
fn nested_on_a_virtual_iommu_needs_the_device_to_have_a_number_there() {
    let s = scene();
    let context = &s.m.context;
    let viommu = s.viommu();
    let nested = s.nested(viommu, HwptFlags::NONE).unwrap();
    assert_eq!(context.destroy(viommu), Err(Error::InUse(viommu)));
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
    let s = scene();
    let viommu = s.viommu();
    let device = s.m.device(3);
    let context = &s.m.context;
    let foreign = context
        .bind_device_with(&device, sink(), Toy::new(1))
        .unwrap();
    let args = HwptAlloc::new(foreign.id(), viommu);
    let alloc = context.hwpt_alloc_with(args, Some(&s.data(4)));
    assert_eq!(alloc, Err(Error::OtherIommu));
}

fn queue(s: &Scene, viommu: ObjectId, depth: u32) -> (ObjectId, Arc<dyn EventFile>) {
    let args = VeventqAlloc {
        viommu,
        kind: KIND,
        depth,
    };
    s.m.context.veventq_alloc(args).unwrap()
}

#[test]
fn there_is_one_queue_for_each_type_of_event() {
    let s = scene();
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
        assert_eq!(alloc(args), Err(Error::BadDepth));
    }
    let unknown = VeventqAlloc {
        viommu: s.ioas,
        ..args
    };
    assert_eq!(alloc(unknown), Err(Error::NoObject(s.ioas)));
    let (id, file) = context.veventq_alloc(args).unwrap();
    assert_eq!(alloc(args), Err(Error::Exists));
    let other_type = VeventqAlloc { kind: 999, ..args };
    assert!(alloc(other_type).is_ok(), "only events decide what exists");
    assert_eq!(
        context.destroy(id),
        Err(Error::InUse(id)),
        "the file is open"
    );
    assert_eq!(context.destroy(viommu), Err(Error::InUse(viommu)));
    file.closed();
    file.closed();
    assert_eq!(context.destroy(id), Ok(()));
    assert!(alloc(args).is_ok());
}

#[test]
fn events_go_to_the_queue_of_their_type() {
    let s = scene();
    let viommu = s.viommu();
    let (id, file) = queue(&s, viommu, 2);
    let viommu = s.m.context.viommu(viommu).unwrap();
    let unknown = Err(Error::TypeNotSupported);
    assert_eq!(viommu.report_event(KIND + 1, &[1; 4]), unknown);
    assert!(!file.is_readable() && !file.is_writable());
    assert_eq!(file.read(100), Ok(Vec::new()));
    assert_eq!(viommu.report_event(KIND, &[1; 4]), Ok(()));
    assert!(file.is_readable());
    assert_eq!(file.read(100).unwrap().len(), 8 + 4);
    assert_eq!(file.write(&[0; 8]), Err(Error::NotWritable));
    file.closed();
    s.m.context.destroy(id).unwrap();
    assert_eq!(viommu.report_event(KIND, &[1; 4]), unknown);
}

#[test]
fn an_open_file_of_events_keeps_the_objects_of_a_closed_context() {
    let s = scene();
    let viommu = s.viommu();
    let (_, file) = queue(&s, viommu, 2);
    drop(s.device);
    s.m.context.close();
    assert!(s.m.context.viommu(viommu).is_ok());
    file.closed();
    assert!(s.m.context.viommu(viommu).is_err());
    assert!(s.m.domains().is_empty());
}

fn hw_queue(s: &Scene, viommu: ObjectId, index: u32) -> HwQueueAlloc {
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
    let s = scene();
    let context = &s.m.context;
    let viommu = s.viommu();
    let args = hw_queue(&s, viommu, 0);
    assert_eq!(context.hw_queue_alloc(args), Err(Error::NotMapped));
    s.map(0x10_0000, PAGE);
    let id = context.hw_queue_alloc(args).unwrap();
    assert_eq!(id.get(), viommu.get() + 1);
    let access = ObjectId::from_raw(id.get() + 1);
    assert_eq!(context.destroy(access), Err(Error::InUse(access)));
    let unmapped = context.ioas_unmap(s.ioas, 0x10_0000, PAGE);
    assert_eq!(unmapped, Err(Error::AreaLocked));
    assert_eq!(context.destroy(viommu), Err(Error::InUse(viommu)));
    assert_eq!(context.destroy(id), Ok(()));
    assert!(is_unknown(&s, access), "it went with its queue");
    assert_eq!(context.ioas_unmap(s.ioas, 0x10_0000, PAGE), Ok(PAGE));
    assert_eq!(context.destroy(viommu), Ok(()));
}

#[test]
fn hardware_queues_are_refused_in_the_kernels_order() {
    let s = scene();
    let context = &s.m.context;
    let viommu = s.viommu();
    let args = hw_queue(&s, viommu, 0);
    let alloc = |args| context.hw_queue_alloc(args);
    let nobodys = HwQueueAlloc {
        viommu: NOBODY,
        kind: KIND + 1,
        ..args
    };
    assert_eq!(alloc(HwQueueAlloc { len: 0, ..nobodys }), Err(Error::Empty));
    let wraps = HwQueueAlloc {
        iova: u64::MAX,
        len: 2,
        ..nobodys
    };
    assert_eq!(alloc(wraps), Err(Error::Overflow));
    assert_eq!(alloc(nobodys), Err(Error::NoObject(NOBODY)));
    let unknown = HwQueueAlloc {
        kind: KIND + 1,
        ..args
    };
    assert_eq!(alloc(unknown), Err(Error::TypeNotSupported));
    let last_page = HwQueueAlloc {
        iova: 0,
        len: u64::MAX - 1,
        ..args
    };
    assert_eq!(alloc(last_page), Err(Error::OutsideTable));
    // Two pieces of memory at neighbouring addresses.
    s.map(0x10_0000, PAGE);
    s.map(0x10_0000 + PAGE, PAGE);
    let split = HwQueueAlloc {
        len: 2 * PAGE,
        ..args
    };
    assert_eq!(alloc(split), Err(Error::NotContiguous));
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
    let s = scene();
    let context = &s.m.context;
    let viommu = s.viommu();
    s.map(0x10_0000, PAGE);
    let first = context.hw_queue_alloc(hw_queue(&s, viommu, 0)).unwrap();
    let args = hw_queue(&s, viommu, first.get());
    let second = context.hw_queue_alloc(args).unwrap();
    assert_eq!(context.destroy(first), Err(Error::InUse(first)));
    context.destroy(second).unwrap();
    assert_eq!(context.destroy(first), Ok(()));
}

#[test]
fn a_file_that_closes_takes_everything_with_it() {
    let s = scene();
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
    let s = scene();
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
    assert_eq!(mmap(private), Err(Error::BadMapping));
    let odd = MmapRequest { len: 5, ..good };
    assert_eq!(mmap(odd), Err(Error::BadMapping));
    let executable = MmapRequest {
        executable: true,
        offset: 0,
        ..good
    };
    assert_eq!(mmap(executable), Err(Error::Executable));
    for (offset, len) in [(0, LENT), (offset + PAGE, LENT), (offset, 2 * LENT)] {
        let elsewhere = MmapRequest {
            offset,
            len,
            ..good
        };
        assert_eq!(mmap(elsewhere), Err(Error::NoSuchOffset));
    }
    let mapped = context.mmap(good).unwrap();
    let forked = mapped.clone();
    assert_eq!(context.destroy(viommu), Err(Error::InUse(viommu)));
    drop(mapped);
    assert_eq!(context.destroy(viommu), Err(Error::InUse(viommu)));
    drop(forked);
    assert_eq!(context.destroy(viommu), Ok(()));
    assert_eq!(mmap(good), Err(Error::NoSuchOffset));
    let again = context.viommu_alloc(args).unwrap();
    assert_eq!(context.mmap(good).map(drop), Ok(()), "lowest offset again");
    context.destroy(again).unwrap();
}
