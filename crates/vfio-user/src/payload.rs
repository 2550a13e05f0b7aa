//! A message's payload in the place of a program's memory.
//!
//! Most commands carry the struct of a VFIO ioctl. They are answered by the very code that answers the
//! ioctl: for it the payload is the memory of a program, and the descriptors that came along are the
//! program's, numbered from 0.

use std::sync::Arc;

use ioasid_core::{
    host::{Caller, FdError, IrqSink},
    memory::{MemoryGone, PageSource, PinError},
    sync::Mutex,
};
use ioasid_host::{Client, ReceivedFd};
use ioasid_iommufd::Context;
use ioasid_uapi::{CallError, Program, vfio::device_ioctl};
use ioasid_vfio::DeviceFile;

/// Where the payload begins. Not 0, so that a null pointer in a struct leads nowhere.
const BASE: u64 = 0x1000;

#[derive(Debug)]
struct Payload<'a> {
    bytes: Mutex<Vec<u8>>,
    fds: Mutex<Vec<Option<ReceivedFd>>>,
    client: &'a Arc<Client>,
}

/// Runs the device ioctl `request` on `payload`, which is then what the ioctl has made of it.
pub(crate) fn ioctl(
    file: &DeviceFile,
    request: u32,
    payload: Vec<u8>,
    fds: Vec<ReceivedFd>,
    client: &Arc<Client>,
) -> Result<Vec<u8>, CallError> {
    let program = Payload {
        bytes: Mutex::new(payload),
        fds: Mutex::new(fds.into_iter().map(Some).collect()),
        client,
    };
    device_ioctl(file, request, BASE, &program)?;
    Ok(std::mem::take(&mut *program.bytes.lock()))
}

/// The part of the payload at `address`.
fn place(address: u64, len: usize) -> Option<std::ops::Range<usize>> {
    let start = usize::try_from(address.checked_sub(BASE)?).ok()?;
    Some(start..start.checked_add(len)?)
}

impl Caller for Payload<'_> {
    fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let bytes = self.bytes.lock();
        let part = place(address, dst.len()).and_then(|range| bytes.get(range));
        dst.copy_from_slice(part.ok_or(MemoryGone { done: 0 })?);
        Ok(())
    }

    fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let mut bytes = self.bytes.lock();
        let part = place(address, src.len()).and_then(|range| bytes.get_mut(range));
        part.ok_or(MemoryGone { done: 0 })?.copy_from_slice(src);
        Ok(())
    }

    fn pages(&self, _address: u64, _len: u64) -> Result<Arc<dyn PageSource>, PinError> {
        Err(PinError::Fault)
    }

    fn file_pages(&self, _: i32, _: u64, _: u64) -> Result<Arc<dyn PageSource>, FdError> {
        Err(FdError::WrongType)
    }

    fn eventfd(&self, fd: i32) -> Result<Arc<dyn IrqSink>, FdError> {
        let index = usize::try_from(fd).map_err(|_| FdError::NotOpen)?;
        let fd = self.fds.lock().get_mut(index).and_then(Option::take);
        self.client.received_eventfd(fd.ok_or(FdError::NotOpen)?)
    }
}

impl Program for Payload<'_> {
    fn iommufd(&self, _fd: i32) -> Result<Arc<Context>, FdError> {
        Err(FdError::WrongType)
    }
}
