//! What one DMA finds: levels and sizes of pages, rights of both stages, privilege, tables that are out of
//! reach, and the bits that a walk sets.

use passthrough_client::{
    MemoryKind,
    dsa::{Descriptor, Status},
};

use crate::{
    Result, check,
    dsa::Queue,
    guest::{
        BASE, DATA, Guest, HOLE, Memory, READ_ONLY, RECORD_PAGE, SCATTERED, SCATTERED_PAGES,
        VIRTUAL, pattern,
    },
    host::{self, EAFE, SRE, WPE},
    tables::{ACCESSED, ALL, DIRTY, EXTENDED_ACCESSED, PRESENT, Table, USER, WRITE, page_size},
};

const MIB: u64 = 1 << 20;
/// Bytes of what is copied, and where it begins in its page.
const LEN: u64 = 0x2_1123;
const START: u64 = 0x1234;
/// A place in the page of records for bytes that nobody looks at.
pub(crate) const SCRATCH: u64 = RECORD_PAGE + 0x800;

/// What an IOMMU refuses a DMA for (Intel VT-d specification, 7.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    NotPresent = 0x71,
    Reserved = 0x72,
    RootRead = 0x75,
    TableRead = 0x76,
    TableWrite = 0x77,
    SecondStage = 0x79,
    NotCanonical = 0x80,
    Supervisor = 0x81,
    Write = 0x85,
    Interrupts = 0x87,
    SupervisorRequest = 0x5d,
}

/// A DMA that must end with a fault at `address`: nothing has been done.
pub(crate) fn fault(
    guest: &Guest,
    queue: u64,
    descriptor: Descriptor,
    address: u64,
    reason: Reason,
) -> Result {
    let done = guest.run(queue, descriptor)?;
    let status = match descriptor.destination == address {
        true => Status::PAGE_FAULT_ON_WRITE,
        false => Status::PAGE_FAULT,
    };
    check!(
        (done.status, done.done, done.fault_address) == (status, 0, address),
        "no fault at {address:#x} ({reason:?}): {done:x?}"
    );
    println!("fault {:#x}", reason as u32);
    Ok(())
}

const fn read(address: u64) -> Descriptor {
    Descriptor::memmove(SCRATCH, address, 64)
}

const fn write(address: u64) -> Descriptor {
    Descriptor::fill(address, u64::MAX, 64)
}

/// Copies through 4 and 5 levels and pages of each size, over pages of the host that lie anywhere.
pub(crate) fn levels(kind: MemoryKind) -> Result {
    let guest = Guest::new(kind, &[Queue::RID])?;
    for (levels, source, target) in [
        (4, 0x7edc_0000_0000, 0xffff_9440_0000_0000),
        (5, 0x005a_a540_0000_0000, 0xff5a_a540_0000_0000),
    ] {
        for level in 0..3 {
            let table = guest.table(levels);
            if level == 0 {
                table.map_range(&guest.memory, source, DATA, MIB / 4);
                table.map_range(&guest.memory, target + MIB, DATA + MIB, MIB / 4);
            } else {
                table.map(&guest.memory, source, level, BASE);
                table.map(&guest.memory, target, level, BASE);
            }
            let hwpt = guest.use_table(&table, 0)?;
            copies(&guest, source, target + MIB)
                .map_err(|error| format!("{levels} levels, {level}: {error}"))?;
            host::attach(guest.device(), None, guest.parent)?;
            host::destroy(&guest.vm, hwpt)?;
        }
        scattered(&guest, levels)?;
    }
    let table = guest.table(4);
    guest.use_table(&table, 0)?;
    let beyond = 0x8000_0000_0000;
    fault(&guest, 0, read(beyond), beyond, Reason::NotCanonical)?;
    fault(&guest, 0, write(beyond), beyond, Reason::NotCanonical)
}

