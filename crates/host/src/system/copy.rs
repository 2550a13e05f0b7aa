//! Copies that survive the loss of a page.
//!
//! A file that a client holds can be truncated under our mapping; the next access gets SIGBUS. The
//! only instructions of this process that touch such memory are those of [`mod@forward`]. A handler for
//! SIGBUS and SIGSEGV knows where each of them is to go on; any other fault is none of ours and goes
//! to whoever handled it before.
//!
//! # Safety argument
//! The handler writes one register of the interrupted context, calls nothing that allocates or locks,
//! and reads only a constant table and `OnceLock`s that were filled before it was installed. That the
//! count is exact at a fault is argued in [`mod@forward`].
// UNSAFETY: a signal handler, and raw copies.
#![allow(unsafe_code)]

mod forward;

use std::{
    arch::x86_64::{__cpuid_count, CpuidResult},
    ffi::{c_int, c_void},
    io, mem, ptr,
    sync::OnceLock,
};

use forward::Forward;
use ioasid_core::{
    memory::{Exchange, RawCopy},
    sync::Mutex,
};

/// Largest overlapping copy whose bounce buffer lives on the stack.
const SMALL: usize = 4096;

/// [`RawCopy`] that ends early where a page is gone, instead of the process.
///
/// A copy to a higher overlapping address goes through a bounce buffer rather than backwards: so
/// the bytes that were copied when a page was gone are the first ones, always, and no other byte
/// has changed. (Callers bound such copies, as every guard bounds its bytes.)
#[derive(Debug)]
pub struct RecoveringCopy {
    /// How copies of less than [`LONG`] bytes are made.
    short: Forward,
    /// How longer ones are made.
    long: Forward,
    /// And those whose destination lies less than [`CLOSE`] bytes behind the source modulo 4096.
    close: Forward,
}

/// From so many bytes on `rep movsb` is as fast as vectors where both sides are aligned, and faster
/// where they are not or do not fit the caches.
const LONG: usize = 4096;

/// `rep movsb` slows down, on processors where it does, for distances of less than 32 bytes.
const CLOSE: usize = 64;

static INSTANCE: OnceLock<RecoveringCopy> = OnceLock::new();

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
        Ok(INSTANCE.get_or_init(|| RecoveringCopy {
            short: Forward::vectors(),
            long: Forward::Bytes,
            close: if bytes_are_slow_when_close() {
                Forward::vectors()
            } else {
                Forward::Bytes
            },
        }))
    }

    /// Copies upwards; returns how many bytes were copied.
    ///
    /// # Safety
    /// As [`Forward::copy`], the handler being installed.
    #[inline]
    unsafe fn copy_up(&self, dst: *mut u8, src: *const u8, len: usize) -> usize {
        let behind = (dst as usize).wrapping_sub(src as usize) % 4096;
        let way = if len < LONG {
            self.short
        } else if behind != 0 && behind < CLOSE {
            self.close
        } else {
            self.long
        };
        // SAFETY: as the caller vouches.
        len - unsafe { way.copy(dst, src, len) }
    }
}

/// Whether `rep movsb` is slow where the destination lies a few bytes behind the source modulo 4096:
/// twelve times slower and more on AMD's Zen 3 to Zen 5, where loads are taken to depend on the stores
/// before. Intel's with fast short `rep movsb` do it at full speed; of others nothing is known.
fn bytes_are_slow_when_close() -> bool {
    let info = cpuid(0);
    let vendor = [info.ebx, info.edx, info.ecx].map(u32::to_le_bytes);
    let fast_short = info.eax >= 7 && cpuid(7).edx & (1 << 4) != 0;
    vendor.as_flattened() != b"GenuineIntel" || !fast_short
}

fn cpuid(leaf: u32) -> CpuidResult {
    // SAFETY: every x86-64 processor has the instruction, and it accesses no memory.
    #[allow(unused_unsafe, reason = "safe from Rust 1.94 on")]
    unsafe {
        __cpuid_count(leaf, 0)
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
            return unsafe { self.copy_up(dst, src, len) };
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
            let read = self.copy_up(bounce.as_mut_ptr(), src, len);
            self.copy_up(dst, bounce.as_ptr(), read)
        }
    }

    #[inline]
    unsafe fn exchange(&self, word: *mut u64, seen: u64, new: u64) -> Exchange {
        // SAFETY: as the caller vouches, and the handler is installed, since `self` exists.
        unsafe { forward::exchange(word, seen, new) }
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
    if code > 0
        && let Some(next) = forward::continuation(*rip as u64)
    {
        *rip = next as i64;
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
mod tests;
