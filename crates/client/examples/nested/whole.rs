//! Several address spaces at once, what holds what, and one domain for two devices.

use std::{io, sync::Arc, time::Duration};

use passthrough_client::{
    Device, DmaMemory, DsaQueue, MemoryKind, Vm, discover,
    dsa::{Descriptor, Status},
};

use crate::{
    Result, check,
    dsa::{Dsa, Queue},
    guest::{BASE, DATA, Guest, RECORD_PAGE, RECORDS, VIRTUAL, alloc_parent, map_memory},
    host,
};

/// Five tables under two devices, by RID and by PASIDs that both have, each with the same addresses.
pub(crate) fn pasids(kind: MemoryKind) -> Result {
    let guest = Guest::new(kind, &[Queue::RID, Queue::of(5), Queue::of(6)])?;
    let (vm, memory) = (&guest.vm, &guest.memory);
    let second = discover::pdevs()?.into_iter().nth(1);
    let second = vm.open_device(&second.ok_or("there is no second whole device")?)?;
    // A PASID of a device needs a page table for PASIDs at its RID.
    host::attach(&second, None, guest.parent)?;
    let second = Dsa::bring_up(second, &[Queue::RID, Queue::of(5)])?;
    let sources = [
        (&guest.dsa, 0, None),
        (&guest.dsa, 1, Some(5)),
        (&guest.dsa, 2, Some(6)),
        (&second, 0, None),
        (&second, 1, Some(5)),
    ];
    let page = |index: u64| DATA + 4096 * index;
    for (index, (dsa, _, pasid)) in (0..).zip(sources) {
        let table = guest.table(4 + index as u32 % 2);
        table.map(memory, VIRTUAL, 0, page(index));
        let hwpt = host::nest(vm, dsa.device(), guest.parent, &table, 0, None)?;
        host::attach(dsa.device(), pasid, hwpt)?;
    }
    for round in 0..16 {
        for (index, (dsa, queue, _)) in (0..).zip(sources) {
            guest.clear_record(index);
            let value = 1 + index + 16 * round;
            let job = Descriptor::fill(VIRTUAL, value, 4096);
            dsa.submit(queue, RECORD_PAGE + 32 * index, job);
        }
        for index in 0..sources.len() as u64 {
            let done = guest.wait(index)?;
            check!(done.status == Status::SUCCESS, "source {index}: {done:x?}");
        }
        for index in 0..sources.len() as u64 {
            let value = 1 + index + 16 * round;
            let bytes = memory.read(page(index), 4096);
            let own = bytes.chunks(8).all(|word| word == value.to_le_bytes());
            check!(own, "page {index} has what another source wrote");
        }
    }
    // Without an attachment nothing is reached, and the others go on.
    host::detach(guest.device(), Some(6))?;
    guest.submit(2, 0, Descriptor::fill(VIRTUAL, 0, 4096));
    guest.dsa.drain()?;
    let error = guest.dsa.take_error()?;
    check!(
        error.is_some_and(|error| error.0 == 0x1a),
        "no error: {error:x?}"
    );
    let bytes = memory.read(page(2), 4096);
    check!(
        bytes.iter().any(|byte| *byte != 0),
        "a PASID that is detached reached it"
    );
    guest.succeed(Descriptor::fill(VIRTUAL, 1, 4096))?;
    // The guest-physical addresses themselves, by a PASID.
    host::attach(guest.device(), Some(6), guest.parent)?;
    guest.clear_record(0);
    let job = Descriptor::fill(page(2), 0x5a5a, 4096);
    guest.dsa.submit(2, RECORDS, job);
    check!(
        guest.wait(0)?.status == Status::SUCCESS,
        "not by the parent"
    );
    check!(memory.read(page(2), 2) == [0x5a, 0x5a], "not filled");
    Ok(())
}

