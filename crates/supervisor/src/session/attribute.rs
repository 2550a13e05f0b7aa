//! Attributes of `/sys` that a program writes.
//!
//! Such a file lies in the program's own `/sys`, where a write would only change its text. So the
//! program gets a file of ours instead when it opens one for writing. A write on one of our numbers is
//! carried out at once and answered; what reaches the file past the filter, as when a shell has put it
//! on number 1, is carried out when it is closed, and nobody hears how that went. An attribute that cannot
//! be written, or of which a write would do nothing, is not opened: that is heard by everybody.

use std::{
    ffi::CString,
    io,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
};

use ioasid_core::host::Caller;
use ioasid_host::Process;
use ioasid_uapi::Errno;
use rustix::fs::{AtFlags, MemfdFlags, Mode, OFlags, memfd_create, statat};

use super::{
    Server,
    live::{self, ShownFile},
    path,
    paths::PathArgument,
    transfer::Direction,
    transfer::Piece,
};
use crate::{
    listener::Request,
    view::{LiveFile, MachineView, SysfsKind},
};

/// Most bytes of one write, as in Linux.
const PAGE: usize = 4096;

/// Who may write a file, and who may read it.
const WRITABLE: u16 = 0o222;
const READABLE: u16 = 0o444;

/// An attribute that a program has opened for writing.
#[derive(Debug)]
pub(super) struct AttributeFile {
    view: Arc<dyn MachineView>,
    vm: Option<String>,
    /// Below `/sys`.
    path: String,
    /// Where bytes have places: what it is read and written by.
    live: Option<LiveFile>,
    /// What was written past us.
    stray: OwnedFd,
    /// What was in there at first.
    first: Vec<u8>,
}

impl AttributeFile {
    /// Makes the file, and the descriptor that the program gets.
    fn new(
        view: &Arc<dyn MachineView>,
        vm: Option<&str>,
        path: String,
        reads: bool,
    ) -> io::Result<(Arc<Self>, OwnedFd)> {
        let mut live = view.live_files(vm).into_iter();
        let live = live.find(|file| file.path() == path && file.has_places());
        let stray = memfd_create("attribute", MemfdFlags::CLOEXEC)?;
        // Read past us, it shows what was there when it was opened.
        let first = live.as_ref().map(LiveFile::read).unwrap_or_default();
        rustix::io::pwrite(&stray, &first, 0)?;
        let again = format!("/proc/self/fd/{}", stray.as_raw_fd());
        let access = if reads { OFlags::RDWR } else { OFlags::WRONLY };
        let program = rustix::fs::open(again, access | OFlags::CLOEXEC, Mode::empty())?;
        let file = AttributeFile {
            view: Arc::clone(view),
            vm: vm.map(str::to_owned),
            path,
            live,
            stray,
            first,
        };
        Ok((Arc::new(file), program))
    }

    /// How many bytes there are, if they have places.
    pub(super) fn size(&self) -> Option<i64> {
        let live = self.live.as_ref()?;
        i64::try_from(live.read().len()).ok()
    }

    /// A read or write on one of our numbers; returns the bytes.
    pub(super) fn transfer(
        &self,
        process: &Process,
        direction: Direction,
        pieces: &[Piece],
        start: u64,
    ) -> Result<u64, Errno> {
        match direction {
            Direction::Write => {
                let mut data = Vec::new();
                for piece in pieces {
                    let len = usize::try_from(piece.len).unwrap_or(PAGE);
                    let at = data.len();
                    data.resize(at + len.min(PAGE - at), 0);
                    let part = data.get_mut(at..).unwrap_or_default();
                    process.read(piece.address, part)?;
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
                    process.write(piece.address, rest.get(..len).unwrap_or_default())?;
                    done += len;
                }
                Ok((done - first) as u64)
            }
        }
    }

    /// The program has let go of it.
    pub(super) fn close(&self) {
        let mut data = [0; PAGE];
        let Ok(len @ 1..) = rustix::io::pread(&self.stray, &mut data, 0) else {
            return;
        };
        let data = data.get(..len).unwrap_or_default();
        for (at, bytes) in changes(&self.first, data) {
            if let Err(errno) = self.store(at as u64, bytes) {
                tracing::warn!(
                    path = self.path,
                    ?errno,
                    "a write to an attribute fails unheard"
                );
            }
        }
    }

    /// Writes `data`, at `start` if there are places; returns how much was taken.
    fn store(&self, start: u64, data: &[u8]) -> Result<usize, Errno> {
        if let Some(live) = &self.live {
            return live.write_at(start, data).map_err(|_| Errno::EINVAL);
        }
        let vm = self.vm.as_deref();
        self.view.write_attribute(vm, &self.path, data)?;
        Ok(data.len())
    }

    fn text(&self) -> Vec<u8> {
        if let Some(live) = &self.live {
            return live.read();
        }
        let mut entries = self.view.sysfs(self.vm.as_deref()).into_iter();
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

impl Server {
    /// The file that a program gets for the attribute that `path` leads to, if it does; `reads` says whether
    /// it wants to read it too. What can be opened is what can be done, for root as well
    /// (`kernfs_fop_open`, fs/kernfs/file.c).
    pub(super) fn open_attribute(
        &mut self,
        request: &Request,
        process: &Process,
        path: &CString,
        argument: PathArgument,
        reads: bool,
    ) -> Result<Option<OwnedFd>, Errno> {
        let Some(found) = self.attribute_at(request, process, path, argument) else {
            return Ok(None);
        };
        if found.mode & WRITABLE == 0 || (reads && found.mode & READABLE == 0) {
            return Err(Errno::EACCES);
        }
        if !found.is_built {
            return Err(Errno::EOPNOTSUPP);
        }
        let made = AttributeFile::new(&self.view, self.shared.vm.as_deref(), found.path, reads);
        let made = made.and_then(|(file, program)| {
            self.files.add_attribute(file, &program)?;
            Ok(program)
        });
        self.count_open_files();
        made.map(Some).map_err(|_| Errno::ENOMEM)
    }

    fn attribute_at(
        &self,
        request: &Request,
        process: &Process,
        path: &CString,
        argument: PathArgument,
    ) -> Option<ShownFile> {
        let mut named = self.shown.files_named_as(path.as_bytes()).iter();
        // Nearly every path ends here.
        if named.len() == 0 {
            return None;
        }
        if self.overlay.is_some() {
            let ours = self.path_in_overlay(request, path, argument)?;
            let below = ours.strip_prefix(b"/sys/")?;
            return named.find(|known| known.path.as_bytes() == below).cloned();
        }
        let (tid, PathArgument { dirfd, follow, .. }) = (request.tid, argument);
        let identity = path::look_up(process, tid, dirfd, path, follow)?;
        let sys = live::root(tid, "sys").ok()?;
        let is_it = |known: &&ShownFile| {
            let stat = statat(&sys, known.path.as_str(), AtFlags::SYMLINK_NOFOLLOW);
            stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == identity)
        };
        named.find(is_it).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_past_us_is_what_differs() {
        assert_eq!(changes(b"abcd", b"abcd"), []);
        assert_eq!(changes(b"", b"1\n"), [(0, &b"1\n"[..])]);
        let found = changes(b"abcdef", b"aXYdeZ");
        assert_eq!(found, [(1, &b"XY"[..]), (5, &b"Z"[..])]);
    }
}
