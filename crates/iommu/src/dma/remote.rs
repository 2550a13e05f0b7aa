//! Copies that are more than one of directly addressable memory: downwards, or with memory of another
//! process on one side or on both.

use ioasid_core::{
    Access,
    memory::{MemoryGone, PAGE_SIZE, RawBytes},
    spa::KeptBytes,
};

use super::{
    bytes::copy_direct,
    port::DmaGuard,
    transfer::Halt,
    view::{Far, Place, View},
};
use crate::events::fault::FaultReason;

/// Bytes copied at a time where a copy needs two steps. Each is a system call at least, so more than
/// what an engine fills or compares at a time; it is what the second-level cache of a processor holds.
const BOUNCE: u64 = 256 << 10;

/// The same where one side is addressable: that step is no system call.
const HALF_BOUNCE: u64 = 64 << 10;

impl DmaGuard<'_> {
    /// Copies upwards where more is needed than a copy of directly addressable memory.
    #[cold]
    pub(super) fn copy_up_slowly(
        &mut self,
        dst: u64,
        src: u64,
        done: u64,
        room: u64,
    ) -> Result<u64, Halt> {
        let from = self.view.at(src, done, Access::Read)?;
        self.view.prepare_copy(dst.wrapping_add(done), from, room)?;
        let view = &self.view;
        let source = view.locate(from, room, Access::Read)?;
        let to = view.at(dst, done, Access::Write)?;
        let len = source.len();
        let target = view.locate(to, len, Access::Write)?;
        match (source, target) {
            (Place::Direct(source), Place::Direct(target)) => {
                copy_direct(view, target, to, source, from)
            }
            (Place::Remote(source), Place::Direct(target)) => {
                let len = len.min(target.len() as u64);
                let target = view.keep(to, len, Access::Write)?;
                let (view, buffer) = self.bounced(len.min(HALF_BOUNCE) as usize);
                view.pull((target, to), (source, from), buffer)
            }
            (Place::Direct(source), Place::Remote(target)) => {
                let len = target.len.min(source.len() as u64);
                let source = view.keep(from, len, Access::Read)?;
                let (view, buffer) = self.bounced(len.min(HALF_BOUNCE) as usize);
                view.push((target, to), (source, from), buffer)
            }
            (Place::Remote(source), Place::Remote(target)) => {
                let len = len.min(target.len);
                match self.copy_in_place(to, &target, &source, len) {
                    Some(done) => Ok(done),
                    None => self.copy_through(to, from, len),
                }
            }
        }
    }

    /// Copies in two steps, each with translations of its own.
    fn copy_through(&mut self, to: u64, from: u64, len: u64) -> Result<u64, Halt> {
        let (view, buffer) = self.bounced(len.min(BOUNCE) as usize);
        match view.fetch(from, buffer) {
            Ok(read) => view.store_all(to, &buffer[..read as usize]),
            Err(halt) => {
                // What could be read still arrives.
                view.store_all(to, &buffer[..halt.done as usize])?;
                Err(halt)
            }
        }
    }

    /// Copies bytes that end at offset `end` (exclusive) of both ranges.
    pub(super) fn copy_down(
        &mut self,
        dst: u64,
        src: u64,
        end: u64,
        room: u64,
    ) -> Result<u64, Halt> {
        // The last page of each side.
        let first = |base: u64| {
            let last = base.wrapping_add(end - 1);
            (last & !(PAGE_SIZE - 1)).max(last.saturating_sub(room - 1))
        };
        self.view.prepare_copy(first(dst), first(src), 1)?;
        let view = &self.view;
        let from = view.at(src, end - 1, Access::Read)?;
        let source = view.locate_back(from, room, Access::Read)?;
        let to = view.at(dst, end - 1, Access::Write)?;
        let target = view.locate_back(to, source.len(), Access::Write)?;
        let mut len = source.len().min(target.len());
        let result = if let (Place::Direct(source), Place::Direct(target)) = (&source, &target) {
            let (to, from) = (to - (len - 1), from - (len - 1));
            copy_direct(view, tail(*target, len), to, tail(*source, len), from)
        } else {
            len = len.min(BOUNCE);
            let (view, buffer) = self.bounced(len as usize);
            let fetched = view.fetch_all(from - (len - 1), buffer);
            fetched.and_then(|_| view.store_all(to - (len - 1), buffer))
        };
        // Bytes done before a fault inside the piece are its first ones: not a part of the tail that
        // counts as done.
        result.map_err(|halt| Halt {
            done: 0,
            stop: halt.stop,
        })
    }
}

