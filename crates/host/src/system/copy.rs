//! Copies that survive the loss of a page.
//!
//! A file that a client holds can be truncated under our mapping; the next access gets SIGBUS. The
//! one instruction of this process that touches such memory is `rep movsb` in [`copy_forward`]. A
//! handler for SIGBUS and SIGSEGV knows its address range: a fault there continues behind the
//! instruction, where RCX still holds the bytes that were not copied. Any other fault is none of
//! ours and goes to whoever handled it before.
//!
//! # Safety argument
//! `rep movsb` is precise: at a fault RCX, RSI and RDI stand at the first byte that was not copied.
//! The handler writes one register of the interrupted context, calls nothing that allocates or
//! locks, and reads only a `OnceLock` that was filled before the handler was installed.
// UNSAFETY: a signal handler and the one instruction that it watches.
#![allow(unsafe_code)]

use std::{
    ffi::{c_int, c_void},
    io, mem, ptr,
    sync::OnceLock,
};

use ioasid_core::{memory::RawCopy, sync::Mutex};

std::arch::global_asm!(
    ".pushsection .text.ioasid_host_copy, \"ax\", @progbits",
    ".balign 32",
    ".type ioasid_host_copy_forward, @function",
    ".hidden ioasid_host_copy_forward",
    ".globl ioasid_host_copy_forward",
    "ioasid_host_copy_forward:", // (rdi: dst, rsi: src, rdx: len) -> rax: bytes not copied
    "    mov rcx, rdx",
    ".hidden ioasid_host_copy_faults",
    ".globl ioasid_host_copy_faults",
    "ioasid_host_copy_faults:",
    "    rep movsb",
    ".hidden ioasid_host_copy_resumes",
    ".globl ioasid_host_copy_resumes",
    "ioasid_host_copy_resumes:",
    "    mov rax, rcx",
    "    ret",
    ".size ioasid_host_copy_forward, . - ioasid_host_copy_forward",
    ".popsection",
);

// SAFETY: the symbols are defined above; the first is a function of the System V ABI that keeps
// every callee-saved register, the others are addresses inside it and never called or read.
unsafe extern "sysv64" {
    #[link_name = "ioasid_host_copy_forward"]
    fn copy_forward(dst: *mut u8, src: *const u8, len: usize) -> usize;
    #[link_name = "ioasid_host_copy_faults"]
    static COPY_FAULTS: u8;
    #[link_name = "ioasid_host_copy_resumes"]
    static COPY_RESUMES: u8;
}

/// Largest overlapping copy whose bounce buffer lives on the stack.
const SMALL: usize = 4096;

/// [`RawCopy`] that ends early where a page is gone, instead of the process.
///
/// A copy to a higher overlapping address goes through a bounce buffer rather than backwards: so
/// the bytes that were copied when a page was gone are the first ones, always, and no other byte
/// has changed. (Callers bound such copies, as every guard bounds its bytes.)
#[derive(Debug)]
pub struct RecoveringCopy {
    _installed: (),
}

static INSTANCE: RecoveringCopy = RecoveringCopy { _installed: () };

impl RecoveringCopy {
    /// The copier. The first call installs the signal handlers.
    ///
    /// # Errors
    /// What `sigaction` says.
    pub fn get() -> io::Result<&'static RecoveringCopy> {
        static INSTALLED: Mutex<bool> = Mutex::new(false);
        let mut installed = INSTALLED.lock();
        if !*installed {
            install(libc::SIGBUS, &PREVIOUS_BUS)?;
            install(libc::SIGSEGV, &PREVIOUS_SEGV)?;
            *installed = true;
        }
        Ok(&INSTANCE)
    }
}

