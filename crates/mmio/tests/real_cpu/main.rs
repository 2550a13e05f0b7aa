//! Each form of each instruction runs on the real processor, on ordinary memory, and through the
//! emulator: afterwards registers, defined flags and memory are the same.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unreachable_pub, reason = "no crate uses a test")]
#![allow(clippy::print_stdout, reason = "a test says what it skipped")]
#![allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_possible_wrap,
    clippy::cast_lossless,
    reason = "random bits"
)]
#![cfg(all(target_arch = "x86_64", target_os = "linux"))]
// UNSAFETY: code that the test wrote is run.
#![allow(unsafe_code)]

mod bench_top;
mod commands;
mod forms;
mod integer;
mod machine;
mod refusals;
mod strings;
mod vectors;

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Code, Encoder, Mnemonic, OpCodeOperandKind, RflagsBits};
use ioasid_mmio::{Error, execute, flags};

use crate::bench_top::BenchTop;
use crate::forms::{Trial, Wants};
use crate::machine::{Access, Memory, Random, Thread};

/// Whether the harness can run: it saves all registers of AVX-512.
pub fn harness_runs() -> bool {
    let runs =
        std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw");
    if !runs {
        println!("skipped: the processor has no AVX-512");
    }
    runs
}

/// How much of what was to be compared was compared.
#[derive(Debug, Default)]
pub struct Tally {
    /// Forms that were.
    pub forms: usize,
    /// Instances of them.
    pub trials: usize,
    /// Forms that this processor does not know.
    pub unknown: Vec<Code>,
}

/// What the accesses of an unmasked instruction are to be.
pub type Shape = fn(&Trial, &[Access]) -> Result<(), String>;

/// Compares `trials` random instances of each form.
pub fn compare(
    codes: Vec<Code>,
    trials: usize,
    wants: fn(Mnemonic) -> Wants,
    adjust: fn(&BenchTop, &mut Trial, &mut [u8], &mut Random),
    shape: Shape,
) -> Tally {
    let top = BenchTop::new();
    let mut tally = Tally::default();
    let mut done: BTreeMap<String, usize> = BTreeMap::new();
    let mnemonics: BTreeSet<String> = codes
        .iter()
        .map(|code| format!("{:?}", code.mnemonic()))
        .collect();
    for code in codes {
        let mut random = Random(code as u64);
        let mut compared = 0;
        for _ in 0..trials * 4 {
            let Some(mut trial) = forms::trial(&top, code, wants(code.mnemonic()), &mut random)
            else {
                break;
            };
            let mut arena = vec![0; bench_top::ARENA_BYTES];
            random.fill(&mut arena);
            adjust(&top, &mut trial, &mut arena, &mut random);
            let mut encoder = Encoder::new(64);
            // Some combinations have no encoding (ah with a new register, a displacement too far).
            if encoder
                .encode(&trial.instruction, top.instruction_at())
                .is_err()
            {
                continue;
            }
            let bytes = encoder.take_buffer();
            top.prepare(&bytes, &trial.state, &arena);
            if compared == 0 && !top.is_known() {
                tally.unknown.push(code);
                break;
            }
            one(&top, &trial, &bytes, &arena, shape);
            compared += 1;
            if compared == trials {
                break;
            }
        }
        if compared > 0 {
            tally.forms += 1;
            tally.trials += compared;
            *done.entry(format!("{:?}", code.mnemonic())).or_default() += compared;
        }
    }
    for code in &tally.unknown {
        done.entry(format!("{:?}", code.mnemonic())).or_default();
    }
    let missing: Vec<_> = mnemonics
        .iter()
        .filter(|mnemonic| !done.contains_key(*mnemonic))
        .collect();
    assert!(missing.is_empty(), "never compared: {missing:?}");
    println!("{tally:?}");
    tally
}

/// Whether a string instruction with 32-bit addresses is repeated 0 times. Processors differ in what
/// that does to the upper halves of its registers: Intel's clear some of them, AMD's none
/// (`string_registers_quirk` in arch/x86/kvm/emulate.c).
fn nothing_repeated(trial: &Trial, bytes: &[u8]) -> bool {
    let repeated = trial.instruction.has_rep_prefix() || trial.instruction.has_repne_prefix();
    repeated && bytes.contains(&0x67) && trial.state.gpr[1] as u32 == 0
}