impl View<'_> {
    /// Copies from another process into bytes that are addressable; blocks once.
    fn pull(
        &mut self,
        (target, to): (KeptBytes, u64),
        (source, from): (Far, u64),
        buffer: &mut [u8],
    ) -> Result<u64, Halt> {
        let len = target.len();
        let reported = self.reported(to);
        let copy = move || {
            let bytes = target.bytes()?;
            let result = source.memory.read_into(source.offset, bytes, buffer);
            reported(&result, len);
            Ok((result, is_gone(bytes, &result), bytes.writable()))
        };
        let (result, near_gone, writable) = self.block(copy).unwrap_or_else(nothing);
        let (iova, access, reason) = match (near_gone, writable) {
            (_, false) => (to, Access::Write, FaultReason::Permission),
            (true, true) => (to, Access::Write, FaultReason::MemoryGone),
            (false, true) => (from, Access::Read, FaultReason::MemoryGone),
        };
        self.ended(result, len, iova, access, reason)
    }

    /// Copies bytes that are addressable into another process; blocks once.
    fn push(
        &mut self,
        (target, to): (Far, u64),
        (source, from): (KeptBytes, u64),
        buffer: &mut [u8],
    ) -> Result<u64, Halt> {
        let len = source.len();
        let reported = self.reported(to);
        let copy = move || {
            let bytes = source.bytes()?;
            let result = target.memory.write_from(target.offset, bytes, buffer);
            reported(&result, len);
            Ok((result, is_gone(bytes, &result), true))
        };
        let (result, near_gone, _) = self.block(copy).unwrap_or_else(nothing);
        let (iova, access) = match near_gone {
            true => (from, Access::Read),
            false => (to, Access::Write),
        };
        self.ended(result, len, iova, access, FaultReason::MemoryGone)
    }

    /// What a copy of `len` bytes that has blocked came to.
    fn ended(
        &self,
        result: Result<(), MemoryGone>,
        len: u64,
        iova: u64,
        access: Access,
        reason: FaultReason,
    ) -> Result<u64, Halt> {
        result.map(|()| len).map_err(|MemoryGone { done }| {
            let fault = self.fault(iova.saturating_add(done as u64), access, reason);
            Halt {
                done: done as u64,
                stop: Some(fault.into()),
            }
        })
    }
}

/// What a copy came to whose addressable side could not be kept.
fn nothing(gone: MemoryGone) -> (Result<(), MemoryGone>, bool, bool) {
    (Err(gone), true, true)
}

/// Whether a copy has ended because `bytes`, its addressable side, are gone where it ended; it does not
/// say.
fn is_gone(bytes: RawBytes<'_>, result: &Result<(), MemoryGone>) -> bool {
    let Err(MemoryGone { done }) = *result else {
        return false;
    };
    let probe = bytes.slice(done, 1);
    probe.is_some_and(|byte| byte.read(&mut [0]).is_err())
}

/// The last `len` bytes of `bytes`, which has as many.
fn tail(bytes: RawBytes<'_>, len: u64) -> RawBytes<'_> {
    let start = bytes.len().saturating_sub(len as usize);
    bytes.slice(start, len as usize).unwrap_or(bytes)
}
