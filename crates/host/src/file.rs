//! Files that a client holds, mapped into our own address space: zero copy, and like a pin they
//! survive the client's `munmap`.
//!
//! Only memory files are taken: memfds and files on tmpfs and hugetlbfs. A file on FUSE may never
//! answer a page fault, and not even `fstatfs`, a plain `fstat` or the `close` of such a file returns
//! without its server. So a file is recognised by its device alone, asked for without the file
//! system's help (`AT_STATX_DONT_SYNC`), before anything else is done with it.
// UNSAFETY: mmap, munmap and the raw bytes between them.
#![allow(unsafe_code)]

use std::{
    fmt,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::{self, NonNull},
    sync::{Arc, Weak},
};

use ioasid_core::{
    access::Prot,
    memory::{Backing, Extent, Memory, MemoryGone, PAGE_SIZE, PageSource, PinError, RawBytes},
    range::AddrRange,
    spa::{SpaRange, WINDOW_SIZE},
};
use rustix::{
    fs::{AtFlags, FileType, OFlags, Statx, StatxFlags},
    io::Errno,
    mm::{Advice, MapFlags, ProtFlags},
};

use crate::{
    client::{Shared, WindowPermit},
    copy::RecoveringCopy,
    filesystem::Filesystem,
};

/// Device and inode number: which file it is, whatever descriptor leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

/// Identity and type of a file, from what the kernel has at hand: never asks a file system's server.
pub(crate) fn identify(dir: BorrowedFd<'_>, path: &str) -> rustix::io::Result<(FileId, FileType)> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::EMPTY_PATH;
    let Statx {
        stx_dev_major: major,
        stx_dev_minor: minor,
        stx_ino: ino,
        stx_mode: mode,
        ..
    } = rustix::fs::statx(dir, path, flags, StatxFlags::INO | StatxFlags::TYPE)?;
    let dev = rustix::fs::makedev(major, minor);
    Ok((FileId { dev, ino }, FileType::from_raw_mode(mode.into())))
}

/// Whether `dev` is a file system whose files live in memory: the kernel's own mounts behind memfds,
/// or a tmpfs or hugetlbfs in `mountinfo`, which gives the text of the client's mount table.
pub(crate) fn is_memory_device(dev: u64, mountinfo: impl FnOnce() -> Option<String>) -> bool {
    Filesystem::of(dev, mountinfo) == Filesystem::Memory
}

/// An open memory file of a client.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    fd: OwnedFd,
    id: FileId,
    huge: bool,
    writable: bool,
}

impl MemoryFile {
    /// `fd` is known to lie on a memory device. `None` if it is no regular file all the same.
    pub(crate) fn new(fd: OwnedFd) -> Option<Arc<Self>> {
        const TMPFS: i64 = 0x0102_1994;
        const HUGETLBFS: i64 = 0x9584_58f6;
        let (id, kind) = identify(fd.as_fd(), "").ok()?;
        let magic = rustix::fs::fstatfs(&fd).ok()?.f_type;
        let mode = rustix::fs::fcntl_getfl(&fd).ok()? & OFlags::ACCMODE;
        (kind == FileType::RegularFile
            && (magic == TMPFS || magic == HUGETLBFS)
            && !mode.contains(OFlags::WRONLY))
        .then(|| {
            Arc::new(MemoryFile {
                fd,
                id,
                huge: magic == HUGETLBFS,
                writable: mode == OFlags::RDWR,
            })
        })
    }

    pub(crate) fn id(&self) -> FileId {
        self.id
    }

    pub(crate) fn writable(&self) -> bool {
        self.writable
    }

    /// Size in bytes as of now.
    pub(crate) fn size(&self) -> u64 {
        rustix::fs::fstat(&self.fd)
            .ok()
            .and_then(|stat| u64::try_from(stat.st_size).ok())
            .unwrap_or(0)
    }

