//! Descriptors that a client hands over itself, by `SCM_RIGHTS`, instead of naming one of its own:
//! memory files and eventfds. And memory that is reached through the client in some other way.
//!
//! Such a descriptor is hostile until it is known: it may be a file on FUSE, where even `fstat` and
//! `close` wait for whoever sent it. So its device is looked at first, and what is not taken is closed
//! on the client's own worker.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::{Arc, OnceLock},
};

use ioasid_core::{
    host::{FdError, IrqSink},
    memory::{Backing, Memory, PageSource, PinError},
    spa::{SpaRange, WINDOW_SIZE},
};
use rustix::fs::{CWD, FileType};

use crate::{
    client::{Client, WindowPermit},
    copy::RecoveringCopy,
    file::{FilePages, MemoryFile, identify, is_memory_device},
    irq::EventFd,
};

/// Which memory file it is, whatever descriptor leads to it: equal for two descriptors of one file
/// while either is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemoryFileId {
    /// Device number (`st_dev`).
    pub dev: u64,
    /// Inode number (`st_ino`).
    pub ino: u64,
}

/// Looks once at what needs files of the host, so that [`Client::received_file`] opens nothing later:
/// the mount table of this process, and the devices of memfds. Installs the handler that recovers
/// from truncated files.
///
/// # Errors
/// What the operating system says when there is no signal handler to be had.
pub fn prepare_received() -> io::Result<()> {
    RecoveringCopy::get()?;
    let _ = is_memory_device(0, || None);
    let _ = own_mounts();
    Ok(())
}

/// The mount table of this process as it was when it was asked for first.
fn own_mounts() -> &'static str {
    static MOUNTS: OnceLock<String> = OnceLock::new();
    MOUNTS.get_or_init(|| std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

impl Client {
    /// `len` bytes from `start` of the memory file that the client has sent: a memfd, or a file on a
    /// hugetlbfs or tmpfs that is mounted here. Of several descriptors of one file one is kept, the
    /// others are closed.
    ///
    /// # Errors
    /// [`FdError::WrongType`] if it is no memory file, [`FdError::BeyondEnd`] if the range lies beyond
    /// the end of the file.
    pub fn received_file(
        &self,
        fd: OwnedFd,
        start: u64,
        len: u64,
    ) -> Result<(MemoryFileId, Arc<dyn PageSource>), FdError> {
        let shared = self.shared();
        let known = identify(fd.as_fd(), "");
        let Ok((id, FileType::RegularFile)) = known else {
            shared.discard(fd);
            return Err(FdError::WrongType);
        };
        if !is_memory_device(id.dev, || Some(own_mounts().to_owned())) {
            shared.discard(fd);
            return Err(FdError::WrongType);
        }
        let file = match shared.known_file(id) {
            Some(file) if file.writable() => file,
            _ => {
                let file = MemoryFile::new(fd).ok_or(FdError::WrongType)?;
                shared.remember_file(&file);
                file
            }
        };
        let end = start.checked_add(len).ok_or(FdError::BeyondEnd)?;
        if end > file.size() {
            return Err(FdError::BeyondEnd);
        }
        let pages = Arc::new(FilePages {
            client: Arc::clone(shared),
            file,
            start,
            len,
        });
        let (dev, ino) = (id.dev, id.ino);
        Ok((MemoryFileId { dev, ino }, pages))
    }

    /// The eventfd that the client has sent, as an interrupt sink.
    ///
    /// # Errors
    /// [`FdError::WrongType`] if it is no eventfd.
    pub fn received_eventfd(&self, fd: OwnedFd) -> Result<Arc<dyn IrqSink>, FdError> {
        // Only an anonymous inode has a name that does not start with a slash.
        const EVENTFD: &[u8] = b"anon_inode:[eventfd]";
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let link = rustix::fs::readlinkat(CWD, path, Vec::new());
        if !link.is_ok_and(|link| link.as_bytes() == EVENTFD) {
            self.shared().discard(fd);
            return Err(FdError::WrongType);
        }
        let thread = Arc::clone(&self.shared().interrupts);
        Ok(Arc::new(EventFd::new(fd, thread)))
    }

    /// Gives memory of this client that is reached in another way than by the two above system
    /// physical addresses. It counts against the client's windows.
    ///
    /// # Errors
    /// [`PinError::NoMemory`] over the limit, or if the space is full.
    pub fn register(&self, backing: Arc<dyn Backing>) -> Result<Arc<SpaRange>, PinError> {
        let windows = backing.size().div_ceil(WINDOW_SIZE);
        let shared = self.shared();
        if windows > shared.window_limit() as u64 {
            return Err(PinError::NoMemory);
        }
        let permits: Option<Vec<_>> = (0..windows).map(|_| shared.permit()).collect();
        let permits = permits.ok_or(PinError::NoMemory)?;
        let permitted = Arc::new(Permitted { backing, permits });
        let range = shared.space.register(permitted, 0);
        Ok(Arc::new(range.map_err(|_| PinError::NoMemory)?))
    }
}

/// A backing with the windows that it may use.
#[derive(Debug)]
struct Permitted {
    backing: Arc<dyn Backing>,
    #[expect(dead_code, reason = "given back when the backing goes")]
    permits: Vec<WindowPermit>,
}

impl Backing for Permitted {
    fn size(&self) -> u64 {
        self.backing.size()
    }

    fn memory(&self) -> Memory<'_> {
        self.backing.memory()
    }
}
