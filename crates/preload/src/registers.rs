//! The interrupted thread's registers, in the frame that the kernel made of them for a signal
//! handler.

use core::{
    arch::x86_64::__cpuid_count,
    ptr::NonNull,
    slice,
    sync::atomic::{
        AtomicBool, AtomicUsize,
        Ordering::{Acquire, Relaxed, Release},
    },
};

use ioasid_mmio::{
    Cpu, Segment,
    xsave::{Area, Layout},
};

/// `struct ucontext` of the kernel (`arch/x86/include/uapi/asm/ucontext.h`, `sigcontext.h`).
#[repr(C)]
#[derive(Debug)]
pub struct Frame {
    context_flags: u64,
    link: u64,
    stack: [u64; 3],
    /// r8 to r15, rdi, rsi, rbp, rbx, rdx, rax, rcx, rsp.
    general: [u64; 16],
    rip: u64,
    status: u64,
    segments: u64,
    error: u64,
    trap: u64,
    old_mask: u64,
    cr2: u64,
    fpu: Option<NonNull<u8>>,
    reserved: [u64; 8],
    /// Blocked signals, put back when the handler returns.
    pub mask: u64,
}

/// Where general register N of an instruction's encoding stands in the frame.
const PLACES: [usize; 16] = [13, 14, 12, 11, 15, 10, 9, 8, 0, 1, 2, 3, 4, 5, 6, 7];

/// CPUID is slow in a virtual machine, so it is asked once, and only where a first signal wants it: most
/// programs never get there, and each would pay when it starts.
static LAYOUT: [AtomicUsize; 4] = [const { AtomicUsize::new(0) }; 4];
/// `LAYOUT` is there. Two threads that find it is not write the same words.
static LEARNT: AtomicBool = AtomicBool::new(false);

/// Where the vector registers stand: with no leaf 0xd only xmm registers are known.
fn layout() -> Layout {
    if !LEARNT.load(Acquire) {
        learn_layout();
        LEARNT.store(true, Release);
    }
    let [ymm_high, opmask, zmm_high, zmm_upper] = [0, 1, 2, 3].map(|i: usize| {
        let place = LAYOUT.get(i);
        place.map_or(0, |place| place.load(Relaxed))
    });
    Layout {
        ymm_high,
        opmask,
        zmm_high,
        zmm_upper,
    }
}

/// Looks at the processor.
fn learn_layout() {
    // Leaf 0xd exists wherever there is AVX (leaf 0 says the highest one).
    let highest = __cpuid_count(0, 0).eax;
    if highest < 0xd {
        return;
    }
    let layout = Layout::new(|component| __cpuid_count(0xd, component).ebx);
    let words = [
        layout.ymm_high,
        layout.opmask,
        layout.zmm_high,
        layout.zmm_upper,
    ];
    for (place, word) in LAYOUT.iter().zip(words) {
        place.store(word, Relaxed);
    }
}

/// Bits of the size that the kernel notes in the frame's FPU part, and their place there
/// (`struct _fpx_sw_bytes` at offset 464).
const SOFTWARE: usize = 464;
const MAGIC: u32 = 0x4650_5853;
const LEGACY: usize = 512;

/// The registers in a frame.
#[derive(Debug)]
pub struct Registers<'a> {
    frame: &'a mut Frame,
    vectors: Area<'a>,
}

impl<'a> Registers<'a> {
    /// The registers in `frame`.
    ///
    /// # Safety
    /// The kernel made the frame for the handler that calls this, and nothing else has a reference
    /// into it.
    pub unsafe fn new(frame: &'a mut Frame) -> Self {
        let bytes: &'a mut [u8] = match frame.fpu {
            None => &mut [],
            // SAFETY: the kernel wrote an FXSAVE area of 512 bytes there, at least.
            Some(fpu) => unsafe {
                let word = |at: usize| fpu.add(SOFTWARE + at).cast::<u32>().read_unaligned();
                // After the magic number and the size with its end mark: the features in 8 bytes,
                // then the size of the area.
                let len = if word(0) == MAGIC {
                    (word(16) as usize).max(LEGACY)
                } else {
                    LEGACY
                };
                slice::from_raw_parts_mut(fpu.as_ptr(), len)
            },
        };
        Registers {
            frame,
            vectors: Area::new(bytes, layout()),
        }
    }
}

impl Cpu for Registers<'_> {
    fn gpr(&self, index: u8) -> u64 {
        let place = PLACES.get(usize::from(index));
        let value = place.and_then(|place| self.frame.general.get(*place));
        value.copied().unwrap_or(0)
    }

    fn set_gpr(&mut self, index: u8, value: u64) {
        let place = PLACES.get(usize::from(index));
        if let Some(register) = place.and_then(|place| self.frame.general.get_mut(*place)) {
            *register = value;
        }
    }

    fn rip(&self) -> u64 {
        self.frame.rip
    }

    fn set_rip(&mut self, rip: u64) {
        self.frame.rip = rip;
    }

    fn flags(&self) -> u64 {
        self.frame.status
    }

    fn set_flags(&mut self, flags: u64) {
        self.frame.status = flags;
    }

    fn vector(&self, index: u8) -> [u8; 64] {
        self.vectors.vector(index)
    }

    fn set_vector(&mut self, index: u8, value: &[u8; 64]) {
        self.vectors.set_vector(index, value);
    }

    fn opmask(&self, index: u8) -> u64 {
        self.vectors.opmask(index)
    }

    fn set_opmask(&mut self, index: u8, value: u64) {
        self.vectors.set_opmask(index, value);
    }

    fn segment_base(&self, segment: Segment) -> u64 {
        crate::sys::segment_base(match segment {
            Segment::Fs => 0x1003,
            Segment::Gs => 0x1004,
        })
    }
}