/// `source` leads to the data, `target` to the MiB behind it.
fn copies(guest: &Guest, source: u64, target: u64) -> Result {
    let (memory, bytes) = (&guest.memory, pattern(LEN, source >> 40));
    memory.write(DATA + START, &bytes);
    memory.clear(DATA + MIB, MIB / 4);
    let (to, from) = (target + 0x777, source + START);
    guest.succeed(Descriptor::memmove(to, from, LEN as u32))?;
    let mut expected = vec![0; (MIB / 4) as usize];
    expected[0x777..][..LEN as usize].copy_from_slice(&bytes);
    check!(
        memory.read(DATA + MIB, MIB / 4) == expected,
        "a copy differs"
    );
    // Over itself, from the end down.
    guest.succeed(Descriptor::memmove(from + 0x800, from, LEN as u32))?;
    let moved = memory.read(DATA + START + 0x800, LEN);
    check!(moved == bytes, "a backward copy differs");
    Ok(())
}

/// Pages of the guest in one order over pages of the host in another.
fn scattered(guest: &Guest, levels: u32) -> Result {
    let (memory, table) = (&guest.memory, guest.table(levels));
    let len = 4096 * SCATTERED_PAGES;
    let guest_page = |page: u64| SCATTERED_PAGES - 1 - page;
    for page in 0..SCATTERED_PAGES {
        let target = SCATTERED + 4096 * guest_page(page);
        table.map(memory, VIRTUAL + 4096 * page, 0, target);
    }
    table.map_range(memory, VIRTUAL + 2 * len, DATA, len);
    let hwpt = guest.use_table(&table, 0)?;
    let bytes = pattern(len, levels.into());
    memory.write(DATA, &bytes);
    guest.succeed(Descriptor::memmove(VIRTUAL, VIRTUAL + 2 * len, len as u32))?;
    for (page, expected) in (0..).zip(bytes.chunks(4096)) {
        let found = memory.read(Memory::scattered(guest_page(page)), 4096);
        check!(found == expected, "page {page} differs");
    }
    memory.clear(DATA, len);
    guest.succeed(Descriptor::memmove(VIRTUAL + 2 * len, VIRTUAL, len as u32))?;
    check!(memory.read(DATA, len) == bytes, "the way back differs");
    host::attach(guest.device(), None, guest.parent)?;
    Ok(host::destroy(&guest.vm, hwpt)?)
}

/// Each right of the first stage over each of the second.
pub(crate) fn rights(kind: MemoryKind) -> Result {
    let guest = Guest::new(kind, &[Queue::RID])?;
    let (memory, table) = (&guest.memory, guest.table(4));
    let hwpt = guest.use_table(&table, 0)?;
    // Entry of the page, entries above it.
    let firsts = [
        (0, ALL),
        (PRESENT | USER, ALL),
        (ALL, ALL),
        (ALL, PRESENT | USER),
        (PRESENT | WRITE, ALL),
        (ALL, PRESENT | WRITE),
    ];
    let mut slot = 0;
    for (bits, above) in firsts {
        for second in [DATA, READ_ONLY, HOLE] {
            slot += 1;
            // A table of its own at each level.
            let at = slot << 39;
            table.map_with(memory, (at, 0), second, bits, above);
            host::invalidate(&guest.vm, hwpt, 0, u64::MAX, false)?;
            let combined = bits & above;
            memory.write(DATA, &pattern(4096, slot));
            for (is_write, job) in [(false, read(at)), (true, write(at))] {
                let refused = match (is_write, second) {
                    _ if combined & PRESENT == 0 => Some(Reason::NotPresent),
                    _ if combined & USER == 0 => Some(Reason::Supervisor),
                    (true, _) if combined & WRITE == 0 => Some(Reason::Write),
                    (_, HOLE) => Some(Reason::SecondStage),
                    (true, READ_ONLY) => Some(Reason::Write),
                    _ => None,
                };
                match refused {
                    Some(reason) => {
                        fault(&guest, 0, job, at, reason)?;
                        let bytes = memory.read(DATA, 4096);
                        check!(bytes == pattern(4096, slot), "a refused write came");
                    }
                    None => guest.succeed(job)?,
                }
            }
        }
    }
    // What no page leads to: a bit that must be 0 in an entry of the top table, and the interrupt window.
    let at = 0x40 << 39;
    let root = table.entry(memory, at, 3);
    memory.store(root, memory.page() | ALL | 1 << 7);
    fault(&guest, 0, read(at), at, Reason::Reserved)?;
    let at = 0x41 << 39;
    table.map(memory, at, 0, 0xfee0_0000);
    fault(&guest, 0, write(at), at, Reason::Interrupts)
}

