//! The instructions of this process that touch memory which may vanish, and where each goes on if it
//! does.
//!
//! There are three ways to copy forwards. `rep movsb` is the fastest for long copies, but on some
//! processors it slows down by an order of magnitude when the destination lies a few bytes behind the
//! source modulo 4096. The two vector loops (SSE2, and AVX2 where the processor has it) do not, and are
//! faster for short copies.
//!
//! # Safety argument
//! Every load and store stands in a table beside the place where the function goes on after a fault of
//! it. Wherever that is, RSI, RDI and RCX are first made to stand at the first byte that was not
//! copied, then `rep movsb` copies what can be copied:
//! * A step loads, stores and only then advances. A fault in it has stored nothing.
//! * A block loads four vectors, then stores them in ascending order, then advances. A fault of a load
//!   has stored nothing of the block; one of store `k` has stored the `k` vectors before, which its
//!   continuation counts as copied. They are not copied again, so a page of the source that is lost
//!   meanwhile cannot make the count smaller than what was stored.
//! * `rep movsb` is precise: at a fault the registers stand at the first byte that was not copied.
//!
//! This takes a vector store to be done as a whole or not at all. Every processor known does so; the
//! manuals allow one that crosses into a page which is gone to have stored its part in the other page
//! (Intel SDM volume 3, "Guaranteed Atomic Operations"). Even that would be a byte of the destination
//! with the value that it was to get.
//!
//! All loads of a block or step come before its stores, and the next ones are further up. So a
//! destination that begins before its source, or not inside of it, gets what the source had.
// UNSAFETY: assembly that accesses raw memory, and the table of its faults.
#![allow(unsafe_code)]

use std::{arch::is_x86_feature_detected, ptr};

use ioasid_core::memory::Exchange;

std::arch::global_asm!(
    r#"
    .pushsection .rodata.ioasid_host_copy_table, "a", @progbits
    .balign 4
    .hidden ioasid_host_copy_table
    .globl ioasid_host_copy_table
    ioasid_host_copy_table:
    .popsection
    .pushsection .text.ioasid_host_copy, "ax", @progbits

    // An instruction that may fault, and where it goes on then.
    .macro ioasid_host_copy_or to, instruction:vararg
    771:
        \instruction
        .pushsection .rodata.ioasid_host_copy_table, "a", @progbits
        .long 771b - .
        .long \to - .
        .popsection
    .endm

    .macro ioasid_host_copy_advance width
        add rsi, \width
        add rdi, \width
        sub rcx, \width
    .endm

    .macro ioasid_host_copy_step width, move, register
        ioasid_host_copy_or 778f, \move \register, [rsi]
        ioasid_host_copy_or 778f, \move [rdi], \register
        ioasid_host_copy_advance \width
    .endm

    // A step of so many bytes if that bit of a register is set.
    .macro ioasid_host_copy_step_if bits, width, move, register
        test \bits, \width
        jz 772f
        ioasid_host_copy_step \width, \move, \register
    772:
    .endm

    .macro ioasid_host_copy_function name
        .balign 64
        .type \name, @function
        .hidden \name
        .globl \name
    \name:
        mov rcx, rdx
    .endm

    // What remains is copied byte by byte, as far as it goes.
    .macro ioasid_host_copy_rest name
        ioasid_host_copy_or 779f, rep movsb
    779:
        mov rax, rcx
        ret
        .size \name, . - \name
    .endm

    .macro ioasid_host_copy_vectors name, width, move, register
        ioasid_host_copy_function \name
        cmp rcx, \width
        jb 777f
        cmp rcx, 512
        jb 773f
        // Stores that cross no cache line.
        ioasid_host_copy_step_if edi, 1, mov, al
        ioasid_host_copy_step_if edi, 2, mov, ax
        ioasid_host_copy_step_if edi, 4, mov, eax
        ioasid_host_copy_step_if edi, 8, mov, rax
    .if \width > 16
        ioasid_host_copy_step_if edi, 16, movups, xmm0
    .endif
    773:
        cmp rcx, 4 * \width
        jb 775f
        .balign 32
    774:
        ioasid_host_copy_or 778f, \move \register\()0, [rsi]
        ioasid_host_copy_or 778f, \move \register\()1, [rsi + \width]
        ioasid_host_copy_or 778f, \move \register\()2, [rsi + 2 * \width]
        ioasid_host_copy_or 778f, \move \register\()3, [rsi + 3 * \width]
        ioasid_host_copy_or 778f, \move [rdi], \register\()0
        ioasid_host_copy_or 781f, \move [rdi + \width], \register\()1
        ioasid_host_copy_or 782f, \move [rdi + 2 * \width], \register\()2
        ioasid_host_copy_or 783f, \move [rdi + 3 * \width], \register\()3
        ioasid_host_copy_advance 4 * \width
        cmp rcx, 4 * \width
        jae 774b
    775:
        cmp rcx, \width
        jb 776f
        ioasid_host_copy_step \width, \move, \register\()0
        jmp 775b
    776:
    .if \width > 16
        vzeroupper
    .endif
    777:
    .if \width > 16
        ioasid_host_copy_step_if ecx, 16, movups, xmm0
    .endif
        ioasid_host_copy_step_if ecx, 8, mov, rax
        ioasid_host_copy_step_if ecx, 4, mov, eax
        ioasid_host_copy_step_if ecx, 2, mov, ax
        ioasid_host_copy_step_if ecx, 1, mov, al
        xor eax, eax
        ret
    783:
        ioasid_host_copy_advance \width
    782:
        ioasid_host_copy_advance \width
    781:
        ioasid_host_copy_advance \width
    778:
    .if \width > 16
        vzeroupper
    .endif
        ioasid_host_copy_rest \name
    .endm

    ioasid_host_copy_function ioasid_host_copy_bytes
    ioasid_host_copy_rest ioasid_host_copy_bytes
    ioasid_host_copy_vectors ioasid_host_copy_sse2, 16, movups, xmm
    ioasid_host_copy_vectors ioasid_host_copy_avx2, 32, vmovdqu, ymm

    // 1 if the word was the one that was seen and has been exchanged, 0 if not, 2 if it is gone.
    .balign 16
    .type ioasid_host_exchange_word, @function
    .hidden ioasid_host_exchange_word
    .globl ioasid_host_exchange_word
    ioasid_host_exchange_word:
        mov rax, rsi
        ioasid_host_copy_or 784f, lock cmpxchg qword ptr [rdi], rdx
        sete al
        movzx eax, al
        ret
    784:
        mov eax, 2
        ret
        .size ioasid_host_exchange_word, . - ioasid_host_exchange_word

    .purgem ioasid_host_copy_vectors
    .purgem ioasid_host_copy_rest
    .purgem ioasid_host_copy_function
    .purgem ioasid_host_copy_step_if
    .purgem ioasid_host_copy_step
    .purgem ioasid_host_copy_advance
    .purgem ioasid_host_copy_or
    .popsection
    .pushsection .rodata.ioasid_host_copy_table, "a", @progbits
    .hidden ioasid_host_copy_table_end
    .globl ioasid_host_copy_table_end
    ioasid_host_copy_table_end:
    .popsection
    "#
);

