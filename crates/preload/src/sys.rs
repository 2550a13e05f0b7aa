//! System calls, without a C library and without `errno`, which belongs to the program.

use core::{
    arch::{asm, global_asm},
    ffi::{c_char, c_void},
};

use crate::call::{Kind, Shape};

/// Bus error: an access past the end of a mapped file.
pub const SIGBUS: i32 = 7;
/// Illegal instruction.
pub const SIGILL: i32 = 4;
/// Segmentation fault.
pub const SIGSEGV: i32 = 11;

/// Not supported by this kernel, or forbidden.
pub const ENOSYS: i64 = 38;
/// Not permitted.
pub const EPERM: i64 = 1;
/// Interrupted by a signal.
pub const EINTR: i64 = 4;
/// Not an open descriptor.
pub const EBADF: i32 = 9;
/// Invalid argument.
pub const EINVAL: i32 = 22;

/// `rt_sigaction` flags.
pub mod flag {
    /// The handler takes three arguments.
    pub const SIGINFO: u64 = 4;
    /// On the alternate stack, if there is one.
    pub const ONSTACK: u64 = 0x0800_0000;
    /// Interrupted calls go on.
    pub const RESTART: u64 = 0x1000_0000;
    /// The signal is not blocked in its own handler.
    pub const NODEFER: u64 = 0x4000_0000;
    /// The action is the default again once the handler runs.
    pub const RESETHAND: u64 = 0x8000_0000;
    /// `restorer` is set.
    pub const RESTORER: u64 = 0x0400_0000;
}

/// `SIG_DFL`.
pub const DEFAULT: usize = 0;
/// `SIG_IGN`.
pub const IGNORE: usize = 1;
/// `SIG_ERR`.
pub const ERROR: usize = usize::MAX;

/// `SIG_SETMASK`.
pub const SETMASK: i32 = 2;
/// `SIG_BLOCK`.
pub const BLOCK: i32 = 0;
/// `SIG_UNBLOCK`.
pub const UNBLOCK: i32 = 1;

mod number {
    pub(super) const CLOSE: i64 = 3;
    pub(super) const NEWFSTATAT: i64 = 262;
    pub(super) const STATX: i64 = 332;
    pub(super) const MMAP: i64 = 9;
    pub(super) const MUNMAP: i64 = 11;
    pub(super) const RT_SIGACTION: i64 = 13;
    pub(super) const RT_SIGPROCMASK: i64 = 14;
    pub(super) const IOCTL: i64 = 16;
    pub(super) const PWRITE64: i64 = 18;
    pub(super) const MADVISE: i64 = 28;
    pub(super) const GETPID: i64 = 39;
    pub(super) const EXIT: i64 = 60;
    pub(super) const WAIT4: i64 = 61;
    pub(super) const CHDIR: i64 = 80;
    pub(super) const GETPPID: i64 = 110;
    pub(super) const SETSID: i64 = 112;
    pub(super) const PRCTL: i64 = 157;
    pub(super) const FUTEX: i64 = 202;
    pub(super) const CLOSE_RANGE: i64 = 436;
    pub(super) const ARCH_PRCTL: i64 = 158;
    pub(super) const GETTID: i64 = 186;
    pub(super) const TGKILL: i64 = 234;
    #[cfg(all(feature = "image", not(test)))]
    pub(super) const EXIT_GROUP: i64 = 231;
    pub(super) const PROCESS_VM_READV: i64 = 310;
    pub(super) const PROCESS_VM_WRITEV: i64 = 311;
}

/// The kernel's `struct sigaction`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct KernelAction {
    /// Address of the handler, [`DEFAULT`] or [`IGNORE`].
    pub handler: usize,
    /// [`flag`].
    pub flags: u64,
    /// Address of the code that ends the handler.
    pub restorer: usize,
    /// Blocked while the handler runs: bit N-1 for signal N.
    pub mask: u64,
}

