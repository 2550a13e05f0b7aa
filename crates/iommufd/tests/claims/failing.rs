//! Every allocation of every command fails once: the command says so, and nothing is left of it.

use std::{fmt::Debug, sync::Arc};

use ioasid_core::{
    AddrRange, Prot,
    failpoint::counting_down,
    host::Account,
    inspect::Inspect,
    memory::{OwnPages, PinError},
};
use ioasid_iommufd::{
    AccessKind, BoundDevice, CopyArgs, Error, HwQueueAlloc, HwptAlloc, HwptFlags, MapArgs,
    ObjectError, ObjectId, UnmapError, VeventqAlloc,
};

use crate::{backend::*, machine::*};

/// What a program, the machine and the host can see of it. Page-table memory that was taken
/// once may stay for the next mapping.
fn seen(s: &Setup) -> impl PartialEq + Debug + use<> {
    let context = &s.m.context;
    let domains = s.m.iommu.domains();
    let domains = domains.iter().map(|domain| {
        let id = domain.id().get();
        (
            id,
            domain.kind(),
            domain.mapped_bytes(),
            domain.attachments(),
        )
    });
    let devices = s.m.iommu.devices();
    let devices = devices.iter().map(|device| {
        let owner = device.group().owner();
        (device.address(), device.attachments().len(), owner)
    });
    // The lowest free ids: those that are taken.
    let ids: Vec<_> = (0..3).map(|_| context.ioas_alloc().unwrap()).collect();
    for id in &ids {
        context.destroy(*id).unwrap();
    }
    let ranges = (1..20).map(|id| context.ioas_iova_ranges(ObjectId::from_raw(id)));
    let account = Account::default();
    let ledger = context.ledger();
    (
        format!("{:?}", context.inspect()),
        domains.collect::<Vec<_>>(),
        devices.collect::<Vec<_>>(),
        ids,
        ranges.collect::<Vec<_>>(),
        (ledger.pinned(account.process), ledger.locked_by_user(0)),
        s.m.iommu.space().used_windows(),
        s.toy.seen.lock().unwrap().clone(),
    )
}

/// Does `step` with its first allocation failing, then its second and so on, until it has none left;
/// returns how many there were, and what it gave at last.
fn sweep<T: Debug>(s: &Setup, step: impl Fn() -> Result<T, Error>) -> (u32, T) {
    let before = seen(s);
    for nth in 1.. {
        let (result, left) = counting_down(nth, &step);
        match result {
            Ok(made) if left > 0 => return (nth - 1, made),
            Err(Error::NoMemory | Error::Pin(PinError::NoMemory)) => {
                assert_eq!(left, 0, "refused before its time");
                assert_eq!(seen(s), before, "after allocation {nth} failed");
            }
            other => panic!("allocation {nth} failed, and the command said {other:?}"),
        }
    }
    unreachable!("a command has less than 2^32 allocations")
}

/// Closes the file. What a failed command still used would stay.
fn close(s: Setup) {
    let Setup { m, device, .. } = s;
    drop(device);
    m.context.close();
    let left = (1..40).map(ObjectId::from_raw);
    let left = left.filter(|id| m.context.object_exists(*id).is_ok());
    assert_eq!(left.collect::<Vec<_>>(), []);
    assert!(m.domains().is_empty());
    assert_eq!(m.context.ledger().pinned(0), 0);
}

fn source(pages: &OwnPages) -> Arc<OwnPages> {
    Arc::new(pages.clone())
}

#[test]
fn what_fails_in_an_address_space_leaves_nothing() {
    let s = setup();
    let context = &s.m.context;
    assert_eq!(s.device.attach(s.parent), Ok(s.parent));
    let (n, other) = sweep(&s, || context.ioas_alloc());
    assert!(n > 0);
    let ranges = [(0, 0xffff), (0x2_0000, 0x2f_ffff)];
    let ranges = ranges.map(|(start, last)| AddrRange::new(start, last).unwrap());
    let (n, ()) = sweep(&s, || context.ioas_allow_iovas(other, &ranges));
    assert_eq!(n, 2, "one for each range");

    let pages = s.m.pages(4 * PAGE);
    let map = |ioas, iova| {
        let args = MapArgs::fixed(iova, 4 * PAGE, Prot::RW);
        context.ioas_map(ioas, source(&pages), args)
    };
    let (without, _) = sweep(&s, || map(other, 0x1000));
    let (with, _) = sweep(&s, || map(s.ioas, 0x1000));
    assert!(with > without, "pins and a page table");
    context.set_ioas_huge_pages(other, false).unwrap();
    // Two areas in one copy: the first is in the page table when the second fails.
    map(other, 0x5000).unwrap();
    let copy = CopyArgs {
        dst: s.ioas,
        src: other,
        dst_iova: Some(0x10_0000),
        src_iova: 0x1000,
        len: 8 * PAGE,
        prot: Prot::RW,
    };
    sweep(&s, || context.ioas_copy(copy));
    assert!(reaches(&s.device, 0x10_7fff));
    assert_eq!(context.ioas_unmap_all(s.ioas), Ok(12 * PAGE));
    close(s);
}

