//! Reads and writes of a guard's own buffers: where a view leads to memory that is more than directly
//! addressable, and where it is.

use ioasid_core::{
    Access,
    memory::{MemoryGone, RawBytes},
};

use super::{
    transfer::{Halt, done_of},
    view::{Place, View},
};
use crate::events::fault::FaultReason;

impl View<'_> {
    /// Reads into `buffer` from `iova`, as far as one place goes: how many bytes, not 0.
    #[inline]
    pub(crate) fn fetch(&mut self, iova: u64, buffer: &mut [u8]) -> Result<u64, Halt> {
        if let Some(bytes) = self.direct(iova, buffer.len() as u64, Access::Read) {
            let len = bytes.len().min(buffer.len());
            if bytes.read(&mut buffer[..len]).is_ok() {
                return Ok(len as u64);
            }
        }
        self.fetch_slowly(iova, buffer)
    }

    /// [`View::fetch`] where more is needed than a copy of directly addressable memory.
    #[cold]
    fn fetch_slowly(&mut self, iova: u64, buffer: &mut [u8]) -> Result<u64, Halt> {
        self.prepare(iova, buffer.len() as u64, Access::Read)?;
        let (len, result) = match self.locate(iova, buffer.len() as u64, Access::Read)? {
            Place::Direct(bytes) => {
                let buffer = &mut buffer[..bytes.len()];
                (buffer.len(), bytes.read(buffer))
            }
            Place::Remote(far) => {
                let buffer = &mut buffer[..far.len as usize];
                let read = || far.memory.read(far.offset, buffer);
                (far.len as usize, self.block(read))
            }
        };
        match result {
            Ok(()) => Ok(len as u64),
            Err(MemoryGone { done }) => {
                let at = iova.saturating_add(done as u64);
                Err(Halt {
                    done: done as u64,
                    stop: Some(self.refused(at, Access::Read, FaultReason::MemoryGone)),
                })
            }
        }
    }

    /// Writes `buffer` to `iova`, as far as one place goes: how many bytes, not 0.
    #[inline]
    pub(crate) fn store(&mut self, iova: u64, buffer: &[u8]) -> Result<u64, Halt> {
        if let Some(bytes) = self.direct(iova, buffer.len() as u64, Access::Write) {
            let len = bytes.len().min(buffer.len());
            if bytes.write(&buffer[..len]).is_ok() {
                self.wrote(iova, len as u64);
                return Ok(len as u64);
            }
        }
        self.store_slowly(iova, buffer)
    }

    /// [`View::store`] where more is needed than a copy of directly addressable memory.
    #[cold]
    fn store_slowly(&mut self, iova: u64, buffer: &[u8]) -> Result<u64, Halt> {
        let mut reason = FaultReason::MemoryGone;
        self.prepare(iova, buffer.len() as u64, Access::Write)?;
        let (len, result) = match self.locate(iova, buffer.len() as u64, Access::Write)? {
            Place::Direct(bytes) => {
                if !bytes.writable() {
                    reason = FaultReason::Permission;
                }
                let written = bytes.write(&buffer[..bytes.len()]);
                self.wrote(iova, done_of(&written, bytes.len()));
                (bytes.len(), written)
            }
            Place::Remote(far) => {
                let buffer = &buffer[..far.len as usize];
                let reported = self.reported(iova);
                let write = || {
                    let written = far.memory.write(far.offset, buffer);
                    reported(&written, buffer.len() as u64);
                    written
                };
                (buffer.len(), self.block(write))
            }
        };
        match result {
            Ok(()) => Ok(len as u64),
            Err(MemoryGone { done }) => {
                let at = iova.saturating_add(done as u64);
                Err(Halt {
                    done: done as u64,
                    stop: Some(self.refused(at, Access::Write, reason)),
                })
            }
        }
    }

    /// As [`View::fetch`], place after place until the buffer is full.
    pub(crate) fn fetch_all(&mut self, iova: u64, buffer: &mut [u8]) -> Result<u64, Halt> {
        let mut done = 0;
        while done < buffer.len() {
            let at = self.at(iova, done as u64, Access::Read)?;
            let more = self.fetch(at, &mut buffer[done..]);
            done += more.map_err(|halt| halt.after(done as u64))? as usize;
        }
        Ok(done as u64)
    }

    /// As [`View::store`], place after place until all is written.
    pub(crate) fn store_all(&mut self, iova: u64, buffer: &[u8]) -> Result<u64, Halt> {
        let mut done = 0;
        while done < buffer.len() {
            let at = self.at(iova, done as u64, Access::Write)?;
            let more = self.store(at, &buffer[done..]);
            done += more.map_err(|halt| halt.after(done as u64))? as usize;
        }
        Ok(done as u64)
    }
}

/// Copies between two directly addressable places, as many bytes as both have.
#[inline]
pub(super) fn copy_direct(
    view: &View<'_>,
    target: RawBytes<'_>,
    to: u64,
    source: RawBytes<'_>,
    from: u64,
) -> Result<u64, Halt> {
    match target.copy_from(source) {
        Ok(()) => {
            let len = source.len().min(target.len()) as u64;
            view.wrote(to, len);
            Ok(len)
        }
        Err(gone) => {
            view.wrote(to, gone.done as u64);
            Err(copy_stopped(view, target, to, source, from, gone))
        }
    }
}

/// Which side has stopped a copy; the copy does not say.
#[cold]
fn copy_stopped(
    view: &View<'_>,
    target: RawBytes<'_>,
    to: u64,
    source: RawBytes<'_>,
    from: u64,
    MemoryGone { done }: MemoryGone,
) -> Halt {
    let probe = source.slice(done, 1);
    let source_gone = probe.is_some_and(|byte| byte.read(&mut [0]).is_err());
    let (iova, access, reason) = if source_gone {
        (from, Access::Read, FaultReason::MemoryGone)
    } else if target.writable() {
        (to, Access::Write, FaultReason::MemoryGone)
    } else {
        (to, Access::Write, FaultReason::Permission)
    };
    let fault = view.fault(iova.saturating_add(done as u64), access, reason);
    Halt {
        done: done as u64,
        stop: Some(fault.into()),
    }
}
