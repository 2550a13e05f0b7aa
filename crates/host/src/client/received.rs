//! Descriptors that a client hands over itself, by `SCM_RIGHTS`, instead of naming one of its own:
//! memory files and eventfds. And memory that is reached through the client in some other way.
//!
//! Such a descriptor is hostile until it is known: it may be a file on FUSE, where even `fstat` and
//! `close` wait for whoever sent it. So a [`ReceivedFd`] asks the kernel alone what it is, and what
//! is neither memory nor an eventfd is used for nothing and closed on a thread for that
//! ([`Closer`]).

use std::{
    fmt, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
};

use ioasid_core::{
    host::{FdError, IrqSink},
    memory::{Backing, Memory, PageSource, PinError},
    spa::{SpaRange, WINDOW_SIZE},
};
use rustix::fs::CWD;

use super::Client;
use crate::{
    memory::{
        file::{FilePages, MemoryFile},
        windows::WindowPermit,
    },
    system::{copy::RecoveringCopy, file_id::identify},
    threads::{
        closer::{self, Closer},
        interrupts::EventFd,
    },
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

/// Does once what a process that has confined itself cannot do any more: installs the handler that
/// recovers from truncated files, and asks how many descriptors there may be.
///
/// # Errors
/// What the operating system says when no signal handler can be installed.
pub fn prepare_received() -> io::Result<()> {
    RecoveringCopy::get()?;
    closer::room();
    Ok(())
}

/// A descriptor that a peer has sent. Nothing here asks the file itself, and dropping it never
/// waits.
pub struct ReceivedFd {
    /// There until the drop, or until it is taken as what it is.
    fd: Option<OwnedFd>,
    closer: Arc<Closer>,
}

impl ReceivedFd {
    /// `fd`, which `closer` closes if it is of a kind whose `close` may wait.
    pub fn new(fd: OwnedFd, closer: &Arc<Closer>) -> Self {
        let closer = Arc::clone(closer);
        ReceivedFd {
            fd: Some(fd),
            closer,
        }
    }

    /// Whether it is a file whose bytes are in memory: a memfd, or a file on a tmpfs or hugetlbfs,
    /// wherever that is mounted. Of these alone the kernel reports seals (`memfd_get_seals` of
    /// `mm/memfd.c`), and it looks at nothing but its own structures for that.
    pub fn is_memory(&self) -> bool {
        self.as_fd()
            .is_some_and(|fd| rustix::fs::fcntl_get_seals(fd).is_ok())
    }

    /// Whether it is a file, or something else, with a path in some file system: not a pipe, a
    /// socket, or an object of the kernel's such as an eventfd.
    pub fn has_path(&self) -> bool {
        self.link().is_some_and(|link| link.starts_with(b"/"))
    }

    /// Whether it is an eventfd.
    fn is_eventfd(&self) -> bool {
        // Only an anonymous inode has a name that does not start with a slash.
        self.link()
            .is_some_and(|link| link == b"anon_inode:[eventfd]")
    }

    /// What the kernel calls it: a path as it remembers it, or the name of an anonymous inode.
    fn link(&self) -> Option<Vec<u8>> {
        let path = format!("/proc/self/fd/{}", self.as_fd()?.as_raw_fd());
        let link = rustix::fs::readlinkat(CWD, path, Vec::new());
        Some(link.ok()?.into_bytes())
    }

    fn as_fd(&self) -> Option<BorrowedFd<'_>> {
        self.fd.as_ref().map(AsFd::as_fd)
    }

    /// The descriptor, which is of a known kind.
    fn known(mut self) -> Option<OwnedFd> {
        self.fd.take()
    }
}

impl Drop for ReceivedFd {
    fn drop(&mut self) {
        // The close of memory and of an eventfd waits for nobody.
        let harmless = self.is_memory() || self.is_eventfd();
        if let Some(fd) = self.fd.take()
            && !harmless
        {
            self.closer.close(fd);
        }
    }
}

impl fmt::Debug for ReceivedFd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ReceivedFd").field(&self.fd).finish()
    }
}