#[test]
fn what_fails_on_the_way_to_a_page_table_leaves_nothing() {
    let s = setup();
    let context = &s.m.context;
    let ioas = s.m.ioas();
    s.m.map(ioas, 0x1000, 4 * PAGE);
    s.m.map(ioas, 0x10_0000, PAGE);
    s.m.map(s.ioas, 0x1000, PAGE);

    // To the IOAS by an automatic page table, to one made by hand, and back.
    let (n, automatic) = sweep(&s, || s.device.attach(ioas));
    assert!(n > 8, "only {n} places");
    let flags = HwptFlags::PASID;
    let args = HwptAlloc::new(s.device.id(), ioas).with_flags(flags);
    let (_, made) = sweep(&s, || context.hwpt_alloc(args));
    sweep(&s, || s.device.attach(made));
    assert_eq!(
        context.destroy(automatic),
        Err(ObjectError::Missing(automatic).into())
    );
    sweep(&s, || s.device.attach(s.ioas));
    assert!(reaches(&s.device, 0x1000) && !reaches(&s.device, 0x10_0000));
    s.device.detach();
    sweep(&s, || s.device.attach(made));
    s.device.detach();

    // By a PASID, and from one page table to another at it.
    let parent = s.m.iommu.add_device(ioasid_iommu::DeviceConfig {
        pasid_bits: 8,
        ..config(9)
    });
    let parent = parent.unwrap();
    let bind = || context.bind_device_with(&parent, sink(), Toy::new(0));
    let (n, tagged): (u32, BoundDevice) = sweep(&s, bind);
    assert!(n > 0);
    let another = context.hwpt_alloc(args).unwrap();
    sweep(&s, || tagged.attach_pasid(made, 5));
    sweep(&s, || tagged.attach_pasid(another, 5));
    assert!(dma_write(&tagged, Some(pasid(5)), 0x10_0000, 1));
    tagged.detach_pasid(5);
    let child = || context.bind_pasid(&parent, pasid(6), sink());
    drop(tagged);
    let (_, child) = sweep(&s, child);
    sweep(&s, || child.attach(ioas));
    drop(child);
    close(s);
}

#[test]
fn what_fails_for_a_guest_leaves_nothing() {
    let s = setup();
    let context = &s.m.context;
    s.map(0x1_0000, 4 * PAGE);
    assert_eq!(s.device.attach(s.parent), Ok(s.parent));
    let (_, viommu) = sweep(&s, || context.viommu_alloc(s.viommu_args()));
    let device = s.device.id();
    let (_, _) = sweep(&s, || context.vdevice_alloc(viommu, device, 7));
    let (_, (queue, faults)) = sweep(&s, || context.fault_queue_alloc());
    let args = |parent| {
        let flags = HwptFlags::FAULT_ID_VALID;
        let args = HwptAlloc::new(device, parent).with_flags(flags);
        HwptAlloc {
            fault_id: queue.get(),
            ..args
        }
    };
    let data = s.data(4);
    let nest = |parent: ObjectId| context.hwpt_alloc_with(args(parent), Some(&data));
    sweep(&s, || nest(s.parent));
    sweep(&s, || nest(viommu));
    let events = VeventqAlloc {
        viommu,
        kind: 3,
        depth: 2,
    };
    let (_, (_, events)) = sweep(&s, || context.veventq_alloc(events));
    let ring = HwQueueAlloc {
        viommu,
        kind: KIND,
        index: 0,
        iova: 0x1_0800,
        len: 0x1000,
    };
    let (n, ring) = sweep(&s, || context.hw_queue_alloc(ring));
    assert!(n > 5, "only {n} places");
    assert_matches!(
        context.ioas_unmap_all(s.ioas),
        Err(Error::Unmap(UnmapError::Locked { .. }))
    );
    assert_eq!(context.destroy(ring), Ok(()));
    faults.closed();
    events.closed();
    drop((faults, events));
    close(s);
}

#[test]
fn what_fails_with_an_access_object_leaves_nothing() {
    let s = setup();
    let context = &s.m.context;
    s.map(0x1000, PAGE);
    s.map(0x2000, 2 * PAGE);
    let (_, access) = sweep(&s, || context.create_access(AccessKind::Locks));
    sweep(&s, || access.attach(s.ioas));
    let (n, pinned) = sweep(&s, || access.pin(0x1000, 3 * PAGE, true));
    assert!(n >= 2, "two areas");
    let (n, ()) = sweep(&s, || access.write(0x1000, &[1; 0x2000]));
    assert!(n >= 2, "two areas");
    drop(pinned);
    assert_eq!(context.ioas_unmap_all(s.ioas), Ok(3 * PAGE));
    drop(access);
    close(s);
}

#[test]
fn nothing_that_ends_something_can_fail() {
    let s = setup();
    s.map(0x1000, PAGE);
    assert_eq!(s.device.attach(s.parent), Ok(s.parent));
    let all = || {
        assert_eq!(s.m.context.ioas_unmap(s.ioas, 0x1000, PAGE), Ok(PAGE));
        s.device.detach();
        assert_eq!(s.m.context.destroy(s.parent), Ok(()));
        assert_eq!(s.m.context.destroy(s.ioas), Ok(()));
        s.m.context.close();
    };
    let ((), left) = counting_down(1, all);
    assert_eq!(left, 1, "they allocate nothing that could be refused");
}
