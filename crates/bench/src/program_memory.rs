//! What a program's memory costs that is not shared with the supervisor, beside memory that is: to map
//! it, and to do DMA to it.
//!
//! The program runs on the supervisor, as every program does, and drives a DSA. Time is the processor
//! time of both sides, as in [`crate::interception`], with that of the agent that copies in the program's
//! memory.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use passthrough_client::{
    Area, Device, DsaQueue,
    dsa::{Completion, Descriptor, Flags, Status},
    memory::{DmaMemory, MemoryKind},
};

use crate::{
    clock::{cpu_with_children, process_cpu},
    interception::Program,
    measure::{Contender, Effort, Table, measure},
    opaque::opaque,
    registers::{lines, machine, open},
};

/// What the tasks of this module begin with.
pub(crate) const PREFIX: &str = "memory:";

/// Bytes on each side of the copies: more than most caches hold.
const SPAN: u64 = 64 << 20;
/// Where the memory is mapped.
const SOURCE: u64 = 1 << 32;
const TARGET: u64 = 2 << 32;
const RECORDS: u64 = 3 << 32;

/// Where the list of a batch lies, behind the completion records.
const LIST: u64 = 4096;

pub(crate) fn maps(effort: Effort) -> Vec<Table> {
    let made = || -> Result<Table> {
        let program = |kind| Program::run(&machine()?, &format!("{PREFIX}map:{kind}"));
        let contenders = vec![
            program(MemoryKind::Private)?.contender("private memory"),
            program(MemoryKind::Shared)?
                .contender("shared memory, by address")
                .goal(0, 1.1),
            program(MemoryKind::File)?.contender("shared memory, by descriptor"),
        ];
        let title = "MAP and UNMAP of a page for a device";
        Ok(measure(title, "ns/pair", effort, contenders))
    };
    made().map_or_else(none, |table| vec![table])
}

pub(crate) fn copies(effort: Effort) -> Vec<Table> {
    let shapes = [
        ("4 KiB", 1, 4 << 10),
        ("32 times 4 KiB in a batch", 32, 4 << 10),
        ("64 KiB", 1, 64 << 10),
        ("1 MiB", 1, 1 << 20),
        ("32 times 1 MiB in a batch", 32, 1 << 20),
    ];
    let tables = shapes.map(|(name, count, size)| copies_of(effort, name, count, size));
    let made: Result<Vec<_>> = tables.into_iter().collect();
    made.unwrap_or_else(none)
}

fn none(error: anyhow::Error) -> Vec<Table> {
    eprintln!("ioasid-bench: no table of a program's memory: {error:#}");
    Vec::new()
}

fn copies_of(effort: Effort, name: &str, count: u64, size: u64) -> Result<Table> {
    use MemoryKind::{Private, Shared};
    let program = |from, to, name| -> Result<Contender<'static>> {
        let task = format!("{PREFIX}copy:{from}:{to}:{count}:{size}");
        Ok(Program::run(&machine()?, &task)?.contender(name))
    };
    let goal = if size == 1 << 20 { 1.3 } else { 2.2 };
    let private = program(Private, Private, "private to private")?;
    let contenders = vec![
        memcpy(count, size),
        if count > 1 {
            private.goal(0, goal)
        } else {
            private
        },
        program(Private, Shared, "private to shared")?,
        program(Shared, Private, "shared to private")?,
        program(Shared, Shared, "shared to shared")?,
    ];
    let title = format!("DMA of a program's memory, {name}");
    let table = measure(title, "ns", effort, contenders);
    Ok(table.note("the program sleeps until the interrupt"))
}

fn memcpy(count: u64, size: u64) -> Contender<'static> {
    let (source, mut target) = (vec![1_u8; SPAN as usize], vec![2_u8; SPAN as usize]);
    let (size, mut offset) = (size as usize, 0);
    Contender::new("memcpy, cold", move |iterations| {
        for _ in 0..iterations * count {
            target[offset..offset + size].copy_from_slice(&source[offset..offset + size]);
            opaque(u64::from(target[offset]));
            offset = (offset + size) % SPAN as usize;
        }
    })
}

/// One of the programs: what it is asked to do, line by line.
pub(crate) fn work(task: &str) -> Result<()> {
    let words: Vec<&str> = task.split(':').collect();
    match words[..] {
        ["map", kind] => map(kind.parse()?),
        ["copy", from, to, count, size] => {
            copy(from.parse()?, to.parse()?, count.parse()?, size.parse()?)
        }
        _ => anyhow::bail!("no task `{task}`"),
    }
}

fn map(kind: MemoryKind) -> Result<()> {
    let (vm, device) = open()?;
    device.attach(vm.ioas())?;
    // What is mapped all the time keeps the address space and the file in use, as a program's own
    // other memory does.
    let memory = Arc::new(DmaMemory::new(4096, kind)?);
    vm.map(SOURCE, &memory)?;
    lines(process_cpu, || {
        let mapped = vm.map(TARGET, &memory).and_then(|area| vm.unmap(&area));
        mapped.expect("a page that was mapped before");
    })
}

fn copy(from: MemoryKind, to: MemoryKind, count: u64, size: u64) -> Result<()> {
    let (vm, device) = open()?;
    device.attach(vm.ioas())?;
    let map = |iova, len, kind| -> Result<Area> {
        let memory = Arc::new(DmaMemory::new(len, kind)?);
        memory.fill(0, memory.len(), 1);
        Ok(vm.map(iova, &memory)?)
    };
    let (source, target) = (
        map(SOURCE, SPAN as usize, from)?,
        map(TARGET, SPAN as usize, to)?,
    );
    // Records and batches lie where such a program has them.
    let records = map(RECORDS, 2 * LIST as usize, to)?;
    let mut copies = Copies {
        queue: bring_up(device, &records)?,
        records,
        count,
        size,
        offset: 0,
    };
    copies.step()?;
    ensure!(
        target.memory.load(0) == source.memory.load(0),
        "nothing was copied"
    );
    lines(cpu_with_children, || {
        copies.step().expect("as the first one");
    })
}

fn bring_up(device: Device, records: &Area) -> Result<DsaQueue> {
    Ok(DsaQueue::bring_up(
        device,
        records,
        0,
        1,
        Duration::from_secs(5),
    )?)
}

struct Copies {
    queue: DsaQueue,
    records: Area,
    count: u64,
    size: u64,
    offset: u64,
}

impl Copies {
    /// One descriptor, or one batch.
    fn step(&mut self) -> Result<()> {
        let slot = self.queue.slot(0).context("a slot")?;
        if self.count == 1 {
            let copy = self.next();
            self.queue.submit(slot, copy)?;
        } else {
            let list: Vec<_> = (0..self.count).map(|_| self.next()).collect();
            self.queue.submit_batch(slot, &self.records, LIST, &list)?;
        }
        let done = self.queue.wait(slot)?;
        ensure!(done.record.status == Status::SUCCESS, "{:?}", done.record);
        Ok(())
    }

    fn next(&mut self) -> Descriptor {
        let at = self.offset;
        self.offset = (at + self.size) % SPAN;
        Descriptor {
            flags: Flags::NONE,
            ..Descriptor::memmove(TARGET + at, SOURCE + at, self.size as u32)
        }
    }
}

const _: () = assert!(Completion::SIZE as u64 <= LIST);
