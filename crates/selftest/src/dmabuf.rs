//! dma-bufs of the mock: memory of a device that does not exist, to be mapped by IOAS_MAP_FILE and
//! taken back at any time.

use std::{fmt, sync::Arc};

use ioasid_core::{
    Prot, failpoint,
    host::FdError,
    memory::{Extent, MemoryGone, OwnPages, PAGE_SIZE, PageSource, PinError},
    spa::SpaSpace,
    sync::Mutex,
};
use ioasid_iommufd::{Error, EventError, EventFile, Notify};
use ioasid_uapi::{Errno, Program};

use crate::spec;

/// Called when the memory is taken back.
type OnRevoke = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct State {
    revoked: bool,
    importers: Vec<OnRevoke>,
}

/// The memory and who has mapped it.
struct Buffer {
    memory: OwnPages,
    len: u64,
    state: Mutex<State>,
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Buffer")
            .field("len", &self.len)
            .field("revoked", &self.state.lock().revoked)
            .finish_non_exhaustive()
    }
}

/// The file behind a descriptor of a dma-buf. The memory lives as long as somebody maps it.
#[derive(Debug)]
pub(crate) struct DmabufFile(Arc<Buffer>);

impl DmabufFile {
    /// A new dma-buf of `len` bytes, rounded up to pages.
    pub(crate) fn create(space: &Arc<SpaSpace>, len: u32) -> Result<Arc<Self>, Errno> {
        let len = u64::from(len).next_multiple_of(PAGE_SIZE);
        if len == 0 || len > spec::DMABUF_PAGES * PAGE_SIZE {
            return Err(Errno::EINVAL);
        }
        failpoint::allocation()?;
        // At most 2 MiB.
        let memory = OwnPages::new(space, len as usize)?;
        Ok(Arc::new(DmabufFile(Arc::new(Buffer {
            memory,
            len,
            state: Mutex::default(),
        }))))
    }

    /// The dma-buf behind descriptor `fd` of the program.
    pub(crate) fn find(program: &dyn Program, fd: i32) -> Result<Arc<DmabufFile>, Errno> {
        // What is no dma-buf at all is EINVAL, by the same conversion.
        let file = program.event_file(fd)?;
        let file: Arc<dyn std::any::Any + Send + Sync> = file;
        file.downcast().map_err(|_| Errno::EINVAL)
    }

    /// Takes the memory back from whoever has mapped it, or allows new mappings again.
    pub(crate) fn revoke(&self, revoked: bool) {
        let importers = {
            let mut state = self.0.state.lock();
            state.revoked = revoked;
            if revoked {
                std::mem::take(&mut state.importers)
            } else {
                Vec::new()
            }
        };
        for on_revoke in importers {
            on_revoke();
        }
    }
}

impl EventFile for DmabufFile {
    fn read(&self, _count: usize) -> Result<Vec<u8>, Error> {
        Err(EventError::NotReadable.into())
    }

    fn write(&self, _bytes: &[u8]) -> Result<usize, Error> {
        Err(EventError::NotWritable.into())
    }

    fn is_readable(&self) -> bool {
        false
    }

    fn set_notify(&self, _notify: Notify) {
        // Nothing ever changes.
    }

    fn closed(&self) {}

    fn name(&self) -> &'static str {
        "dmabuf"
    }

    fn pages(&self, start: u64, len: u64) -> Result<Arc<dyn PageSource>, FdError> {
        match start.checked_add(len) {
            Some(end) if end <= self.0.len => {}
            _ => return Err(FdError::OutsideBuffer),
        }
        if self.0.state.lock().revoked {
            return Err(FdError::Revoked);
        }
        Ok(Arc::new(DmabufPages {
            buffer: Arc::clone(&self.0),
            start,
            len,
        }))
    }
}

/// A part of a dma-buf, mapped.
#[derive(Debug)]
struct DmabufPages {
    buffer: Arc<Buffer>,
    start: u64,
    len: u64,
}

impl PageSource for DmabufPages {
    fn size(&self) -> u64 {
        self.len
    }

    fn pin(&self, offset: u64, len: u64, prot: Prot) -> Result<Vec<Extent>, PinError> {
        if self.buffer.state.lock().revoked {
            return Err(PinError::Revoked);
        }
        let offset = self.start.checked_add(offset).ok_or(PinError::OutOfRange)?;
        self.buffer.memory.pin(offset, len, prot)
    }

    fn alignment_hint(&self) -> u64 {
        self.start
    }

    fn is_device(&self) -> bool {
        true
    }

    fn on_revoke(&self, on_revoke: OnRevoke) {
        let mut state = self.buffer.state.lock();
        if state.revoked {
            drop(state);
            on_revoke();
        } else {
            state.importers.push(on_revoke);
        }
    }

    fn read(&self, _offset: u64, _dst: &mut [u8]) -> Result<(), MemoryGone> {
        Err(MemoryGone { done: 0 })
    }

    fn write(&self, _offset: u64, _src: &[u8]) -> Result<(), MemoryGone> {
        Err(MemoryGone { done: 0 })
    }
}
