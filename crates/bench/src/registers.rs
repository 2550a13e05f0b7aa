//! What an access to a register costs a program, by each of the ways that there are; and how long it
//! takes from a doorbell to its completion.
//!
//! The bare programs pay what no way can do without: a signal whose handler steps over the instruction,
//! and a question that is answered at once. Time is the processor time of both sides, as in
//! [`crate::interception`]; from doorbell to completion it is what passes.
// UNSAFETY: a program that touches mapped registers, and a signal handler.
#![allow(unsafe_code)]

use std::{
    arch::asm,
    os::fd::AsRawFd,
    ptr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use ioasid_core::host::StdSpawner;
use ioasid_machine::{Machine, MachineFile, models};
use ioasid_supervisor::{BuiltMachine, MachineView, Mmio};
use passthrough_client::{
    Device, DsaQueue, Vm, discover,
    dsa::{Descriptor, Flags, Opcode},
    memory::{DmaMemory, MemoryKind},
};

use crate::{
    clock::{process_cpu, wall_clock},
    interception::Program,
    measure::{Effort, Table, measure},
};

/// What the tasks of this module begin with.
pub(crate) const PREFIX: &str = "registers:";

const BAR_BYTES: usize = 4096;
/// GENSTS of a DSA, a register that can be read at any time.
const STATUS: u64 = 0x90;
/// PCI_COMMAND, and its bits of memory space and bus master.
const COMMAND: u64 = 4;
const ON: [u8; 2] = [6, 0];

pub(crate) fn tables(effort: Effort) -> Vec<Table> {
    let made =
        access(effort).and_then(|first| Ok(vec![first, passing(effort)?, doorbell(effort)?]));
    made.unwrap_or_else(|error| {
        eprintln!("ioasid-bench: no table of registers: {error:#}");
        Vec::new()
    })
}

fn task(name: &str) -> String {
    format!("{PREFIX}{name}")
}

fn access(effort: Effort) -> Result<Table> {
    let view = |mmio, name: &str| Program::run_with(&machine()?, &task(name), mmio);
    let contenders = vec![
        Program::bare(&task("signal"))?.contender("bare: a signal that steps over the instruction"),
        Program::bare(&task("question"))?
            .contender("bare: a question without memory, answered at once"),
        view(Mmio::Off, "pread")?.contender("pread of 4 bytes"),
        view(Mmio::Auto, "load")?.contender("mapped, library: load of 4 bytes"),
        view(Mmio::Auto, "store")?.contender("mapped, library: store of 4 bytes"),
        view(Mmio::Ptrace, "load")?.contender("mapped, ptrace: load of 4 bytes"),
        view(Mmio::Ptrace, "store")?.contender("mapped, ptrace: store of 4 bytes"),
    ];
    let title = "registers, processor time of both sides";
    Ok(measure(title, "ns/access", effort, contenders))
}

/// The same by the wall clock: what a program waits. A thread of the session that attends takes a
/// processor of its own meanwhile, so the two tables differ.
fn passing(effort: Effort) -> Result<Table> {
    let view = |mmio, name: &str| Program::run_with(&machine()?, &task(name), mmio);
    let contenders = vec![
        Program::bare(&task("signal:time"))?
            .contender_of_time_there("bare: a signal that steps over the instruction"),
        view(Mmio::Off, "pread:time")?.contender_of_time_there("pread of 4 bytes"),
        view(Mmio::Auto, "load:time")?.contender_of_time_there("mapped, library: load of 4 bytes"),
        view(Mmio::Auto, "store:time")?
            .contender_of_time_there("mapped, library: store of 4 bytes"),
        view(Mmio::Ptrace, "load:time")?.contender_of_time_there("mapped, ptrace: load of 4 bytes"),
    ];
    let title = "registers, time that passes";
    Ok(measure(title, "ns/access", effort, contenders))
}

fn doorbell(effort: Effort) -> Result<Table> {
    let view = |mmio, name: &str| Program::run_with(&machine()?, &task(name), mmio);
    let contenders = vec![
        view(Mmio::Off, "doorbell-pwrite")?.contender_of_time_there("pwrite of 64 bytes"),
        view(Mmio::Auto, "doorbell")?.contender_of_time_there("mapped, library: MOVDIR64B"),
        view(Mmio::Ptrace, "doorbell")?.contender_of_time_there("mapped, ptrace: MOVDIR64B"),
    ];
    let title = "registers, from a doorbell to the completion record of a no-op";
    let table = measure(title, "ns/submission", effort, contenders);
    Ok(table.note("the program spins on the record: with two processors it takes one"))
}

/// A machine of one DSA.
pub(crate) fn machine() -> Result<Arc<dyn MachineView>> {
    let file = MachineFile::from_device_strings(&["dsa,driver=vfio"], &models::standard())?;
    let machine = Machine::build("bench", &file, &StdSpawner)?;
    Ok(Arc::new(BuiltMachine::new(&machine)))
}

/// One of the programs: what it is asked to do, line by line.
pub(crate) fn work(task: &str) -> Result<()> {
    match task.strip_suffix(":time") {
        Some(task) => timed(task, wall_clock()),
        None => timed(task, process_cpu),
    }
}

fn timed(task: &str, clock: impl Fn() -> u64) -> Result<()> {
    match task {
        "signal" => {
            let nowhere = past_the_end()?;
            step_over()?;
            // SAFETY: the load raises SIGBUS, and the handler steps over it.
            lines(clock, || unsafe { load(nowhere) })
        }
        "question" => lines(clock, question),
        "pread" => {
            let (_vm, device) = open()?;
            lines(clock, || device.read32(STATUS).map_or(0, |value| value))
        }
        "load" | "store" => {
            let (_vm, device) = open()?;
            let register = map(&device, 0)?.wrapping_add(STATUS as usize).cast::<u32>();
            if task == "load" {
                // SAFETY: inside of the mapping, which is never undone.
                lines(clock, || unsafe { load(register) })
            } else {
                // SAFETY: as above; the register ignores stores.
                lines(clock, || unsafe { store(register) })
            }
        }
        _ => doorbells(task == "doorbell"),
    }
}

pub(crate) fn lines<T>(clock: impl Fn() -> u64, mut step: impl FnMut() -> T) -> Result<()> {
    println!("0");
    for line in std::io::stdin().lines() {
        let iterations: u64 = line?.parse()?;
        let before = clock();
        for _ in 0..iterations {
            step();
        }
        println!("{}", clock().saturating_sub(before));
    }
    Ok(())
}

/// # Safety
/// `from` may be loaded from, or a handler steps over `mov eax, [rdx]`, two bytes.
unsafe fn load(from: *const u32) -> u32 {
    let value: u32;
    // SAFETY: the caller's promise.
    unsafe { asm!("mov eax, [rdx]", out("eax") value, in("rdx") from) };
    value
}

/// # Safety
/// `to` may be stored to.
unsafe fn store(to: *mut u32) {
    // SAFETY: the caller's promise.
    unsafe { asm!("mov [rdx], eax", in("eax") 0, in("rdx") to) };
}

/// A page of a file where the file has none.
fn past_the_end() -> Result<*const u32> {
    let file = rustix::fs::memfd_create("empty", rustix::fs::MemfdFlags::CLOEXEC)?;
    map_file(&file, 0).map(|page| page.cast_const().cast())
}

fn map_file(file: &impl AsRawFd, offset: i64) -> Result<*mut u8> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
    // SAFETY: a new mapping where nothing is.
    let page = unsafe {
        libc::mmap(
            ptr::null_mut(),
            BAR_BYTES,
            prot,
            flags,
            file.as_raw_fd(),
            offset,
        )
    };
    ensure!(
        page != libc::MAP_FAILED,
        "mmap: {}",
        std::io::Error::last_os_error()
    );
    Ok(page.cast())
}

