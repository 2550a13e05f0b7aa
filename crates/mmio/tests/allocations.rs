//! After the tables are filled nothing allocates: the emulator may run in a signal handler.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
// UNSAFETY: a global allocator.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ioasid_mmio::{Cpu, Fault, Segment, Space, execute, warm_up};

thread_local! {
    static COUNTED: Cell<Option<u64>> = const { Cell::new(None) };
}

struct Counting;

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNTED.set(COUNTED.get().map(|count| count + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        COUNTED.set(COUNTED.get().map(|count| count + 1));
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// All registers 0x40 and memory that takes everything.
struct Anything([u64; 16], u64);

impl Cpu for Anything {
    fn gpr(&self, index: u8) -> u64 {
        self.0[usize::from(index)]
    }
    fn set_gpr(&mut self, index: u8, value: u64) {
        self.0[usize::from(index)] = value;
    }
    fn rip(&self) -> u64 {
        0
    }
    fn set_rip(&mut self, _: u64) {}
    fn flags(&self) -> u64 {
        self.1
    }
    fn set_flags(&mut self, flags: u64) {
        self.1 = flags;
    }
    fn vector(&self, _: u8) -> [u8; 64] {
        [1; 64]
    }
    fn set_vector(&mut self, _: u8, _: &[u8; 64]) {}
    fn opmask(&self, _: u8) -> u64 {
        5
    }
    fn segment_base(&self, _: Segment) -> u64 {
        0
    }
}

struct Void;

impl Space for Void {
    fn load(&mut self, _: u64, data: &mut [u8]) -> Result<(), Fault> {
        data.fill(0x33);
        Ok(())
    }
    fn store(&mut self, _: u64, _: &[u8]) -> Result<(), Fault> {
        Ok(())
    }
    fn enqueue(&mut self, _: u64, _: &[u8; 64]) -> Result<bool, Fault> {
        Ok(false)
    }
}

#[test]
fn nothing_is_allocated_once_the_tables_are_filled() {
    let codes: [&[u8]; 12] = [
        &[0x8b, 0x08],
        &[0x66, 0x89, 0x08],
        &[0xf3, 0xa4],
        &[0xf0, 0x0f, 0xb1, 0x08],
        &[0x0f, 0x11, 0x08],
        &[0xc5, 0xfe, 0x6f, 0x08],
        &[0xc4, 0xe2, 0x7d, 0x18, 0x08],
        &[0x62, 0xf1, 0x7d, 0x48, 0xe7, 0x08],
        &[0x62, 0xf1, 0x7e, 0x49, 0x6f, 0x08],
        &[0x8f, 0xe8, 0x78, 0xa2, 0x08, 0x00],
        &[0x66, 0x0f, 0x38, 0xf8, 0x3e],
        &[0xff, 0xff, 0xff],
    ];
    warm_up();
    COUNTED.set(Some(0));
    let mut done = 0;
    for code in codes {
        let mut thread = Anything([0x40; 16], 2);
        done += u32::from(execute(code, &mut thread, &mut Void).is_ok());
    }
    let counted = COUNTED.replace(None);
    assert_eq!(counted, Some(0));
    assert_eq!(
        done, 10,
        "the XOP instruction and the invalid bytes are refused"
    );
}
