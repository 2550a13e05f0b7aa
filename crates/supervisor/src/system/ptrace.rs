//! ptrace(2), typed. All calls but [`seize`] are about a thread that is stopped for the caller.
// UNSAFETY: ptrace and waitid have no safe wrappers; each block says why it is sound.
#![allow(unsafe_code)]

use std::{arch::x86_64::__cpuid_count, io, mem, ptr};

use ioasid_mmio::xsave::Layout;

/// A thread's general registers.
pub(crate) type Registers = libc::user_regs_struct;

/// What a stop is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// A signal is about to be delivered.
    Signal(i32),
    /// The whole process is stopped by a signal.
    Group,
    /// It has just become the tracer's, or something else that is to go on.
    Other,
    /// It runs another program now.
    Exec,
    /// It is about to end: nothing more of the program runs in it.
    Ending,
    /// It has ended and waits to be reaped.
    Ended,
}

/// Attaches to thread `tid` without stopping it, and to all that comes of it: threads and
/// processes.
pub(crate) fn seize(tid: i32) -> io::Result<()> {
    let options = libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEFORK
        | libc::PTRACE_O_TRACEVFORK
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_TRACEEXIT;
    // SAFETY: the last argument is a number for this request.
    check(unsafe { libc::ptrace(libc::PTRACE_SEIZE, tid, 0usize, options as usize) })
}

/// Lets it go on, with `signal` delivered, or none for 0.
pub(crate) fn go_on(tid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: both arguments are numbers for this request.
    check(unsafe { libc::ptrace(libc::PTRACE_CONT, tid, 0usize, signal as usize) })
}

/// Leaves it stopped with its process.
pub(crate) fn listen(tid: i32) -> io::Result<()> {
    // SAFETY: both arguments are numbers for this request.
    check(unsafe { libc::ptrace(libc::PTRACE_LISTEN, tid, 0usize, 0usize) })
}

/// Lets it go for good.
pub(crate) fn detach(tid: i32) -> io::Result<()> {
    // SAFETY: both arguments are numbers for this request.
    check(unsafe { libc::ptrace(libc::PTRACE_DETACH, tid, 0usize, 0usize) })
}

/// The signal that is about to be delivered: its code and its address.
pub(crate) fn signal_info(tid: i32) -> io::Result<(i32, u64)> {
    // SAFETY: a plain structure of integers, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    let at = ptr::from_mut(&mut info);
    // SAFETY: the kernel writes this structure, which lives across the call.
    check(unsafe { libc::ptrace(libc::PTRACE_GETSIGINFO, tid, 0usize, at) })?;
    // SAFETY: whatever the signal is, the bytes there are initialised.
    let address = unsafe { info.si_addr() };
    Ok((info.si_code, address as u64))
}

/// Replaces the signal that is about to be delivered.
pub(crate) fn set_signal_info(tid: i32, signal: i32, code: i32, address: u64) -> io::Result<()> {
    // SAFETY: as in `signal_info`.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    info.si_signo = signal;
    info.si_code = code;
    // SAFETY: `si_addr` follows three numbers and padding, and is inside of the structure.
    unsafe { ptr::from_mut(&mut info).cast::<u64>().add(2).write(address) };
    let at = ptr::from_mut(&mut info);
    // SAFETY: the kernel reads this structure, which lives across the call.
    check(unsafe { libc::ptrace(libc::PTRACE_SETSIGINFO, tid, 0usize, at) })
}

/// Its general registers.
pub(crate) fn registers(tid: i32) -> io::Result<Registers> {
    // SAFETY: a plain structure of integers, for which zero is a value.
    let mut registers: Registers = unsafe { mem::zeroed() };
    let at = ptr::from_mut(&mut registers);
    // SAFETY: the kernel writes this structure, which lives across the call.
    check(unsafe { libc::ptrace(libc::PTRACE_GETREGS, tid, 0usize, at) })?;
    Ok(registers)
}

