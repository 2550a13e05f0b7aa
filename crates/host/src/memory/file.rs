//! Memory files of a client, mapped into our own address space: zero copy, and like a pin they
//! survive the client's `munmap`.
//!
//! Only memory files are taken: memfds and files on tmpfs and hugetlbfs. A file on FUSE may never
//! answer a page fault, and not even `fstatfs`, a plain `fstat` or the `close` of such a file
//! returns without its server. So a file is recognised by its device alone, asked for without the
//! file system's help (`AT_STATX_DONT_SYNC`), before anything else is done with it.

use std::{
    collections::HashMap,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use ioasid_core::{
    access::Prot,
    memory::{Extent, MemoryGone, PAGE_SIZE, PageSource, PinError, RawBytes},
    range::AddrRange,
    spa::{SpaRange, WINDOW_SIZE},
    sync::Mutex,
};
use rustix::{
    fs::{FileType, OFlags},
    io::Errno,
};

use super::{file_memory::FileMemory, windows::Windows};
use crate::{
    system::{
        copy::RecoveringCopy,
        file_id::{FileId, identify},
    },
    threads::closer,
};

/// An open memory file of a client.
#[derive(Debug)]
pub(crate) struct MemoryFile {
    fd: OwnedFd,
    id: FileId,
    huge: bool,
    writable: bool,
    /// Once a mapping keeps it.
    kept: OnceLock<KeptPermit>,
}

/// The right to keep one file open, given back on drop.
#[derive(Debug)]
struct KeptPermit(Arc<AtomicUsize>);

impl Drop for KeptPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
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
                kept: OnceLock::new(),
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
}

/// The memory files of one client that are in use, and the chunks of them that are mapped.
#[derive(Debug)]
pub(crate) struct MemoryFiles {
    windows: Arc<Windows>,
    copier: &'static RecoveringCopy,
    /// A file that is open keeps its identity from being reused.
    known: Mutex<HashMap<FileId, Weak<MemoryFile>>>,
    /// Files that a mapping keeps open, so that the next MAP need not look for them.
    kept: Arc<AtomicUsize>,
    /// How many of these there may be.
    most_kept: usize,
    /// How often a file was looked for, and how often in a process's table of descriptors.
    searches: AtomicU64,
    listings: AtomicU64,
    /// By file and number of the chunk of 1 GiB. The live mapping of a file keeps its identity from
    /// being reused.
    mapped: Mutex<HashMap<(FileId, u64), WeakFileWindow>>,
}

impl MemoryFiles {
    pub(crate) fn new(windows: Arc<Windows>, copier: &'static RecoveringCopy) -> Arc<Self> {
        Arc::new(MemoryFiles {
            windows,
            copier,
            known: Mutex::default(),
            kept: Arc::default(),
            most_kept: closer::room(),
            searches: AtomicU64::new(0),
            listings: AtomicU64::new(0),
            mapped: Mutex::default(),
        })
    }

    /// The open file `id`, while some mapping uses it.
    pub(crate) fn known(&self, id: FileId) -> Option<Arc<MemoryFile>> {
        self.known.lock().get(&id).and_then(Weak::upgrade)
    }

    pub(crate) fn remember(&self, file: &Arc<MemoryFile>) {
        let mut files = self.known.lock();
        files.retain(|_, file| file.strong_count() > 0);
        files.insert(file.id(), Arc::downgrade(file));
    }

    /// A mapping that no known file serves: its file is looked for.
    pub(crate) fn count_search(&self) {
        self.searches.fetch_add(1, Ordering::Relaxed);
    }

    /// A process's descriptors are looked through for a file.
    pub(crate) fn count_listing(&self) {
        self.listings.fetch_add(1, Ordering::Relaxed);
    }

    /// How often a file was looked for, and how often in a process's table of descriptors.
    pub(crate) fn searches(&self) -> (u64, u64) {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (count(&self.searches), count(&self.listings))
    }

    /// The file for a mapping to keep open: `None` if there are as many as the client may have, and
    /// then each MAP of it has to look for it.
    fn keep(&self, file: &Arc<MemoryFile>) -> Option<Arc<MemoryFile>> {
        if file.kept.get().is_none() {
            let room = |kept: usize| (kept < self.most_kept).then_some(kept + 1);
            self.kept
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, room)
                .ok()?;
            // One that another thread has taken meanwhile goes back.
            let _ = file.kept.set(KeptPermit(Arc::clone(&self.kept)));
        }
        Some(Arc::clone(file))
    }

    /// Chunks of 1 GiB that are mapped.
    pub(crate) fn mapped_chunks(&self) -> usize {
        let mapped = self.mapped.lock();
        mapped.values().filter(|window| window.is_alive()).count()
    }

    /// System physical addresses for `len` bytes from `offset`. The caller has compared them with
    /// the size of the file.
    pub(crate) fn pin(
        &self,
        file: &Arc<MemoryFile>,
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
            let window = self.window(file, chunk, inside + len, prot)?;
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
        file: &Arc<MemoryFile>,
        chunk: u64,
        len: u64,
        prot: Prot,
    ) -> Result<FileWindow, PinError> {
        let mut windows = self.mapped.lock();
        let key = (file.id, chunk);
        if let Some(window) = windows.get(&key).and_then(WeakFileWindow::upgrade)
            && window.memory.serves(len, prot.write)
        {
            return Ok(window);
        }
        let memory = self.map(file, chunk, prot.write)?;
        let range = self.windows.register(memory.clone(), 0)?;
        let window = FileWindow { range, memory };
        windows.retain(|_, window| window.range.strong_count() > 0);
        windows.insert(key, window.downgrade());
        Ok(window)
    }

    fn map(
        &self,
        file: &Arc<MemoryFile>,
        chunk: u64,
        must_write: bool,
    ) -> Result<Arc<FileMemory>, PinError> {
        let mut permit = self.windows.permit()?;
        let offset = chunk.checked_mul(WINDOW_SIZE).ok_or(PinError::OutOfRange)?;
        // The whole chunk, so that a file that grows needs no second mapping; what lies beyond the
        // end of the file faults and is recovered. Not so on hugetlbfs, where a writable mapping
        // makes the file grow.
        let len = if file.huge {
            WINDOW_SIZE.min(file.size().saturating_sub(offset))
        } else {
            WINDOW_SIZE
        };
        for writable in [true, false] {
            if (writable && !file.writable) || (must_write && !writable) {
                continue;
            }
            match FileMemory::new(&file.fd, offset, len, writable, self.copier, permit) {
                Ok(memory) => return Ok(Arc::new(memory.keeping(self.keep(file)))),
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
#[derive(Debug)]
struct WeakFileWindow {
    range: Weak<SpaRange>,
    memory: Weak<FileMemory>,
}

impl WeakFileWindow {
    /// Whether the mapping is in use.
    fn is_alive(&self) -> bool {
        self.range.strong_count() > 0
    }

    fn upgrade(&self) -> Option<FileWindow> {
        Some(FileWindow {
            range: self.range.upgrade()?,
            memory: self.memory.upgrade()?,
        })
    }
}

/// A part of a client's file as a source of pages.
#[derive(Debug)]
pub(crate) struct FilePages {
    pub(crate) files: Arc<MemoryFiles>,
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
            let window = self.files.window(&self.file, chunk, inside + piece, prot);
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
        self.files.pin(&self.file, offset, len, prot)
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
