//! What changes while a device works: page requests, dirty pages, invalidation, unmap, replace.

use passthrough_client::{
    MemoryKind,
    dsa::{Descriptor, Flags, Status},
};

use crate::{
    Result,
    access::{Reason, SCRATCH, fault},
    check,
    dsa::Queue,
    guest::{BASE, DATA, Guest, HOLE, RECORDS, SCATTERED, SIZE, VIRTUAL, pattern},
    host::{self, Faults},
    tables::{ALL, Table},
};

/// Bytes that the races move: pages of which none may get a byte afterwards.
const WINDOW: u64 = 16 * 4096;
/// Descriptors that are under way meanwhile.
const UNDER_WAY: u64 = 8;

/// How often each race is run.
fn rounds() -> u64 {
    let asked = std::env::var("NESTED_ROUNDS").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(50)
}

fn blocking(descriptor: Descriptor) -> Descriptor {
    Descriptor {
        flags: Flags::BLOCK_ON_FAULT,
        ..descriptor
    }
}

/// Descriptors that wait for a page, by RID and by PASID, and what becomes of them.
pub(crate) fn page_requests(kind: MemoryKind) -> Result {
    const PASID: u32 = 7;
    let guest = Guest::new(kind, &[Queue::RID, Queue::of(PASID)])?;
    let (vm, memory) = (&guest.vm, &guest.memory);
    let faults = Faults::new(vm)?;
    for (queue, pasid) in [(0, None), (1, Some(PASID))] {
        let table = guest.table(4);
        let hwpt = guest.nest_with_faults(&table, &faults)?;
        host::attach(guest.device(), pasid, hwpt)?;
        // The one who answers writes the entry, and takes memory of the parent away meanwhile.
        let target = DATA + 4096;
        memory.clear(target, 4096);
        guest.submit(queue, 0, blocking(Descriptor::fill(VIRTUAL, 0x77, 4096)));
        let request = faults.next()?;
        let named = pasid.map_or((0, 0), |pasid| (1, pasid));
        check!(
            request.addr == VIRTUAL
                && (request.flags & 1, request.pasid) == named
                && request.flags & 2 != 0
                && request.perm & 2 != 0
                && request.dev_id == guest.device().id(),
            "another request: {request:x?}"
        );
        table.map(memory, VIRTUAL, 0, target);
        host::invalidate(vm, hwpt, VIRTUAL, 1, false)?;
        host::unmap(vm, SCATTERED, 4096)?;
        check!(memory.read(target, 4096) == [0; 4096], "written too early");
        faults.answer(request.cookie, 0)?;
        let done = guest.wait(0)?;
        check!(done.status == Status::SUCCESS, "not done: {done:x?}");
        let filled = memory.read(target, 4096);
        check!(
            filled.chunks(8).all(|word| word == 0x77_u64.to_le_bytes()),
            "not filled"
        );
        let from = memory.host_address() + 4096 - BASE;
        host::map(vm, 6, from + DATA, SCATTERED, 4096)?;
        // Nobody has a page for it.
        let missing = VIRTUAL + 4096;
        guest.submit(
            queue,
            0,
            blocking(Descriptor::memmove(SCRATCH, missing, 64)),
        );
        let request = faults.next()?;
        check!(
            request.addr == missing && request.perm & 3 == 1,
            "another request: {request:x?}"
        );
        faults.answer(request.cookie, 1)?;
        let done = guest.wait(0)?;
        check!(
            (done.status, done.fault_address) == (Status::PAGE_FAULT, missing),
            "no fault: {done:x?}"
        );
        println!("fault {:#x}", Reason::NotPresent as u32);
        // The parent has none: the request is about the address that the device used.
        let through = VIRTUAL + 8192;
        table.map(memory, through, 0, HOLE);
        guest.submit(queue, 0, blocking(Descriptor::fill(through, 0x88, 64)));
        let request = faults.next()?;
        check!(request.addr == through, "another request: {request:x?}");
        host::map(vm, 6, from + DATA, HOLE, 4096)?;
        faults.answer(request.cookie, 0)?;
        let done = guest.wait(0)?;
        check!(done.status == Status::SUCCESS, "not done: {done:x?}");
        check!(
            memory.read(target, 64) == [0x88, 0, 0, 0, 0, 0, 0, 0].repeat(8),
            "not filled"
        );
        host::unmap(vm, HOLE, 4096)?;
        // Without Block On Fault nobody is asked.
        let job = Descriptor::memmove(SCRATCH, missing, 64);
        fault(&guest, queue, job, missing, Reason::NotPresent)?;
    }
    Ok(())
}