// SAFETY: `copy` moves the bytes in ascending order where the destination does not lie inside the
// rest of the source, and through a buffer where it does: in both cases the first `len - left`
// bytes are as after a memmove, no byte behind them is touched, and `left` is 0 unless an access
// faulted.
unsafe impl RawCopy for RecoveringCopy {
    #[inline]
    unsafe fn copy(&self, dst: *mut u8, src: *const u8, len: usize) -> usize {
        let ahead = (dst as usize).wrapping_sub(src as usize);
        if ahead == 0 || ahead >= len {
            // SAFETY: the caller vouches for both ranges except for pages that are gone, and the
            // handler is installed, since `self` exists.
            return len - unsafe { copy_forward(dst, src, len) };
        }
        let (mut small, mut large);
        let bounce: &mut [u8] = if len <= SMALL {
            small = [0; SMALL];
            &mut small[..len]
        } else {
            large = vec![0; len];
            &mut large
        };
        // SAFETY: as above; the buffer holds `len` bytes and overlaps neither range.
        unsafe {
            let read = len - copy_forward(bounce.as_mut_ptr(), src, len);
            read - copy_forward(dst, bounce.as_ptr(), read)
        }
    }

    fn recovers(&self) -> bool {
        true
    }
}

/// Who handled the signals before us.
static PREVIOUS_BUS: OnceLock<libc::sigaction> = OnceLock::new();
static PREVIOUS_SEGV: OnceLock<libc::sigaction> = OnceLock::new();

