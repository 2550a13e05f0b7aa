//! A page of code in which the real processor runs one instruction with registers of our choice.
//!
//! Everything lies below 2 GiB, so that the code around the instruction reaches the state by
//! absolute addresses and needs no register of its own.

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Register};

use crate::machine::State;

const CODE: usize = 0;
const CODE_BYTES: usize = 0x2000;
const STATE: usize = CODE + CODE_BYTES;
const STATE_BYTES: usize = 0x1000;
/// The memory that instructions work on.
const ARENA: usize = STATE + STATE_BYTES;
pub const ARENA_BYTES: usize = 0x2000;
const TOTAL: usize = ARENA + ARENA_BYTES;

/// Flags of every thread, apart from those a test chooses: interrupts on, and the bit that is 1.
pub const FIXED_FLAGS: u64 = 0x202;

#[derive(Debug)]
pub struct BenchTop {
    start: u64,
    gs_before: u64,
    pub fs: u64,
    pub gs: u64,
}

const ARCH_SET_GS: i32 = 0x1001;
const ARCH_GET_FS: i32 = 0x1003;
const ARCH_GET_GS: i32 = 0x1004;

fn get_base(which: i32) -> u64 {
    let mut base = 0_u64;
    // SAFETY: the call writes one number to `base`.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, which, &raw mut base) };
    assert_eq!(result, 0);
    base
}

fn set_gs(base: u64) {
    // SAFETY: nothing on x86-64 Linux uses GS in user space.
    let result = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_GS, base) };
    assert_eq!(result, 0);
}

impl BenchTop {
    /// For the calling thread alone: the segment bases are its own.
    pub fn new() -> BenchTop {
        // SAFETY: a new mapping, at an address that the kernel chooses.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                TOTAL,
                libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        assert_ne!(start, libc::MAP_FAILED);
        let gs_before = get_base(ARCH_GET_GS);
        let gs = 0x1234_5600;
        set_gs(gs);
        BenchTop {
            start: start as u64,
            gs_before,
            fs: get_base(ARCH_GET_FS),
            gs,
        }
    }

    pub fn arena(&self) -> u64 {
        self.start + ARENA as u64
    }

    /// Where the instruction will be.
    pub fn instruction_at(&self) -> u64 {
        self.start + (CODE_BYTES / 2) as u64
    }

    fn absolute(&self, offset: usize) -> MemoryOperand {
        let address = self.start + (STATE + offset) as u64;
        MemoryOperand::with_displ(address, 8)
    }

    /// Moves between all registers and the state; the stack pointer is switched by the caller.
    fn registers(&self, load: bool) -> Vec<Instruction> {
        let mut code = Vec::new();
        let mut both = |to_register: Code, to_memory: Code, register: Register, offset: usize| {
            let memory = self.absolute(offset);
            let made = if load {
                Instruction::with2(to_register, register, memory)
            } else {
                Instruction::with2(to_memory, memory, register)
            };
            code.push(made.unwrap());
        };
        let gpr = |both: &mut dyn FnMut(Code, Code, Register, usize)| {
            for index in 0..16 {
                let offset = std::mem::offset_of!(State, gpr) + index * 8;
                let register = Register::RAX + index as u32;
                both(Code::Mov_r64_rm64, Code::Mov_rm64_r64, register, offset);
            }
        };
        let wide = |both: &mut dyn FnMut(Code, Code, Register, usize)| {
            for index in 0..8 {
                both(
                    Code::VEX_Kmovq_kr_km64,
                    Code::VEX_Kmovq_m64_kr,
                    Register::K0 + index as u32,
                    std::mem::offset_of!(State, opmasks) + index * 8,
                );
            }
            for index in 0..32 {
                both(
                    Code::EVEX_Vmovdqu64_zmm_k1z_zmmm512,
                    Code::EVEX_Vmovdqu64_zmmm512_k1z_zmm,
                    Register::ZMM0 + index as u32,
                    std::mem::offset_of!(State, vectors) + index * 64,
                );
            }
        };
        if load {
            wide(&mut both);
            gpr(&mut both);
        } else {
            gpr(&mut both);
            wide(&mut both);
        }
        code
    }

