//! Programs that have not loaded the library: a thread here traces them.
//!
//! A thread per program that has mapped registers seizes all its threads, follows what comes of
//! them, and carries out the instruction at every stop by a signal of a register. Every other stop
//! passes as if nothing traced it. It ends with the last traced thread; a program that calls `exec`
//! has no mappings any more and is let go.
//!
//! A thread is let go just before it ends, so that its parent finds what it would find without us.
//! One that is killed may end in our hands: it may be a child of this process, whose end `run`
//! waits for, and so what has ended is only looked at, and reaped here unless it is such a child.

use std::{
    cell::OnceCell,
    collections::HashSet,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::Duration,
};

use ioasid_core::host::Caller;
use ioasid_host::{Client, Process};
use ioasid_mmio::{
    Cpu, Error, Fault, FaultKind, MAX_INSTRUCTION, Segment, Space, execute,
    xsave::{Area, Layout},
};
use ioasid_vfio::DeviceFile;

use super::mapped::{Mapped, report_instruction};
use crate::system::ptrace::{self, Stop};

/// How often is looked for stops while a child of this process waits to be reaped by its own
/// waiter.
const GLANCE: Duration = Duration::from_millis(1);

/// SIGBUS: past the end of a mapped file (`BUS_ADRERR`).
const PAST_END: i32 = 2;
/// SIGSEGV: nothing is mapped there (`SEGV_MAPERR`).
const NOT_MAPPED: i32 = 1;
/// The kernel has no more to say (`SI_KERNEL`): a general protection fault.
const BY_KERNEL: i32 = 0x80;

/// The threads of this process that trace for a session.
#[derive(Debug, Default)]
pub(crate) struct Tracers(Mutex<HashSet<i32>>);

impl Tracers {
    fn all(&self) -> MutexGuard<'_, HashSet<i32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Has `process` traced from now on; false if it was already.
///
/// # Errors
/// What the kernel says: EPERM if another process traces it or it may not be traced.
pub(crate) fn follow(
    process: &Arc<Process>,
    client: &Arc<Client>,
    mapped: &Arc<Mapped>,
    tracers: &Arc<Tracers>,
) -> io::Result<bool> {
    if tracers.all().contains(&process.tracer()) {
        return Ok(false);
    }
    let (ready, wait) = mpsc::sync_channel(1);
    let mut tracer = Tracer {
        client: Arc::clone(client),
        mapped: Arc::clone(mapped),
        layout: ptrace::layout(),
        tracees: HashSet::new(),
        refused: false,
    };
    let (process, tracers) = (Arc::clone(process), Arc::clone(tracers));
    thread::Builder::new()
        .name("tracer".to_owned())
        .spawn(move || {
            let me = ptrace::own_tid();
            tracers.all().insert(me);
            let seized = tracer.seize(&process);
            let go = seized.is_ok();
            // The thread that waits has not gone away: it waits for this.
            let _ = ready.send(seized);
            if go {
                tracer.run();
            }
            tracers.all().remove(&me);
        })?;
    let seized = wait.recv();
    seized.map_err(|_| io::Error::other("the tracer ended"))??;
    Ok(true)
}

#[derive(Debug)]
struct Tracer {
    client: Arc<Client>,
    mapped: Arc<Mapped>,
    layout: Layout,
    tracees: HashSet<i32>,
    refused: bool,
}

impl Tracer {
    /// Seizes every thread. One that is made meanwhile is either seen or follows its maker.
    fn seize(&mut self, process: &Process) -> io::Result<()> {
        loop {
            let mut found = false;
            for tid in process.threads() {
                if self.tracees.contains(&tid) {
                    continue;
                }
                match ptrace::seize(tid) {
                    Ok(()) => found = true,
                    Err(error) if error.raw_os_error() == Some(libc::ESRCH) => continue,
                    // It came to us by itself, as the child of one that we have.
                    Err(_) if !self.tracees.is_empty() => {}
                    Err(error) => return Err(error),
                }
                self.tracees.insert(tid);
            }
            if !found {
                return Ok(());
            }
        }
    }

    /// Serves stops until nothing is traced.
    fn run(&mut self) {
        while let Ok(Some((tid, stop))) = ptrace::wait(None) {
            if self.serve(tid, stop) {
                continue;
            }
            // A child of this process has ended, another thread is to reap it, and it would be
            // found again and again.
            while matches!(ptrace::wait(Some(tid)), Ok(Some(_))) {
                let others: Vec<i32> = self.tracees.iter().copied().collect();
                for other in others {
                    if other != tid
                        && let Ok(Some((other, stop))) = ptrace::wait(Some(other))
                    {
                        self.serve(other, stop);
                    }
                }
                thread::sleep(GLANCE);
            }
        }
    }

