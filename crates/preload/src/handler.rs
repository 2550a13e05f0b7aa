//! The signal handler.
//!
//! | signal | ours if |
//! |---|---|
//! | SIGBUS | past the end of a file, and the session knows a register there |
//! | SIGILL | the instruction is `movdir64b`, `movdiri`, `enqcmd` and stores to a register |
//! | SIGSEGV | `enqcmd` on a processor that has it, where no PASID goes with it |
//!
//! Everything else goes the way that the program has set.

use core::{arch::x86_64::__cpuid_count, mem};

use ioasid_mmio::{Error, Fault, FaultKind, MAX_INSTRUCTION, execute};

use crate::{
    actions,
    call::{Kind, Shape},
    own,
    registers::{Frame, Registers},
    space::OwnMemory,
    sys,
};

/// The start of `siginfo_t`, as far as we look.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Info {
    signal: i32,
    errno: i32,
    code: i32,
    pad: i32,
    address: u64,
    rest: [u64; 13],
}

/// SIGBUS: past the end of a mapped file (`BUS_ADRERR`).
const PAST_END: i32 = 2;
/// The kernel has no more to say (`SI_KERNEL`): a general protection fault.
const BY_KERNEL: i32 = 0x80;
/// SIGSEGV: nothing is mapped there.
const MAPERR: i32 = 1;

/// Uses the signals from now on.
pub fn install() {
    own::learn();
    let handler = on_signal as *const () as usize;
    actions::hook(sys::SIGBUS, handler);
    actions::hook(sys::SIGILL, handler);
    if may_have_enqcmd() {
        actions::hook(sys::SIGSEGV, handler);
    }
    // The parent of this process may have blocked them.
    let _ = sys::sigprocmask(sys::UNBLOCK, Some(actions::hooked()));
}

/// Whether the processor may have `enqcmd`: CPUID leaf 7, ECX bit 29, or bit 28 (`movdir64b`), which
/// every such processor has. A hypervisor that gives its guests no PASIDs hides bit 29; the instruction
/// is there all the same, and raises a general protection fault.
fn may_have_enqcmd() -> bool {
    __cpuid_count(0, 0).eax >= 7 && __cpuid_count(7, 0).ecx >> 28 & 0b11 != 0
}

/// How a signal turned out.
enum Outcome {
    /// The instruction is done.
    Done,
    /// It is none of this library's.
    Foreign,
    /// Ours, and another part of memory failed.
    Failed(Fault),
}

unsafe extern "C" fn on_signal(signal: i32, info: *mut Info, frame: *mut Frame) {
    // SAFETY: with SA_SIGINFO the kernel gives both, on this stack, and nothing else refers to
    // them.
    let (info, frame) = unsafe { (&mut *info, &mut *frame) };
    let outcome = match (signal, info.code) {
        (sys::SIGBUS, PAST_END) => carry_out(OwnMemory::faulted(info.address), frame, info.address),
        (sys::SIGILL, 1..) | (sys::SIGSEGV, BY_KERNEL) => store_of_64_bytes(frame),
        _ => Outcome::Foreign,
    };
    match outcome {
        Outcome::Done => {}
        Outcome::Foreign => pass_on(signal, info, frame),
        Outcome::Failed(fault) => {
            let (signal, code) = match fault.kind {
                FaultKind::Page => (sys::SIGSEGV, MAPERR),
                FaultKind::Bus => (sys::SIGBUS, PAST_END),
            };
            info.signal = signal;
            info.code = code;
            info.address = fault.address;
            pass_on(signal, info, frame);
        }
    }
}

/// Instructions that a processor may not know, or may refuse.
fn store_of_64_bytes(frame: &mut Frame) -> Outcome {
    // SAFETY: the kernel made the frame for our handler.
    let registers = unsafe { Registers::new(frame) };
    let mut code = [0; MAX_INSTRUCTION];
    if !is_store_of_64_bytes(fetch(&registers, &mut code, false)) {
        return Outcome::Foreign;
    }
    match carry_out(OwnMemory::unknown_instruction(), frame, u64::MAX) {
        // To anything but a register the instruction is what the processor says it is.
        Outcome::Failed(_) => Outcome::Foreign,
        other => other,
    }
}