fn one(top: &BenchTop, trial: &Trial, bytes: &[u8], arena: &[u8], shape: Shape) {
    // SAFETY: the address of the operand is in the arena.
    let (real, real_arena) = unsafe { top.run() };
    let mut thread = Thread {
        state: trial.state.clone(),
        rip: top.instruction_at(),
        fs: top.fs,
        gs: top.gs,
        privileged: false,
        pasid: 0,
    };
    let mut memory = Memory::new(top.arena(), arena);
    let mut code = bytes.to_vec();
    code.resize(ioasid_mmio::MAX_INSTRUCTION, 0x90);
    let told = || {
        format!(
            "{:?} {bytes:02x?}\nbefore {:x?} {:x}\n",
            trial.instruction, trial.state.gpr, trial.state.flags
        )
    };
    let result = execute(&code, &mut thread, &mut memory);
    assert_eq!(result, Ok::<(), Error>(()), "{}", told());
    assert_eq!(
        thread.rip,
        top.instruction_at() + bytes.len() as u64,
        "{}",
        told()
    );
    let defined = flags::STATUS & !undefined_flags(trial);
    for (index, name) in ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"]
        .into_iter()
        .chain(["r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15"])
        .enumerate()
    {
        let (ours, its) = (thread.state.gpr[index], real.gpr[index]);
        if matches!(name, "rcx" | "rsi" | "rdi") && nothing_repeated(trial, bytes) {
            assert!(
                ours as u32 == its as u32,
                "{name}: {ours:#x}, really {its:#x}"
            );
            continue;
        }
        assert!(
            ours == its,
            "{name}: {ours:#x}, really {its:#x}\n{}",
            told()
        );
    }
    let (ours, its) = (thread.state.flags & defined, real.flags & defined);
    assert!(ours == its, "flags {ours:#x}, really {its:#x}\n{}", told());
    for (index, (ours, its)) in thread.state.vectors.iter().zip(&real.vectors).enumerate() {
        assert!(
            ours == its,
            "vector {index}\n{ours:02x?}, really\n{its:02x?}\n{}",
            told()
        );
    }
    assert_eq!(thread.state.opmasks, real.opmasks, "{}", told());
    if let Some(at) = (0..arena.len()).find(|at| memory.bytes[*at] != real_arena[*at]) {
        panic!(
            "memory differs from {:#x}: {:02x?}, really {:02x?}\n{}",
            top.arena() + at as u64,
            &memory.bytes[at..(at + 16).min(arena.len())],
            &real_arena[at..(at + 16).min(arena.len())],
            told()
        );
    }
    if let Err(why) = shape(trial, &memory.accesses) {
        panic!("{why}: {:?}\n{}", memory.accesses, told());
    }
}

/// Flags that the manual leaves open after this instruction.
fn undefined_flags(trial: &Trial) -> u64 {
    let told = trial.instruction.rflags_undefined();
    let mut undefined = 0;
    for (bit, flag) in [
        (RflagsBits::OF, flags::OF),
        (RflagsBits::SF, flags::SF),
        (RflagsBits::ZF, flags::ZF),
        (RflagsBits::AF, flags::AF),
        (RflagsBits::CF, flags::CF),
        (RflagsBits::PF, flags::PF),
    ] {
        if told & bit != 0 {
            undefined |= flag;
        }
    }
    let by_one = trial.instruction.code().op_code().op_kinds().get(1)
        == Some(&OpCodeOperandKind::imm8_const_1);
    match trial.instruction.mnemonic() {
        _ if by_one => undefined,
        // The overflow flag is defined for steps of one, the carry for less than the width.
        Mnemonic::Rol | Mnemonic::Ror => undefined | flags::OF,
        Mnemonic::Shl | Mnemonic::Sal | Mnemonic::Shr | Mnemonic::Sar => {
            undefined | flags::OF | flags::AF | flags::CF
        }
        _ => undefined,
    }
}

/// No demand on the address.
pub fn anywhere(_: Mnemonic) -> Wants {
    Wants::default()
}

/// Nothing to adjust.
pub fn as_it_is(_: &BenchTop, _: &mut Trial, _: &mut [u8], _: &mut Random) {}

/// Nothing is said of the accesses.
pub fn any_accesses(_: &Trial, _: &[Access]) -> Result<(), String> {
    Ok(())
}