    /// Serves one stop; false if the thread has ended and is to be left.
    fn serve(&mut self, tid: i32, stop: Stop) -> bool {
        self.tracees.insert(tid);
        // Each of these fails only if the thread has been killed: its end is reported next.
        let _ = match stop {
            Stop::Signal(signal) => {
                let deliver = self.signal(tid, signal);
                ptrace::go_on(tid, deliver)
            }
            Stop::Group => ptrace::listen(tid),
            Stop::Other => ptrace::go_on(tid, 0),
            // Let go before it ends: a parent learns of the end of a traced child before it can
            // reap it, and one that looks at once (a pidfd, then a wait that does not hang) sees
            // nothing.
            Stop::Exec | Stop::Ending => {
                self.tracees.remove(&tid);
                ptrace::detach(tid)
            }
            Stop::Ended => {
                self.tracees.remove(&tid);
                if is_child_of_ours(tid) {
                    return false;
                }
                ptrace::reap(tid)
            }
        };
        true
    }

    /// What is to be delivered in place of `signal`: 0 if its instruction has been carried out.
    fn signal(&mut self, tid: i32, signal: i32) -> i32 {
        let Ok((code, address)) = ptrace::signal_info(tid) else {
            return signal;
        };
        let strict = match (signal, code) {
            (libc::SIGBUS, PAST_END) => false,
            (libc::SIGILL, 1..) | (libc::SIGSEGV, BY_KERNEL) => true,
            _ => return signal,
        };
        match self.carry_out(tid, address, strict) {
            Ok(None) => 0,
            Ok(Some(fault)) => {
                let (signal, code) = match fault.kind {
                    FaultKind::Page => (libc::SIGSEGV, NOT_MAPPED),
                    FaultKind::Bus => (libc::SIGBUS, PAST_END),
                };
                let _ = ptrace::set_signal_info(tid, signal, code, fault.address);
                signal
            }
            Err(Unrelated) => signal,
        }
    }

    /// Carries out the instruction at which `tid` has stopped. What another part of memory did
    /// instead, if it failed.
    fn carry_out(
        &mut self,
        tid: i32,
        address: u64,
        strict: bool,
    ) -> Result<Option<Fault>, Unrelated> {
        let process = self.client.process(tid).map_err(|_| Unrelated)?;
        let mut space = Memory {
            process: &process,
            tid,
            mapped: &self.mapped,
            strict,
            touched: false,
        };
        if !strict && space.register(address).is_none() {
            return Err(Unrelated);
        }
        let mut cpu = Stopped {
            tid,
            layout: self.layout,
            registers: ptrace::registers(tid).map_err(|_| Unrelated)?,
            vectors: OnceCell::new(),
            vectors_changed: false,
        };
        let code = fetch(&process, cpu.registers.rip);
        let result = execute(&code, &mut cpu, &mut space);
        let touched = space.touched;
        match result {
            Ok(()) => cpu.put_back().map(|()| None),
            Err(Error::Fault(fault)) if touched || (!strict && fault.address != address) => {
                cpu.put_back().map(|()| Some(fault))
            }
            Err(Error::Fault(_)) => Err(Unrelated),
            Err(_) if strict => Err(Unrelated),
            Err(_) => {
                if !self.refused {
                    self.refused = true;
                    report_instruction(process.id(), address, &code);
                }
                Err(Unrelated)
            }
        }
    }
}

/// The signal is the program's own.
struct Unrelated;

/// Whether `tid` is a process that this one has started.
fn is_child_of_ours(tid: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{tid}/status")).unwrap_or_default();
    let number = |name: &str| -> Option<i32> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim().parse().ok()
    };
    let us = rustix::process::getpid().as_raw_pid();
    number("PPid:") == Some(us) && number("Tgid:") == Some(tid)
}

/// The bytes at the instruction pointer, as far as there are some.
fn fetch(process: &Process, rip: u64) -> Vec<u8> {
    let mut code = vec![0; MAX_INSTRUCTION];
    if process.read(rip, &mut code).is_err() {
        let in_page = usize::try_from(4096 - rip % 4096).unwrap_or(MAX_INSTRUCTION);
        code.truncate(in_page);
        if process.read(rip, &mut code).is_err() {
            code.clear();
        }
    }
    code
}

/// The registers of a stopped thread.
#[derive(Debug)]
struct Stopped {
    tid: i32,
    layout: Layout,
    registers: ptrace::Registers,
    /// An XSAVE area, fetched when it is looked at.
    vectors: OnceCell<Vec<u8>>,
    vectors_changed: bool,
}

impl Stopped {
    fn put_back(mut self) -> Result<(), Unrelated> {
        if self.vectors_changed
            && let Some(vectors) = self.vectors.get_mut()
        {
            ptrace::set_vectors(self.tid, vectors).map_err(|_| Unrelated)?;
        }
        ptrace::set_registers(self.tid, &self.registers).map_err(|_| Unrelated)
    }

    fn fetched(&self) -> &Vec<u8> {
        self.vectors
            .get_or_init(|| ptrace::vectors(self.tid).unwrap_or_default())
    }