/// Supervisor requests, which only a PASID can have.
pub(crate) fn privilege(kind: MemoryKind) -> Result {
    const PASID: u32 = 5;
    let queues = [Queue::RID, Queue::of(PASID), Queue::privileged(PASID)];
    let (user, supervisor) = (1, 2);
    let guest = Guest::new(kind, &queues)?;
    let memory = &guest.memory;
    let table = guest.table(4);
    let (plain, kernel, fixed) = (VIRTUAL, VIRTUAL + 4096, VIRTUAL + 8192);
    for (address, bits) in [
        (plain, ALL),
        (kernel, PRESENT | WRITE),
        (fixed, PRESENT | USER),
    ] {
        let target = DATA + address - VIRTUAL;
        table.map_with(memory, (address, 0), target, bits, ALL);
    }
    let allowed = |queue, job| -> Result {
        let done = guest.run(queue, job)?;
        check!(done.status == Status::SUCCESS, "queue {queue}: {done:x?}");
        Ok(())
    };
    for options in [SRE, SRE | WPE, 0] {
        let hwpt = guest.nest(&table, options)?;
        host::attach(guest.device(), Some(PASID), hwpt)?;
        for job in [write(plain), read(plain), read(fixed)] {
            allowed(user, job)?;
        }
        fault(&guest, user, read(kernel), kernel, Reason::Supervisor)?;
        fault(&guest, user, write(kernel), kernel, Reason::Supervisor)?;
        fault(&guest, user, write(fixed), fixed, Reason::Write)?;
        if options == 0 {
            // It can write no record either.
            memory.clear(DATA, 64);
            guest.submit(supervisor, 0, write(plain));
            guest.dsa.drain()?;
            let error = guest.dsa.take_error()?;
            check!(error == Some((0x1a, RECORD_PAGE)), "no error: {error:x?}");
            check!(memory.read(DATA, 64) == [0; 64], "the write came");
            println!(
                "fault {0:#x}\nfault {0:#x}",
                Reason::SupervisorRequest as u32
            );
        } else {
            for job in [write(plain), read(kernel), write(kernel), read(fixed)] {
                allowed(supervisor, job)?;
            }
            match options & WPE {
                0 => allowed(supervisor, write(fixed))?,
                _ => fault(&guest, supervisor, write(fixed), fixed, Reason::Write)?,
            }
        }
    }
    Ok(())
}

/// Tables where the second stage has nothing, or does not allow what a walk needs.
pub(crate) fn tables_out_of_reach(kind: MemoryKind) -> Result {
    let guest = Guest::new(kind, &[Queue::RID])?;
    let memory = &guest.memory;
    let nowhere = Table {
        root: HOLE,
        levels: 4,
    };
    guest.use_table(&nowhere, 0)?;
    guest.submit(0, 0, write(VIRTUAL));
    guest.dsa.drain()?;
    let error = guest.dsa.take_error()?;
    check!(error == Some((0x1a, RECORD_PAGE)), "no error: {error:x?}");
    println!("fault {0:#x}\nfault {0:#x}", Reason::RootRead as u32);
    let table = guest.table(4);
    guest.use_table(&table, 0)?;
    table.map(memory, VIRTUAL, 0, DATA);
    let lowest = table.entry(memory, VIRTUAL, 1);
    memory.store(lowest, HOLE | ALL | ACCESSED);
    fault(&guest, 0, read(VIRTUAL), VIRTUAL, Reason::TableRead)?;
    // A table that devices can read and not write: what is marked already can be used.
    let at = VIRTUAL + (2 << 20);
    table.map(memory, at, 0, DATA);
    let lowest = table.entry(memory, at, 1);
    memory.store(lowest, READ_ONLY | ALL | ACCESSED);
    let index = at >> 12 & 511;
    let entry = crate::guest::READ_ONLY_BYTES + 8 * index;
    memory.store(entry, DATA | ALL);
    memory.store(entry + 8, DATA | ALL | ACCESSED);
    fault(&guest, 0, read(at), at, Reason::TableWrite)?;
    guest.succeed(read(at + 4096))?;
    let at = at + 4096;
    fault(&guest, 0, write(at), at, Reason::TableWrite)?;
    // The top table as a table of every level, and as a page: what is read is the table.
    let itself = table.root | ALL | ACCESSED | DIRTY;
    memory.store(table.root + 8 * 511, itself);
    table.map_range(memory, 0x10_0000, DATA, 4096);
    let hwpt = guest.use_table(&table, 0)?;
    guest.succeed(Descriptor::memmove(0x10_0000, !0xfff, 4096))?;
    let copied = memory.read(DATA, 4096);
    check!(
        copied == memory.read(table.root, 4096),
        "no copy of the table"
    );
    host::attach(guest.device(), None, guest.parent)?;
    Ok(host::destroy(&guest.vm, hwpt)?)
}

