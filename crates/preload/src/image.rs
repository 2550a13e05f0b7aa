//! What makes a shared library of this crate.

use core::{
    alloc::{GlobalAlloc, Layout},
    arch::global_asm,
    cell::UnsafeCell,
    ptr,
    sync::atomic::{AtomicUsize, Ordering},
};

use crate::{handler, next, stat, sys};

/// For the decoder's tables, which it makes once: nothing is given back.
const BYTES: usize = 4 << 20;

/// Memory that is handed out once.
#[repr(align(4096))]
struct Arena {
    bytes: UnsafeCell<[u8; BYTES]>,
    used: AtomicUsize,
}

// SAFETY: `used` hands out each byte to one owner.
unsafe impl Sync for Arena {}

// SAFETY: a block is inside of the array, aligned as asked for (the array is aligned to pages, and
// no more is granted), and belongs to no other, as `used` only grows.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() > 4096 {
            return ptr::null_mut();
        }
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            let start = used.next_multiple_of(layout.align());
            let Some(end) = start.checked_add(layout.size()).filter(|end| *end <= BYTES) else {
                return ptr::null_mut();
            };
            let taken = self
                .used
                .compare_exchange(used, end, Ordering::Relaxed, Ordering::Relaxed);
            match taken {
                // SAFETY: `start` is inside of the array.
                Ok(_) => return unsafe { self.bytes.get().cast::<u8>().add(start) },
                Err(now) => used = now,
            }
        }
    }

    unsafe fn dealloc(&self, _block: *mut u8, _layout: Layout) {}
}

#[global_allocator]
static ARENA: Arena = Arena {
    bytes: UnsafeCell::new([0; BYTES]),
    used: AtomicUsize::new(0),
};

/// A defect of this library ends the program, as there is nothing that it could go on with.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    sys::sigaction(sys::SIGILL, Some(&sys::KernelAction::default())).ok();
    sys::raise(sys::SIGILL);
    sys::exit()
}

// The precompiled `core` and `alloc` name these in their tables for unwinding. Nothing unwinds
// here, and what is not defined would keep every program from starting.
global_asm!(
    ".globl rust_eh_personality",
    ".hidden rust_eh_personality",
    "rust_eh_personality:",
    ".globl _Unwind_Resume",
    ".hidden _Unwind_Resume",
    "_Unwind_Resume:",
    "ud2",
);

extern "C" fn start() {
    next::learn();
    handler::install();
    stat::install();
}

/// Called by the dynamic linker before the program's own constructors.
#[used]
#[unsafe(link_section = ".init_array")]
static START: extern "C" fn() = start;
