use iced_x86::{Mnemonic, Register};

use crate::bench_top::BenchTop;
use crate::forms::{self, Trial, Wants};
use crate::machine::{Access, Random};
use crate::{as_it_is, compare, harness_runs};

const MOVES: &[Mnemonic] = &[
    Mnemonic::Mov,
    Mnemonic::Movzx,
    Mnemonic::Movsx,
    Mnemonic::Movsxd,
    Mnemonic::Movbe,
    Mnemonic::Movnti,
    Mnemonic::Movdiri,
];

const ARITHMETIC: &[Mnemonic] = &[
    Mnemonic::Add,
    Mnemonic::Adc,
    Mnemonic::Sub,
    Mnemonic::Sbb,
    Mnemonic::And,
    Mnemonic::Or,
    Mnemonic::Xor,
    Mnemonic::Cmp,
    Mnemonic::Test,
    Mnemonic::Inc,
    Mnemonic::Dec,
    Mnemonic::Neg,
    Mnemonic::Not,
];

const SHIFTS: &[Mnemonic] = &[
    Mnemonic::Shl,
    Mnemonic::Sal,
    Mnemonic::Shr,
    Mnemonic::Sar,
    Mnemonic::Rol,
    Mnemonic::Ror,
];

const INTO_REGISTERS: &[Mnemonic] = &[
    Mnemonic::Mul,
    Mnemonic::Imul,
    Mnemonic::Mulx,
    Mnemonic::Popcnt,
    Mnemonic::Lzcnt,
    Mnemonic::Tzcnt,
    Mnemonic::Bsf,
    Mnemonic::Bsr,
    Mnemonic::Andn,
    Mnemonic::Bextr,
    Mnemonic::Bzhi,
    Mnemonic::Blsi,
    Mnemonic::Blsr,
    Mnemonic::Blsmsk,
    Mnemonic::Rorx,
    Mnemonic::Shlx,
    Mnemonic::Shrx,
    Mnemonic::Sarx,
];

const EXCHANGES: &[Mnemonic] = &[
    Mnemonic::Xchg,
    Mnemonic::Xadd,
    Mnemonic::Cmpxchg,
    Mnemonic::Cmpxchg8b,
    Mnemonic::Cmpxchg16b,
];

const BITS: &[Mnemonic] = &[Mnemonic::Bt, Mnemonic::Bts, Mnemonic::Btr, Mnemonic::Btc];

const CONDITIONAL: &[Mnemonic] = &[
    Mnemonic::Cmovo,
    Mnemonic::Cmovno,
    Mnemonic::Cmovb,
    Mnemonic::Cmovae,
    Mnemonic::Cmove,
    Mnemonic::Cmovne,
    Mnemonic::Cmovbe,
    Mnemonic::Cmova,
    Mnemonic::Cmovs,
    Mnemonic::Cmovns,
    Mnemonic::Cmovp,
    Mnemonic::Cmovnp,
    Mnemonic::Cmovl,
    Mnemonic::Cmovge,
    Mnemonic::Cmovle,
    Mnemonic::Cmovg,
    Mnemonic::Seto,
    Mnemonic::Setno,
    Mnemonic::Setb,
    Mnemonic::Setae,
    Mnemonic::Sete,
    Mnemonic::Setne,
    Mnemonic::Setbe,
    Mnemonic::Seta,
    Mnemonic::Sets,
    Mnemonic::Setns,
    Mnemonic::Setp,
    Mnemonic::Setnp,
    Mnemonic::Setl,
    Mnemonic::Setge,
    Mnemonic::Setle,
    Mnemonic::Setg,
];

const HINTS: &[Mnemonic] = &[
    Mnemonic::Nop,
    Mnemonic::Prefetchnta,
    Mnemonic::Prefetcht0,
    Mnemonic::Prefetcht1,
    Mnemonic::Prefetcht2,
    Mnemonic::Prefetchw,
    Mnemonic::Clflush,
    Mnemonic::Clflushopt,
    Mnemonic::Clwb,
];

/// A locked access across two cache lines is a trap on some processors.
fn on_its_size(mnemonic: Mnemonic) -> Wants {
    let alignment = match mnemonic {
        Mnemonic::Cmpxchg16b => 16,
        _ => 8,
    };
    Wants { alignment }
}

/// One access of the operand's size each way at the most, and no other.
fn once(trial: &Trial, accesses: &[Access]) -> Result<(), String> {
    let bytes = trial.instruction.memory_size().size();
    let loads = accesses
        .iter()
        .filter(|access| matches!(access, Access::Load(_, length) if *length == bytes));
    let stores = accesses
        .iter()
        .filter(|access| matches!(access, Access::Store(_, length) if *length == bytes));
    let (loads, stores) = (loads.count(), stores.count());
    if loads > 1 || stores > 1 || loads + stores != accesses.len() || accesses.is_empty() {
        return Err(format!("not one access of {bytes} bytes"));
    }
    Ok(())
}

fn none(_: &Trial, accesses: &[Access]) -> Result<(), String> {
    if accesses.is_empty() {
        Ok(())
    } else {
        Err("a hint touched memory".to_owned())
    }
}

#[test]
fn moves_agree_with_the_processor() {
    if harness_runs() {
        let tally = compare(forms::plain(MOVES), 60, crate::anywhere, as_it_is, once);
        assert!(tally.forms >= 40, "{tally:?}");
    }
}