/// Accessed, dirty and extended accessed bits: which entries get which, and when.
pub(crate) fn marks(kind: MemoryKind) -> Result {
    let guest = Guest::new(kind, &[Queue::RID])?;
    let memory = &guest.memory;
    for (levels, level, options) in [(4, 0, 0), (4, 1, EAFE), (5, 0, EAFE), (5, 2, 0)] {
        let table = guest.table(levels);
        let used = match options {
            EAFE => ACCESSED | EXTENDED_ACCESSED,
            _ => ACCESSED,
        };
        // No entry of theirs is on the way to the page of records.
        let (page, kept) = match levels {
            4 => (VIRTUAL, VIRTUAL + (1 << 40)),
            _ => (VIRTUAL | 1 << 50, VIRTUAL | 1 << 51),
        };
        let page = page & !(page_size(level) - 1);
        table.map_with(memory, (page, level), BASE, ALL, ALL);
        table.map_with(memory, (page + page_size(level), level), BASE, ALL, ALL);
        table.map_with(memory, (kept, 0), DATA, PRESENT | USER, ALL);
        let entries: Vec<u64> = (level..levels)
            .map(|level| table.entry(memory, page, level))
            .collect();
        let next = table.entry(memory, page + page_size(level), level);
        let refused: Vec<u64> = (0..levels)
            .map(|level| table.entry(memory, kept, level))
            .filter(|entry| !entries.contains(entry))
            .collect();
        let load = |entries: &[u64]| -> Vec<u64> {
            entries.iter().map(|entry| memory.load(*entry)).collect()
        };
        let (before, next_before) = (load(&entries), memory.load(next));
        let refused_before = load(&refused);
        guest.use_table(&table, options)?;
        fault(&guest, 0, write(kept), kept, Reason::Write)?;
        check!(load(&refused) == refused_before, "a refused DMA left bits");
        check!(load(&entries) == before, "bits before any DMA");
        guest.succeed(read(page + 0x10))?;
        let read_bits: Vec<u64> = before.iter().map(|entry| entry | used).collect();
        check!(
            load(&entries) == read_bits,
            "after a read {:x?}, not {read_bits:x?}",
            load(&entries)
        );
        guest.succeed(write(page + 0x10))?;
        let mut written = read_bits;
        written[0] |= DIRTY;
        check!(
            load(&entries) == written,
            "after a write {:x?}, not {written:x?}",
            load(&entries)
        );
        check!(memory.load(next) == next_before, "the next page has bits");
        // Taken away by the guest, they come again.
        memory.store(entries[0], before[0]);
        host::attach(guest.device(), None, guest.parent)?;
        guest.use_table(&table, options)?;
        guest.succeed(write(page + 0x10))?;
        check!(load(&entries) == written, "no bits the second time");
    }
    Ok(())
}
