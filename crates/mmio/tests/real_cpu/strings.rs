use iced_x86::Mnemonic;
use ioasid_mmio::{MAX_ITERATIONS, execute};

use crate::bench_top::BenchTop;
use crate::forms::{self, Trial, random_state};
use crate::machine::{Memory, Random, Thread};
use crate::{any_accesses, compare, harness_runs};

const STRINGS: &[Mnemonic] = &[
    Mnemonic::Movsb,
    Mnemonic::Movsw,
    Mnemonic::Movsd,
    Mnemonic::Movsq,
    Mnemonic::Stosb,
    Mnemonic::Stosw,
    Mnemonic::Stosd,
    Mnemonic::Stosq,
    Mnemonic::Lodsb,
    Mnemonic::Lodsw,
    Mnemonic::Lodsd,
    Mnemonic::Lodsq,
    Mnemonic::Cmpsb,
    Mnemonic::Cmpsw,
    Mnemonic::Cmpsd,
    Mnemonic::Cmpsq,
    Mnemonic::Scasb,
    Mnemonic::Scasw,
    Mnemonic::Scasd,
    Mnemonic::Scasq,
];

/// Memory in which comparisons go on for a while: few different bytes.
fn similar(_: &BenchTop, trial: &mut Trial, arena: &mut [u8], random: &mut Random) {
    if random.one_in(2) {
        let byte = random.number() as u8;
        arena.fill(byte);
        trial.state.gpr[0] = u64::from_le_bytes([byte; 8]);
        for _ in 0..8 {
            let at = random.below(arena.len() as u64) as usize;
            arena[at] = !byte;
        }
    }
}

#[test]
fn string_instructions_agree_with_the_processor() {
    if harness_runs() {
        compare(
            forms::strings_of(STRINGS),
            200,
            crate::anywhere,
            similar,
            any_accesses,
        );
    }
}

fn thread(random: &mut Random) -> Thread {
    let mut state = random_state(random);
    state.flags &= !ioasid_mmio::flags::DF;
    Thread {
        state,
        rip: 0x1000,
        fs: 0,
        gs: 0,
        privileged: false,
        pasid: 0,
    }
}

#[test]
fn a_long_repetition_stops_and_goes_on_where_it_was() {
    let mut thread = thread(&mut Random(1));
    let count = u64::from(MAX_ITERATIONS) + 10;
    thread.state.gpr[1] = count;
    thread.state.gpr[7] = 0x10_0000;
    thread.state.gpr[0] = 0x5a;
    let mut memory = Memory::new(0x10_0000, &vec![0; 2 * MAX_ITERATIONS as usize]);
    // rep stosb
    let code = [0xf3, 0xaa];
    execute(&code, &mut thread, &mut memory).unwrap();
    assert_eq!(thread.rip, 0x1000);
    assert_eq!(thread.state.gpr[1], 10);
    execute(&code, &mut thread, &mut memory).unwrap();
    assert_eq!(thread.rip, 0x1002);
    assert_eq!(thread.state.gpr[1], 0);
    let written = memory.bytes.iter().filter(|byte| **byte == 0x5a).count();
    assert_eq!(written as u64, count);
}

#[test]
fn a_fault_in_a_repetition_leaves_the_counters_at_the_fault() {
    let mut thread = thread(&mut Random(2));
    thread.state.gpr[1] = 10;
    thread.state.gpr[6] = 0x10_0000;
    thread.state.gpr[7] = 0x10_0040;
    let mut memory = Memory::new(0x10_0000, &[7; 0x40 + 3 * 8]);
    let flags = thread.state.flags;
    // repe cmpsq: the fourth quadword of the second operand is not there
    let error = execute(&[0xf3, 0x48, 0xa7], &mut thread, &mut memory).unwrap_err();
    assert!(matches!(error, ioasid_mmio::Error::Fault(fault) if fault.address == 0x10_0058));
    assert_eq!(thread.rip, 0x1000);
    assert_eq!(thread.state.gpr[1], 7);
    assert_eq!(thread.state.gpr[6], 0x10_0018);
    assert_eq!(thread.state.gpr[7], 0x10_0058);
    assert_eq!(thread.state.flags, flags);
}
