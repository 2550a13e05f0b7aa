//! Functions of the C library that a program uses on signals, and `ioctl`.
//!
//! Ours do what the C library's do, except that our handler stays where it is and its signals are
//! never blocked: the kernel kills a thread that faults while the signal is blocked, whatever
//! handles it.
//!
//! An `ioctl` of VFIO or iommufd is made again where a signal interrupted it. In Linux none of them
//! is ever interrupted; here the kernel may wake the caller before the session has looked at the
//! call (`seccomp_do_user_notification`), and a handler without `SA_RESTART` would make that an
//! EINTR.

use core::ffi::{c_int, c_ulong, c_void};

use crate::{
    actions, agent, own,
    sys::{self, KernelAction, flag},
};

/// `sigset_t` as every C library on Linux has it: of its 128 bytes the first 8 count.
#[repr(C)]
#[derive(Debug)]
pub struct SignalSet([u64; 16]);

/// `struct sigaction`, likewise.
#[repr(C)]
#[derive(Debug)]
pub struct Action {
    handler: usize,
    mask: SignalSet,
    flags: c_int,
    restorer: usize,
}

/// Signals that C libraries keep for themselves: 32 and 33.
const INTERNAL: u64 = 0b11 << 31;

#[cfg(feature = "image")]
pub(crate) fn fail(errno: i32) -> c_int {
    unsafe extern "C" {
        fn __errno_location() -> *mut c_int;
    }
    // SAFETY: every C library on Linux has this function, and what it returns is the thread's.
    unsafe { *__errno_location() = errno };
    -1
}

#[cfg(not(feature = "image"))]
pub(crate) fn fail(_errno: i32) -> c_int {
    -1
}

#[cfg(feature = "image")]
impl Action {
    /// The same, without our signals among those that it blocks.
    fn unblocking(&self) -> Action {
        let mut mask = SignalSet(self.mask.0);
        mask.0[0] &= !actions::hooked();
        Action { mask, ..*self }
    }
}

/// The next library's `sigaction`, for a signal that we do not use.
#[cfg(feature = "image")]
fn next_for(signal: c_int) -> Option<crate::next::SigAction> {
    crate::next::sigaction().filter(|_| !actions::is_hooked(signal))
}

/// `IOMMU_IOAS_MAP` and `VFIO_IOMMU_MAP_DMA`: devices reach this process's memory from now on.
const MAPPING: [u32; 2] = [0x3b85, 0x3b71];

/// The session has carried out an ioctl.
fn served(request: u32) {
    if MAPPING.contains(&request) {
        own::has_mapped();
    }
    agent::start_if_wanted();
}

/// `ioctl(2)`. On x86-64 a function with a variable argument takes it as one with three.
///
/// # Safety
/// As the C library's.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn ioctl(fd: c_int, request: c_ulong, argument: *mut c_void) -> c_int {
    let ours = request as u32 & 0xff00 == u32::from(b';') << 8;
    loop {
        // SAFETY: the caller's promise.
        let ret = unsafe { sys::ioctl(fd, request, argument as u64) };
        match ret {
            0.. => {
                if ours {
                    served(request as u32);
                }
                return ret as c_int;
            }
            _ if ours && ret == -sys::EINTR => {}
            _ => return fail(-ret as i32),
        }
    }
}

/// `pwrite(2)`, the way to a register that is not mapped: what the session wishes is seen here too.
///
/// # Safety
/// As the C library's.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn pwrite(fd: c_int, from: *const c_void, len: usize, at: i64) -> isize {
    #[cfg(feature = "image")]
    if let Some(next) = crate::next::pwrite() {
        // SAFETY: the caller's promise.
        let written = unsafe { next(fd, from, len, at) };
        agent::start_if_wanted();
        return written;
    }
    // SAFETY: the caller's promise.
    let ret = unsafe { sys::pwrite(fd, from, len, at) };
    match ret {
        0.. => ret as isize,
        _ => fail(-ret as i32) as isize,
    }
}

/// `pwrite`, by its other name.
///
/// # Safety
/// As [`pwrite`].
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn pwrite64(fd: c_int, from: *const c_void, len: usize, at: i64) -> isize {
    // SAFETY: the caller's promise.
    unsafe { pwrite(fd, from, len, at) }
}

