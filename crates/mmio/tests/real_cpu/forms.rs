//! Every form of the instructions that the emulator knows, with random operands.

use iced_x86::{Code, Instruction, Mnemonic, OpCodeOperandKind as Kind, OpKind, Register};

use crate::bench_top::{ARENA_BYTES, BenchTop};
use crate::machine::{Random, State};

/// One instruction and registers that make it work on the arena.
#[derive(Debug)]
pub struct Trial {
    pub instruction: Instruction,
    pub state: State,
}

/// All forms of these instructions in 64-bit mode that name an operand in memory.
pub fn plain(mnemonics: &[Mnemonic]) -> Vec<Code> {
    with_memory(mnemonics, false)
}

/// All string instructions among these. (`movsd` and `cmpsd` are vector instructions too.)
pub fn strings_of(mnemonics: &[Mnemonic]) -> Vec<Code> {
    with_memory(mnemonics, true)
}

fn with_memory(mnemonics: &[Mnemonic], strings: bool) -> Vec<Code> {
    let all = Code::values().filter(|code| mnemonics.contains(&code.mnemonic()));
    let all = all.filter(|code| code.op_code().mode64() && code.op_code().is_instruction());
    let all = all.filter(|code| code.is_string_instruction() == strings);
    all.filter(|code| code.op_code().op_kinds().iter().any(|kind| touches(*kind)))
        .collect()
}

fn touches(kind: Kind) -> bool {
    matches!(
        kind,
        Kind::mem_offs
            | Kind::mem
            | Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::xmm_or_mem
            | Kind::ymm_or_mem
            | Kind::zmm_or_mem
            | Kind::k_or_mem
            | Kind::seg_rSI
            | Kind::es_rDI
    )
}

/// What kind of address a form wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wants {
    /// What the address must be a multiple of.
    pub alignment: u64,
}

pub fn random_state(random: &mut Random) -> State {
    let mut state = State {
        vectors: [[0; 64]; 32],
        opmasks: [0; 8],
        gpr: [0; 16],
        flags: 0,
        host_stack: 0,
    };
    state.vectors.iter_mut().for_each(|v| random.fill(v));
    state.opmasks.iter_mut().for_each(|k| *k = random.operand());
    state.gpr.iter_mut().for_each(|r| *r = random.operand());
    let status = ioasid_mmio::flags::STATUS;
    state.flags = crate::bench_top::FIXED_FLAGS | (random.number() & status);
    state
}

fn pick(random: &mut Random, first: Register, count: u64) -> Register {
    first + u32::try_from(random.below(count)).unwrap()
}

