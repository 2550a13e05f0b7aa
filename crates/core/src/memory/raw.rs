//! Raw bytes, and what copies them.
//!
//! # Safety argument
//! [`RawBytes::new`] is where the promise is made: the range stays mapped (or its loss is recovered
//! by the `RawCopy`) for the lifetime in the type. Every other operation stays inside the range.
// UNSAFETY: raw copies; see the safety argument above.
#![allow(unsafe_code)]

use std::{
    fmt,
    marker::PhantomData,
    ptr::NonNull,
    sync::atomic::{AtomicU64, Ordering, compiler_fence, fence},
};

/// What became of an exchange of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exchange {
    /// The word had the value that was expected, and has the new one.
    Done,
    /// It had another one, and has it still.
    Changed,
    /// The page is gone.
    Gone,
}

/// Copies between raw addresses, where either side may change or (for some implementations) vanish.
///
/// # Safety
/// `copy` must behave as `memmove` for the first `n` bytes, where `n` is its result, must touch no
/// other byte, and must return `len` unless the memory faulted. A copy of 8 bytes at multiples of 8 is one
/// load and one store. `exchange` must touch no byte but those of the word.
pub unsafe trait RawCopy: Send + Sync {
    /// Copies up to `len` bytes and returns how many were copied.
    ///
    /// # Safety
    /// `src..src+len` must be readable and `dst..dst+len` writable, except that an implementation
    /// with [`RawCopy::recovers`] may be given ranges whose pages are gone.
    unsafe fn copy(&self, dst: *mut u8, src: *const u8, len: usize) -> usize;

    /// Puts `new` in the place of `seen`, in one step and only if the word is that.
    ///
    /// # Safety
    /// `word` must be a multiple of 8 and its 8 bytes readable and writable, except that an
    /// implementation with [`RawCopy::recovers`] may be given one whose page is gone.
    unsafe fn exchange(&self, word: *mut u64, seen: u64, new: u64) -> Exchange;

    /// Whether a page that is gone ends the copy early instead of killing the process.
    fn recovers(&self) -> bool;
}

/// [`RawCopy`] for memory that never goes away: our own.
#[derive(Clone, Copy, Debug)]
pub struct PlainCopy;

// SAFETY: `ptr::copy` is memmove and completes; a word at a multiple of 8 is moved by one instruction.
unsafe impl RawCopy for PlainCopy {
    #[inline]
    unsafe fn copy(&self, dst: *mut u8, src: *const u8, len: usize) -> usize {
        // Others change these bytes: a copy made before or after says nothing about this one, so the
        // compiler may neither merge it with another nor move it out of a loop.
        compiler_fence(Ordering::SeqCst);
        // SAFETY: the caller promises both ranges; they may overlap.
        unsafe { std::ptr::copy(src, dst, len) };
        compiler_fence(Ordering::SeqCst);
        len
    }

    #[inline]
    unsafe fn exchange(&self, word: *mut u64, seen: u64, new: u64) -> Exchange {
        // SAFETY: aligned, valid and accessed by raw copies and exchanges alone, as the caller promises.
        let word = unsafe { AtomicU64::from_ptr(word) };
        match word.compare_exchange(seen, new, Ordering::AcqRel, Ordering::Relaxed) {
            Ok(_) => Exchange::Done,
            Err(_) => Exchange::Changed,
        }
    }

    fn recovers(&self) -> bool {
        false
    }
}

/// The copy stopped because a page behind the memory is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the memory is gone after {done} bytes")]
pub struct MemoryGone {
    /// Bytes copied before.
    pub done: usize,
}

impl MemoryGone {
    /// The same, for the rest of a copy of which `before` bytes had been made.
    #[must_use]
    pub const fn after(self, before: usize) -> Self {
        MemoryGone {
            done: before + self.done,
        }
    }
}

/// Directly addressable bytes that others may change; valid for `'a`.
#[derive(Clone, Copy)]
pub struct RawBytes<'a> {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    copier: &'static dyn RawCopy,
    alive: PhantomData<&'a ()>,
}

// SAFETY: the bytes may be touched from any thread, and are only touched by raw copies.
unsafe impl Send for RawBytes<'_> {}
// SAFETY: as above.
unsafe impl Sync for RawBytes<'_> {}

impl<'a> RawBytes<'a> {
    /// The `len` bytes from `base`.
    ///
    /// # Safety
    /// For the whole of `'a` the range must stay mapped, readable, and writable if `writable`; pages
    /// behind it may vanish only if `copier` recovers from that. No Rust reference to any of its
    /// bytes may exist.
    pub const unsafe fn new(
        base: NonNull<u8>,
        len: usize,
        writable: bool,
        copier: &'static dyn RawCopy,
    ) -> Self {
        RawBytes {
            base,
            len,
            writable,
            copier,
            alive: PhantomData,
        }
    }