    /// Bytes up to the end of its last page as of now: what a mapping of it has.
    pub(crate) fn size_in_pages(&self) -> u64 {
        let size = self.size();
        size.checked_next_multiple_of(PAGE_SIZE).unwrap_or(size)
    }

    /// System physical addresses for `len` bytes from `offset`. The caller has compared them with the
    /// size of the file.
    pub(crate) fn pin(
        &self,
        client: &Arc<Shared>,
        offset: u64,
        len: u64,
        prot: Prot,
    ) -> Result<Vec<Extent>, PinError> {
        let end = offset.checked_add(len).ok_or(PinError::OutOfRange)?;
        let mut extents = Vec::new();
        let mut at = offset;
        while at < end {
            let (chunk, inside) = (at / WINDOW_SIZE, at % WINDOW_SIZE);
            let len = (end - at).min(WINDOW_SIZE - inside);
            let window = self.window(client, chunk, inside + len, prot)?;
            extents.push(Extent {
                spa: window.range.start() + inside,
                len,
                hold: window.range,
            });
            at += len;
        }
        Ok(extents)
    }

    /// The mapping of chunk `chunk` of the file, at least `len` bytes long: the one that the client
    /// has already, or a new one. Writable where the file is, so that one mapping serves both.
    fn window(
        &self,
        client: &Arc<Shared>,
        chunk: u64,
        len: u64,
        prot: Prot,
    ) -> Result<FileWindow, PinError> {
        let mut windows = client.file_windows.lock();
        let key = (self.id, chunk);
        if let Some(window) = windows.get(&key).and_then(WeakFileWindow::upgrade)
            && window.memory.len as u64 >= len
            && (window.memory.writable || !prot.write)
        {
            return Ok(window);
        }
        let memory = self.map(client, chunk, prot.write)?;
        let range = client.space.register(memory.clone(), 0);
        let range = Arc::new(range.map_err(|_| PinError::NoMemory)?);
        let window = FileWindow { range, memory };
        windows.retain(|_, window| window.range.strong_count() > 0);
        windows.insert(key, window.downgrade());
        Ok(window)
    }

    fn map(
        &self,
        client: &Arc<Shared>,
        chunk: u64,
        must_write: bool,
    ) -> Result<Arc<FileMemory>, PinError> {
        let mut permit = client.permit().ok_or(PinError::NoMemory)?;
        let offset = chunk.checked_mul(WINDOW_SIZE).ok_or(PinError::OutOfRange)?;
        // The whole chunk, so that a file that grows needs no second mapping; what lies beyond the
        // end of the file faults and is recovered. Not so on hugetlbfs, where a writable mapping
        // makes the file grow.
        let len = if self.huge {
            WINDOW_SIZE.min(self.size().saturating_sub(offset))
        } else {
            WINDOW_SIZE
        };
        for writable in [true, false] {
            if (writable && !self.writable) || (must_write && !writable) {
                continue;
            }
            match FileMemory::new(&self.fd, offset, len, writable, client.copier, permit) {
                Ok(memory) => return Ok(Arc::new(memory)),
                // A sealed memfd cannot be mapped writable; its permit comes back for the next try.
                Err((Errno::PERM | Errno::ACCESS, unused)) => permit = unused,
                Err(_) => return Err(PinError::NoMemory),
            }
        }
        Err(PinError::Fault)
    }
}

/// A live mapping of a chunk and its registration.
struct FileWindow {
    range: Arc<SpaRange>,
    memory: Arc<FileMemory>,
}

impl FileWindow {
    fn downgrade(&self) -> WeakFileWindow {
        WeakFileWindow {
            range: Arc::downgrade(&self.range),
            memory: Arc::downgrade(&self.memory),
        }
    }
}

/// A [`FileWindow`] while somebody else keeps it.
pub(crate) struct WeakFileWindow {
    range: Weak<SpaRange>,
    memory: Weak<FileMemory>,
}

impl WeakFileWindow {
    /// Whether the mapping is in use.
    pub(crate) fn is_alive(&self) -> bool {
        self.range.strong_count() > 0
    }

