//! What the emulator refuses leaves everything as it was.

use ioasid_mmio::{Error, MAX_INSTRUCTION, execute};
use proptest::prelude::*;

use crate::forms::random_state;
use crate::machine::{Memory, Random, Thread};

fn prepared(seed: u64) -> (Thread, Memory) {
    let thread = Thread {
        state: random_state(&mut Random(seed)),
        rip: 0x1000,
        fs: 0,
        gs: 0,
        privileged: false,
        pasid: 0,
    };
    (thread, Memory::new(0x10_0000, &[0x5a; 256]))
}

fn refused(code: &[u8], address: u64) -> Error {
    let (mut thread, mut memory) = prepared(4);
    thread.state.gpr[0] = address;
    let before = (thread.state.clone(), thread.rip);
    let error = execute(code, &mut thread, &mut memory).unwrap_err();
    assert_eq!((thread.state, thread.rip), before);
    assert_eq!(memory.bytes, [0x5a; 256]);
    error
}

#[test]
fn an_aligned_move_off_its_grid_is_a_protection_fault() {
    // movaps xmm1,[rax]; vmovdqa ymm1,[rax]; vmovntdq [rax],zmm1; cmpxchg16b [rax]
    for (code, alignment) in [
        (&[0x0f, 0x28, 0x08][..], 16),
        (&[0xc5, 0xfd, 0x6f, 0x08], 32),
        (&[0x62, 0xf1, 0x7d, 0x48, 0xe7, 0x08], 64),
        (&[0x48, 0x0f, 0xc7, 0x08], 16),
    ] {
        let address = 0x10_0008;
        let error = refused(code, address);
        assert_eq!(error, Error::Misaligned { address, alignment });
    }
}

#[test]
fn an_address_without_memory_is_a_fault_and_nothing_changes() {
    for code in [
        &[0x8b, 0x08][..],                  // mov ecx,[rax]
        &[0x89, 0x08],                      // mov [rax],ecx
        &[0x87, 0x08],                      // xchg ecx,[rax]
        &[0xf0, 0x0f, 0xc1, 0x08],          // lock xadd [rax],ecx
        &[0x48, 0x0f, 0xb1, 0x08],          // cmpxchg [rax],rcx
        &[0x8f, 0x00],                      // pop [rax]
        &[0xa4],                            // movsb
        &[0xc5, 0xfe, 0x6f, 0x08],          // vmovdqu ymm1,[rax]
        &[0x66, 0x0f, 0x3a, 0x22, 0x08, 1], // pinsrd xmm1,[rax],1
    ] {
        let error = refused(code, 0x20_0000);
        assert!(matches!(error, Error::Fault(_)), "{code:02x?}: {error:?}");
    }
}

#[test]
fn bytes_that_end_early_are_told_from_bytes_that_are_no_instruction() {
    assert_eq!(refused(&[], 0), Error::Truncated);
    assert_eq!(refused(&[0x48, 0x8b], 0), Error::Truncated);
    assert_eq!(refused(&[0x66; MAX_INSTRUCTION], 0), Error::Invalid);
    // mov cs,ax and lock mov [rax],ecx
    assert_eq!(refused(&[0x8e, 0xc8, 0, 0], 0), Error::Invalid);
    assert_eq!(refused(&[0xf0, 0x89, 0x08, 0], 0), Error::Invalid);
}

#[test]
fn instructions_that_are_not_emulated_are_refused_and_not_guessed() {
    // fld [rax]; addps xmm1,[rax]; mov ds,[rax]; syscall; gather; movq mm1,[rax]; xsave [rax]
    for code in [
        &[0xd9, 0x00][..],
        &[0x0f, 0x58, 0x08],
        &[0x8e, 0x18],
        &[0x0f, 0x05],
        &[0xc4, 0xe2, 0x69, 0x90, 0x0c, 0x18],
        &[0x0f, 0x6f, 0x08],
        &[0x0f, 0xae, 0x20],
    ] {
        assert_eq!(refused(code, 0x10_0000), Error::Unsupported, "{code:02x?}");
    }
}

#[test]
fn a_quotient_that_does_not_fit_is_a_divide_error() {
    // div qword [rax] of memory full of 0x5a; idiv byte [rax]
    for (code, rdx) in [(&[0x48, 0xf7, 0x30][..], u64::MAX), (&[0xf6, 0x38], 0)] {
        let (mut thread, mut memory) = prepared(6);
        thread.state.gpr[0] = 0x10_0000 | 0x6000;
        memory.start = 0x10_0000 | 0x6000;
        thread.state.gpr[2] = rdx;
        let before = thread.state.clone();
        let result = execute(code, &mut thread, &mut memory);
        assert_eq!(result, Err(Error::Divide));
        assert_eq!(thread.state, before);
    }
    let (mut thread, mut memory) = prepared(7);
    memory.bytes.fill(0);
    thread.state.gpr[0] = 0x10_0000;
    let result = execute(&[0xf7, 0x30], &mut thread, &mut memory);
    assert_eq!(result, Err(Error::Divide), "by zero");
}

#[test]
fn a_jump_and_a_call_through_memory_go_where_it_says() {
    let (mut thread, mut memory) = prepared(5);
    memory.bytes[..8].copy_from_slice(&0xabcd_ef00_u64.to_le_bytes());
    thread.state.gpr[0] = 0x10_0000;
    thread.state.gpr[4] = 0x10_0080;
    execute(&[0xff, 0x20], &mut thread, &mut memory).unwrap();
    assert_eq!(thread.rip, 0xabcd_ef00);
    execute(&[0xff, 0x10], &mut thread, &mut memory).unwrap();
    assert_eq!(thread.rip, 0xabcd_ef00);
    assert_eq!(thread.state.gpr[4], 0x10_0078);
    assert_eq!(memory.bytes[0x78..0x80], 0xabcd_ef02_u64.to_le_bytes());
}

/// Random bytes that often are an instruction on memory: an opcode behind likely prefixes.
fn likely_code() -> impl Strategy<Value = Vec<u8>> {
    let prefix = proptest::sample::select(vec![
        vec![],
        vec![0x66],
        vec![0x67],
        vec![0xf3],
        vec![0xf2],
        vec![0xf0],
        vec![0x64],
        vec![0x48],
        vec![0x41],
        vec![0xf3, 0x48],
        vec![0x0f],
        vec![0x66, 0x0f],
        vec![0xf3, 0x0f],
        vec![0xf2, 0x0f, 0x38],
        vec![0xc5],
        vec![0xc4],
        vec![0x62],
    ]);
    (prefix, proptest::collection::vec(any::<u8>(), 0..16)).prop_map(|(mut code, rest)| {
        code.extend(rest);
        code
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn arbitrary_bytes_neither_panic_nor_go_on_for_ever(code in likely_code(), seed: u64) {
        let (mut thread, mut memory) = prepared(seed);
        let mut random = Random(seed);
        for register in &mut thread.state.gpr {
            if random.one_in(2) {
                *register = 0x10_0000 + random.below(256);
            }
        }
        let before = thread.rip;
        if execute(&code, &mut thread, &mut memory).is_err() {
            prop_assert_eq!(thread.rip, before);
        }
        let most = 3 * ioasid_mmio::MAX_ITERATIONS as usize;
        prop_assert!(memory.accesses.len() <= most.max(64));
    }
}