// As every C library has it: debuggers and unwinders know a signal frame by these very bytes.
global_asm!(
    ".hidden ioasid_restore",
    ".type ioasid_restore, @function",
    ".balign 16",
    "nop",
    "ioasid_restore:",
    ".byte 0x48, 0xc7, 0xc0, 0x0f, 0x00, 0x00, 0x00",
    "syscall",
    ".size ioasid_restore, . - ioasid_restore",
);

unsafe extern "C" {
    fn ioasid_restore();
}

/// Address of the code that ends a handler of this library.
pub fn restorer() -> usize {
    ioasid_restore as *const () as usize
}

/// A system call with six arguments; what it returns, negative errno included.
///
/// # Safety
/// As the call's.
unsafe fn syscall(number: i64, args: [u64; 6]) -> i64 {
    let [a, b, c, d, e, f] = args;
    let ret;
    // SAFETY: the convention of x86-64 Linux; what the call itself does is the caller's business.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => ret,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    ret
}

/// Asks the session (see [`crate::call`]).
pub fn access(address: u64, shape: u64, value: u64, buffer: *mut [u8; 64]) -> i64 {
    let request = u64::from(crate::call::ACCESS);
    let args = [u64::MAX, request, address, shape, value, buffer as u64];
    loop {
        // SAFETY: descriptor -1 is never open, so the kernel itself touches nothing; a session
        // reads or writes at most the 64 bytes of the buffer, which its caller holds.
        let ret = unsafe { syscall(number::IOCTL, args) };
        if ret != -EINTR {
            return ret;
        }
    }
}

/// `newfstatat`: 0 or a negative errno.
///
/// # Safety
/// As the call's: `to` is null, or has room for a `struct stat` of the caller's.
pub unsafe fn newfstatat(directory: i32, path: *const c_char, to: *mut c_void, flags: i32) -> i64 {
    let args = [directory as u64, path as u64, to as u64, flags as u64, 0, 0];
    // SAFETY: the caller's promise.
    unsafe { syscall(number::NEWFSTATAT, args) }
}

/// `statx`: 0 or a negative errno.
///
/// # Safety
/// As [`newfstatat`], for a `struct statx`.
pub unsafe fn statx(
    directory: i32,
    path: *const c_char,
    flags: i32,
    mask: u32,
    to: *mut c_void,
) -> i64 {
    let args = [
        directory as u64,
        path as u64,
        flags as u64,
        mask.into(),
        to as u64,
        0,
    ];
    // SAFETY: the caller's promise.
    unsafe { syscall(number::STATX, args) }
}

/// `ioctl(2)`; what it returns, negative errno included.
///
/// # Safety
/// As the call's.
pub unsafe fn ioctl(fd: i32, request: u64, argument: u64) -> i64 {
    // SAFETY: the caller's promise.
    unsafe { syscall(number::IOCTL, [fd as u64, request, argument, 0, 0, 0]) }
}

/// `pwrite(2)`; what it returns, negative errno included.
///
/// # Safety
/// As the call's.
pub unsafe fn pwrite(fd: i32, from: *const c_void, len: usize, at: i64) -> i64 {
    let args = [fd as u64, from as u64, len as u64, at as u64, 0, 0];
    // SAFETY: the caller's promise.
    unsafe { syscall(number::PWRITE64, args) }
}

/// The action of `signal`; sets it first to `new`, if there is one.
///
/// # Errors
/// The errno.
pub fn sigaction(signal: i32, new: Option<&KernelAction>) -> Result<KernelAction, i32> {
    let mut old = KernelAction::default();
    let new = new.map_or(0, |new| core::ptr::from_ref(new) as u64);
    let old_at = core::ptr::from_mut(&mut old) as u64;
    let args = [signal as u64, new, old_at, 8, 0, 0];
    // SAFETY: both structures live across the call; 8 is the size of the mask. What a handler does
    // is the business of the code that set it.
    match unsafe { syscall(number::RT_SIGACTION, args) } {
        0 => Ok(old),
        error => Err(-error as i32),
    }
}