/// Sets its general registers.
pub(crate) fn set_registers(tid: i32, registers: &Registers) -> io::Result<()> {
    let at = ptr::from_ref(registers);
    // SAFETY: the kernel reads this structure, which lives across the call.
    check(unsafe { libc::ptrace(libc::PTRACE_SETREGS, tid, 0usize, at) })
}

/// The name of the XSAVE area among the register sets (`NT_X86_XSTATE`).
const XSTATE: usize = 0x202;

/// Larger than any XSAVE area: AMX has 8 KiB.
const XSTATE_BYTES: usize = 16 << 10;

/// Its vector registers, as an XSAVE area.
pub(crate) fn vectors(tid: i32) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0u8; XSTATE_BYTES];
    let mut piece = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let at = ptr::from_mut(&mut piece);
    // SAFETY: the kernel writes at most the bytes of the vector and notes how many in the piece;
    // both live across the call.
    check(unsafe { libc::ptrace(libc::PTRACE_GETREGSET, tid, XSTATE, at) })?;
    bytes.truncate(piece.iov_len);
    Ok(bytes)
}

/// Sets its vector registers.
pub(crate) fn set_vectors(tid: i32, bytes: &mut [u8]) -> io::Result<()> {
    let mut piece = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    let at = ptr::from_mut(&mut piece);
    // SAFETY: the kernel reads the bytes, which live across the call, and checks them.
    check(unsafe { libc::ptrace(libc::PTRACE_SETREGSET, tid, XSTATE, at) })
}

/// Where vector registers lie in an XSAVE area of this processor.
pub(crate) fn layout() -> Layout {
    match __cpuid_count(0, 0).eax {
        0xd.. => Layout::new(|component| __cpuid_count(0xd, component).ebx),
        _ => Layout::default(),
    }
}

/// Waits for a thread that this thread traces, or looks at one only: `of` names it. What is found
/// is left as it is, to be found again until the thread is resumed. `None` if there is nothing.
pub(crate) fn wait(of: Option<i32>) -> io::Result<Option<(i32, Stop)>> {
    let (kind, id, hang) = match of {
        Some(tid) => (libc::P_PID, tid.cast_unsigned(), libc::WNOHANG),
        None => (libc::P_ALL, 0, 0),
    };
    let options =
        libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT | libc::__WALL | libc::__WNOTHREAD | hang;
    let Some((tid, code, status)) = wait_for(kind, id, options)? else {
        return Ok(None);
    };
    let stop = match code {
        libc::CLD_TRAPPED | libc::CLD_STOPPED => match (status >> 8, status & 0xff) {
            (0, signal) => Stop::Signal(signal),
            (libc::PTRACE_EVENT_STOP, libc::SIGTRAP) => Stop::Other,
            (libc::PTRACE_EVENT_STOP, _) => Stop::Group,
            (libc::PTRACE_EVENT_EXEC, _) => Stop::Exec,
            (libc::PTRACE_EVENT_EXIT, _) => Stop::Ending,
            _ => Stop::Other,
        },
        _ => Stop::Ended,
    };
    Ok(Some((tid, stop)))
}

/// Reaps a thread that has ended; its parent learns of it then.
pub(crate) fn reap(tid: i32) -> io::Result<()> {
    let options = libc::WEXITED | libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
    wait_for(libc::P_PID, tid.cast_unsigned(), options).map(drop)
}

fn wait_for(kind: libc::idtype_t, id: u32, options: i32) -> io::Result<Option<(i32, i32, i32)>> {
    // SAFETY: a plain structure of integers, for which zero is a value.
    let mut info: libc::siginfo_t = unsafe { mem::zeroed() };
    loop {
        // SAFETY: the kernel writes this structure, which lives across the call.
        if unsafe { libc::waitid(kind, id, &raw mut info, options) } == 0 {
            break;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    // SAFETY: filled by waitid, or zero throughout.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    Ok((pid != 0).then_some((pid, info.si_code, status)))
}

/// The number of this thread.
pub(crate) fn own_tid() -> i32 {
    rustix::thread::gettid().as_raw_pid()
}

fn check(ret: libc::c_long) -> io::Result<()> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
