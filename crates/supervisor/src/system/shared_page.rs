//! The page that a process shares with its session, as the session has it.
// UNSAFETY: a mapping of a page that the program writes too, whose fields are all atomic.
#![allow(unsafe_code)]

use std::{
    io,
    ops::Deref,
    os::fd::BorrowedFd,
    ptr::{self, NonNull},
};

use ioasid_preload::page::{PAGE_BYTES, Page};
use rustix::{
    fs::{SealFlags, fcntl_add_seals, ftruncate},
    mm::{MapFlags, ProtFlags, mmap, munmap},
};

/// The page, mapped as long as this lives.
#[derive(Debug)]
pub(crate) struct SharedPage(NonNull<Page>);

// SAFETY: a page of atomics, which any thread may touch, and which any may unmap.
unsafe impl Send for SharedPage {}
// SAFETY: as above.
unsafe impl Sync for SharedPage {}

impl SharedPage {
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

impl Deref for SharedPage {
    type Target = Page;

    fn deref(&self) -> &Page {
        // SAFETY: mapped, aligned and large enough until this is dropped. Others write it at any
        // time, but all that is read or written of it is atomic, and any bytes are a value.
        unsafe { self.0.as_ref() }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made; every reference into it has borrowed from this.
        let unmapped = unsafe { munmap(self.0.as_ptr().cast(), PAGE_BYTES) };
        debug_assert!(unmapped.is_ok(), "a mapping of ours");
    }
}
