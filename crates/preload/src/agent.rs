//! The agent: a process that shares the program's address space and copies in it.
//!
//! A session that moves private memory of a program needs system calls and two copies for it. Here
//! it is one copy by the processor, through the program's own page table. The agent is started once
//! the session has moved enough of it ([`Errands::wish`]), by whichever thread next asks the session
//! for something.
//!
//! What it is, and is not:
//!
//! * A child of the program, and none of its threads: `clone` with `CLONE_VM` alone. It is no child that
//!   `wait` finds, as it ends without a signal (only `__WALL` and `__WCLONE` show it), and in no core
//!   dump or debugger's list of threads (`CLONE_UNTRACED`).
//! * It has no descriptor, no signal but those of its own faults, its own session of processes, so that
//!   no terminal reaches it, and a filter that leaves it four system calls: to sleep, to wake, to return
//!   from its handler and to end. So it does nothing but copy, whatever the program puts into its memory.
//! * It ends with the thread that started it, by the kernel (`PR_SET_PDEATHSIG`), and so with the
//!   program; and the session ends it before `exec` and before the calls that ask whether a process has
//!   its memory to itself.
//! * Its stack and the page of errands are in no child of `fork`.

use core::{arch::global_asm, ptr::NonNull};

use ioasid_mmio::Cpu as _;

use crate::{
    call::{Kind, Shape},
    errands::{Errands, Futex, Word},
    layout::Stat,
    own,
    registers::{Frame, Registers},
    sys::{self, KernelAction, alone, flag},
};

/// Bytes of its stack: two signal frames of a processor with everything fit several times.
const STACK: u64 = 64 << 10;

/// Starts an agent if the session wants one.
pub fn start_if_wanted() {
    if let Some(errands) = own::errands()
        && errands.take_wish()
        && !own::is_borrowed()
        && !is_emulated()
        && children_stay_here()
    {
        own::start_agent(STACK, |stack| start(errands, stack));
    }
}

/// Whether valgrind runs this program: its processor knows no such child.
fn is_emulated() -> bool {
    let request: [u64; 6] = [0x1001, 0, 0, 0, 0, 0];
    let mut answer = 0u64;
    // SAFETY: on a processor the four rotations add up to 128 bits and the exchange is of a register
    // with itself, so nothing changes; valgrind reads the six words and writes RDX.
    unsafe {
        core::arch::asm!(
            "rol rdi, 3", "rol rdi, 13", "rol rdi, 61", "rol rdi, 51",
            "xchg rbx, rbx",
            in("rax") request.as_ptr(),
            inout("rdx") answer,
            inout("rdi") 0u64 => _,
        );
    }
    answer != 0
}

/// Whether a child would be in the same process namespace. In a new one it would be the first process,
/// and its end would be that of the namespace.
fn children_stay_here() -> bool {
    let namespace = |path: &core::ffi::CStr| {
        let mut stat = Stat::default();
        // SAFETY: a path that ends with 0 and a structure of this function.
        let ret = unsafe { sys::newfstatat(-100, path.as_ptr(), (&raw mut stat).cast(), 0) };
        (ret == 0).then_some((stat.dev, stat.ino))
    };
    let here = namespace(c"/proc/self/ns/pid");
    here.is_some() && here == namespace(c"/proc/self/ns/pid_for_children")
}

const CLONE_VM: u64 = 0x100;
const CLONE_FILES: u64 = 0x400;
const CLONE_UNTRACED: u64 = 0x0080_0000;

/// Starts an agent on `stack`; its number, or an error.
fn start(errands: &'static Errands, stack: NonNull<u8>) -> i64 {
    let Ok(mask) = sys::sigprocmask(sys::SETMASK, Some(u64::MAX)) else {
        return -1;
    };
    // Descriptors are shared until the agent has shut its own table: a copy of the table would be a
    // moment in which they are open twice.
    let flags = CLONE_VM | CLONE_FILES | CLONE_UNTRACED;
    let top = (stack.as_ptr() as u64).wrapping_add(STACK);
    // SAFETY: nobody else is on the stack, as `own` knows of no other agent; the page of errands is mapped
    // for good. The agent runs `run` and never returns.
    let child = unsafe { ioasid_agent_clone(flags, top, run, core::ptr::from_ref(errands).cast()) };
    let _ = sys::sigprocmask(sys::SETMASK, Some(mask));
    child
}