impl Client {
    /// `len` bytes from `start` of the memory file that the client has sent
    /// ([`ReceivedFd::is_memory`]). Of several descriptors of one file one is kept, the others are
    /// closed.
    ///
    /// # Errors
    /// [`FdError::WrongType`] if it is no memory file, or is open for writing alone;
    /// [`FdError::BeyondEnd`] if the range lies beyond the end of the file.
    pub fn received_file(
        &self,
        fd: ReceivedFd,
        start: u64,
        len: u64,
    ) -> Result<(MemoryFileId, Arc<dyn PageSource>), FdError> {
        let files = &self.resources.files;
        if !fd.is_memory() {
            return Err(FdError::WrongType);
        }
        let fd = fd.known().ok_or(FdError::WrongType)?;
        let (id, _) = identify(fd.as_fd(), "").map_err(|_| FdError::WrongType)?;
        let file = match files.known(id) {
            Some(file) if file.writable() => file,
            _ => {
                let file = MemoryFile::new(fd).ok_or(FdError::WrongType)?;
                files.remember(&file);
                file
            }
        };
        let end = start.checked_add(len).ok_or(FdError::BeyondEnd)?;
        if end > file.size() {
            return Err(FdError::BeyondEnd);
        }
        let pages = Arc::new(FilePages {
            files: Arc::clone(files),
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
    pub fn received_eventfd(&self, fd: ReceivedFd) -> Result<Arc<dyn IrqSink>, FdError> {
        if !fd.is_eventfd() {
            return Err(FdError::WrongType);
        }
        let fd = fd.known().ok_or(FdError::WrongType)?;
        let thread = Arc::clone(&self.resources.interrupts);
        Ok(Arc::new(EventFd::new(fd, thread)))
    }

    /// Gives memory of this client that is reached in another way than by the two above system
    /// physical addresses. It counts against the client's windows.
    ///
    /// # Errors
    /// [`PinError::NoMemory`] over the limit, or if the space is full.
    pub fn register(&self, backing: Arc<dyn Backing>) -> Result<Arc<SpaRange>, PinError> {
        let needed = backing.size().div_ceil(WINDOW_SIZE);
        let windows = &self.resources.windows;
        if needed > windows.limit() as u64 {
            return Err(PinError::NoMemory);
        }
        let permits: Result<Vec<_>, _> = (0..needed).map(|_| windows.permit()).collect();
        let permits = permits?;
        windows.register(Arc::new(Permitted { backing, permits }), 0)
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

#[cfg(test)]
mod tests {
    use rustix::{
        event::{EventfdFlags, eventfd},
        fs::{MemfdFlags, Mode, OFlags, memfd_create, open},
    };

    use super::*;

    /// What is said of a descriptor: memory, a path, an eventfd.
    fn kind(fd: impl Into<OwnedFd>) -> (bool, bool, bool) {
        let fd = ReceivedFd::new(fd.into(), &Closer::new("test"));
        (fd.is_memory(), fd.has_path(), fd.is_eventfd())
    }

    #[test]
    fn a_descriptor_is_known_without_asking_it() {
        let memfd = |flags| memfd_create(c"/memory", flags | MemfdFlags::CLOEXEC);
        let plain = memfd(MemfdFlags::empty()).unwrap();
        let path = format!("/proc/self/fd/{}", plain.as_raw_fd());
        let only_path = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        assert!(!kind(only_path).0, "nothing can be mapped by it");
        assert!(kind(plain).0);
        assert!(kind(memfd(MemfdFlags::ALLOW_SEALING).unwrap()).0);
        if let Ok(huge) = memfd(MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB) {
            assert!(kind(huge).0);
        }
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        if let Ok(file) = open("/dev/shm", flags, Mode::RUSR | Mode::WUSR) {
            assert!(kind(file).0, "a tmpfs that is mounted");
        }
        let dir = open("/dev/shm", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        assert_eq!(kind(dir.unwrap()), (false, true, false));
        let maps = std::fs::File::open("/proc/self/maps").unwrap();
        assert_eq!(kind(maps), (false, true, false));
        let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
        assert_eq!(kind(event), (false, false, true));
        let (pipe, _) = io::pipe().unwrap();
        assert_eq!(kind(pipe), (false, false, false));
        let socket = std::os::unix::net::UnixStream::pair().unwrap().0;
        assert_eq!(kind(socket), (false, false, false));
    }
}