/// What is in use cannot be destroyed, and goes in its order.
pub(crate) fn lifetimes(kind: MemoryKind) -> Result {
    let guest = Guest::new(kind, &[Queue::RID, Queue::of(5)])?;
    let vm = &guest.vm;
    let busy = |id: u32, what: &str| -> Result {
        let refused = host::destroy(vm, id).err();
        let errno = refused.and_then(|error| error.raw_os_error());
        check!(
            errno == Some(libc::EBUSY),
            "{what} was destroyed: {errno:?}"
        );
        Ok(())
    };
    let table = guest.table(4);
    let hwpt = guest.nest(&table, 0)?;
    host::attach(guest.device(), Some(5), hwpt)?;
    busy(hwpt, "a page table at a PASID")?;
    busy(guest.parent, "a parent")?;
    host::detach(guest.device(), Some(5))?;
    host::attach(guest.device(), None, hwpt)?;
    busy(hwpt, "a page table at the RID")?;
    busy(guest.parent, "a parent")?;
    host::detach(guest.device(), None)?;
    busy(guest.parent, "a parent of a page table that nobody uses")?;
    host::destroy(vm, hwpt)?;
    host::destroy(vm, guest.parent)?;
    Ok(())
}

/// Somebody may look at the machine now.
fn look(name: &str) -> Result {
    println!("look {name}");
    io::stdin().read_line(&mut String::new())?;
    Ok(())
}

/// A page table by hand for a whole device and the IOAS for a mediated one, in every order: one domain.
pub(crate) fn one_domain(kind: MemoryKind) -> Result {
    for whole_first in [true, false] {
        for whole_leaves_first in [true, false] {
            let vm = Vm::open()?;
            let memory = map_memory(&vm, kind)?;
            let extra = Arc::new(DmaMemory::new(1 << 20, kind)?);
            let area = vm.map(0x2000_0000, &extra)?;
            let pdev = discover::first_pdev()?.ok_or("there is no whole device")?;
            let whole = vm.open_device(&pdev)?;
            let mdev = discover::first_mdev()?.ok_or("there is no mediated device")?;
            let mdev = vm.open_device(&mdev)?;
            let attach_whole = |device: &Device| -> Result<u32> {
                let parent = alloc_parent(&vm, device)?;
                host::attach(device, None, parent)?;
                Ok(parent)
            };
            let parent = match whole_first {
                true => {
                    let parent = attach_whole(&whole)?;
                    host::attach(&mdev, None, vm.ioas())?;
                    parent
                }
                false => {
                    host::attach(&mdev, None, vm.ioas())?;
                    attach_whole(&whole)?
                }
            };
            look("one-domain")?;
            let dsa = Dsa::bring_up(whole, &[Queue::RID, Queue::of(5)])?;
            let guest = Guest {
                vm,
                memory,
                dsa,
                parent,
            };
            let table = guest.table(4);
            table.map(&guest.memory, VIRTUAL, 0, DATA);
            let hwpt = guest.use_table(&table, 0)?;
            host::attach(guest.device(), Some(5), hwpt)?;
            look("nested")?;
            // Both reach the same memory: one by its own addresses, the other by the guest's.
            let mut queue = DsaQueue::bring_up(mdev, &area, 0, 4, Duration::from_secs(60))?;
            guest.succeed(Descriptor::fill(VIRTUAL, 0x1234_5678, 4096))?;
            let done = queue.memmove(BASE + 8192, DATA, 4096)?;
            check!(
                done.record.status == Status::SUCCESS,
                "not copied: {done:x?}"
            );
            let copied = guest.memory.read(BASE + 8192, 4096);
            check!(copied == guest.memory.read(DATA, 4096), "the copy differs");
            let mdev = queue.shut_down()?;
            let leave_whole = || -> Result {
                host::detach(guest.device(), Some(5))?;
                host::detach(guest.device(), None)?;
                host::destroy(&guest.vm, hwpt)?;
                Ok(host::destroy(&guest.vm, parent)?)
            };
            if whole_leaves_first {
                leave_whole()?;
                look("mediated-alone")?;
                host::detach(&mdev, None)?;
            } else {
                host::detach(&mdev, None)?;
                look("whole-alone")?;
                leave_whole()?;
            }
            look("nothing")?;
        }
    }
    Ok(())
}