/// Pages of the parent that count as written: those that a device wrote through a first stage, and those of
/// tables in which a walk has set a bit.
pub(crate) fn dirty(kind: MemoryKind) -> Result {
    let guest = Guest::of_small_pages(kind, &[Queue::RID])?;
    let (vm, memory) = (&guest.vm, &guest.memory);
    let table = guest.table(4);
    table.map_range(memory, VIRTUAL, DATA, 16 * 4096);
    guest.use_table(&table, 0)?;
    host::track_dirty(vm, guest.parent, true)?;
    host::dirty_pages(vm, guest.parent, BASE, SIZE)?;
    let exactly = |mut expected: Vec<u64>| -> Result {
        expected.push(RECORDS);
        expected.sort_unstable();
        expected.dedup();
        let found = host::dirty_pages(vm, guest.parent, BASE, SIZE)?;
        let count = found.len();
        check!(
            found == expected,
            "{count} pages are dirty, and should be {expected:x?}"
        );
        Ok(())
    };
    let fill = |page: u64, len: u32| Descriptor::fill(VIRTUAL + 4096 * page + 8, 1, len);
    guest.succeed(fill(3, 64))?;
    guest.succeed(fill(7, 4096))?;
    exactly(vec![DATA + 3 * 4096, DATA + 7 * 4096, DATA + 8 * 4096])?;
    guest.succeed(Descriptor::memmove(SCRATCH, VIRTUAL, 64))?;
    exactly(vec![])?;
    // A second time: what was reported is clean again.
    guest.succeed(fill(3, 64))?;
    exactly(vec![DATA + 3 * 4096])?;
    // Without bits in its entries: each table on the way is written, and the last for a write once more.
    let fresh = VIRTUAL + (1 << 40);
    table.map_with(memory, (fresh, 0), DATA + 12 * 4096, ALL, ALL);
    let tables: Vec<u64> = (0..4)
        .map(|level| table.entry(memory, fresh, level) & !0xfff)
        .collect();
    guest.succeed(Descriptor::memmove(SCRATCH, fresh, 64))?;
    exactly(tables.clone())?;
    guest.succeed(Descriptor::fill(fresh, 1, 64))?;
    exactly(vec![tables[0], DATA + 12 * 4096])?;
    guest.succeed(Descriptor::fill(fresh, 1, 64))?;
    exactly(vec![DATA + 12 * 4096])?;
    host::track_dirty(vm, guest.parent, false)?;
    Ok(())
}

/// The window, mapped to `target`.
fn map_window(guest: &Guest, table: &Table, target: u64) {
    table.map_range(&guest.memory, VIRTUAL, target, WINDOW);
}

/// Many writes to the window at once.
fn start_writes(guest: &Guest) {
    for index in 0..UNDER_WAY {
        guest.submit(0, index, Descriptor::fill(VIRTUAL, u64::MAX, WINDOW as u32));
    }
}

/// Whatever was written to `target` is cleared now; nothing may come any more.
fn nothing_comes(guest: &Guest, target: u64) -> Result {
    guest.memory.clear(target, WINDOW);
    guest.dsa.drain()?;
    let bytes = guest.memory.read(target, WINDOW);
    let late = bytes.iter().position(|byte| *byte != 0);
    check!(late.is_none(), "a byte came at {late:x?} of the window");
    Ok(())
}

