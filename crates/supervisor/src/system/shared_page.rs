//! The page that a process shares with its session, as the session has it.
// UNSAFETY: a mapping of a page that the program writes too, whose fields are all atomic.
#![allow(unsafe_code)]

use std::{
    io,
    ops::Deref,
    os::fd::BorrowedFd,
    ptr::{self, NonNull},
};

use ioasid_preload::{
    errands::Errands,
    page::{PAGE_BYTES, Page},
};
use rustix::{
    fs::{SealFlags, fcntl_add_seals, ftruncate},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

/// What can lie in such a page.
///
/// # Safety
/// It fills one page, all its fields are atomic, and any bytes are one.
pub(crate) unsafe trait Shareable {}

// SAFETY: questions in atomic words, a page of them (asserted beside its definition).
unsafe impl Shareable for Page {}
// SAFETY: as above.
unsafe impl Shareable for Errands {}

/// The page, mapped as long as this lives.
#[derive(Debug)]
pub(crate) struct SharedPage<T: Shareable>(NonNull<T>);

// SAFETY: a page of atomics, which any thread may touch, and which any may unmap.
unsafe impl<T: Shareable> Send for SharedPage<T> {}
// SAFETY: as above.
unsafe impl<T: Shareable> Sync for SharedPage<T> {}

impl<T: Shareable> SharedPage<T> {
    /// Makes a page of zeros of an empty memory file, for the other side to map. Nobody can make
    /// the file smaller: what is mapped here can always be touched.
    ///
    /// # Errors
    /// Out of memory.
    pub(crate) fn new(file: BorrowedFd<'_>) -> io::Result<Self> {
        ftruncate(file, PAGE_BYTES as u64)?;
        fcntl_add_seals(file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping where nothing is.
        let page = unsafe { mmap(ptr::null_mut(), PAGE_BYTES, prot, MapFlags::SHARED, file, 0)? };
        let page = NonNull::new(page.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(SharedPage(page))
    }
}

impl<T: Shareable> Deref for SharedPage<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: mapped, aligned and large enough until this is dropped. Others write it at any
        // time, but all that is read or written of it is atomic, and any bytes are a value.
        unsafe { self.0.as_ref() }
    }
}

impl<T: Shareable> Drop for SharedPage<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; every reference into it has borrowed from this.
        let unmapped = unsafe { munmap(self.0.as_ptr().cast(), PAGE_BYTES) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours");
    }
}
