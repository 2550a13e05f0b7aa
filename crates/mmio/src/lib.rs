//! One x86-64 instruction that touched a register of a device, decoded and carried out in software.
//!
//! A page of device registers is mapped so that every access faults. The handler of the fault gives
//! the bytes at the instruction pointer to [`execute`], with the registers of the thread ([`Cpu`]) and
//! a view of memory ([`Space`]) in which some addresses are registers of a device. The instruction is
//! carried out as the processor would have: each architectural access is one call of the space, of the
//! instruction's own size, in the instruction's own order.
//!
//! * [`cpu`]: the registers of the thread, a trait.
//! * [`space`]: memory, a trait.
//! * [`execute`]: the one entry. [`warm_up`] first, once, if it is to run where allocation is
//!   forbidden (a signal handler): it fills the decoder's tables; nothing allocates afterwards.
//!
//! # What it knows
//! | | |
//! |---|---|
//! | moves | `mov` in all forms but those of segment, control and debug registers, `movzx`, `movsx`, `movsxd`, `movbe`, `movnti`, `movdiri`, `cmovCC`, `setCC`, `push`, `pop`, near `jmp` and `call` |
//! | strings | `movs`, `stos`, `lods`, `cmps`, `scas`, alone and repeated, both directions |
//! | arithmetic on memory | `add`, `adc`, `sub`, `sbb`, `and`, `or`, `xor`, `cmp`, `test`, `inc`, `dec`, `neg`, `not`, shifts and rotations without carry, `bt` and its like |
//! | exchanges | `xchg`, `xadd`, `cmpxchg`, `cmpxchg8b`, `cmpxchg16b`, locked or not: a load and a store |
//! | into registers | `mul`, `imul`, `mulx`, `div`, `idiv`, counts of bits, bit fields, shifts without flags |
//! | vectors | moves of SSE, AVX and AVX-512, with masks; halves, single elements, broadcasts, insertions, extractions, `vmaskmov`, `kmov` |
//! | commands | `movdir64b`, `enqcmd`, `enqcmds` |
//! | hints | `prefetch`, `clflush`, `clwb` and their like: nothing happens |
//!
//! Not known: x87 and MMX, vector arithmetic with an operand in memory, gathers and scatters, rotations
//! through carry, far branches, masked broadcasts of more than 8 bytes.
//!
//! No system call is made here. 64-bit mode only. What is not known is refused with
//! [`Error::Unsupported`], never guessed.

#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]

mod arithmetic;
mod command;
pub mod cpu;
mod error;
mod exec;
pub mod flags;
mod integer;
pub mod space;
mod string;
mod vector;
pub mod xsave;

use iced_x86::{Decoder, DecoderError, DecoderOptions, Instruction};

use crate::exec::{Exec, Progress};

pub use cpu::{Cpu, Segment};
pub use error::Error;
pub use space::{Fault, FaultKind, Space};

/// Most bytes of one instruction (Intel SDM volume 2, 2.3.11).
pub const MAX_INSTRUCTION: usize = 15;

/// Iterations of a `rep` instruction in one call of [`execute`]. If there is more to do, the
/// instruction pointer stays and the counter registers say how far it went, as after an interrupt.
pub const MAX_ITERATIONS: u32 = 4096;

/// Fills the decoder's tables. To be called once before [`execute`] runs where nothing may allocate.
pub fn warm_up() {
    // One table serves all encodings; `mov (%rax),%eax` is as good as any.
    let mut decoder = Decoder::with_ip(64, &[0x8b, 0x00], 0, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    decoder.decode_out(&mut instruction);
}

fn decode(code: &[u8], rip: u64) -> Result<Instruction, Error> {
    let code = code.get(..MAX_INSTRUCTION).unwrap_or(code);
    let mut decoder = Decoder::with_ip(64, code, rip, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    decoder.decode_out(&mut instruction);
    if !instruction.is_invalid() {
        return Ok(instruction);
    }
    if decoder.last_error() == DecoderError::NoMoreBytes && code.len() < MAX_INSTRUCTION {
        return Err(Error::Truncated);
    }
    Err(Error::Invalid)
}

/// Carries out the one instruction that `code` starts with, at `cpu.rip()`.
///
/// `code` should have [`MAX_INSTRUCTION`] bytes or reach to the end of readable memory. On success
/// the instruction pointer is after the instruction, or, for a `rep` that has more to do than
/// [`MAX_ITERATIONS`], unchanged.
///
/// # Errors
/// The registers are then as the processor leaves them at a fault: unchanged, apart from the
/// counters of a `rep` that was under way.
pub fn execute(code: &[u8], cpu: &mut impl Cpu, space: &mut impl Space) -> Result<(), Error> {
    let instruction = decode(code, cpu.rip())?;
    let next = instruction.next_ip();
    let mut exec = Exec {
        instruction,
        cpu,
        space,
    };
    let progress = match exec
        .string()
        .or_else(|| exec.command())
        .or_else(|| exec.vector())
        .or_else(|| exec.arithmetic())
    {
        Some(result) => result?,
        None => exec.integer()?,
    };
    if progress == Progress::Done {
        exec.cpu.set_rip(next);
    }
    Ok(())
}