    fn area(&mut self) -> Area<'_> {
        self.fetched();
        self.vectors_changed = true;
        let bytes = self.vectors.get_mut().map(Vec::as_mut_slice);
        Area::new(bytes.unwrap_or_default(), self.layout)
    }

    fn place(&mut self, index: u8) -> &mut u64 {
        let r = &mut self.registers;
        match index {
            0 => &mut r.rax,
            1 => &mut r.rcx,
            2 => &mut r.rdx,
            3 => &mut r.rbx,
            4 => &mut r.rsp,
            5 => &mut r.rbp,
            6 => &mut r.rsi,
            7 => &mut r.rdi,
            8 => &mut r.r8,
            9 => &mut r.r9,
            10 => &mut r.r10,
            11 => &mut r.r11,
            12 => &mut r.r12,
            13 => &mut r.r13,
            14 => &mut r.r14,
            _ => &mut r.r15,
        }
    }
}

impl Cpu for Stopped {
    fn gpr(&self, index: u8) -> u64 {
        let r = &self.registers;
        match index {
            0 => r.rax,
            1 => r.rcx,
            2 => r.rdx,
            3 => r.rbx,
            4 => r.rsp,
            5 => r.rbp,
            6 => r.rsi,
            7 => r.rdi,
            8 => r.r8,
            9 => r.r9,
            10 => r.r10,
            11 => r.r11,
            12 => r.r12,
            13 => r.r13,
            14 => r.r14,
            _ => r.r15,
        }
    }

    fn set_gpr(&mut self, index: u8, value: u64) {
        *self.place(index) = value;
    }

    fn rip(&self) -> u64 {
        self.registers.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.registers.rip = rip;
    }

    fn flags(&self) -> u64 {
        self.registers.eflags
    }

    fn set_flags(&mut self, flags: u64) {
        self.registers.eflags = flags;
    }

    fn vector(&self, index: u8) -> [u8; 64] {
        let mut copy = self.fetched().clone();
        Area::new(&mut copy, self.layout).vector(index)
    }

    fn set_vector(&mut self, index: u8, value: &[u8; 64]) {
        self.area().set_vector(index, value);
    }

    fn opmask(&self, index: u8) -> u64 {
        let mut copy = self.fetched().clone();
        Area::new(&mut copy, self.layout).opmask(index)
    }

    fn set_opmask(&mut self, index: u8, value: u64) {
        self.area().set_opmask(index, value);
    }

    fn segment_base(&self, segment: Segment) -> u64 {
        match segment {
            Segment::Fs => self.registers.fs_base,
            Segment::Gs => self.registers.gs_base,
        }
    }
}

/// The memory of a traced process.
#[derive(Debug)]
struct Memory<'a> {
    process: &'a Process,
    /// The thread that has stopped.
    tid: i32,
    mapped: &'a Mapped,
    /// Only registers are to be written.
    strict: bool,
    /// Whether a register has been touched.
    touched: bool,
}

/// A register, and what the program may do there.
struct Register {
    file: Arc<DeviceFile>,
    offset: u64,
    readable: bool,
    writable: bool,
}

impl Memory<'_> {
    fn register(&self, address: u64) -> Option<Register> {
        let mapped = self.process.mapped_file(address)?;
        Some(Register {
            file: self.mapped.get(mapped.identity)?,
            offset: mapped.offset,
            readable: mapped.readable,
            writable: mapped.writable,
        })
    }

    /// How an access to a register ended.
    fn answered<T>(
        &mut self,
        (name, address, len): (&'static str, u64, usize),
        register: &Register,
        result: Result<T, ioasid_vfio::Error>,
    ) -> Result<T, Fault> {
        match result {
            Ok(value) => {
                self.touched = true;
                Ok(value)
            }
            Err(error) => {
                let place = (&*register.file, register.offset);
                let caller = (self.process, self.tid);
                self.mapped
                    .report(caller, (name, len), place, &error.into());
                Err(fault(address, FaultKind::Bus))
            }
        }
    }
}

fn fault(address: u64, kind: FaultKind) -> Fault {
    Fault { address, kind }
}

impl Space for Memory<'_> {
    fn load(&mut self, address: u64, data: &mut [u8]) -> Result<(), Fault> {
        match self.register(address) {
            Some(register) if register.readable => {
                let result = register.file.mapped_read(register.offset, data);
                self.answered(("load", address, data.len()), &register, result)
            }
            Some(_) => Err(fault(address, FaultKind::Page)),
            None => {
                let read = self.process.read(address, data);
                read.map_err(|_| fault(address, FaultKind::Page))
            }
        }
    }

    fn store(&mut self, address: u64, data: &[u8]) -> Result<(), Fault> {
        match self.register(address) {
            Some(register) if register.writable => {
                let result = register.file.mapped_write(register.offset, data);
                self.answered(("store", address, data.len()), &register, result)
            }
            None if !self.strict => {
                let written = self.process.write(address, data);
                written.map_err(|_| fault(address, FaultKind::Page))
            }
            _ => Err(fault(address, FaultKind::Page)),
        }
    }

    fn enqueue(&mut self, address: u64, command: &[u8; 64]) -> Result<bool, Fault> {
        match self.register(address) {
            Some(register) if register.writable => {
                let result = register.file.mapped_enqueue(register.offset, command);
                let taken =
                    self.answered(("enqueue", address, command.len()), &register, result)?;
                Ok(!taken)
            }
            _ => Err(fault(address, FaultKind::Page)),
        }
    }
}
