//! Runs of entries, a cache line of eight at a time.
//!
//! The compiler does not merge atomic accesses; written out, one instruction loads or stores several
//! entries, and mapping or unmapping a gigabyte of 4 KiB pages takes half the time.
// UNSAFETY: the instructions are written out; each block argues why they touch `lines` alone.
#![allow(unsafe_code)]

use ioasid_core::sync::atomic::AtomicU64;
#[cfg(not(all(target_arch = "x86_64", not(ioasid_shuttle), not(miri))))]
use ioasid_core::sync::atomic::Ordering;

/// Stores `first`, `first + step` and so on into `lines`, 64 bytes at a time.
#[cfg(not(all(target_arch = "x86_64", not(ioasid_shuttle), not(miri))))]
#[inline]
pub(crate) fn store_lines(lines: &[[AtomicU64; 8]], first: u64, step: u64) {
    let mut entry = first;
    for slot in lines.as_flattened() {
        slot.store(entry, Ordering::Relaxed);
        entry = entry.wrapping_add(step);
    }
}

/// Stores `first`, `first + step` and so on into `lines`, 64 bytes at a time.
#[cfg(all(target_arch = "x86_64", not(ioasid_shuttle), not(miri)))]
#[inline]
pub(crate) fn store_lines(lines: &[[AtomicU64; 8]], first: u64, step: u64) {
    use std::arch::asm;

    let entries = |lane: u64| {
        let low = first.wrapping_add(step.wrapping_mul(lane));
        pair(low, low.wrapping_add(step))
    };
    let line_step = step.wrapping_mul(8);
    let range = lines.as_ptr_range();
    if lines.is_empty() {
        return;
    }
    debug_assert!(range.start.addr().is_multiple_of(64));
    // SAFETY: writes exactly the bytes of `lines`, which are atomics and so may be written through a
    // shared reference. The stores are aligned, and the processor does not tear the aligned 8-byte
    // halves of a 16-byte store: to any other thread each entry is stored by one relaxed store.
    unsafe {
        asm!(
            "2:",
            "movdqa xmmword ptr [{at}], {a}",
            "movdqa xmmword ptr [{at} + 16], {b}",
            "movdqa xmmword ptr [{at} + 32], {c}",
            "movdqa xmmword ptr [{at} + 48], {d}",
            "paddq {a}, {step}",
            "paddq {b}, {step}",
            "paddq {c}, {step}",
            "paddq {d}, {step}",
            "add {at}, 64",
            "cmp {at}, {end}",
            "jne 2b",
            at = inout(reg) range.start => _,
            end = in(reg) range.end,
            a = inout(xmm_reg) entries(0) => _,
            b = inout(xmm_reg) entries(2) => _,
            c = inout(xmm_reg) entries(4) => _,
            d = inout(xmm_reg) entries(6) => _,
            step = in(xmm_reg) pair(line_step, line_step),
            options(nostack),
        );
    }
}

/// Clears `lines` from the first on, until an entry of one differs from `like` in a bit of `mask`:
/// that line stays as it is. Returns how many were cleared.
///
/// Bits outside of `mask` may change meanwhile: what they were is lost.
#[cfg(not(all(target_arch = "x86_64", not(ioasid_shuttle), not(miri))))]
#[inline]
pub(crate) fn clear_lines(lines: &[[AtomicU64; 8]], like: u64, mask: u64) -> usize {
    let alike = |entry: &AtomicU64| (entry.load(Ordering::Relaxed) ^ like) & mask == 0;
    let alike = lines.iter().take_while(|line| line.iter().all(alike));
    alike
        .map(|line| {
            line.iter()
                .for_each(|entry| entry.store(0, Ordering::Relaxed))
        })
        .count()
}

