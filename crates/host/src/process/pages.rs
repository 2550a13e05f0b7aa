//! A process's address range as a source of pages.
//!
//! Where the process has mapped a memory file shared, and a descriptor of that file can be found,
//! the pages are the file's: zero copy, and they stay when the process unmaps them. Shared memory
//! without such a descriptor stays as long as any process of the client maps it. Everything else is
//! read and written where it is: it follows the address, so a later `munmap` shows.

use std::{iter, os::fd::AsFd, sync::Arc};

use ioasid_core::{
    access::Prot,
    memory::{Extent, MemoryGone, PageSource, PinBatch, PinError},
    range::AddrRange,
    spa::{SpaRange, WINDOW_SIZE},
};

use super::{allowed::Rules, process::Process, resources::Resources};
use crate::{
    memory::{address_space::AddressSpace, file::MemoryFile, maps::Vma, registers},
    system::{
        file_id::{FileId, identify},
        filesystem::Filesystem,
    },
};

/// Descriptors of a process that are looked at to find the one of a mapped file.
const MOST_FDS: usize = 4096;

#[derive(Debug)]
pub(crate) struct ProcessPages {
    pub(crate) process: Arc<Process>,
    /// User address of offset 0.
    pub(crate) address: u64,
    pub(crate) len: u64,
    /// Whether it is pinned as VFIO's type 1 IOMMU pins: an address where registers are mapped will
    /// do.
    pub(crate) registers: bool,
}

impl ProcessPages {
    fn resources(&self) -> &Resources {
        self.process.resources()
    }

    fn memory(&self) -> &Arc<AddressSpace> {
        self.process.memory()
    }

    /// The user addresses of `len` bytes from `offset`.
    fn range(&self, offset: u64, len: u64) -> Result<AddrRange, PinError> {
        match offset.checked_add(len) {
            Some(end) if len > 0 && end <= self.len => {}
            _ => return Err(PinError::OutOfRange),
        }
        let start = self.address.checked_add(offset);
        start
            .and_then(|start| AddrRange::from_len(start, len))
            .ok_or(PinError::OutOfRange)
    }

    /// The mapping at `address`, which a pin of the batch may have seen.
    fn vma(&self, batch: &PinBatch, address: u64) -> Option<Vma> {
        let seen = batch.known::<Seen>();
        let seen = seen.filter(|seen| {
            Arc::ptr_eq(&seen.memory, self.memory()) && seen.vma.range.contains(address)
        });
        seen.map_or_else(|| self.memory().find(address), |seen| Some(seen.vma))
    }

    /// The pages of `range`, which lies in `vma`.
    fn pin_in(&self, vma: &Vma, range: AddrRange, prot: Prot) -> Result<Vec<Extent>, PinError> {
        let rules = Rules {
            process: &self.process,
            type_1: self.registers,
        };
        rules.check_permission(vma, range, prot)?;
        let resources = self.resources();
        let len = range.len_saturating();
        let Some((dev, ino, offset)) = vma.shared_file(range.start()) else {
            if vma.ino == 0 {
                rules.check_anonymous(vma, range)?;
            } else {
                let filesystem = Filesystem::of(vma.dev, || self.process.dir().mountinfo());
                rules.check_file(filesystem, vma, range, prot)?;
            }
            return in_chunks(range.start(), len, |chunk| {
                let worker = resources.remote_worker();
                self.memory().window(&resources.windows, &worker, chunk)
            });
        };
        let id = FileId { dev, ino };
        if let Some(registers) = resources.registers.get(id) {
            if !self.registers {
                return Err(PinError::Fault);
            }
            let extent = registers::pin(
                &resources.windows,
                resources.remote_worker(),
                &registers,
                offset,
                len,
            )?;
            return Ok(vec![extent]);
        }
        let known = resources.files.known(id);
        let file = known.filter(|file| file.writable() || !vma.writable);
        let filesystem = match file {
            Some(_) => Filesystem::Memory,
            None => Filesystem::of(dev, || self.process.dir().mountinfo()),
        };
        // One page has one system physical address: what is registered already stays what it is.
        if filesystem == Filesystem::Memory
            && resources.shared.known(id, offset / WINDOW_SIZE).is_none()
            && let Some(file) = file.or_else(|| self.find_file(id, vma))
            && (file.writable() || !prot.write)
        {
            // A page beyond the end of the file faults.
            if offset
                .checked_add(len)
                .is_none_or(|end| end > file.size_in_pages())
            {
                return Err(PinError::Fault);
            }
            match resources.files.pin(&file, offset, len, prot) {
                // Sealed against new mappings that write (F_SEAL_FUTURE_WRITE): the process's own
                // mapping is older.
                Err(PinError::Fault) => {}
                pinned => return pinned,
            }
        }
        rules.check_file(filesystem, vma, range, prot)?;
        in_chunks(offset, len, |chunk| {
            resources.shared.window(id, chunk, self.memory())
        })
    }