// SAFETY: the symbols are defined above. The functions are of the System V ABI and keep every
// callee-saved register; the others are the two ends of an array of `Fault`.
unsafe extern "sysv64" {
    #[link_name = "ioasid_host_copy_bytes"]
    fn copy_bytes(dst: *mut u8, src: *const u8, len: usize) -> usize;
    #[link_name = "ioasid_host_copy_sse2"]
    fn copy_sse2(dst: *mut u8, src: *const u8, len: usize) -> usize;
    #[link_name = "ioasid_host_copy_avx2"]
    fn copy_avx2(dst: *mut u8, src: *const u8, len: usize) -> usize;
    #[link_name = "ioasid_host_exchange_word"]
    fn exchange_word(word: *mut u64, seen: u64, new: u64) -> u32;
    #[link_name = "ioasid_host_copy_table"]
    static TABLE: Fault;
    #[link_name = "ioasid_host_copy_table_end"]
    static TABLE_END: Fault;
}

/// A line of the table: the two places, each as a distance from where it is written down.
#[repr(C)]
struct Fault {
    instruction: i32,
    goes_on: i32,
}

/// Where a function of this file goes on if the instruction at `address` faults; `None` if there is
/// no such instruction. Safe to call from a signal handler.
pub(super) fn continuation(address: u64) -> Option<u64> {
    let (mut line, end) = (&raw const TABLE, &raw const TABLE_END);
    while line < end {
        // SAFETY: `line` lies in the table, which is constant and made of such lines.
        let Fault {
            instruction,
            goes_on,
        } = unsafe { ptr::read(line) };
        let from = |field: *const i32, distance: i32| {
            (field as u64).wrapping_add_signed(i64::from(distance))
        };
        // SAFETY: both fields are inside of the line.
        let fields = unsafe { (&raw const (*line).instruction, &raw const (*line).goes_on) };
        if from(fields.0, instruction) == address {
            return Some(from(fields.1, goes_on));
        }
        line = line.wrapping_add(1);
    }
    None
}

/// One of the ways to copy forwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forward {
    /// `rep movsb`.
    Bytes,
    /// Vectors of 16 bytes.
    Sse2,
    /// Vectors of 32 bytes. Not to be made where the processor has none.
    Avx2,
}

impl Forward {
    /// The widest vectors that the processor has.
    pub(super) fn vectors() -> Forward {
        if is_x86_feature_detected!("avx2") {
            Forward::Avx2
        } else {
            Forward::Sse2
        }
    }

    /// Copies `len` bytes from the first one up and returns how many were *not* copied because an
    /// access faulted.
    ///
    /// # Safety
    /// `src..src+len` must be readable and `dst..dst+len` writable, except for pages that are gone, and
    /// `dst` must not lie inside of the source, other than at its first byte. The handler that asks
    /// for a [`continuation`] must be installed.
    #[inline]
    pub(super) unsafe fn copy(self, dst: *mut u8, src: *const u8, len: usize) -> usize {
        // SAFETY: as the caller vouches; the safety argument of this file is about the rest.
        unsafe {
            match self {
                Forward::Bytes => copy_bytes(dst, src, len),
                Forward::Sse2 => copy_sse2(dst, src, len),
                Forward::Avx2 => copy_avx2(dst, src, len),
            }
        }
    }
}

/// Puts `new` in the place of `seen` at `word`, in one step and only if the word is that.
///
/// # Safety
/// `word` must be a multiple of 8 and its bytes readable and writable, except that the page may be gone. The
/// handler that asks for a [`continuation`] must be installed.
#[inline]
pub(super) unsafe fn exchange(word: *mut u64, seen: u64, new: u64) -> Exchange {
    // SAFETY: as the caller vouches. An exchange that faults has stored nothing.
    match unsafe { exchange_word(word, seen, new) } {
        0 => Exchange::Changed,
        1 => Exchange::Done,
        _ => Exchange::Gone,
    }
}
