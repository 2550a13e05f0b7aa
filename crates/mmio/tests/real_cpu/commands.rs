use iced_x86::Mnemonic;
use ioasid_mmio::{Error, execute, flags};

use crate::forms::{self, Trial, random_state};
use crate::machine::{Access, Memory, Random, Thread};
use crate::{as_it_is, compare, harness_runs};

/// 64 bytes are loaded and arrive as one store.
fn one_store(_: &Trial, accesses: &[Access]) -> Result<(), String> {
    match accesses {
        [Access::Load(_, 64), Access::Store(to, 64)] if to % 64 == 0 => Ok(()),
        _ => Err("not one store of 64 bytes".to_owned()),
    }
}

#[test]
fn a_direct_store_agrees_with_the_processor_and_is_one_access() {
    if harness_runs() {
        compare(
            forms::plain(&[Mnemonic::Movdir64b]),
            200,
            crate::anywhere,
            as_it_is,
            one_store,
        );
    }
}

const PORTAL: u64 = 0x10_0000;
const SOURCE: u64 = PORTAL + 0x100;

/// enqcmd rdi, [rsi] and enqcmds rdi, [rsi]; movdir64b rdi, [rsi].
const ENQCMD: [u8; 5] = [0xf2, 0x0f, 0x38, 0xf8, 0x3e];
const ENQCMDS: [u8; 5] = [0xf3, 0x0f, 0x38, 0xf8, 0x3e];
const MOVDIR64B: [u8; 5] = [0x66, 0x0f, 0x38, 0xf8, 0x3e];

fn prepared() -> (Thread, Memory) {
    let mut state = random_state(&mut Random(3));
    state.gpr[7] = PORTAL;
    state.gpr[6] = SOURCE;
    state.flags |= flags::STATUS;
    let thread = Thread {
        state,
        rip: 0x1000,
        fs: 0,
        gs: 0,
        privileged: false,
        pasid: 0x8_1234,
    };
    let mut memory = Memory::new(PORTAL, &[0; 0x200]);
    for (index, byte) in memory.bytes[0x100..0x140].iter_mut().enumerate() {
        *byte = index as u8 + 1;
    }
    (thread, memory)
}

/// Where the processor does not know the instruction, this is what there is.
#[test]
fn a_direct_store_moves_64_bytes_by_one_store() {
    let (mut thread, mut memory) = prepared();
    let flags = thread.state.flags;
    execute(&MOVDIR64B, &mut thread, &mut memory).unwrap();
    let expected = [Access::Load(SOURCE, 64), Access::Store(PORTAL, 64)];
    assert_eq!(memory.accesses, expected);
    assert_eq!(memory.bytes[..64], memory.bytes[0x100..0x140]);
    assert_eq!(thread.state.flags, flags);
}

#[test]
fn an_enqueued_command_carries_the_pasid_of_the_processor() {
    let (mut thread, mut memory) = prepared();
    memory.bytes[0x100..0x104].copy_from_slice(&u32::MAX.to_le_bytes());
    execute(&ENQCMD, &mut thread, &mut memory).unwrap();
    assert_eq!(memory.accesses.last(), Some(&Access::Enqueue(PORTAL)));
    assert_eq!(memory.bytes[..4], 0x8_1234_u32.to_le_bytes());
    assert_eq!(memory.bytes[4..64], memory.bytes[0x104..0x140]);
    assert_eq!(thread.rip, 0x1005);
    assert_eq!(thread.state.flags & flags::STATUS, 0, "accepted");
}

#[test]
fn a_device_that_says_retry_sets_the_zero_flag_alone() {
    let (mut thread, mut memory) = prepared();
    memory.retry = true;
    execute(&ENQCMD, &mut thread, &mut memory).unwrap();
    assert_eq!(thread.state.flags & flags::STATUS, flags::ZF);
}

#[test]
fn a_supervisor_command_goes_as_it_is_and_only_with_privilege() {
    let (mut thread, mut memory) = prepared();
    memory.bytes[0x100..0x104].copy_from_slice(&0x800a_bcde_u32.to_le_bytes());
    let refused = execute(&ENQCMDS, &mut thread, &mut memory);
    assert_eq!(refused, Err(Error::Privileged));
    assert_eq!(thread.rip, 0x1000);

    thread.privileged = true;
    execute(&ENQCMDS, &mut thread, &mut memory).unwrap();
    assert_eq!(memory.bytes[..64], memory.bytes[0x100..0x140]);

    memory.bytes[0x102] = 0x5a;
    let refused = execute(&ENQCMDS, &mut thread, &mut memory);
    assert_eq!(refused, Err(Error::Privileged), "bits 30:20 are reserved");
}

#[test]
fn a_destination_off_the_64_byte_grid_is_refused() {
    for code in [MOVDIR64B, ENQCMD] {
        let (mut thread, mut memory) = prepared();
        thread.state.gpr[7] += 32;
        let before = thread.state.clone();
        let refused = execute(&code, &mut thread, &mut memory);
        let address = PORTAL + 32;
        let alignment = 64;
        assert_eq!(refused, Err(Error::Misaligned { address, alignment }));
        assert_eq!(thread.state, before);
        assert_eq!(memory.accesses, []);
    }
}
