//! A chunk of a client's memory file, mapped into this process.
// UNSAFETY: mmap, munmap and the raw bytes between them.
#![allow(unsafe_code)]

use std::{
    fmt,
    os::fd::OwnedFd,
    ptr::{self, NonNull},
    sync::Arc,
};

use ioasid_core::memory::{Backing, Memory, MemoryGone, RawBytes};
use rustix::{
    io::Errno,
    mm::{Advice, MapFlags, ProtFlags},
};

use super::{file::MemoryFile, windows::WindowPermit};
use crate::system::copy::RecoveringCopy;

/// A chunk of at most 1 GiB of a client's memory file, mapped shared into our address space. Where
/// the file has been truncated, copies end early (see [`RecoveringCopy`]).
pub struct FileMemory {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    copier: &'static RecoveringCopy,
    /// Kept open, for the next MAP of it to find.
    file: Option<Arc<MemoryFile>>,
    _permit: WindowPermit,
}

// SAFETY: the mapping is reached only through raw copies, from any thread.
unsafe impl Send for FileMemory {}
// SAFETY: as above.
unsafe impl Sync for FileMemory {}

impl FileMemory {
    pub(super) fn new(
        fd: &OwnedFd,
        offset: u64,
        len: u64,
        writable: bool,
        copier: &'static RecoveringCopy,
        permit: WindowPermit,
    ) -> Result<Self, (Errno, WindowPermit)> {
        let mut prot = ProtFlags::READ;
        prot.set(ProtFlags::WRITE, writable);
        // Reserves no huge pages: those that the client has reserved are the file's. The kernel
        // aligns the mapping so that huge pages of the file are huge pages here as well.
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        let Ok(len) = usize::try_from(len) else {
            return Err((Errno::INVAL, permit));
        };
        // SAFETY: a new mapping at an address that the kernel chooses replaces nothing.
        let base = match unsafe { rustix::mm::mmap(ptr::null_mut(), len, prot, flags, fd, offset) }
        {
            Ok(base) => base,
            Err(errno) => return Err((errno, permit)),
        };
        for advice in [Advice::LinuxDontFork, Advice::LinuxDontDump] {
            // SAFETY: this changes what a fork or a core dump takes along, not what we can reach.
            let _ = unsafe { rustix::mm::madvise(base, len, advice) };
        }
        let base = NonNull::new(base.cast()).expect("mmap never gives the null page");
        Ok(FileMemory {
            base,
            len,
            writable,
            copier,
            file: None,
            _permit: permit,
        })
    }

    /// Keeps `file`, which it is a mapping of, open as long as it lives.
    pub(super) fn keeping(mut self, file: Option<Arc<MemoryFile>>) -> Self {
        self.file = file;
        self
    }

    /// Whether it serves accesses to its first `len` bytes, and writes if `write` is set.
    pub(super) fn serves(&self, len: u64, write: bool) -> bool {
        self.len as u64 >= len && (self.writable || !write)
    }

    fn bytes(&self) -> RawBytes<'_> {
        // SAFETY: mapped with this permission in `new` until `drop`, and never lent as a reference;
        // pages may vanish by truncation, from which the copier recovers.
        unsafe { RawBytes::new(self.base, self.len, self.writable, self.copier) }
    }

    pub(super) fn slice(&self, offset: u64, len: usize) -> Result<RawBytes<'_>, MemoryGone> {
        usize::try_from(offset)
            .ok()
            .and_then(|offset| self.bytes().slice(offset, len))
            .ok_or(MemoryGone { done: 0 })
    }
}

impl Backing for FileMemory {
    fn size(&self) -> u64 {
        self.len as u64
    }

    fn memory(&self) -> Memory<'_> {
        Memory::Direct(self.bytes())
    }
}

impl Drop for FileMemory {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; every `RawBytes` of it has ended, since they
        // borrow `self`.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl fmt::Debug for FileMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileMemory")
            .field("len", &self.len)
            .field("writable", &self.writable)
            .field("kept_open", &self.file.is_some())
            .finish_non_exhaustive()
    }
}
