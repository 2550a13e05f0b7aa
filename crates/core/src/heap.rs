//! What a thread has on the heap: an allocator for tests and benchmarks that count bytes.
//!
//! The product does not use it. A test that does is a program of its own, which names it its
//! `#[global_allocator]`.
// UNSAFETY: a global allocator is an unsafe trait, forwarded here to the system's.
#![allow(unsafe_code)]

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
}

/// The system's allocator, and a count for each thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct CountedHeap;

impl CountedHeap {
    /// Bytes that this thread has asked for, less those that it has freed: negative if it frees what
    /// others have allocated. What the allocator adds to a request is not in it.
    pub fn live() -> isize {
        LIVE.get()
    }
}

/// Counts `new` bytes instead of `old`. A thread whose locals are gone is not counted.
fn count(old: usize, new: usize) {
    let _ = LIVE.try_with(|live| {
        let change = new.cast_signed().wrapping_sub(old.cast_signed());
        live.set(live.get().wrapping_add(change));
    });
}

// SAFETY: every call goes to `System` with the arguments it came with, and what that returns is
// returned. Counting allocates nothing: the local is a plain number without a destructor.
unsafe impl GlobalAlloc for CountedHeap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(0, layout.size());
        // SAFETY: the caller's promises are those of `System`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(0, layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(layout.size(), 0);
        // SAFETY: as above; the block is `System`'s, as all are.
        unsafe { System.dealloc(block, layout) };
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(layout.size(), size);
        // SAFETY: as above.
        unsafe { System.realloc(block, layout, size) }
    }
}