    fn upgrade(&self) -> Option<FileWindow> {
        Some(FileWindow {
            range: self.range.upgrade()?,
            memory: self.memory.upgrade()?,
        })
    }
}

/// A chunk of at most 1 GiB of a client's memory file, mapped shared into our address space. Where
/// the file has been truncated, copies end early (see [`RecoveringCopy`]).
pub struct FileMemory {
    base: NonNull<u8>,
    len: usize,
    writable: bool,
    copier: &'static RecoveringCopy,
    _permit: WindowPermit,
}

// SAFETY: the mapping is reached only through raw copies, from any thread.
unsafe impl Send for FileMemory {}
// SAFETY: as above.
unsafe impl Sync for FileMemory {}

impl FileMemory {
    fn new(
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
            _permit: permit,
        })
    }

    fn bytes(&self) -> RawBytes<'_> {
        // SAFETY: mapped with this permission in `new` until `drop`, and never lent as a reference;
        // pages may vanish by truncation, from which the copier recovers.
        unsafe { RawBytes::new(self.base, self.len, self.writable, self.copier) }
    }

    fn slice(&self, offset: u64, len: usize) -> Result<RawBytes<'_>, MemoryGone> {
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
            .finish_non_exhaustive()
    }
}

/// A part of a client's file as a source of pages.
#[derive(Debug)]
pub(crate) struct FilePages {
    pub(crate) client: Arc<Shared>,
    pub(crate) file: Arc<MemoryFile>,
    /// Offset in the file, in bytes.
    pub(crate) start: u64,
    pub(crate) len: u64,
}

impl FilePages {
    /// Calls `copy` with each piece of `len` bytes from `offset` and the bytes done before it.
    fn each(
        &self,
        offset: u64,
        len: usize,
        prot: Prot,
        mut copy: impl FnMut(RawBytes<'_>, usize) -> Result<(), MemoryGone>,
    ) -> Result<(), MemoryGone> {
        let inside =
            AddrRange::from_len(offset, len as u64).is_none_or(|range| range.last() < self.len);
        let mut done = 0;
        while inside && done < len {
            let gone = MemoryGone { done };
            let at = self.start.checked_add(offset + done as u64).ok_or(gone)?;
            let (chunk, inside) = (at / WINDOW_SIZE, at % WINDOW_SIZE);
            let piece = ((len - done) as u64).min(WINDOW_SIZE - inside);
            let window = self.file.window(&self.client, chunk, inside + piece, prot);
            let memory = window.map_err(|_| gone)?.memory;
            copy(memory.slice(inside, piece as usize)?, done).map_err(|at| MemoryGone {
                done: done + at.done,
            })?;
            done += piece as usize;
        }
        if done == len {
            Ok(())
        } else {
            Err(MemoryGone { done })
        }
    }
}

impl PageSource for FilePages {
    fn size(&self) -> u64 {
        self.len
    }

    fn pin(&self, offset: u64, len: u64, prot: Prot) -> Result<Vec<Extent>, PinError> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => {}
            _ => return Err(PinError::OutOfRange),
        }
        let offset = self.start.checked_add(offset).ok_or(PinError::OutOfRange)?;
        // Whole pages, and none that the file has in part only (`memfd_pin_folios` in mm/gup.c).
        let end = offset.checked_add(len);
        match end.and_then(|end| end.checked_next_multiple_of(PAGE_SIZE)) {
            Some(end) if end <= self.file.size() => {}
            _ => return Err(PinError::OutOfRange),
        }
        self.file.pin(&self.client, offset, len, prot)
    }

    fn alignment_hint(&self) -> u64 {
        self.start
    }

    fn is_file(&self) -> bool {
        true
    }

    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.each(offset, dst.len(), Prot::READ, |bytes, done| {
            bytes.read(&mut dst[done..][..bytes.len()])
        })
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        self.each(offset, src.len(), Prot::RW, |bytes, done| {
            bytes.write(&src[done..][..bytes.len()])
        })
    }
}