/// Whether these bytes can be `movdir64b`, `enqcmd`, `enqcmds` (0f 38 f8) or `movdiri` (0f 38 f9),
/// after prefixes.
fn is_store_of_64_bytes(code: &[u8]) -> bool {
    let is_prefix = |byte: &u8| {
        matches!(
            byte,
            0x66 | 0x67 | 0xf2 | 0xf3 | 0x2e | 0x36 | 0x3e | 0x26 | 0x64 | 0x65
        ) || byte & 0xf0 == 0x40
    };
    let prefixes = code.iter().take_while(|byte| is_prefix(byte)).count();
    matches!(
        code.get(prefixes..).unwrap_or_default(),
        [0x0f, 0x38, 0xf8 | 0xf9, ..]
    )
}

/// The bytes at the instruction pointer: to the end of its page, or all that an instruction can
/// have.
fn fetch<'a>(
    registers: &Registers<'_>,
    code: &'a mut [u8; MAX_INSTRUCTION],
    all: bool,
) -> &'a [u8] {
    use ioasid_mmio::Cpu as _;
    let rip = registers.rip();
    let in_page = (4096 - rip % 4096) as usize;
    let len = if all {
        MAX_INSTRUCTION
    } else {
        in_page.min(MAX_INSTRUCTION)
    };
    for (byte, at) in code.iter_mut().zip(rip..).take(len) {
        // SAFETY: the processor has just fetched the instruction from this page, and from the next
        // if the instruction reaches into it.
        *byte = unsafe { (at as *const u8).read_volatile() };
    }
    code.get(..len).unwrap_or_default()
}

/// Carries out the interrupted instruction.
fn carry_out(mut memory: OwnMemory, frame: &mut Frame, address: u64) -> Outcome {
    // SAFETY: the kernel made the frame for our handler.
    let mut registers = unsafe { Registers::new(frame) };
    let mut code = [0; MAX_INSTRUCTION];
    let mut result = execute(
        fetch(&registers, &mut code, false),
        &mut registers,
        &mut memory,
    );
    if matches!(result, Err(Error::Truncated)) {
        result = execute(
            fetch(&registers, &mut code, true),
            &mut registers,
            &mut memory,
        );
    }
    match result {
        Ok(()) => Outcome::Done,
        Err(Error::Fault(fault)) if memory.has_touched() || fault.address != address => {
            Outcome::Failed(fault)
        }
        Err(Error::Fault(_)) => Outcome::Foreign,
        Err(_) => {
            let shape = Shape {
                kind: Kind::Refuse,
                size: code.len(),
            };
            let mut buffer = [0; 64];
            for (to, from) in buffer.iter_mut().zip(code) {
                *to = from;
            }
            sys::access(address, shape.encode(), 0, &mut buffer);
            Outcome::Foreign
        }
    }
}

/// Does what the program wants done.
fn pass_on(signal: i32, info: &mut Info, frame: &mut Frame) {
    let from_fault = info.code > 0;
    let action = if actions::is_hooked(signal) {
        actions::get(signal)
    } else {
        sys::sigaction(signal, None).unwrap_or_default()
    };
    match action.handler {
        sys::IGNORE if !from_fault => {}
        sys::DEFAULT | sys::IGNORE => {
            actions::give_up(signal);
            // The instruction faults again on return, with every register as it was. A signal that
            // was sent, or another one than the processor would raise, is sent again.
            if !from_fault || !actions::is_hooked(signal) {
                let _ = sys::sigprocmask(sys::UNBLOCK, Some(actions::bit(signal)));
                sys::raise(signal);
            }
        }
        handler => {
            if action.flags & sys::flag::RESETHAND != 0 && actions::is_hooked(signal) {
                actions::reset(signal);
            }
            let blocked = (frame.mask | action.mask) & !actions::hooked();
            let _ = sys::sigprocmask(sys::SETMASK, Some(blocked));
            // SAFETY: the program gave this address as the handler of this signal; on x86-64 the
            // kernel passes all three arguments whatever the flags say.
            unsafe {
                let handler: unsafe extern "C" fn(i32, *mut Info, *mut Frame) =
                    mem::transmute::<usize, _>(handler);
                handler(signal, info, frame);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stores_of_64_bytes_are_known_by_their_bytes() {
        for code in [
            &[0x66, 0x0f, 0x38, 0xf8, 0x07][..],
            &[0xf2, 0x0f, 0x38, 0xf8, 0x07],
            &[0x48, 0x0f, 0x38, 0xf9, 0x07],
            &[0x67, 0x66, 0x41, 0x0f, 0x38, 0xf8, 0x07],
        ] {
            assert!(is_store_of_64_bytes(code), "{code:x?}");
        }
        for code in [&[0x0f, 0x0b][..], &[], &[0x66, 0x0f, 0x38, 0xf6, 0x07]] {
            assert!(!is_store_of_64_bytes(code), "{code:x?}");
        }
    }
}
