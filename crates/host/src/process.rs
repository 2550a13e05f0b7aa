//! One process of a client.

use std::{os::fd::OwnedFd, sync::Arc};

use ioasid_core::{
    host::{Caller, FdError, IrqSink},
    memory::{MemoryGone, PageSource, PinError},
};

/// One process of a client with its address space, held by a pidfd and an open `/proc/PID/mem`.
#[derive(Debug)]
pub struct Process {}

impl Process {
    /// The process id, for messages. Never used to reach the process.
    pub fn id(&self) -> i32 {
        todo!()
    }

    /// Whether the process is alive and still has the address space that this object holds: false
    /// once it has called `exec`.
    pub fn still_same(&self) -> bool {
        todo!()
    }

    /// Device and inode (`st_dev`, `st_ino`) of the file behind `fd`. Does not ask the file system.
    ///
    /// # Errors
    /// [`FdError::NotOpen`].
    pub fn fd_identity(&self, fd: i32) -> Result<(u64, u64), FdError> {
        let _ = fd;
        todo!()
    }

    /// A duplicate of `fd`, close-on-exec.
    ///
    /// # Errors
    /// [`FdError::NotOpen`], or [`FdError::NoMemory`] if we are out of descriptors.
    pub fn get_fd(&self, fd: i32) -> Result<OwnedFd, FdError> {
        let _ = fd;
        todo!()
    }
}

impl Caller for Process {
    fn read(&self, _address: u64, _dst: &mut [u8]) -> Result<(), MemoryGone> {
        todo!()
    }

    fn write(&self, _address: u64, _src: &[u8]) -> Result<(), MemoryGone> {
        todo!()
    }

    fn pages(&self, _address: u64, _len: u64) -> Result<Arc<dyn PageSource>, PinError> {
        todo!()
    }

    fn file_pages(&self, _fd: i32, _start: u64, _len: u64) -> Result<Arc<dyn PageSource>, FdError> {
        todo!()
    }

    fn eventfd(&self, _fd: i32) -> Result<Arc<dyn IrqSink>, FdError> {
        todo!()
    }
}
