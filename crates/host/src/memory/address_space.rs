//! The memory of a process that only its owner can address.
//!
//! An address space is held by an open `/proc/PID/mem` and `/proc/PID/maps`. The kernel binds both
//! to the memory (`mm_struct`) that the process had when they were opened: when it ends or calls
//! `exec`, they reach nothing any more, and never another process that got the same number.
//! `process_vm_readv` is faster for large pieces, but takes a number, and there is no way to know
//! that the process has not called `exec` since we looked: so it is not used. Not even to read and
//! look afterwards: an address space lives on after `exec` if another process shares it
//! (`CLONE_VM`), and the kernel compares those of two processes (`kcmp`), not that of a process with
//! that of an open file.
//!
//! Where the other side of a copy is addressable, the bytes still go through a buffer: the kernel would
//! copy straight there page by page, which is slower than a long copy out of the cache.
//!
//! `/proc/PID/mem` writes to pages that the process itself may only read. So the permission is
//! looked up where a mapping is made and where an answer is written.

use std::{
    collections::HashMap,
    fmt,
    fs::File,
    io,
    os::unix::fs::FileExt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use ioasid_core::{
    host::Worker,
    memory::{Backing, InnerCopy, Memory, MemoryGone, PinError, RemoteMemory, RemotePlace},
    range::AddrRange,
    spa::{SpaRange, WINDOW_SIZE},
    sync::Mutex,
};

use super::{
    agent::{CopyAgent, is_worth_it},
    maps::{Maps, Vma},
    windows::{WindowPermit, Windows},
};
use crate::system::file_id::FileId;

/// The address space of a process, bound to what it had when it was opened.
pub(crate) struct AddressSpace {
    /// Stands for it in accounts; never used again.
    number: u64,
    mem: File,
    maps: Maps,
    /// The registrations of its private memory, by chunk of 1 GiB of user address.
    windows: Mutex<HashMap<u64, Weak<SpaRange>>>,
    /// An address at which shared memory was found: the next is often in the same mapping.
    shared_hint: Mutex<u64>,
    /// What copies inside of it, if there is something.
    agent: Mutex<Option<Arc<dyn CopyAgent>>>,
}

impl AddressSpace {
    pub(crate) fn new(mem: File, maps: File) -> Arc<Self> {
        static LAST: AtomicU64 = AtomicU64::new(0);
        Arc::new(AddressSpace {
            number: LAST.fetch_add(1, Ordering::Relaxed) + 1,
            mem,
            maps: Maps::new(maps),
            windows: Mutex::new(HashMap::new()),
            shared_hint: Mutex::new(0),
            agent: Mutex::new(None),
        })
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Whether any process still uses it.
    pub(crate) fn is_alive(&self) -> bool {
        // Of an address space without users nothing can be read, not even an error (mem_rw in
        // fs/proc/base.c); nothing is ever mapped at address 0 that an error would not do for.
        !matches!(self.mem.read_at(&mut [0], 0), Ok(0))
    }

    pub(crate) fn find(&self, address: u64) -> Option<Vma> {
        self.maps.find(address)
    }

    /// Where the shared memory behind `id` is mapped from its offset `offset` on, and how many
    /// bytes of it.
    pub(crate) fn find_shared(&self, id: FileId, offset: u64) -> Option<(u64, u64)> {
        let here = |vma: Vma| {
            let inside = offset.checked_sub(vma.offset)?;
            let address = vma.range.start().checked_add(inside)?;
            let found = vma.shared_file(address)?;
            (found == (id.dev, id.ino, offset)).then(|| {
                *self.shared_hint.lock() = address;
                (address, vma.range.last() - address + 1)
            })
        };
        let hint = *self.shared_hint.lock();
        let hinted = self.find(hint).and_then(here);
        hinted.or_else(|| self.maps.all().into_iter().find_map(here))
    }

    /// What the kernel calls the mapping at `address`, if that has no file.
    pub(crate) fn name(&self, address: u64) -> String {
        self.maps.name(address)
    }

    /// Whether the process itself could write all of `range`.
    pub(crate) fn is_writable(&self, range: AddrRange) -> bool {
        self.every(range, |vma| vma.writable)
    }

    /// Whether the process itself could read all of `range`. On x86 memory that can be written can
    /// be read.
    pub(crate) fn is_readable(&self, range: AddrRange) -> bool {
        self.every(range, |vma| vma.readable || vma.writable)
    }

    /// Whether `range` is mapped, by mappings that are all `right`.
    fn every(&self, range: AddrRange, right: impl Fn(&Vma) -> bool) -> bool {
        let mut address = range.start();
        loop {
            match self.find(address) {
                Some(vma) if right(&vma) => match vma.range.last().checked_add(1) {
                    Some(next) if vma.range.last() < range.last() => address = next,
                    _ => return true,
                },
                _ => return false,
            }
        }
    }

    /// Copies inside of it go through `agent` from now on.
    pub(crate) fn set_agent(&self, agent: Arc<dyn CopyAgent>) {
        *self.agent.lock() = Some(agent);
    }

    /// As [`CopyAgent::copy`]; false as well where there is no agent, or too little to do for one.
    pub(crate) fn copy_inside(&self, copies: &mut [InnerCopy]) -> bool {
        let apart = |copy: &InnerCopy| copy.dst.abs_diff(copy.src) >= copy.len;
        if !is_worth_it(copies) || !copies.iter().all(apart) {
            return false;
        }
        let agent = self.agent.lock().clone();
        agent.is_some_and(|agent| agent.copy(copies))
    }

    /// Copies from `address`. May block as long as the process likes.
    pub(crate) fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        all(dst.len(), |done| {
            let address = address.checked_add(done as u64)?;
            Some(self.mem.read_at(&mut dst[done..], address))
        })
    }

    /// Copies to `address`, even where the process may only read. May block as reading.
    pub(crate) fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone> {
        all(src.len(), |done| {
            let address = address.checked_add(done as u64)?;
            Some(self.mem.write_at(&src[done..], address))
        })
    }

    /// The registration of the chunk of 1 GiB at user address `chunk * 1 GiB`, one of `all` the
    /// client's; `worker` touches it.
    pub(crate) fn window(
        self: &Arc<Self>,
        all: &Windows,
        worker: &Arc<dyn Worker>,
        chunk: u64,
    ) -> Result<Arc<SpaRange>, PinError> {
        let mut windows = self.windows.lock();
        if let Some(range) = windows.get(&chunk).and_then(Weak::upgrade) {
            return Ok(range);
        }
        let remote = Arc::new(RemoteChunk {
            memory: Arc::clone(self),
            start: chunk * WINDOW_SIZE,
            worker: Arc::clone(worker),
            _permit: all.permit()?,
        });
        let range = all.register(remote, 0)?;
        windows.retain(|_, range| range.strong_count() > 0);
        windows.insert(chunk, Arc::downgrade(&range));
        Ok(range)
    }
}

/// The address spaces of one client that are open.
#[derive(Debug, Default)]
pub(crate) struct AddressSpaces(Mutex<Vec<Weak<AddressSpace>>>);

impl AddressSpaces {
    pub(crate) fn remember(&self, space: &Arc<AddressSpace>) {
        let mut spaces = self.0.lock();
        spaces.retain(|space| space.strong_count() > 0);
        spaces.push(Arc::downgrade(space));
    }

    /// All of them, the latest first.
    pub(crate) fn all(&self) -> Vec<Arc<AddressSpace>> {
        let spaces = self.0.lock();
        spaces.iter().rev().filter_map(Weak::upgrade).collect()
    }
}

/// Repeats `step`, which gets the bytes done so far, until all `len` are done.
fn all(
    len: usize,
    mut step: impl FnMut(usize) -> Option<io::Result<usize>>,
) -> Result<(), MemoryGone> {
    let mut done = 0;
    while done < len {
        match step(done) {
            Some(Ok(n)) if n > 0 => done += n,
            Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => return Err(MemoryGone { done }),
        }
    }
    Ok(())
}

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace").finish_non_exhaustive()
    }
}

/// 1 GiB of user addresses of an address space, as a backing.
#[derive(Debug)]
struct RemoteChunk {
    memory: Arc<AddressSpace>,
    /// User address of offset 0.
    start: u64,
    worker: Arc<dyn Worker>,
    _permit: WindowPermit,
}

impl Backing for RemoteChunk {
    fn size(&self) -> u64 {
        WINDOW_SIZE
    }

    fn memory(&self) -> Memory<'_> {
        Memory::Remote(self)
    }
}

impl RemoteMemory for RemoteChunk {
    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.memory.read(self.start.saturating_add(offset), dst)
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        self.memory.write(self.start.saturating_add(offset), src)
    }

    fn worker(&self) -> &Arc<dyn Worker> {
        &self.worker
    }

    fn place(&self, offset: u64) -> Option<RemotePlace> {
        Some(RemotePlace {
            space: self.memory.number(),
            address: self.start.checked_add(offset)?,
        })
    }

    fn copy_inside(&self, copies: &mut [InnerCopy]) -> bool {
        self.memory.copy_inside(copies)
    }
}