global_asm!(
    ".hidden ioasid_agent_clone",
    ".type ioasid_agent_clone, @function",
    ".balign 16",
    // (rdi: flags, rsi: top of the stack, rdx: function, rcx: its argument) -> rax: child, or an error
    "ioasid_agent_clone:",
    "    mov r8, rdx",
    "    mov r9, rcx",
    "    xor edx, edx",
    "    xor r10d, r10d",
    "    mov eax, 56",
    "    syscall",
    "    test rax, rax",
    "    jnz 2f",
    "    xor ebp, ebp",
    "    mov rdi, r9",
    "    call r8",
    "    ud2",
    "2:  ret",
    ".size ioasid_agent_clone, . - ioasid_agent_clone",
    // (rdi: dst, rsi: src, rdx: len) -> rax: bytes not copied
    ".hidden ioasid_agent_copy",
    ".type ioasid_agent_copy, @function",
    ".balign 32",
    "ioasid_agent_copy:",
    "    mov rcx, rdx",
    "    mov rax, rdi",
    "    sub rax, rsi",
    "    and eax, 4095",
    // `rep movsb` is as fast as copies get, but where the destination lies a few bytes above the
    // source in a page.
    "    cmp eax, 63",
    "    ja ioasid_agent_string",
    "    test eax, eax",
    "    jz ioasid_agent_string",
    "2:  cmp rcx, 64",
    "    jb ioasid_agent_string",
    ".hidden ioasid_agent_blocks",
    "ioasid_agent_blocks:",
    "    movups xmm0, [rsi]",
    "    movups xmm1, [rsi + 16]",
    "    movups xmm2, [rsi + 32]",
    "    movups xmm3, [rsi + 48]",
    "    movups [rdi], xmm0",
    "    movups [rdi + 16], xmm1",
    "    movups [rdi + 32], xmm2",
    "    movups [rdi + 48], xmm3",
    ".hidden ioasid_agent_blocks_end",
    "ioasid_agent_blocks_end:",
    "    add rsi, 64",
    "    add rdi, 64",
    "    sub rcx, 64",
    "    jmp 2b",
    ".hidden ioasid_agent_string",
    "ioasid_agent_string:",
    "    rep movsb",
    ".hidden ioasid_agent_copied",
    "ioasid_agent_copied:",
    "    mov rax, rcx",
    "    ret",
    ".size ioasid_agent_copy, . - ioasid_agent_copy",
);

// SAFETY: defined above. The two functions keep to the System V ABI; the rest are addresses inside of
// the second, never called.
unsafe extern "sysv64" {
    fn ioasid_agent_clone(
        flags: u64,
        top: u64,
        run: unsafe extern "sysv64" fn(*const u8) -> !,
        errands: *const u8,
    ) -> i64;
    fn ioasid_agent_copy(dst: u64, src: u64, len: u64) -> u64;
    fn ioasid_agent_blocks();
    fn ioasid_agent_blocks_end();
    fn ioasid_agent_string();
    fn ioasid_agent_copied();
}

/// What the agent does, on its own stack, with the program's thread registers: it uses none of them.
///
/// # Safety
/// `errands` is the page of errands, mapped for good.
unsafe extern "sysv64" fn run(errands: *const u8) -> ! {
    // SAFETY: the caller's promise; all fields are atomic.
    let errands = unsafe { &*errands.cast::<Errands>() };
    if set_up().is_some() {
        let mut last = errands.last_asked();
        if is_welcome() && alone::leave_four_calls() {
            loop {
                last = errands.serve(last, &SharedFutex, copy);
            }
        }
    }
    alone::exit_thread()
}

/// Gives up what the program has, and takes its own handlers.
fn set_up() -> Option<()> {
    let parent = own::pid()?;
    alone::end_with_parent()?;
    // It may have ended before.
    (alone::getppid() == parent).then_some(())?;
    alone::close_all()?;
    alone::leave_session();
    let action = KernelAction {
        handler: on_fault as *const () as usize,
        flags: flag::SIGINFO | flag::RESTORER,
        restorer: sys::restorer(),
        mask: u64::MAX,
    };
    for signal in [sys::SIGBUS, sys::SIGSEGV] {
        sys::sigaction(signal, Some(&action)).ok()?;
    }
    let faults = crate::actions::bit(sys::SIGBUS) | crate::actions::bit(sys::SIGSEGV);
    sys::sigprocmask(sys::UNBLOCK, Some(faults)).ok()?;
    Some(())
}

/// Tells the session that the agent is there.
fn is_welcome() -> bool {
    let shape = Shape {
        kind: Kind::Agent,
        size: 1,
    };
    let mut nothing = [0; 64];
    sys::access(0, shape.encode(), 0, &mut nothing) == 0
}

/// Copies as far as both ranges can be accessed; the bytes done.
fn copy(dst: u64, src: u64, len: u64) -> u64 {
    // SAFETY: the program has mapped both ranges for devices, so it expects their bytes to change at
    // any time; what it has unmapped or protected ends the copy in `on_fault`. The session never asks
    // for ranges of this library's.
    len - unsafe { ioasid_agent_copy(dst, src, len) }
}

/// Continues a copy that has faulted: behind the instruction, or, in the middle of a block, with the
/// instruction that counts bytes.
unsafe extern "C" fn on_fault(_: i32, _: *mut u8, frame: *mut Frame) {
    // SAFETY: with SA_SIGINFO the kernel gives the frame, on this stack, and nothing else refers to it.
    let mut registers = unsafe { Registers::new(&mut *frame) };
    let rip = registers.rip();
    let at = |label: unsafe extern "sysv64" fn()| label as *const () as u64;
    let goes_on = if (at(ioasid_agent_blocks)..at(ioasid_agent_blocks_end)).contains(&rip) {
        at(ioasid_agent_string)
    } else if rip == at(ioasid_agent_string) {
        at(ioasid_agent_copied)
    } else {
        alone::exit_thread()
    };
    registers.set_rip(goes_on);
}

/// Between two address spaces.
struct SharedFutex;

impl Futex for SharedFutex {
    fn wait(&self, word: &Word, value: u32) {
        alone::futex_wait(core::ptr::from_ref(word).addr(), value);
    }

    fn wake(&self, word: &Word) {
        alone::futex_wake(core::ptr::from_ref(word).addr());
    }
}
