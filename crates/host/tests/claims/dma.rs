//! What an engine does, without the IOMMU above it: system physical addresses to bytes.

use std::sync::Arc;

use ioasid_core::{
    access::Prot,
    grace::Grace,
    host::Caller,
    memory::{Extent, MemoryGone, PinError},
    spa::{Resolved, SpaSpace},
};
use ioasid_host::{Client, Process};

use crate::child::Child;

/// A client with one child process.
pub(crate) struct Fixture {
    pub(crate) space: Arc<SpaSpace>,
    pub(crate) client: Arc<Client>,
    pub(crate) child: Child,
    pub(crate) process: Arc<Process>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Fixture::in_space(&SpaSpace::new(Grace::new()))
    }

    pub(crate) fn in_space(space: &Arc<SpaSpace>) -> Self {
        let child = Child::start();
        let client = Client::new("vm", Arc::clone(space)).unwrap();
        let process = client.process(child.pid()).unwrap();
        Fixture {
            space: Arc::clone(space),
            client,
            child,
            process,
        }
    }

    pub(crate) fn pin(&self, address: u64, len: u64, prot: Prot) -> Result<Vec<Extent>, PinError> {
        self.process.pages(address, len)?.pin(0, len, prot)
    }

    pub(crate) fn write(&self, pages: &[Extent], src: &[u8]) -> Result<(), MemoryGone> {
        write(&self.space, pages, src)
    }

    pub(crate) fn read(&self, pages: &[Extent], len: usize) -> Result<Vec<u8>, MemoryGone> {
        let mut bytes = vec![0; len];
        each(&self.space, pages, len, |memory, done, len| {
            let dst = &mut bytes[done..done + len];
            match memory {
                Resolved::Direct(bytes) => bytes.read(dst),
                Resolved::Remote { memory, offset, .. } => memory.read(offset, dst),
            }
        })?;
        Ok(bytes)
    }

    /// Whether the pages can be reached without calls that may block.
    pub(crate) fn is_direct(&self, pages: &[Extent]) -> bool {
        let mut direct = true;
        each(&self.space, pages, 1, |memory, _, _| {
            direct = matches!(memory, Resolved::Direct(_));
            Ok(())
        })
        .unwrap();
        direct
    }
}

pub(crate) fn write(space: &Arc<SpaSpace>, pages: &[Extent], src: &[u8]) -> Result<(), MemoryGone> {
    each(space, pages, src.len(), |memory, done, len| {
        let src = &src[done..done + len];
        match memory {
            Resolved::Direct(bytes) => bytes.write(src),
            Resolved::Remote { memory, offset, .. } => memory.write(offset, src),
        }
    })
}

fn each(
    space: &Arc<SpaSpace>,
    pages: &[Extent],
    len: usize,
    mut step: impl FnMut(Resolved<'_>, usize, usize) -> Result<(), MemoryGone>,
) -> Result<(), MemoryGone> {
    let mut slot = space.grace().slot();
    let guard = slot.enter();
    let mut done = 0;
    for extent in pages {
        let piece = (len - done).min(extent.len as usize);
        if piece == 0 {
            break;
        }
        let memory = space.resolve(&guard, extent.spa, piece as u64).unwrap();
        step(memory, done, piece).map_err(|gone| MemoryGone {
            done: done + gone.done,
        })?;
        done += piece;
    }
    assert_eq!(done, len, "the extents cover the range");
    Ok(())
}