/// A random instance of `code`; none for an operand that the emulator rightly refuses.
#[expect(
    clippy::too_many_lines,
    reason = "a decoder: one arm for each kind of operand"
)]
pub fn trial(top: &BenchTop, code: Code, wants: Wants, random: &mut Random) -> Option<Trial> {
    let mut state = random_state(random);
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    let info = code.op_code();
    let alignment = wants.alignment.max(1);
    let middle = ARENA_BYTES as u64 / 4 + random.below(ARENA_BYTES as u64 / 2);
    let target = (top.arena() + middle) / alignment * alignment;
    // Registers in operands first; the address is made of others.
    let mut taken = vec![Register::RSP, Register::RCX];
    if matches!(code.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) {
        // The dividend.
        taken.extend([Register::RAX, Register::RDX]);
    }
    let mut memory = None;
    for (op, kind) in info.op_kinds().iter().enumerate() {
        let op = u32::try_from(op).unwrap();
        let mut register = |register: Register| {
            instruction.set_op_kind(op, OpKind::Register);
            instruction.set_op_register(op, register);
            if register.is_gpr() {
                taken.push(register.full_register());
            }
        };
        let vectors = if is_evex(code) { 32 } else { 16 };
        match kind {
            Kind::r8_reg => register(pick(random, Register::AL, 20)),
            Kind::r16_reg => register(pick(random, Register::AX, 16)),
            Kind::r32_reg | Kind::r32_vvvv => register(pick(random, Register::EAX, 16)),
            Kind::r64_reg | Kind::r64_vvvv => register(pick(random, Register::RAX, 16)),
            Kind::r32_reg_mem | Kind::r64_reg_mem => {
                let narrow = *kind == Kind::r32_reg_mem;
                let number = [3_u32, 5, 8, 15][random.below(4) as usize];
                let first = if narrow { Register::EAX } else { Register::RAX };
                register(first + number);
                let high = if narrow { random.number() << 32 } else { 0 };
                let place = top.arena() / 64 * 64 + random.below(100) * 64;
                state.gpr[number as usize] = high | place;
            }
            Kind::xmm_reg | Kind::xmm_vvvv => register(pick(random, Register::XMM0, vectors)),
            Kind::ymm_reg | Kind::ymm_vvvv => register(pick(random, Register::YMM0, vectors)),
            Kind::zmm_reg | Kind::zmm_vvvv => register(pick(random, Register::ZMM0, vectors)),
            Kind::k_reg => register(pick(random, Register::K0, 8)),
            Kind::al => register(Register::AL),
            Kind::cl => register(Register::CL),
            Kind::ax => register(Register::AX),
            Kind::eax => register(Register::EAX),
            Kind::rax => register(Register::RAX),
            Kind::imm8 => {
                instruction.set_op_kind(op, OpKind::Immediate8);
                instruction.set_immediate8(random.number() as u8);
            }
            Kind::imm8_const_1 => {
                instruction.set_op_kind(op, OpKind::Immediate8);
                instruction.set_immediate8(1);
            }
            Kind::imm8sex16 => {
                instruction.set_op_kind(op, OpKind::Immediate8to16);
                instruction.set_immediate8to16(i16::from(random.number() as i8));
            }
            Kind::imm8sex32 => {
                instruction.set_op_kind(op, OpKind::Immediate8to32);
                instruction.set_immediate8to32(i32::from(random.number() as i8));
            }
            Kind::imm8sex64 => {
                instruction.set_op_kind(op, OpKind::Immediate8to64);
                instruction.set_immediate8to64(i64::from(random.number() as i8));
            }
            Kind::imm16 => {
                instruction.set_op_kind(op, OpKind::Immediate16);
                instruction.set_immediate16(random.operand() as u16);
            }
            Kind::imm32 => {
                instruction.set_op_kind(op, OpKind::Immediate32);
                instruction.set_immediate32(random.operand() as u32);
            }
            Kind::imm32sex64 => {
                instruction.set_op_kind(op, OpKind::Immediate32to64);
                instruction.set_immediate32to64(i64::from(random.operand() as i32));
            }
            Kind::mem_offs => {
                instruction.set_op_kind(op, OpKind::Memory);
                instruction.set_memory_displ_size(8);
                instruction.set_memory_displacement64(target);
            }
            Kind::seg_rSI | Kind::es_rDI => {
                // Set below, once it is known how wide addresses are.
            }
            kind if touches(*kind) => {
                instruction.set_op_kind(op, OpKind::Memory);
                memory = Some(op);
            }
            _ => return None,
        }
    }
    if info.can_use_op_mask_register() && random.one_in(2) {
        instruction.set_op_mask(pick(random, Register::K1, 7));
        if info.can_use_zeroing_masking() && memory != Some(0) {
            instruction.set_zeroing_masking(random.one_in(2));
        }
    }
    if info.can_use_lock_prefix() && memory == Some(0) && random.one_in(2) {
        instruction.set_has_lock_prefix(true);
    }
    if memory.is_some() {
        address(top, &mut instruction, &mut state, target, &taken, random);
    }
    strings(top, &mut instruction, &mut state, random);
    Some(Trial { instruction, state })
}

fn is_evex(code: Code) -> bool {
    code.encoding() == iced_x86::EncodingKind::EVEX
}