fn map(device: &Device, bar: i64) -> Result<*mut u8> {
    map_file(device.vfio(), bar << 40)
}

extern "C" fn on_signal(_: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let context = context.cast::<libc::ucontext_t>();
    // SAFETY: with SA_SIGINFO the kernel gives the context of the load, which is two bytes long.
    unsafe { (*context).uc_mcontext.gregs[libc::REG_RIP as usize] += 2 };
}

fn step_over() -> Result<()> {
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_signal;
    // SAFETY: a structure of integers, for which zero is a value; the handler has the signature that
    // its flags ask for.
    let done = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = handler as libc::sighandler_t;
        action.sa_flags = libc::SA_SIGINFO;
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut())
    };
    ensure!(done == 0, "sigaction");
    Ok(())
}

/// An `ioctl` that the filter hands over, on no descriptor and with no argument.
fn question() -> i32 {
    const NUMBER: libc::c_ulong = (b';' as libc::c_ulong) << 8 | 0xf0;
    // SAFETY: the argument is a number.
    unsafe { libc::ioctl(-1, NUMBER as _, 0) }
}

pub(crate) fn open() -> Result<(Vm, Device)> {
    let vm = Vm::open()?;
    let path = discover::first_pdev()?.context("no device")?;
    let device = vm.open_device(&path)?;
    device.write(Device::CONFIG, COMMAND, &ON);
    Ok((vm, device))
}

fn doorbells(mapped: bool) -> Result<()> {
    const IOVA: u64 = 1 << 20;
    let (vm, device) = open()?;
    device.attach(vm.ioas())?;
    let portal = if mapped { Some(map(&device, 2)?) } else { None };
    let memory = Arc::new(DmaMemory::new(4096, MemoryKind::Shared)?);
    let area = vm.map(IOVA, &memory)?;
    let queue = DsaQueue::bring_up(device, &area, 0, 1, Duration::from_secs(5))?;
    let slot = queue.slot(0).context("a slot")?;
    let mut descriptor = Descriptor::new(Opcode::NOOP);
    descriptor.flags = Flags::RECORD_VALID | Flags::REQUEST_RECORD;
    descriptor.completion = queue.record_iova(slot);
    let bytes = descriptor.encode();
    let start = Instant::now();
    let clock = || u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
    lines(clock, || {
        memory.write(0, &[0; 32]);
        match portal {
            // SAFETY: movdir64b rax, [rdx]: 64 bytes of ours to the portal, which is mapped for good.
            Some(portal) => unsafe {
                asm!(
                    ".byte 0x66, 0x0f, 0x38, 0xf8, 0x02",
                    in("rax") portal,
                    in("rdx") bytes.as_ptr(),
                );
            },
            None => queue.submit_unwatched(&descriptor),
        }
        while memory.load(0) == 0 {
            std::hint::spin_loop();
        }
    })
}