/// The signals that are blocked in this thread; changes them by `how` and `set` first, if there is
/// a set.
///
/// # Errors
/// The errno.
pub fn sigprocmask(how: i32, set: Option<u64>) -> Result<u64, i32> {
    let mut old = 0u64;
    let new = set
        .as_ref()
        .map_or(0, |set| core::ptr::from_ref(set) as u64);
    let old_at = core::ptr::from_mut(&mut old) as u64;
    // SAFETY: both sets live across the call and have the 8 bytes that the kernel expects.
    let ret = unsafe { syscall(number::RT_SIGPROCMASK, [how as u64, new, old_at, 8, 0, 0]) };
    match ret {
        0 => Ok(old),
        error => Err(-error as i32),
    }
}

/// This process.
pub fn getpid() -> i32 {
    // SAFETY: takes no pointer.
    unsafe { syscall(number::GETPID, [0; 6]) as i32 }
}

/// Sends `signal` to this thread.
pub fn raise(signal: i32) {
    // SAFETY: takes no pointer.
    unsafe {
        let tid = syscall(number::GETTID, [0; 6]) as u64;
        syscall(
            number::TGKILL,
            [getpid() as u64, tid, signal as u64, 0, 0, 0],
        );
    }
}

/// A new page of zeros that is zeros again in a child of `fork`; `None` if the kernel has none.
pub fn page_wiped_on_fork() -> Option<core::ptr::NonNull<u8>> {
    const READ_WRITE: u64 = 3;
    const PRIVATE_ANONYMOUS: u64 = 0x22;
    const WIPEONFORK: u64 = 18;
    let args = [0, 4096, READ_WRITE, PRIVATE_ANONYMOUS, u64::MAX, 0];
    // SAFETY: a new mapping where nothing is; the advice changes nothing here and now.
    let page = unsafe {
        let page = syscall(number::MMAP, args);
        if (-4095..0).contains(&page)
            || syscall(number::MADVISE, [page as u64, 4096, WIPEONFORK, 0, 0, 0]) != 0
        {
            return None;
        }
        page
    };
    core::ptr::NonNull::new(page as *mut u8)
}

/// The page that the session gives this process when asked for `kind`, which no child of `fork` has;
/// `None` if there is none.
pub fn shared_page(kind: Kind) -> Option<core::ptr::NonNull<u8>> {
    const READ_WRITE: u64 = 3;
    const SHARED: u64 = 1;
    let len = crate::page::PAGE_BYTES as u64;
    let shape = Shape { kind, size: 1 };
    let mut nothing = [0; 64];
    let fd = u64::try_from(access(0, shape.encode(), 0, &mut nothing)).ok()?;
    // SAFETY: the descriptor is new and not used elsewhere, the mapping is new and lies where
    // nothing is.
    unsafe {
        let page = syscall(number::MMAP, [0, len, READ_WRITE, SHARED, fd, 0]);
        syscall(number::CLOSE, [fd, 0, 0, 0, 0, 0]);
        not_inherited(page, len)
    }
}

/// New memory of `len` bytes that no child of `fork` has.
pub fn memory_of_its_own(len: u64) -> Option<core::ptr::NonNull<u8>> {
    const READ_WRITE: u64 = 3;
    const PRIVATE_ANONYMOUS: u64 = 0x22;
    let args = [0, len, READ_WRITE, PRIVATE_ANONYMOUS, u64::MAX, 0];
    // SAFETY: a new mapping where nothing is.
    unsafe { not_inherited(syscall(number::MMAP, args), len) }
}