/// Clears `lines` from the first on, until an entry of one differs from `like` in a bit of `mask`:
/// that line stays as it is. Returns how many were cleared.
///
/// Bits outside of `mask` may change meanwhile: what they were is lost.
#[cfg(all(target_arch = "x86_64", not(ioasid_shuttle), not(miri)))]
#[inline]
pub(crate) fn clear_lines(lines: &[[AtomicU64; 8]], like: u64, mask: u64) -> usize {
    use std::arch::asm;

    if lines.is_empty() {
        return 0;
    }
    let range = lines.as_ptr_range();
    debug_assert!(range.start.addr().is_multiple_of(64));
    let mut at = range.start;
    // SAFETY: reads and writes bytes of `lines` only, which are atomics and so may be written through
    // a shared reference. The accesses are aligned, and the processor does not tear the aligned
    // 8-byte halves of a 16-byte access: to any other thread each entry is read by one relaxed load
    // and written by one relaxed store.
    unsafe {
        asm!(
            "2:",
            "movdqa {a}, xmmword ptr [{at}]",
            "movdqa {b}, xmmword ptr [{at} + 16]",
            "movdqa {c}, xmmword ptr [{at} + 32]",
            "movdqa {d}, xmmword ptr [{at} + 48]",
            "pxor {a}, {like}",
            "pxor {b}, {like}",
            "pxor {c}, {like}",
            "pxor {d}, {like}",
            "por {a}, {b}",
            "por {c}, {d}",
            "por {a}, {c}",
            "pand {a}, {mask}",
            "pcmpeqd {a}, {zero}",
            "pmovmskb {same:e}, {a}",
            "cmp {same:e}, 0xffff",
            "jne 3f",
            "movdqa xmmword ptr [{at}], {zero}",
            "movdqa xmmword ptr [{at} + 16], {zero}",
            "movdqa xmmword ptr [{at} + 32], {zero}",
            "movdqa xmmword ptr [{at} + 48], {zero}",
            "add {at}, 64",
            "cmp {at}, {end}",
            "jne 2b",
            "3:",
            at = inout(reg) at,
            end = in(reg) range.end,
            same = out(reg) _,
            a = out(xmm_reg) _,
            b = out(xmm_reg) _,
            c = out(xmm_reg) _,
            d = out(xmm_reg) _,
            like = in(xmm_reg) pair(like, like),
            mask = in(xmm_reg) pair(mask, mask),
            zero = in(xmm_reg) pair(0, 0),
            options(nostack),
        );
    }
    (at.addr() - range.start.addr()) / size_of::<[AtomicU64; 8]>()
}

/// Whether all of `lines` is zero.
#[cfg(not(all(target_arch = "x86_64", not(ioasid_shuttle), not(miri))))]
#[inline]
pub(crate) fn are_zero(lines: &[[AtomicU64; 8]]) -> bool {
    let entries = lines.as_flattened().iter();
    entries.fold(0, |all, entry| all | entry.load(Ordering::Relaxed)) == 0
}

/// Whether all of `lines` is zero.
#[cfg(all(target_arch = "x86_64", not(ioasid_shuttle), not(miri)))]
#[inline]
pub(crate) fn are_zero(lines: &[[AtomicU64; 8]]) -> bool {
    use std::arch::asm;

    if lines.is_empty() {
        return true;
    }
    let range = lines.as_ptr_range();
    debug_assert!(range.start.addr().is_multiple_of(64));
    let zero: u32;
    // SAFETY: reads the bytes of `lines` only, aligned; as in `clear_lines` each entry is read by one
    // relaxed load.
    unsafe {
        asm!(
            "2:",
            "por {a}, xmmword ptr [{at}]",
            "por {b}, xmmword ptr [{at} + 16]",
            "por {a}, xmmword ptr [{at} + 32]",
            "por {b}, xmmword ptr [{at} + 48]",
            "add {at}, 64",
            "cmp {at}, {end}",
            "jne 2b",
            "por {a}, {b}",
            "pcmpeqd {a}, {zero}",
            "pmovmskb {same:e}, {a}",
            at = inout(reg) range.start => _,
            end = in(reg) range.end,
            same = out(reg) zero,
            a = inout(xmm_reg) pair(0, 0) => _,
            b = inout(xmm_reg) pair(0, 0) => _,
            zero = in(xmm_reg) pair(0, 0),
            options(nostack, readonly),
        );
    }
    zero == 0xffff
}

/// Two entries, the one at the lower address first.
#[cfg(all(target_arch = "x86_64", not(ioasid_shuttle), not(miri)))]
#[inline]
fn pair(low: u64, high: u64) -> std::arch::x86_64::__m128i {
    // SAFETY: SSE2 is a part of x86-64.
    unsafe { std::arch::x86_64::_mm_set_epi64x(high as i64, low as i64) }
}
