//! Memory of a replay: anonymous memory of this process in the place of what the traced program had.
//!
//! The trace says where the traced machine had pages, as system physical addresses: pages that were the
//! same then, by whatever address or file, are the same here.

use std::{collections::BTreeMap, fmt, sync::Arc};

use ioasid_core::{
    Prot,
    memory::{Extent, MemoryGone, OwnPages, PAGE_SIZE, PageSource, PinError},
    spa::SpaSpace,
    sync::Mutex,
};

use super::expected::Expected;

/// Bytes that are made at a time.
const CHUNK: u64 = 256 << 10;

/// What of a trace a chunk stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// System physical addresses of the traced machine.
    Pinned(u64),
    /// Addresses of the program, or places in a file, that it never pinned.
    Loose(Option<i32>, u64),
}

/// All memory of a replay.
pub(crate) struct Memory {
    space: Arc<SpaSpace>,
    chunks: Mutex<BTreeMap<Place, OwnPages>>,
}

impl Memory {
    /// None yet; it is registered in `space`.
    pub(crate) fn new(space: &Arc<SpaSpace>) -> Arc<Self> {
        Arc::new(Memory {
            space: Arc::clone(space),
            chunks: Mutex::default(),
        })
    }

    fn chunk(&self, place: Place) -> Result<OwnPages, PinError> {
        let mut chunks = self.chunks.lock();
        if let Some(pages) = chunks.get(&place) {
            return Ok(pages.clone());
        }
        let pages = OwnPages::new(&self.space, CHUNK as usize)?;
        chunks.insert(place, pages.clone());
        Ok(pages)
    }

    /// Calls `op` with the pages of each chunk that `len` bytes from `at` lie in, the offset there and
    /// how many bytes.
    fn each(
        &self,
        (at, len): (u64, u64),
        place: impl Fn(u64) -> Place,
        mut op: impl FnMut(&OwnPages, u64, u64) -> Result<(), PinError>,
    ) -> Result<(), PinError> {
        let mut done = 0;
        while done < len {
            let at = at.checked_add(done).ok_or(PinError::OutOfRange)?;
            let inside = at % CHUNK;
            let part = (len - done).min(CHUNK - inside);
            op(&self.chunk(place(at / CHUNK))?, inside, part)?;
            done += part;
        }
        Ok(())
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Memory")
    }
}

/// What a trace says of a source of pages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    /// The address, or the offset in a file.
    pub(crate) start: u64,
    pub(crate) len: u64,
    pub(crate) fd: Option<i32>,
    pub(crate) from_file: bool,
    pub(crate) of_device: bool,
    pub(crate) hint: u64,
}

/// Pages in the place of the traced program's. What happens to them, happens as in the trace.
#[derive(Debug)]
pub(crate) struct Pages {
    pub(crate) memory: Arc<Memory>,
    pub(crate) expected: Arc<Expected>,
    pub(crate) source: Source,
}

impl Pages {
    fn address(&self, offset: u64) -> u64 {
        self.source.start.wrapping_add(offset)
    }

    fn loose(&self) -> impl Fn(u64) -> Place {
        let fd = self.source.fd;
        move |chunk| Place::Loose(fd, chunk)
    }
}

impl PageSource for Pages {
    fn size(&self) -> u64 {
        self.source.len
    }

    fn pin(&self, offset: u64, len: u64, _prot: Prot) -> Result<Vec<Extent>, PinError> {
        let mut extents = Vec::new();
        let mut add = |pages: &OwnPages, inside, part| {
            extents.extend(pages.pin(inside, part, Prot::RW)?);
            Ok(())
        };
        let at = self.address(offset);
        match self.expected.pin(at, len) {
            Some(pinned) => {
                for (spa, len) in pinned? {
                    self.memory.each((spa, len), Place::Pinned, &mut add)?;
                }
            }
            None => self.memory.each((at, len), self.loose(), &mut add)?,
        }
        Ok(extents)
    }

    fn alignment_hint(&self) -> u64 {
        self.source.hint
    }

    fn is_file(&self) -> bool {
        self.source.from_file
    }

    fn is_device(&self) -> bool {
        self.source.of_device
    }

    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let at = self.address(offset);
        if self.expected.is_not_there(at, dst.len() as u64) {
            return Err(MemoryGone { done: 0 });
        }
        let mut rest = dst;
        let range = (at, rest.len() as u64);
        let read = self
            .memory
            .each(range, self.loose(), |pages, inside, part| {
                let (now, later) = std::mem::take(&mut rest).split_at_mut(part as usize);
                rest = later;
                pages
                    .read(inside, now)
                    .map_err(|MemoryGone { .. }| PinError::Fault)
            });
        read.map_err(|_| MemoryGone { done: 0 })
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let at = self.address(offset);
        if self.expected.is_not_there(at, src.len() as u64) {
            return Err(MemoryGone { done: 0 });
        }
        let mut rest = src;
        let range = (at, rest.len() as u64);
        let written = self
            .memory
            .each(range, self.loose(), |pages, inside, part| {
                let (now, later) = rest.split_at(part as usize);
                rest = later;
                pages
                    .write(inside, now)
                    .map_err(|MemoryGone { .. }| PinError::Fault)
            });
        written.map_err(|_| MemoryGone { done: 0 })
    }
}

const _: () = assert!(CHUNK.is_multiple_of(PAGE_SIZE));
