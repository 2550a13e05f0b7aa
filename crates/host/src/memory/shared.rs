//! Memory that processes share and that no descriptor leads to: `MAP_SHARED | MAP_ANONYMOUS`,
//! System V segments, a memory file whose descriptors are all closed.
//!
//! Such memory belongs to no one address space, and it outlives each as long as another one maps
//! it. So it is registered by its inode, not by an address, and reached through whichever process
//! of the client maps it at the time: like a pin it survives the `munmap`, and the end, of the
//! process that gave it.

use std::{
    collections::HashMap,
    ops::Range,
    sync::{Arc, Weak},
};

use ioasid_core::{
    host::Worker,
    memory::{Backing, Memory, MemoryGone, PinError, RemoteMemory},
    spa::{SpaRange, WINDOW_SIZE},
    sync::Mutex,
};

use super::{
    address_space::{AddressSpace, AddressSpaces},
    windows::{WindowPermit, Windows},
};
use crate::system::file_id::FileId;

/// The registered chunks of 1 GiB of shared memory that no descriptor leads to.
#[derive(Debug)]
pub(crate) struct SharedMemory {
    windows: Arc<Windows>,
    /// Where such memory may be mapped.
    spaces: Weak<AddressSpaces>,
    worker: Arc<dyn Worker>,
    /// By file and number of the chunk.
    registered: Mutex<HashMap<(FileId, u64), Weak<SpaRange>>>,
}

impl SharedMemory {
    /// None yet; `spaces` are those of the client, and `worker` reads and writes them.
    pub(crate) fn new(
        windows: Arc<Windows>,
        spaces: &Arc<AddressSpaces>,
        worker: Arc<dyn Worker>,
    ) -> Self {
        SharedMemory {
            windows,
            spaces: Arc::downgrade(spaces),
            worker,
            registered: Mutex::default(),
        }
    }

    /// The live registration of chunk `chunk` of the memory behind `id`, if there is one.
    pub(crate) fn known(&self, id: FileId, chunk: u64) -> Option<Arc<SpaRange>> {
        let registered = self.registered.lock();
        registered.get(&(id, chunk)).and_then(Weak::upgrade)
    }

    /// The registration of chunk `chunk` of the memory behind `id`, which `home` maps.
    ///
    /// # Errors
    /// [`PinError::NoMemory`] over the client's limit, or if the space is full.
    pub(crate) fn window(
        &self,
        id: FileId,
        chunk: u64,
        home: &Arc<AddressSpace>,
    ) -> Result<Arc<SpaRange>, PinError> {
        let mut registered = self.registered.lock();
        if let Some(range) = registered.get(&(id, chunk)).and_then(Weak::upgrade) {
            return Ok(range);
        }
        let memory = Arc::new(SharedChunk {
            id,
            start: chunk * WINDOW_SIZE,
            home: Mutex::new(Arc::downgrade(home)),
            spaces: Weak::clone(&self.spaces),
            worker: Arc::clone(&self.worker),
            _permit: self.windows.permit()?,
        });
        let range = self.windows.register(memory, 0)?;
        registered.retain(|_, range| range.strong_count() > 0);
        registered.insert((id, chunk), Arc::downgrade(&range));
        Ok(range)
    }
}

/// 1 GiB of shared memory, as a backing.
#[derive(Debug)]
struct SharedChunk {
    id: FileId,
    /// Offset in the memory of the first byte.
    start: u64,
    /// Where it was found last.
    home: Mutex<Weak<AddressSpace>>,
    spaces: Weak<AddressSpaces>,
    worker: Arc<dyn Worker>,
    _permit: WindowPermit,
}

/// Copies the bytes of one piece, which an address space has at an address.
type CopyPiece<'a> = dyn FnMut(&AddressSpace, u64, Range<usize>) -> Result<(), MemoryGone> + 'a;

impl SharedChunk {
    /// Runs `copy` piece by piece with an address space that maps the piece, the address there and
    /// which of the bytes it is.
    fn each(&self, offset: u64, len: usize, copy: &mut CopyPiece<'_>) -> Result<(), MemoryGone> {
        let mut done = 0;
        while done < len {
            let at = self
                .start
                .saturating_add(offset)
                .saturating_add(done as u64);
            let mut copy = |space: &AddressSpace| {
                let (address, room) = space.find_shared(self.id, at)?;
                let piece = usize::try_from(room).map_or(len - done, |room| room.min(len - done));
                copy(space, address, done..done + piece).ok()?;
                Some(piece)
            };
            let last = self.home.lock().upgrade();
            let piece = match last.and_then(|home| copy(&home)) {
                Some(piece) => piece,
                None => {
                    let spaces = self.spaces.upgrade().map(|spaces| spaces.all());
                    let mut found = spaces.into_iter().flatten();
                    let found = found.find_map(|space| Some((copy(&space)?, space)));
                    let (piece, space) = found.ok_or(MemoryGone { done })?;
                    *self.home.lock() = Arc::downgrade(&space);
                    piece
                }
            };
            done += piece;
        }
        Ok(())
    }
}

impl Backing for SharedChunk {
    fn size(&self) -> u64 {
        WINDOW_SIZE
    }

    fn memory(&self) -> Memory<'_> {
        Memory::Remote(self)
    }
}

impl RemoteMemory for SharedChunk {
    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.each(offset, dst.len(), &mut |space, address, bytes| {
            space.read(address, &mut dst[bytes])
        })
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        self.each(offset, src.len(), &mut |space, address, bytes| {
            space.write(address, &src[bytes])
        })
    }

    fn worker(&self) -> &Arc<dyn Worker> {
        &self.worker
    }
}
