//! The functions behind ours.
//!
//! What our functions do not keep for themselves goes to the next library that has them, as the
//! dynamic linker orders them: the C library, or the runtime of a sanitizer, which has to know of
//! the program's handlers.

use core::{
    arch::asm,
    ffi::{CStr, c_int, c_void},
    mem, ptr,
    sync::atomic::{AtomicPtr, Ordering::Relaxed},
};

use crate::interpose::Action;

type Lookup = unsafe extern "C" fn(*mut c_void, *const core::ffi::c_char) -> *mut c_void;

/// `sigaction(2)` of some library.
pub type SigAction = unsafe extern "C" fn(c_int, *const Action, *mut Action) -> c_int;

/// `pwrite(2)` of some library.
pub type Pwrite = unsafe extern "C" fn(c_int, *const c_void, usize, i64) -> isize;

/// `RTLD_NEXT`.
const NEXT: *mut c_void = ptr::without_provenance_mut(usize::MAX);

static SIGACTION: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
static PWRITE: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Looks for them, once, while nothing else runs.
pub fn learn() {
    SIGACTION.store(look_up(c"sigaction"), Relaxed);
    PWRITE.store(look_up(c"pwrite"), Relaxed);
}

fn look_up(name: &CStr) -> *mut c_void {
    let found: *mut c_void;
    // SAFETY: reads an entry of our own table that the dynamic linker has filled: `dlsym`, or null
    // where it has none without another library (glibc before 2.34).
    unsafe {
        asm!(
            ".weak dlsym",
            "mov {found}, qword ptr [rip + dlsym@GOTPCREL]",
            found = out(reg) found,
            options(nostack, readonly, preserves_flags),
        );
    }
    if found.is_null() {
        return found;
    }
    // SAFETY: that is the type of `dlsym`; the name is terminated.
    unsafe { mem::transmute::<*mut c_void, Lookup>(found)(NEXT, name.as_ptr()) }
}

/// The next `sigaction`, if it is known.
pub fn sigaction() -> Option<SigAction> {
    let found = SIGACTION.load(Relaxed);
    // SAFETY: null or the address of a function of that name, which has this type in every C
    // library.
    unsafe { mem::transmute::<*mut c_void, Option<SigAction>>(found) }
}

/// The next `pwrite`, if it is known.
pub fn pwrite() -> Option<Pwrite> {
    let found = PWRITE.load(Relaxed);
    // SAFETY: as above; with 64 bits `off_t` is one size.
    unsafe { mem::transmute::<*mut c_void, Option<Pwrite>>(found) }
}