/// After HWPT_INVALIDATE nothing goes through an entry that the guest had cleared before.
pub(crate) fn invalidation(kind: MemoryKind) -> Result {
    let guest = Guest::new(kind, &[Queue::RID])?;
    let (vm, memory) = (&guest.vm, &guest.memory);
    let table = guest.table(4);
    let tables = memory.next_page();
    map_window(&guest, &table, DATA);
    let hwpt = guest.use_table(&table, 0)?;
    for round in 0..rounds() {
        start_writes(&guest);
        guest.wait(0)?;
        match round % 3 {
            // Each entry of a page.
            0 => {
                for offset in (0..WINDOW).step_by(4096) {
                    let entry = table.entry(memory, VIRTUAL + offset, 0);
                    memory.store(entry, 0);
                }
                host::invalidate(vm, hwpt, VIRTUAL, WINDOW / 4096, true)?;
            }
            // The tables of the pages.
            1 => {
                for offset in (0..2 * WINDOW).step_by(WINDOW as usize) {
                    let entry = table.entry(memory, VIRTUAL + offset, 1);
                    memory.store(entry, 0);
                }
                host::invalidate(vm, hwpt, VIRTUAL, WINDOW / 4096, false)?;
            }
            // The entry of the top table, and everything.
            _ => {
                memory.store(table.entry(memory, VIRTUAL, 3), 0);
                host::invalidate(vm, hwpt, 0, u64::MAX, false)?;
            }
        }
        nothing_comes(&guest, DATA).map_err(|error| format!("round {round}: {error}"))?;
        let job = Descriptor::fill(VIRTUAL, u64::MAX, 64);
        fault(&guest, 0, job, VIRTUAL, Reason::NotPresent)?;
        // Pages that lead elsewhere, in tables that lie where the old ones were.
        memory.store(table.entry(memory, VIRTUAL, 3), 0);
        memory.reuse(tables);
        map_window(&guest, &table, DATA);
        host::invalidate(vm, hwpt, 0, u64::MAX, false)?;
        start_writes(&guest);
        guest.wait(0)?;
        map_window(&guest, &table, DATA + WINDOW);
        host::invalidate(vm, hwpt, VIRTUAL, WINDOW / 4096, true)?;
        nothing_comes(&guest, DATA).map_err(|error| format!("round {round}, moved: {error}"))?;
        guest.succeed(Descriptor::fill(VIRTUAL, round, 64))?;
        check!(
            memory.load(DATA + WINDOW) == round,
            "the new page was not written"
        );
        map_window(&guest, &table, DATA);
        host::invalidate(vm, hwpt, VIRTUAL, WINDOW / 4096, true)?;
    }
    Ok(())
}

/// After UNMAP of the parent, which only first stages lead to, nothing goes there.
pub(crate) fn unmap(kind: MemoryKind) -> Result {
    let guest = Guest::new(kind, &[Queue::RID])?;
    let (vm, memory) = (&guest.vm, &guest.memory);
    let table = guest.table(4);
    map_window(&guest, &table, HOLE);
    guest.use_table(&table, 0)?;
    let from = memory.host_address() + DATA - BASE;
    for round in 0..rounds() {
        host::map(vm, 6, from, HOLE, WINDOW)?;
        start_writes(&guest);
        guest.wait(0)?;
        host::unmap(vm, HOLE, WINDOW)?;
        nothing_comes(&guest, DATA).map_err(|error| format!("round {round}: {error}"))?;
        let job = Descriptor::fill(VIRTUAL, u64::MAX, 64);
        fault(&guest, 0, job, VIRTUAL, Reason::SecondStage)?;
    }
    Ok(())
}

/// One table in the place of another: no DMA finds none, and none finds the old one afterwards, which can be
/// destroyed.
pub(crate) fn replace(kind: MemoryKind) -> Result {
    let guest = Guest::new(kind, &[Queue::RID])?;
    let tables = [DATA, DATA + WINDOW].map(|target| {
        let table = guest.table(4);
        map_window(&guest, &table, target);
        (table, target)
    });
    let mut old = guest.use_table(&tables[0].0, 0)?;
    for round in 0..rounds() as usize {
        let (_, left) = tables[round % 2];
        start_writes(&guest);
        guest.wait(0)?;
        let new = guest.use_table(&tables[(round + 1) % 2].0, 0)?;
        guest.memory.clear(left, WINDOW);
        host::destroy(&guest.vm, old)?;
        old = new;
        guest.dsa.drain()?;
        let late = guest.memory.read(left, WINDOW);
        check!(
            late.iter().all(|byte| *byte == 0),
            "round {round}: a byte came"
        );
        for index in 0..UNDER_WAY {
            let done = guest.wait(index)?;
            check!(done.status == Status::SUCCESS, "round {round}: {done:x?}");
        }
    }
    let bytes = pattern(WINDOW, 3);
    guest.memory.write(DATA, &bytes);
    Ok(())
}