/// `sigaction(2)`.
///
/// # Safety
/// As the C library's.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn sigaction(signal: c_int, new: *const Action, old: *mut Action) -> c_int {
    if !(1..=64).contains(&signal) || INTERNAL & actions::bit(signal) != 0 {
        return fail(sys::EINVAL);
    }
    #[cfg(feature = "image")]
    if let Some(next) = next_for(signal) {
        // SAFETY: null or a structure of the caller's.
        let new = unsafe { new.as_ref() }.map(Action::unblocking);
        let new = new.as_ref().map_or(core::ptr::null(), core::ptr::from_ref);
        // SAFETY: the caller's promise; our copy lives across the call.
        return unsafe { next(signal, new, old) };
    }
    // SAFETY: null or a structure of the caller's.
    let new = unsafe { new.as_ref() }.map(|new| KernelAction {
        handler: new.handler,
        flags: u64::from(new.flags.cast_unsigned()),
        restorer: 0,
        mask: new.mask.0[0] & !INTERNAL,
    });
    match actions::set(signal, new.as_ref()) {
        Ok(found) => {
            // SAFETY: as above.
            if let Some(old) = unsafe { old.as_mut() } {
                *old = Action {
                    handler: found.handler,
                    mask: SignalSet([0; 16]),
                    flags: (found.flags & !flag::RESTORER) as c_int,
                    restorer: 0,
                };
                old.mask.0[0] = found.mask;
            }
            0
        }
        Err(errno) => fail(errno),
    }
}

/// `sigaction`, by its other name.
///
/// # Safety
/// As [`sigaction`].
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn __sigaction(signal: c_int, new: *const Action, old: *mut Action) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { sigaction(signal, new, old) }
}

fn simple(signal: c_int, handler: usize, flags: u64) -> usize {
    if !(1..=64).contains(&signal) || handler == sys::ERROR {
        fail(sys::EINVAL);
        return sys::ERROR;
    }
    let mask = if flags & flag::NODEFER == 0 {
        actions::bit(signal)
    } else {
        0
    };
    #[cfg(feature = "image")]
    if let Some(next) = next_for(signal) {
        let mut set = SignalSet([0; 16]);
        set.0[0] = mask;
        let mut action = Action {
            handler,
            mask: set,
            flags: flags as c_int,
            restorer: 0,
        };
        let mut old = action.unblocking();
        action = action.unblocking();
        // SAFETY: both structures are ours; what the handler does is the caller's business.
        return match unsafe { next(signal, &raw const action, &raw mut old) } {
            0 => old.handler,
            _ => sys::ERROR,
        };
    }
    let new = KernelAction {
        handler,
        flags,
        restorer: 0,
        mask,
    };
    match actions::set(signal, Some(&new)) {
        Ok(old) => old.handler,
        Err(errno) => {
            fail(errno);
            sys::ERROR
        }
    }
}

/// `signal(3)`, as BSD has it: the handler stays and calls are restarted.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn signal(signal: c_int, handler: usize) -> usize {
    simple(signal, handler, flag::RESTART)
}

/// `bsd_signal(3)`.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn bsd_signal(signal: c_int, handler: usize) -> usize {
    simple(signal, handler, flag::RESTART)
}

/// `ssignal(3)`.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn ssignal(signal: c_int, handler: usize) -> usize {
    simple(signal, handler, flag::RESTART)
}

/// `sysv_signal(3)`: the handler is used once.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn sysv_signal(signal: c_int, handler: usize) -> usize {
    simple(signal, handler, flag::RESETHAND | flag::NODEFER)
}

/// `signal(3)` in programs that ask for System V.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub extern "C" fn __sysv_signal(signal: c_int, handler: usize) -> usize {
    simple(signal, handler, flag::RESETHAND | flag::NODEFER)
}

/// The set without what is never blocked.
fn allowed(how: c_int, set: u64) -> u64 {
    if how == sys::UNBLOCK {
        set
    } else {
        set & !actions::hooked() & !INTERNAL
    }
}

/// # Safety
/// Both pointers are null or the caller's sets.
unsafe fn change_mask(how: c_int, set: *const u64, old: *mut u64) -> Result<(), i32> {
    // SAFETY: only the 8 bytes that count are read and written, as the C library does: some
    // programs give no more.
    let set = unsafe { set.as_ref() }.map(|set| allowed(how, *set));
    let found = sys::sigprocmask(how, set)?;
    // SAFETY: as above.
    if let Some(old) = unsafe { old.as_mut() } {
        *old = found;
    }
    Ok(())
}

/// `sigprocmask(2)`.
///
/// # Safety
/// As the C library's.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn sigprocmask(how: c_int, set: *const u64, old: *mut u64) -> c_int {
    // SAFETY: the caller's promise.
    match unsafe { change_mask(how, set, old) } {
        Ok(()) => 0,
        Err(errno) => fail(errno),
    }
}

/// `pthread_sigmask(3)`, which returns the errno.
///
/// # Safety
/// As the C library's.
#[cfg_attr(feature = "image", unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_sigmask(how: c_int, set: *const u64, old: *mut u64) -> c_int {
    // SAFETY: the caller's promise.
    unsafe { change_mask(how, set, old) }.err().unwrap_or(0)
}