    /// Length in bytes.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether writes are allowed.
    pub const fn writable(&self) -> bool {
        self.writable
    }

    /// `len` bytes from `offset`; `None` if they do not all lie inside.
    pub fn slice(&self, offset: usize, len: usize) -> Option<RawBytes<'a>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: `offset <= self.len`, so the result is inside the range or one past its end.
        let base = unsafe { self.base.add(offset) };
        Some(RawBytes { base, len, ..*self })
    }

    /// Copies into `dst`, as many bytes as both have.
    ///
    /// # Errors
    /// [`MemoryGone`] if a page behind the bytes has vanished.
    pub fn read(&self, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let len = self.len.min(dst.len());
        // SAFETY: source inside our range (see `new`), destination an exclusive slice of at least
        // `len` bytes; they cannot overlap, as no reference to our bytes exists.
        let done = unsafe { self.copier.copy(dst.as_mut_ptr(), self.base.as_ptr(), len) };
        if done == len {
            Ok(())
        } else {
            Err(MemoryGone { done })
        }
    }

    /// Copies from `src`, as many bytes as both have.
    ///
    /// # Errors
    /// [`MemoryGone`] if a page behind the bytes has vanished, or if they are read-only (0 done).
    pub fn write(&self, src: &[u8]) -> Result<(), MemoryGone> {
        if !self.writable {
            return Err(MemoryGone { done: 0 });
        }
        let len = self.len.min(src.len());
        // SAFETY: destination inside our range and writable (see `new`), source a slice of at least
        // `len` bytes.
        let done = unsafe { self.copier.copy(self.base.as_ptr(), src.as_ptr(), len) };
        if done == len {
            Ok(())
        } else {
            Err(MemoryGone { done })
        }
    }

    /// Copies from other raw bytes, as many as both have; overlap is allowed.
    ///
    /// # Errors
    /// [`MemoryGone`] if a page on either side has vanished, or if these bytes are read-only.
    pub fn copy_from(&self, src: RawBytes<'_>) -> Result<(), MemoryGone> {
        if !self.writable {
            return Err(MemoryGone { done: 0 });
        }
        let len = self.len.min(src.len);
        let copier = if self.copier.recovers() {
            self.copier
        } else {
            src.copier
        };
        // SAFETY: both ranges are valid as promised in `new`; if either may vanish, `copier` is one
        // that recovers, since that side's own copier does.
        let done = unsafe { copier.copy(self.base.as_ptr(), src.base.as_ptr(), len) };
        if done == len {
            Ok(())
        } else {
            Err(MemoryGone { done })
        }
    }

    /// The first 8 bytes as a little-endian word; one load if they lie at a multiple of 8.
    ///
    /// # Errors
    /// [`MemoryGone`] if the page has vanished, or there are fewer bytes.
    #[inline]
    pub fn read_word(&self) -> Result<u64, MemoryGone> {
        let mut word = [0; 8];
        if self.len < word.len() {
            return Err(MemoryGone { done: 0 });
        }
        self.read(&mut word)?;
        Ok(u64::from_le_bytes(word))
    }

    /// Puts `new` in the place of the first 8 bytes if they are `seen`, in one step; whether they were.
    ///
    /// # Errors
    /// [`MemoryGone`] if the page has vanished, the bytes are read-only, fewer, or not at a multiple of 8.
    pub fn exchange_word(&self, seen: u64, new: u64) -> Result<bool, MemoryGone> {
        let word = self.base.as_ptr().cast::<u64>();
        if !self.writable || self.len < size_of::<u64>() || !word.is_aligned() {
            return Err(MemoryGone { done: 0 });
        }
        // SAFETY: inside our range, writable (see `new`) and aligned.
        match unsafe { self.copier.exchange(word, seen.to_le(), new.to_le()) } {
            Exchange::Done => Ok(true),
            Exchange::Changed => Ok(false),
            Exchange::Gone => Err(MemoryGone { done: 0 }),
        }
    }

    /// Writes the first byte after everything written before by this thread: the byte that shows
    /// another CPU that a record is complete.
    ///
    /// # Errors
    /// As [`RawBytes::write`].
    pub fn publish(&self, byte: u8) -> Result<(), MemoryGone> {
        fence(Ordering::Release);
        self.write(std::slice::from_ref(&byte))
    }
}

impl fmt::Debug for RawBytes<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // No address: it would leak our layout into logs that clients may read.
        f.debug_struct("RawBytes")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
