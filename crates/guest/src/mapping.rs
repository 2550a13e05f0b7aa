//! Memory that a device may change at any moment, or that is a device: BARs, and pages for DMA.
//!
//! There is never a reference to it: every access is one volatile load or store of its width.
// UNSAFETY: `mmap`, and loads and stores inside of what it gave; every place is checked first.
#![allow(unsafe_code)]

use std::{fs::File, io, ptr::NonNull};

use rustix::mm::{MapFlags, MlockFlags, ProtFlags, mlock_with, mmap, mmap_anonymous, munmap};

/// A mapping of this process, gone when dropped.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

impl Mapping {
    /// The first `len` bytes of `file`.
    ///
    /// # Errors
    /// Of `mmap`.
    pub(crate) fn of(file: &File, len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the kernel chooses a place where nothing is.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                len,
                protection,
                MapFlags::SHARED,
                file,
                0,
            )
        }?;
        Self::new(base.cast(), len)
    }

    /// `len` bytes of memory, all there and not to be paged out.
    ///
    /// # Errors
    /// Of `mmap` and `mlock2`.
    pub(crate) fn anonymous(len: usize) -> io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE | MapFlags::POPULATE;
        // SAFETY: the kernel chooses a place where nothing is.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, flags) }?;
        // SAFETY: just those bytes were mapped, and locking changes none.
        unsafe { mlock_with(base, len, MlockFlags::empty()) }?;
        Self::new(base.cast(), len)
    }

    fn new(base: *mut u8, len: usize) -> io::Result<Self> {
        let base = NonNull::new(base).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }

    /// Where it is in this process.
    pub(crate) fn address(&self) -> usize {
        self.base.as_ptr().addr()
    }

    /// Bytes of it.
    pub(crate) const fn len(&self) -> usize {
        self.len
    }

    /// `width` bytes at `at`.
    ///
    /// # Panics
    /// If they are not 1, 2, 4 or 8 aligned bytes of it.
    fn place(&self, at: usize, width: usize) -> *mut u8 {
        assert!(matches!(width, 1 | 2 | 4 | 8) && at.is_multiple_of(width));
        assert!(at < self.len && width <= self.len - at);
        self.base.as_ptr().wrapping_add(at)
    }

    /// Loads `width` bytes at `at`, by one instruction.
    ///
    /// # Panics
    /// If they are not 1, 2, 4 or 8 aligned bytes of it.
    pub(crate) fn load(&self, at: usize, width: usize) -> u64 {
        let place = self.place(at, width);
        // SAFETY: `place` is inside of the mapping, the mapping is aligned to pages and the place to
        // its width; all bits are valid for integers, and nobody has a reference to them.
        unsafe {
            match width {
                1 => place.read_volatile().into(),
                2 => place.cast::<u16>().read_volatile().into(),
                4 => place.cast::<u32>().read_volatile().into(),
                _ => place.cast::<u64>().read_volatile(),
            }
        }
    }

    /// Stores the low `width` bytes of `value` at `at`, by one instruction.
    ///
    /// # Panics
    /// If those are not 1, 2, 4 or 8 aligned bytes of it.
    pub(crate) fn store(&self, at: usize, width: usize, value: u64) {
        let place = self.place(at, width);
        // SAFETY: as for `load`; the mapping can be written.
        unsafe {
            match width {
                1 => place.write_volatile(value as u8),
                2 => place.cast::<u16>().write_volatile(value as u16),
                4 => place.cast::<u32>().write_volatile(value as u32),
                _ => place.cast::<u64>().write_volatile(value),
            }
        }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: it is this value's alone, and nothing points into it any more.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.len) };
    }
}