    /// The memory file `id`, if one of the ways to it is open: the kernel lets us open the mapping
    /// itself, or the process still has a descriptor of it. Its descriptors are looked through only
    /// if the first way does not give a file that can be written.
    fn find_file(&self, id: FileId, vma: &Vma) -> Option<Arc<MemoryFile>> {
        let resources = self.resources();
        resources.files.count_search();
        let mapped = self.process.dir().open_mapped(vma);
        let found = mapped
            .into_iter()
            .chain(iter::once_with(|| self.duplicates(id)).flatten())
            .filter_map(|fd| {
                let same = identify(fd.as_fd(), "").is_ok_and(|(found, _)| found == id);
                if !same {
                    resources.closer.close(fd);
                    return None;
                }
                MemoryFile::new(fd)
            });
        let mut best = None;
        for file in found {
            let writable = file.writable();
            best = Some(file);
            if writable {
                break;
            }
        }
        best.inspect(|file| resources.files.remember(file))
    }

    /// Duplicates of the process's descriptors that lead to `id`.
    fn duplicates(&self, id: FileId) -> impl Iterator<Item = std::os::fd::OwnedFd> {
        self.resources().files.count_listing();
        let numbers = self.process.dir().fd_numbers();
        numbers
            .into_iter()
            .take(MOST_FDS)
            .filter_map(move |number| {
                let found = self.process.dir().fd_identity(number).ok()?;
                (id == found)
                    .then(|| self.process.get_fd(number).ok())
                    .flatten()
            })
    }
}

/// What the last pin of a batch found.
#[derive(Debug)]
struct Seen {
    memory: Arc<AddressSpace>,
    vma: Vma,
    /// Of a plain mapping: the chunk of 1 GiB of user addresses, and its registration.
    window: Option<(u64, Arc<SpaRange>)>,
}

impl Seen {
    /// The addresses of `range`, if nothing has to be looked up for it.
    fn extent(&self, memory: &Arc<AddressSpace>, range: AddrRange) -> Option<Extent> {
        let (chunk, hold) = self.window.as_ref()?;
        let here = |address: u64| address / WINDOW_SIZE == *chunk;
        let known = Arc::ptr_eq(&self.memory, memory)
            && self.vma.range.covers(range)
            && here(range.start())
            && here(range.last());
        known.then(|| Extent {
            spa: hold.start() + range.start() % WINDOW_SIZE,
            len: range.len_saturating(),
            hold: Arc::clone(hold),
        })
    }
}

/// `len` bytes from `start` of memory whose chunks of 1 GiB are registered by `window`.
fn in_chunks(
    start: u64,
    len: u64,
    mut window: impl FnMut(u64) -> Result<Arc<SpaRange>, PinError>,
) -> Result<Vec<Extent>, PinError> {
    let end = start.checked_add(len).ok_or(PinError::OutOfRange)?;
    let mut extents = Vec::new();
    let mut at = start;
    while at < end {
        let (chunk, inside) = (at / WINDOW_SIZE, at % WINDOW_SIZE);
        let len = (end - at).min(WINDOW_SIZE - inside);
        let hold = window(chunk)?;
        extents.push(Extent {
            spa: hold.start() + inside,
            len,
            hold,
        });
        at += len;
    }
    Ok(extents)
}

/// What remains of `range` behind `last`.
fn after(last: u64, range: AddrRange) -> Option<AddrRange> {
    AddrRange::new(last.checked_add(1)?, range.last())
}

impl PageSource for ProcessPages {
    fn size(&self) -> u64 {
        self.len
    }

    fn pin(&self, offset: u64, len: u64, prot: Prot) -> Result<Vec<Extent>, PinError> {
        self.pin_next(&mut PinBatch::single(), offset, len, prot)
    }

    fn pin_next(
        &self,
        batch: &mut PinBatch,
        offset: u64,
        len: u64,
        prot: Prot,
    ) -> Result<Vec<Extent>, PinError> {
        let range = self.range(offset, len)?;
        let seen = batch.known::<Seen>();
        if let Some(extent) = seen.and_then(|seen| seen.extent(self.memory(), range)) {
            return Ok(vec![extent]);
        }
        let mut extents: Vec<Extent> = Vec::new();
        let mut rest = Some(range);
        while let Some(range) = rest {
            let vma = self.vma(batch, range.start()).ok_or(PinError::Fault)?;
            let piece = vma.range.intersect(range).ok_or(PinError::Fault)?;
            for extent in self.pin_in(&vma, piece, prot)? {
                match extents.last_mut() {
                    // Neighbours in one registration are one run.
                    Some(last)
                        if Arc::ptr_eq(&last.hold, &extent.hold)
                            && last.spa + last.len == extent.spa =>
                    {
                        last.len += extent.len;
                    }
                    _ => extents.push(extent),
                }
            }
            rest = after(piece.last(), range);
            batch.keep(|| Seen {
                memory: Arc::clone(self.memory()),
                vma,
                window: extents
                    .last()
                    .filter(|_| vma.is_plain())
                    .map(|extent| (piece.last() / WINDOW_SIZE, Arc::clone(&extent.hold))),
            });
        }
        Ok(extents)
    }

    fn alignment_hint(&self) -> u64 {
        self.address
    }

    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let range = self.range(offset, dst.len() as u64);
        let gone = MemoryGone { done: 0 };
        let range = range.map_err(|_| gone)?;
        if !self.memory().is_readable(range) {
            return Err(gone);
        }
        self.memory().read(range.start(), dst)
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let gone = MemoryGone { done: 0 };
        let range = self.range(offset, src.len() as u64).map_err(|_| gone)?;
        if !self.memory().is_writable(range) {
            return Err(gone);
        }
        self.memory().write(range.start(), src)
    }
}