/// Keeps a mapping, or what `mmap` has said, out of children and of core dumps.
///
/// # Safety
/// Nothing uses the mapping yet: if it cannot be kept out, it goes.
unsafe fn not_inherited(mapped: i64, len: u64) -> Option<core::ptr::NonNull<u8>> {
    const DONTFORK: u64 = 10;
    const DONTDUMP: u64 = 16;
    if (-4095..0).contains(&mapped) {
        return None;
    }
    // SAFETY: the caller's promise.
    unsafe {
        if syscall(number::MADVISE, [mapped as u64, len, DONTFORK, 0, 0, 0]) != 0 {
            syscall(number::MUNMAP, [mapped as u64, len, 0, 0, 0, 0]);
            return None;
        }
        syscall(number::MADVISE, [mapped as u64, len, DONTDUMP, 0, 0, 0]);
    }
    core::ptr::NonNull::new(mapped as *mut u8)
}

/// The base of FS or GS (`ARCH_GET_FS` 0x1003, `ARCH_GET_GS` 0x1004).
pub fn segment_base(code: u64) -> u64 {
    let mut base = 0u64;
    let at = core::ptr::from_mut(&mut base) as u64;
    // SAFETY: the kernel writes the eight bytes of `base`.
    unsafe { syscall(number::ARCH_PRCTL, [code, at, 0, 0, 0, 0]) };
    base
}

#[repr(C)]
struct Piece {
    start: u64,
    len: usize,
}

/// Copies from this process's own memory, as another process would: what is not there is an error
/// and no fault. Returns the bytes copied or a negative errno.
pub fn read_own(address: u64, data: &mut [u8]) -> i64 {
    // SAFETY: `data` is written as far as it goes.
    unsafe {
        move_own(
            number::PROCESS_VM_READV,
            data.as_mut_ptr() as u64,
            data.len(),
            address,
        )
    }
}

/// Copies to this process's own memory, likewise.
pub fn write_own(address: u64, data: &[u8]) -> i64 {
    // SAFETY: `data` is only read; what is written is what the program's instruction would write.
    unsafe {
        move_own(
            number::PROCESS_VM_WRITEV,
            data.as_ptr() as u64,
            data.len(),
            address,
        )
    }
}

/// # Safety
/// `here` has `len` bytes, which the call may write if it reads from `there`.
unsafe fn move_own(call: i64, here: u64, len: usize, there: u64) -> i64 {
    let here = Piece { start: here, len };
    let there = Piece { start: there, len };
    let at = |piece: &Piece| core::ptr::from_ref(piece) as u64;
    let args = [getpid() as u64, at(&here), 1, at(&there), 1, 0];
    // SAFETY: both pieces live across the call; what they point to is the caller's promise, and the
    // kernel checks the other side.
    unsafe { syscall(call, args) }
}

/// Ends the process.
#[cfg(all(feature = "image", not(test)))]
pub(crate) fn exit() -> ! {
    loop {
        // SAFETY: ends this process.
        unsafe { syscall(number::EXIT_GROUP, [127, 0, 0, 0, 0, 0]) };
    }
}

/// What only an agent does ([`crate::agent`]).
pub mod alone {
    use super::{number, syscall};

    /// The process that this one was started by.
    pub fn getppid() -> i32 {
        // SAFETY: takes no pointer.
        unsafe { syscall(number::GETPPID, [0; 6]) as i32 }
    }

    /// Whether a child has ended, and is collected if it has.
    pub fn has_ended(child: i32) -> bool {
        const WNOHANG: u64 = 1;
        const WCLONE: u64 = 0x8000_0000;
        // SAFETY: nothing is written through the two null pointers.
        unsafe { syscall(number::WAIT4, [child as u64, 0, WNOHANG | WCLONE, 0, 0, 0]) != 0 }
    }

    /// Has the kernel kill this process when the thread that started it ends.
    pub fn end_with_parent() -> Option<()> {
        const PR_SET_PDEATHSIG: u64 = 1;
        const SIGKILL: u64 = 9;
        // SAFETY: takes no pointer.
        (unsafe { syscall(number::PRCTL, [PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0, 0]) } == 0)
            .then_some(())
    }

