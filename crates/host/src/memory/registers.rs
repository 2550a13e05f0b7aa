//! Mappings that lead to registers of a device: what a program has where it mapped a BAR.
//!
//! The file behind such a mapping has no bytes. Its owner says so
//! ([`Client::add_registers`](crate::Client::add_registers)) and carries out the accesses. DMA
//! reaches it only where the program's request allows for that (peer to peer DMA of VFIO's type 1
//! IOMMU); everywhere else there is no memory at the address.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, Weak},
};

use ioasid_core::{
    host::Worker,
    memory::{Backing, Extent, Memory, MemoryGone, PinError, RemoteMemory},
    sync::Mutex,
};

use super::windows::{WindowPermit, Windows};
use crate::system::file_id::FileId;

/// Bytes of the largest single access.
const WIDEST: u64 = 8;

/// A file whose mappings are registers.
pub trait Registers: Send + Sync + fmt::Debug {
    /// Loads at the file offset `offset`: 1, 2, 4 or 8 bytes, naturally aligned.
    ///
    /// # Errors
    /// [`MemoryGone`] if nothing answers there, or any more.
    fn load(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone>;

    /// Stores; as [`Registers::load`].
    ///
    /// # Errors
    /// As [`Registers::load`].
    fn store(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone>;
}

/// The files of one client whose mappings are registers.
#[derive(Debug, Default)]
pub(crate) struct RegisterFiles(Mutex<HashMap<FileId, Arc<dyn Registers>>>);

impl RegisterFiles {
    pub(crate) fn add(&self, id: FileId, registers: Arc<dyn Registers>) {
        self.0.lock().insert(id, registers);
    }

    pub(crate) fn remove(&self, id: FileId) {
        let removed = self.0.lock().remove(&id);
        // Without the lock: it may be the last of a device file.
        drop(removed);
    }

    /// What serves the mappings of the file `id`, if they are registers.
    pub(crate) fn get(&self, id: FileId) -> Option<Arc<dyn Registers>> {
        self.0.lock().get(&id).cloned()
    }
}

/// Gives `len` bytes from `start` of a file of registers system physical addresses; `worker` makes
/// the accesses.
///
/// # Errors
/// [`PinError::NoMemory`] over the client's limit, or if the space is full.
pub(crate) fn pin(
    windows: &Windows,
    worker: Arc<dyn Worker>,
    registers: &Arc<dyn Registers>,
    start: u64,
    len: u64,
) -> Result<Extent, PinError> {
    let window = Window {
        // The mapping does not keep the device open: when that is closed, nothing answers.
        registers: Arc::downgrade(registers),
        start,
        len,
        worker,
        _permit: windows.permit()?,
    };
    let hold = windows.register(Arc::new(window), start)?;
    Ok(Extent {
        spa: hold.start(),
        len,
        hold,
    })
}

/// Registers, as a backing.
#[derive(Debug)]
struct Window {
    registers: Weak<dyn Registers>,
    /// File offset of the first byte.
    start: u64,
    len: u64,
    worker: Arc<dyn Worker>,
    _permit: WindowPermit,
}

impl Window {
    /// Calls `access` with the file offset and length of each access that `len` bytes at `offset`
    /// are made of, and how many bytes came before.
    fn each(
        &self,
        offset: u64,
        len: usize,
        mut access: impl FnMut(&dyn Registers, u64, usize, usize) -> Result<(), MemoryGone>,
    ) -> Result<(), MemoryGone> {
        let mut done = 0;
        let gone = |done| MemoryGone { done };
        let registers = self.registers.upgrade().ok_or(gone(0))?;
        while done < len {
            let at = self.start.checked_add(offset).ok_or(gone(done))?;
            let at = at.checked_add(done as u64).ok_or(gone(done))?;
            let left = (len - done) as u64;
            let sizes = [WIDEST, 4, 2].into_iter();
            let size = sizes
                .filter(|size| at.is_multiple_of(*size) && *size <= left)
                .max();
            let size = size.unwrap_or(1) as usize;
            access(registers.as_ref(), at, done, size).map_err(|_| gone(done))?;
            done += size;
        }
        Ok(())
    }
}

impl Backing for Window {
    fn size(&self) -> u64 {
        self.len
    }

    fn memory(&self) -> Memory<'_> {
        Memory::Remote(self)
    }
}

impl RemoteMemory for Window {
    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.each(offset, dst.len(), |registers, at, done, size| {
            let part = dst.get_mut(done..done + size);
            registers.load(at, part.ok_or(MemoryGone { done })?)
        })
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        self.each(offset, src.len(), |registers, at, done, size| {
            let part = src.get(done..done + size);
            registers.store(at, part.ok_or(MemoryGone { done })?)
        })
    }

    fn worker(&self) -> &Arc<dyn Worker> {
        &self.worker
    }
}