/// Makes an operand in memory that leads to `target`.
fn address(
    top: &BenchTop,
    instruction: &mut Instruction,
    state: &mut State,
    target: u64,
    taken: &[Register],
    random: &mut Random,
) {
    let free: Vec<u32> = (0..16)
        .filter(|number| !taken.contains(&(Register::RAX + *number)))
        .collect();
    let choose = |random: &mut Random| free[random.below(free.len() as u64) as usize];
    let narrow_destination = (0..instruction.op_count())
        .any(|op| matches!(instruction.code().op_code().op_kind(op), Kind::r32_reg_mem));
    let wide_destination = (0..instruction.op_count())
        .any(|op| matches!(instruction.code().op_code().op_kind(op), Kind::r64_reg_mem));
    let narrow = narrow_destination || (!wide_destination && random.one_in(6));
    let first = if narrow { Register::EAX } else { Register::RAX };
    let segment = match random.below(8) {
        0 => (Register::FS, top.fs),
        1 => (Register::GS, top.gs),
        _ => (Register::None, 0),
    };
    // A segment base and a 32-bit offset do not always reach.
    let segment = if narrow && segment.1 > target {
        (Register::None, 0)
    } else {
        segment
    };
    instruction.set_segment_prefix(segment.0);
    let mut rest = target.wrapping_sub(segment.1);
    instruction.set_memory_index_scale(1);
    if segment.1 == 0 && random.one_in(6) {
        let base = if narrow { Register::EIP } else { Register::RIP };
        instruction.set_memory_base(base);
        instruction.set_memory_displ_size(if narrow { 4 } else { 8 });
        instruction.set_memory_displacement64(rest);
        return;
    }
    let displacement = match random.below(3) {
        0 => 0_i64,
        1 => i64::from(random.number() as i8),
        _ => i64::from(random.number() as i16),
    };
    if displacement != 0 {
        instruction.set_memory_displ_size(if narrow { 4 } else { 8 });
        let shown = if narrow {
            u64::from(displacement as u32)
        } else {
            displacement as u64
        };
        instruction.set_memory_displacement64(shown);
    }
    rest = rest.wrapping_sub(displacement as u64);
    let base = choose(random);
    if random.one_in(2) {
        let index = choose(random);
        if index != base {
            let scale = 1 << random.below(4);
            instruction.set_memory_index(first + index);
            instruction.set_memory_index_scale(scale);
            let value = state.gpr[index as usize];
            rest = rest.wrapping_sub(value.wrapping_mul(u64::from(scale)));
        }
    }
    instruction.set_memory_base(first + base);
    let high = if narrow { random.number() << 32 } else { 0 };
    state.gpr[base as usize] = if narrow {
        high | u64::from(rest as u32)
    } else {
        rest
    };
}

/// The implied operands of string instructions.
fn strings(top: &BenchTop, instruction: &mut Instruction, state: &mut State, random: &mut Random) {
    let info = instruction.code().op_code();
    let kinds = info.op_kinds();
    if !kinds
        .iter()
        .any(|kind| matches!(kind, Kind::seg_rSI | Kind::es_rDI))
    {
        return;
    }
    let narrow = random.one_in(4);
    for (op, kind) in kinds.iter().enumerate() {
        let chosen = match (kind, narrow) {
            (Kind::seg_rSI, false) => OpKind::MemorySegRSI,
            (Kind::seg_rSI, true) => OpKind::MemorySegESI,
            (Kind::es_rDI, false) => OpKind::MemoryESRDI,
            (Kind::es_rDI, true) => OpKind::MemoryESEDI,
            _ => continue,
        };
        instruction.set_op_kind(u32::try_from(op).unwrap(), chosen);
    }
    let high = if narrow { random.number() << 32 } else { 0 };
    let place = |random: &mut Random| {
        top.arena() + ARENA_BYTES as u64 / 4 + random.below(ARENA_BYTES as u64 / 2)
    };
    state.gpr[6] = high | place(random);
    state.gpr[7] = high | place(random);
    if kinds.contains(&Kind::seg_rSI) && !narrow && random.one_in(4) {
        instruction.set_segment_prefix(Register::GS);
        state.gpr[6] = state.gpr[6].wrapping_sub(top.gs);
    }
    state.gpr[1] = high | random.below(40);
    if random.one_in(2) {
        state.flags |= ioasid_mmio::flags::DF;
    }
    let compares = matches!(
        instruction.mnemonic(),
        Mnemonic::Cmpsb
            | Mnemonic::Cmpsw
            | Mnemonic::Cmpsd
            | Mnemonic::Cmpsq
            | Mnemonic::Scasb
            | Mnemonic::Scasw
            | Mnemonic::Scasd
            | Mnemonic::Scasq
    );
    match random.below(3) {
        0 => {}
        1 if compares => instruction.set_has_repne_prefix(true),
        _ => instruction.set_has_rep_prefix(true),
    }
}
