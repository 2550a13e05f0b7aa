//! A process as the program behind an ioctl.

use std::{
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
};

use ioasid_core::{
    host::{Account, Caller, EventfdWatch, FdError, IrqSink},
    memory::{MemoryGone, PageSource, PinError},
    range::AddrRange,
};
use rustix::fs::{CWD, OFlags, fcntl_getfl};

use super::{pages::ProcessPages, process::Process};
use crate::{
    memory::file::{FilePages, MemoryFile},
    system::{file_id::identify, filesystem::Filesystem},
    threads::interrupts::EventFd,
};

impl Process {
    /// As [`Caller::pages`], where an address at which the process has mapped registers of a device
    /// will do too.
    ///
    /// # Errors
    /// As [`Caller::pages`].
    pub fn pages_or_registers(
        &self,
        address: u64,
        len: u64,
    ) -> Result<Arc<dyn PageSource>, PinError> {
        self.pages_at(address, len, true)
    }

    fn pages_at(
        &self,
        address: u64,
        len: u64,
        registers: bool,
    ) -> Result<Arc<dyn PageSource>, PinError> {
        Ok(Arc::new(ProcessPages {
            process: self.shared_self().ok_or(PinError::Fault)?,
            address,
            len,
            registers,
        }))
    }

    /// A duplicate of `fd` if it is a memory file.
    fn memory_file(&self, fd: i32) -> Result<Arc<MemoryFile>, FdError> {
        let id = self.dir().fd_identity(fd)?;
        let filesystem = Filesystem::of(id.dev, || self.dir().mountinfo());
        if filesystem != Filesystem::Memory {
            return Err(if self.fd_is_a_path(fd) {
                FdError::NotOpen
            } else {
                FdError::WrongType
            });
        }
        let taken = self.get_fd(fd)?;
        // `fget` of the kernel, unlike `pidfd_getfd`, does not give such a one.
        if fcntl_getfl(&taken).is_ok_and(|flags| flags.contains(OFlags::PATH)) {
            return Err(FdError::NotOpen);
        }
        // The client may have put another file in its place meanwhile.
        if identify(taken.as_fd(), "").is_ok_and(|(found, _)| found == id) {
            MemoryFile::new(taken).ok_or(FdError::WrongType)
        } else {
            self.resources().closer.close(taken);
            Err(FdError::WrongType)
        }
    }

    /// A copy of the program's eventfd `fd`.
    fn take_eventfd(&self, fd: i32) -> Result<OwnedFd, FdError> {
        // Only an anonymous inode has a name that does not start with a slash.
        const EVENTFD: &[u8] = b"anon_inode:[eventfd]";
        if self.dir().link(fd)? != EVENTFD {
            return Err(FdError::WrongType);
        }
        let taken = self.get_fd(fd)?;
        let path = format!("/proc/self/fd/{}", taken.as_raw_fd());
        let link = rustix::fs::readlinkat(CWD, path, Vec::new());
        if !link.is_ok_and(|link| link.as_bytes() == EVENTFD) {
            self.resources().closer.close(taken);
            return Err(FdError::WrongType);
        }
        Ok(taken)
    }
}

impl Caller for Process {
    fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.memory().read(address, dst)
    }

    fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let Some(range) = AddrRange::from_len(address, src.len() as u64) else {
            return if src.is_empty() {
                Ok(())
            } else {
                Err(MemoryGone { done: 0 })
            };
        };
        if !self.memory().is_writable(range) {
            return Err(MemoryGone { done: 0 });
        }
        self.memory().write(address, src)
    }

    fn pages(&self, address: u64, len: u64) -> Result<Arc<dyn PageSource>, PinError> {
        self.pages_at(address, len, false)
    }

    fn file_pages(&self, fd: i32, start: u64, len: u64) -> Result<Arc<dyn PageSource>, FdError> {
        let file = self.memory_file(fd)?;
        let files = &self.resources().files;
        files.remember(&file);
        Ok(Arc::new(FilePages {
            files: Arc::clone(files),
            file,
            start,
            len,
        }))
    }

    fn eventfd(&self, fd: i32) -> Result<Arc<dyn IrqSink>, FdError> {
        let taken = self.take_eventfd(fd)?;
        let thread = Arc::clone(&self.resources().interrupts);
        Ok(Arc::new(EventFd::new(taken, thread)))
    }

    fn watch_eventfd(
        &self,
        fd: i32,
        listener: Arc<dyn IrqSink>,
    ) -> Result<Box<dyn EventfdWatch>, FdError> {
        let taken = self.take_eventfd(fd)?;
        let watch = self.resources().eventfds.watch("eventfds", taken, listener);
        watch.map_err(|_| FdError::NoMemory)
    }

    fn flush_interrupts(&self) {
        self.resources().interrupts.flush();
    }

    fn account(&self) -> Account {
        self.known_account()
    }
}
