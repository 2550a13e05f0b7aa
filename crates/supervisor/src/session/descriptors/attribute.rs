//! Attributes of `/sys` that a program writes.
//!
//! Such a file lies in the program's own `/sys`, where a write would only change its text. So the
//! program gets a file of the machine instead when it opens one for writing. A write on a reserved
//! number is carried out at once and answered; what reaches the file past the filter, as when a
//! shell has put it on number 1, is carried out when it is closed, and an error is only logged. An
//! attribute that cannot be written, or of which a write would do nothing, is not opened: every
//! program sees that error.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use ioasid_host::Process;
use ioasid_uapi::{CallError, error::FileError, memory};
use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};

use crate::{
    calls::call::Direction,
    session::{machine::Machine, pieces::Piece},
    view::{LiveFile, SysfsKind},
};

/// Most bytes of one write, as in Linux.
const PAGE: usize = 4096;

/// An attribute that a program has opened for writing.
#[derive(Debug)]
pub(crate) struct AttributeFile {
    machine: Machine,
    /// Below `/sys`.
    path: String,
    /// Where bytes have places: what it is read and written by.
    live: Option<LiveFile>,
    /// What was written past the filter.
    stray: OwnedFd,
    /// What was in there at first.
    first: Vec<u8>,
}

impl AttributeFile {
    /// Makes the file, and the descriptor that the program gets.
    pub(crate) fn new(
        machine: &Machine,
        path: String,
        reads: bool,
    ) -> io::Result<(Arc<Self>, OwnedFd)> {
        let mut live = machine.live_files().into_iter();
        let live = live.find(|file| file.path() == path && file.has_places());
        let stray = memfd_create("attribute", MemfdFlags::CLOEXEC)?;
        // Read past the filter, it shows what was there when it was opened.
        let first = live.as_ref().map(LiveFile::read).unwrap_or_default();
        rustix::io::pwrite(&stray, &first, 0)?;
        let again = format!("/proc/self/fd/{}", stray.as_raw_fd());
        let access = if reads { OFlags::RDWR } else { OFlags::WRONLY };
        let program = rustix::fs::open(again, access | OFlags::CLOEXEC, Mode::empty())?;
        let file = AttributeFile {
            machine: machine.clone(),
            path,
            live,
            stray,
            first,
        };
        Ok((Arc::new(file), program))
    }

    /// Its path below `/sys`.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// How many bytes there are, if they have places.
    pub(crate) fn size(&self) -> Option<i64> {
        let live = self.live.as_ref()?;
        i64::try_from(live.read().len()).ok()
    }

    /// A read or write on a reserved number; returns the bytes.
    pub(crate) fn transfer(
        &self,
        process: &Process,
        direction: Direction,
        pieces: &[Piece],
        start: u64,
    ) -> Result<u64, CallError> {
        match direction {
            Direction::Write => {
                let mut data = Vec::new();
                for piece in pieces {
                    let len = usize::try_from(piece.len).unwrap_or(PAGE);
                    let at = data.len();
                    data.resize(at + len.min(PAGE - at), 0);
                    let part = data.get_mut(at..).unwrap_or_default();
                    memory::read(process, piece.address, part)?;
                }
                Ok(self.store(start, &data)? as u64)
            }
            Direction::Read => {
                let text = self.text();
                let mut done = usize::try_from(start).unwrap_or(usize::MAX).min(text.len());
                let first = done;
                for piece in pieces {
                    let rest = text.get(done..).unwrap_or_default();
                    let len = usize::try_from(piece.len).map_or(rest.len(), |n| n.min(rest.len()));
                    memory::write(process, piece.address, rest.get(..len).unwrap_or_default())?;
                    done += len;
                }
                Ok((done - first) as u64)
            }
        }
    }

    /// The program has let go of it.
    pub(crate) fn close(&self) {
        let mut data = [0; PAGE];
        let Ok(len @ 1..) = rustix::io::pread(&self.stray, &mut data, 0) else {
            return;
        };
        let data = data.get(..len).unwrap_or_default();
        for (at, bytes) in changes(&self.first, data) {
            if let Err(error) = self.store(at as u64, bytes) {
                tracing::warn!(
                    path = self.path,
                    %error,
                    "a write to an attribute fails unheard"
                );
            }
        }
    }

    /// Writes `data`, at `start` if there are places; returns how much was taken.
    fn store(&self, start: u64, data: &[u8]) -> Result<usize, CallError> {
        if let Some(live) = &self.live {
            let written = live.write_at(start, data);
            return Ok(written.map_err(|_| FileError::BadText {
                offset: start,
                len: data.len() as u64,
            })?);
        }
        let Machine { view, vm } = &self.machine;
        view.write_attribute(vm.as_deref(), &self.path, data)?;
        Ok(data.len())
    }

    fn text(&self) -> Vec<u8> {
        if let Some(live) = &self.live {
            return live.read();
        }
        let Machine { view, vm } = &self.machine;
        let mut entries = view.sysfs(vm.as_deref()).into_iter();
        match entries.find(|entry| entry.path == self.path) {
            Some(entry) => match entry.kind {
                SysfsKind::File(file) => file.bytes,
                SysfsKind::Dir | SysfsKind::Link(_) => Vec::new(),
            },
            None => Vec::new(),
        }
    }
}

/// The runs of bytes in `now` that are not what they were `before`, and where each is.
fn changes<'a>(before: &[u8], now: &'a [u8]) -> Vec<(usize, &'a [u8])> {
    let is_new = |at: usize| now.get(at) != before.get(at);
    let mut runs = Vec::new();
    let mut at = 0;
    while at < now.len() {
        let end = (at..now.len())
            .find(|end| !is_new(*end))
            .unwrap_or(now.len());
        if at < end {
            runs.extend(now.get(at..end).map(|run| (at, run)));
        }
        at = end + 1;
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_past_the_filter_is_what_differs() {
        assert_eq!(changes(b"abcd", b"abcd"), []);
        assert_eq!(changes(b"", b"1\n"), [(0, &b"1\n"[..])]);
        let found = changes(b"abcdef", b"aXYdeZ");
        assert_eq!(found, [(1, &b"XY"[..]), (5, &b"Z"[..])]);
    }
}