    fn write_code(&self, instruction: &[u8]) {
        let saved = [
            Register::RBX,
            Register::RBP,
            Register::R12,
            Register::R13,
            Register::R14,
            Register::R15,
        ];
        let host_stack = self.absolute(std::mem::offset_of!(State, host_stack));
        let flags = self.absolute(std::mem::offset_of!(State, flags));
        let with1 = |code, register| Instruction::with1(code, register).unwrap();
        let mut before: Vec<Instruction> = saved
            .iter()
            .map(|register| with1(Code::Push_r64, *register))
            .collect();
        before.push(Instruction::with2(Code::Mov_rm64_r64, host_stack, Register::RSP).unwrap());
        before.push(Instruction::with1(Code::Push_rm64, flags).unwrap());
        before.push(Instruction::with(Code::Popfq));
        before.extend(self.registers(true));
        let at = self.instruction_at();
        before.push(Instruction::with_branch(Code::Jmp_rel32_64, at).unwrap());

        let mut after = self.registers(false);
        after.push(Instruction::with2(Code::Mov_r64_rm64, Register::RSP, host_stack).unwrap());
        after.push(Instruction::with(Code::Pushfq));
        after.push(Instruction::with1(Code::Pop_rm64, flags).unwrap());
        after.push(Instruction::with(Code::Cld));
        after.push(Instruction::with(Code::VEX_Vzeroupper));
        let restored = saved.iter().rev();
        after.extend(restored.map(|register| with1(Code::Pop_r64, *register)));
        after.push(Instruction::with(Code::Retnq));

        self.encode_at(&before, self.start);
        self.copy_to(at, instruction);
        self.encode_at(&after, at + instruction.len() as u64);
    }

    fn encode_at(&self, code: &[Instruction], at: u64) {
        let mut encoder = Encoder::new(64);
        let mut ip = at;
        for instruction in code {
            ip += encoder.encode(instruction, ip).unwrap() as u64;
        }
        self.copy_to(at, &encoder.take_buffer());
    }

    fn copy_to(&self, at: u64, bytes: &[u8]) {
        assert!(at >= self.start && at + bytes.len() as u64 <= self.start + TOTAL as u64);
        // SAFETY: inside of the mapping, and nobody else uses it meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
    }

    /// The memory that instructions work on, as it is.
    pub fn read_arena(&self) -> Vec<u8> {
        let mut bytes = vec![0; ARENA_BYTES];
        // SAFETY: the arena is mapped as long as `self` is.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.arena() as *const u8,
                bytes.as_mut_ptr(),
                ARENA_BYTES,
            );
        }
        bytes
    }

    /// Puts the instruction in its place. What follows it is valid code.
    pub fn prepare(&self, instruction: &[u8], state: &State, arena: &[u8]) {
        self.write_code(instruction);
        let state_at = self.start + STATE as u64;
        // SAFETY: the state has its own page of the mapping, aligned as it demands.
        unsafe { std::ptr::write(state_at as *mut State, state.clone()) };
        assert_eq!(arena.len(), ARENA_BYTES);
        self.copy_to(self.arena(), arena);
    }

    /// Runs what was prepared; the registers and memory afterwards.
    ///
    /// # Safety
    /// The instruction touches nothing but registers and the arena.
    pub unsafe fn run(&self) -> (State, Vec<u8>) {
        // SAFETY: as the caller promises.
        unsafe { self.enter() };
        let state_at = self.start + STATE as u64;
        // SAFETY: written by `prepare` and by the code.
        let mut state = unsafe { std::ptr::read(state_at as *const State) };
        state.host_stack = 0;
        (state, self.read_arena())
    }

    /// Whether this processor knows the instruction that was prepared: a child tries.
    pub fn is_known(&self) -> bool {
        // SAFETY: the child calls nothing but the code and `_exit`.
        unsafe {
            let child = libc::fork();
            if child == 0 {
                self.enter();
                libc::_exit(0);
            }
            let mut status = 0;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            libc::WIFEXITED(status) || libc::WTERMSIG(status) != libc::SIGILL
        }
    }

    /// # Safety
    /// As for [`Self::run`].
    unsafe fn enter(&self) {
        // SAFETY: the code keeps to the C calling convention around the instruction.
        let entry: unsafe extern "C" fn() = unsafe { std::mem::transmute(self.start as usize) };
        // SAFETY: as the caller promises.
        unsafe { entry() };
    }
}

impl Drop for BenchTop {
    fn drop(&mut self) {
        set_gs(self.gs_before);
        // SAFETY: mapped by `new`, and nothing refers to it any more.
        unsafe { libc::munmap(self.start as *mut libc::c_void, TOTAL) };
    }
}
