//! The memory of a program, for data that goes through to a back end.

use std::sync::{Arc, Mutex};

use ioasid_core::{
    host::{Caller, FdError, IrqSink},
    memory::{MemoryGone, PageSource, PinError},
};

/// Bytes from address 0 on.
#[derive(Debug)]
pub struct Program(Mutex<Vec<u8>>);

impl Program {
    pub fn new(len: usize) -> Self {
        Program(Mutex::new(vec![0; len]))
    }

    pub fn put(&self, address: usize, bytes: &[u8]) {
        self.0.lock().unwrap()[address..address + bytes.len()].copy_from_slice(bytes);
    }
}

impl Caller for Program {
    fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let memory = self.0.lock().unwrap();
        let from = usize::try_from(address).ok();
        let bytes = from.and_then(|from| memory.get(from..from.checked_add(dst.len())?));
        dst.copy_from_slice(bytes.ok_or(MemoryGone { done: 0 })?);
        Ok(())
    }

    fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let mut memory = self.0.lock().unwrap();
        let from = usize::try_from(address).ok();
        let bytes = from.and_then(|from| memory.get_mut(from..from.checked_add(src.len())?));
        bytes.ok_or(MemoryGone { done: 0 })?.copy_from_slice(src);
        Ok(())
    }

    fn pages(&self, _: u64, _: u64) -> Result<Arc<dyn PageSource>, PinError> {
        Err(PinError::NoMemory)
    }

    fn file_pages(&self, _: i32, _: u64, _: u64) -> Result<Arc<dyn PageSource>, FdError> {
        Err(FdError::NotOpen)
    }

    fn eventfd(&self, _: i32) -> Result<Arc<dyn IrqSink>, FdError> {
        Err(FdError::NotOpen)
    }
}