    /// Leaves the descriptor table that it shares, with none of its own.
    pub fn close_all() -> Option<()> {
        const UNSHARE: u64 = 2;
        let args = [0, u64::from(u32::MAX), UNSHARE, 0, 0, 0];
        // SAFETY: closes nothing of a table that is shared: without the flag the call fails.
        (unsafe { syscall(number::CLOSE_RANGE, args) } == 0).then_some(())
    }

    /// Leaves terminal, process group and working directory, and takes a name.
    pub fn leave_session() {
        const PR_SET_NAME: u64 = 15;
        // SAFETY: both strings are constants that end with a zero.
        unsafe {
            syscall(number::SETSID, [0; 6]);
            syscall(number::CHDIR, [c"/".as_ptr() as u64, 0, 0, 0, 0, 0]);
            let name = c"ioasid-agent".as_ptr() as u64;
            syscall(number::PRCTL, [PR_SET_NAME, name, 0, 0, 0, 0]);
        }
    }

    /// One instruction of a filter (`struct sock_filter`).
    #[repr(C)]
    struct Instruction {
        code: u16,
        jump_true: u8,
        jump_false: u8,
        value: u32,
    }

    /// `struct sock_fprog`.
    #[repr(C)]
    struct Program {
        len: u16,
        instructions: *const Instruction,
    }

    /// From here on any call but `futex`, `rt_sigreturn`, `exit` and `exit_group` ends this process.
    /// Whether the kernel has agreed.
    pub fn leave_four_calls() -> bool {
        const PR_SET_SECCOMP: u64 = 22;
        const PR_SET_NO_NEW_PRIVS: u64 = 38;
        const FILTER: u64 = 2;
        const LOAD: u16 = 0x20;
        const JUMP_IF_EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        const ALLOW: u32 = 0x7fff_0000;
        const KILL_PROCESS: u32 = 0x8000_0000;
        const ARCH_X86_64: u32 = 0xc000_003e;
        let op = |code, value| Instruction {
            code,
            jump_true: 0,
            jump_false: 0,
            value,
        };
        let to_allow = |value, jump_true| Instruction {
            code: JUMP_IF_EQUAL,
            jump_true,
            jump_false: 0,
            value,
        };
        let instructions = [
            op(LOAD, 4),
            Instruction {
                code: JUMP_IF_EQUAL,
                jump_true: 0,
                jump_false: 5,
                value: ARCH_X86_64,
            },
            op(LOAD, 0),
            to_allow(number::FUTEX as u32, 4),
            to_allow(15, 3),
            to_allow(number::EXIT as u32, 2),
            to_allow(231, 1),
            op(RETURN, KILL_PROCESS),
            op(RETURN, ALLOW),
        ];
        let program = Program {
            len: instructions.len() as u16,
            instructions: instructions.as_ptr(),
        };
        let at = core::ptr::from_ref(&program) as u64;
        // SAFETY: the kernel reads the program and its instructions, which live across the call.
        unsafe {
            syscall(number::PRCTL, [PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0]) == 0
                && syscall(number::PRCTL, [PR_SET_SECCOMP, FILTER, at, 0, 0, 0]) == 0
        }
    }

    /// Ends this process, which has one thread.
    pub fn exit_thread() -> ! {
        loop {
            // SAFETY: ends this thread.
            unsafe { syscall(number::EXIT, [0; 6]) };
        }
    }

    /// Sleeps while the word at `address`, which other address spaces share, is `value`.
    pub fn futex_wait(address: usize, value: u32) {
        const WAIT: u64 = 0;
        // SAFETY: the kernel reads the word, if there is one.
        unsafe { syscall(number::FUTEX, [address as u64, WAIT, value.into(), 0, 0, 0]) };
    }

    /// Wakes who sleeps on the word at `address`.
    pub fn futex_wake(address: usize) {
        const WAKE: u64 = 1;
        // SAFETY: the kernel uses the address alone.
        unsafe { syscall(number::FUTEX, [address as u64, WAKE, 1, 0, 0, 0]) };
    }
}
