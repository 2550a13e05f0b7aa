//! A barrier for the optimiser that costs nothing.
// UNSAFETY: an empty assembly block.
#![allow(unsafe_code)]

/// Gives `value` back; the compiler must take it for any value at all. Without it a walk whose next
/// address depends on its result becomes one that does not.
#[inline(always)]
pub(crate) fn opaque(mut value: u64) -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: no instruction at all.
    unsafe {
        std::arch::asm!("/* {0} */", inout(reg) value, options(nomem, nostack, preserves_flags));
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        value = std::hint::black_box(value);
    }
    value
}