#[test]
fn arithmetic_on_memory_agrees_with_the_processor() {
    if harness_runs() {
        let tally = compare(forms::plain(ARITHMETIC), 60, on_its_size, as_it_is, once);
        assert!(tally.forms >= 130, "{tally:?}");
    }
}

#[test]
fn shifts_of_memory_agree_with_the_processor() {
    if harness_runs() {
        let tally = compare(forms::plain(SHIFTS), 80, crate::anywhere, as_it_is, once);
        assert!(tally.forms >= 60, "{tally:?}");
    }
}

#[test]
fn arithmetic_into_registers_agrees_with_the_processor() {
    if harness_runs() {
        let codes = forms::plain(INTO_REGISTERS);
        let tally = compare(codes, 200, crate::anywhere, as_it_is, once);
        assert!(tally.forms >= 50, "{tally:?}");
    }
}

/// Divisors and dividends whose quotient fits: the dividend is the sign or zero extension of half of
/// its lower half, and no divisor is 0, 1 or -1.
fn divisible(_: &BenchTop, trial: &mut Trial, arena: &mut [u8], random: &mut Random) {
    let signed = trial.instruction.mnemonic() == Mnemonic::Idiv;
    let bits = trial.instruction.memory_size().size() * 8;
    let low = random.number() & (u64::MAX >> (64 - bits));
    let negative = signed && low >> (bits - 1) != 0;
    let high = if negative { u64::MAX } else { 0 };
    if bits == 8 {
        trial.state.gpr[0] = (high & 0xff) << 8 | low;
    } else {
        trial.state.gpr[0] = low;
        trial.state.gpr[2] = high;
    }
    let byte = 2 + random.below(100) as u8;
    arena.fill(byte);
}

#[test]
fn divisions_agree_with_the_processor() {
    if harness_runs() {
        let codes = forms::plain(&[Mnemonic::Div, Mnemonic::Idiv]);
        let tally = compare(codes, 200, crate::anywhere, divisible, once);
        assert_eq!(tally.forms, 8, "{tally:?}");
    }
}

/// Half of the comparisons are to succeed.
fn sometimes_equal(top: &BenchTop, trial: &mut Trial, arena: &mut [u8], random: &mut Random) {
    if random.one_in(2) {
        return;
    }
    let state = &trial.state;
    let address = trial
        .instruction
        .virtual_address(0, 0, |register, _, _| match register {
            Register::FS => Some(top.fs),
            Register::GS => Some(top.gs),
            _ if register.is_segment_register() => Some(0),
            _ => {
                let value = state.gpr[register.full_register().number()];
                let narrow = register.size() == 4;
                Some(if narrow {
                    u64::from(value as u32)
                } else {
                    value
                })
            }
        })
        .unwrap();
    let at = (address - top.arena()) as usize;
    let (low, high) = (trial.state.gpr[0], trial.state.gpr[2]);
    match trial.instruction.mnemonic() {
        Mnemonic::Cmpxchg8b => {
            let pair = (high << 32) | (low & 0xffff_ffff);
            arena[at..at + 8].copy_from_slice(&pair.to_le_bytes());
        }
        Mnemonic::Cmpxchg16b => {
            arena[at..at + 8].copy_from_slice(&low.to_le_bytes());
            arena[at + 8..at + 16].copy_from_slice(&high.to_le_bytes());
        }
        Mnemonic::Cmpxchg => arena[at..at + 8].copy_from_slice(&low.to_le_bytes()),
        _ => {}
    }
}

#[test]
fn exchanges_agree_with_the_processor() {
    if harness_runs() {
        let tally = compare(
            forms::plain(EXCHANGES),
            200,
            on_its_size,
            sometimes_equal,
            once,
        );
        assert!(tally.forms >= 14, "{tally:?}");
    }
}

/// A bit offset in a register that stays in the arena.
fn near_bits(_: &BenchTop, trial: &mut Trial, _: &mut [u8], random: &mut Random) {
    let register = trial.instruction.op1_register();
    if register.is_gpr() {
        let offset = random.below(16000) as i64 - 8000;
        trial.state.gpr[register.full_register().number()] = offset as u64;
    }
}

#[test]
fn bit_tests_reach_beyond_the_operand_as_on_the_processor() {
    if harness_runs() {
        let tally = compare(forms::plain(BITS), 150, on_its_size, near_bits, once);
        assert!(tally.forms >= 24, "{tally:?}");
    }
}

#[test]
fn conditional_moves_and_sets_agree_with_the_processor() {
    if harness_runs() {
        let tally = compare(
            forms::plain(CONDITIONAL),
            40,
            crate::anywhere,
            as_it_is,
            once,
        );
        assert!(tally.forms >= 64, "{tally:?}");
    }
}

#[test]
fn hints_touch_nothing() {
    if harness_runs() {
        compare(forms::plain(HINTS), 10, crate::anywhere, as_it_is, none);
    }
}

/// The stack of the instruction is in the arena, away from its operand.
fn own_stack(top: &BenchTop, trial: &mut Trial, _: &mut [u8], random: &mut Random) {
    trial.state.gpr[4] = top.arena() + 64 + random.below(64) * 8;
}

#[test]
fn pushes_and_pops_of_memory_agree_with_the_processor() {
    if harness_runs() {
        let mnemonics = &[Mnemonic::Push, Mnemonic::Pop];
        compare(
            forms::plain(mnemonics),
            100,
            crate::anywhere,
            own_stack,
            crate::any_accesses,
        );
    }
}