fn install(signal: c_int, previous: &OnceLock<libc::sigaction>) -> io::Result<()> {
    // SAFETY: all-zero is a valid `sigaction`: the default action and an empty mask.
    let (mut old, mut new): (libc::sigaction, libc::sigaction) = unsafe { mem::zeroed() };
    // SAFETY: a null new action only reads the old one into a live local.
    if unsafe { libc::sigaction(signal, ptr::null(), &raw mut old) } != 0 {
        return Err(io::Error::last_os_error());
    }
    previous.get_or_init(|| old);
    let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = handle;
    new.sa_sigaction = handler as usize;
    // On the alternate stack where there is one, since the previous handler (Rust's own, which
    // reports a stack overflow) needs it.
    new.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: `handle` has the signature of SA_SIGINFO and is async-signal-safe (see above).
    if unsafe { libc::sigaction(signal, &raw const new, ptr::null_mut()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

extern "C" fn handle(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives an SA_SIGINFO handler valid pointers to both.
    let (code, registers) = unsafe {
        let context = context.cast::<libc::ucontext_t>();
        ((*info).si_code, &mut (*context).uc_mcontext.gregs)
    };
    let rip = &mut registers[libc::REG_RIP as usize];
    // A positive code says that the kernel raised the signal for an access, not some `kill`.
    if code > 0 && *rip == (&raw const COPY_FAULTS) as i64 {
        *rip = (&raw const COPY_RESUMES) as i64;
        return;
    }
    let previous = match signal {
        libc::SIGBUS => PREVIOUS_BUS.get(),
        _ => PREVIOUS_SEGV.get(),
    };
    forward(signal, info, context, previous);
}

/// Lets the previous action happen: calls the handler, or restores the default and returns, so that
/// the access faults again and ends the process.
fn forward(
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut c_void,
    previous: Option<&libc::sigaction>,
) {
    let action = previous.map_or(libc::SIG_DFL, |p| p.sa_sigaction);
    let flags = previous.map_or(0, |p| p.sa_flags);
    if action == libc::SIG_DFL || action == libc::SIG_IGN {
        // SAFETY: `signal` and `sigaction` are async-signal-safe; the kernel too treats an ignored
        // synchronous fault as the default action. A signal that was sent is raised again.
        unsafe {
            libc::signal(signal, libc::SIG_DFL);
            if (*info).si_code <= 0 {
                libc::raise(signal);
            }
        }
    } else if flags & libc::SA_SIGINFO != 0 {
        // SAFETY: an action with SA_SIGINFO is a function of this type.
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
            unsafe { mem::transmute(action) };
        handler(signal, info, context);
    } else {
        // SAFETY: an action without SA_SIGINFO is a function of this type.
        let handler: extern "C" fn(c_int) = unsafe { mem::transmute(action) };
        handler(signal);
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use proptest::prelude::*;
    use rustix::{
        fs::MemfdFlags,
        mm::{MapFlags, ProtFlags},
    };

    use super::*;

    const PAGE: usize = 4096;
    const PAGES: usize = 6;
    const LEN: usize = PAGES * PAGE;

    fn pattern() -> Vec<u8> {
        (0..LEN).map(|at| (at * 31 + at / 251) as u8).collect()
    }

    /// A shared mapping of a file that can be cut short.
    struct Mapped {
        file: OwnedFd,
        base: *mut u8,
    }

    impl Mapped {
        fn new() -> Self {
            let file = rustix::fs::memfd_create(c"copy", MemfdFlags::CLOEXEC).unwrap();
            rustix::io::write(&file, &pattern()).unwrap();
            let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
            // SAFETY: a new mapping.
            let base =
                unsafe { rustix::mm::mmap(ptr::null_mut(), LEN, prot, flags, &file, 0) }.unwrap();
            Mapped {
                file,
                base: base.cast(),
            }
        }

        fn keep(&self, pages: usize) -> Vec<u8> {
            rustix::fs::ftruncate(&self.file, (pages * PAGE) as u64).unwrap();
            pattern()[..pages * PAGE].to_vec()
        }

        fn content(&self) -> Vec<u8> {
            let size = rustix::fs::fstat(&self.file).unwrap().st_size as usize;
            let mut content = vec![0; size];
            assert_eq!(rustix::io::pread(&self.file, &mut content, 0), Ok(size));
            content
        }
    }

    impl Drop for Mapped {
        fn drop(&mut self) {
            // SAFETY: mapped in `new`.
            unsafe { rustix::mm::munmap(self.base.cast(), LEN) }.unwrap();
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1000))]

        #[test]
        fn it_is_memmove(src in 0..LEN, dst in 0..LEN, len in 0..=LEN) {
            let len = len.min(LEN - src).min(LEN - dst);
            let (mut bytes, mut model) = (pattern(), pattern());
            let base = bytes.as_mut_ptr();
            let copier = RecoveringCopy::get().unwrap();
            // SAFETY: both ranges lie in `bytes`.
            let done = unsafe { copier.copy(base.add(dst), base.add(src), len) };
            model.copy_within(src..src + len, dst);
            prop_assert_eq!(done, len);
            prop_assert!(bytes == model);
        }

        #[test]
        fn a_lost_page_ends_it_with_an_exact_count_and_nothing_else_touched(
            src in 0..LEN, dst in 0..LEN, len in 0..=LEN, pages in 0..=PAGES,
        ) {
            let len = len.min(LEN - src).min(LEN - dst);
            let mapped = Mapped::new();
            let mut model = mapped.keep(pages);
            let reach = |start: usize| model.len().saturating_sub(start);
            let expected = len.min(reach(src)).min(reach(dst));
            let copier = RecoveringCopy::get().unwrap();
            // SAFETY: both ranges lie in the mapping, whose pages may be gone.
            let done = unsafe { copier.copy(mapped.base.add(dst), mapped.base.add(src), len) };
            prop_assert_eq!(done, expected);
            if expected > 0 {
                model.copy_within(src..src + expected, dst);
            }
            prop_assert!(mapped.content() == model);
        }
    }

    #[test]
    fn a_page_without_write_permission_ends_it_as_well() {
        let mapped = Mapped::new();
        // SAFETY: the second page of a mapping that nobody else uses.
        unsafe {
            rustix::mm::mprotect(
                mapped.base.add(PAGE).cast(),
                PAGE,
                rustix::mm::MprotectFlags::READ,
            )
        }
        .unwrap();
        let copier = RecoveringCopy::get().unwrap();
        let source = [7; 2 * PAGE];
        // SAFETY: the destination lies in the mapping.
        let done = unsafe { copier.copy(mapped.base, source.as_ptr(), source.len()) };
        assert_eq!(done, PAGE);
        assert!(mapped.content()[..PAGE] == source[..PAGE]);
        assert!(mapped.content()[PAGE..] == pattern()[PAGE..]);
    }
}
