//! Attributes of `/sys` that a program writes.
//!
//! Such a file lies in the program's own `/sys`, where a write would only change its text. So the
//! program gets a file of ours instead when it opens one for writing. A write on one of our numbers is
//! carried out at once and answered; what reaches the file past the filter, as when a shell has put it
//! on number 1, is carried out when it is closed, and nobody hears how that went.

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

use super::{Server, live, path, paths::PathArgument, transfer::Direction, transfer::Piece};
use crate::{
    listener::Request,
    view::{MachineView, SysfsKind},
};

/// Most bytes of one write, as in Linux.
const PAGE: usize = 4096;

/// An attribute that a program has opened for writing.
#[derive(Debug)]
pub(super) struct AttributeFile {
    view: Arc<dyn MachineView>,
    vm: Option<String>,
    /// Below `/sys`.
    path: String,
    /// What was written past us.
    stray: OwnedFd,
}

impl AttributeFile {
    /// Makes the file, and the descriptor that the program gets.
    fn new(
        view: &Arc<dyn MachineView>,
        vm: Option<&str>,
        path: String,
    ) -> io::Result<(Arc<Self>, OwnedFd)> {
        let stray = memfd_create("attribute", MemfdFlags::CLOEXEC)?;
        let again = format!("/proc/self/fd/{}", stray.as_raw_fd());
        let program = rustix::fs::open(again, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let file = AttributeFile {
            view: Arc::clone(view),
            vm: vm.map(str::to_owned),
            path,
            stray,
        };
        Ok((Arc::new(file), program))
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
                self.store(&data)?;
                Ok(data.len() as u64)
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
        if let Err(errno) = self.store(data.get(..len).unwrap_or_default()) {
            tracing::warn!(
                path = self.path,
                ?errno,
                "a write to an attribute fails unheard"
            );
        }
    }

    fn store(&self, data: &[u8]) -> Result<(), Errno> {
        let vm = self.vm.as_deref();
        self.view.write_attribute(vm, &self.path, data)
    }

    fn text(&self) -> Vec<u8> {
        let mut entries = self.view.sysfs(self.vm.as_deref()).into_iter();
        match entries.find(|entry| entry.path == self.path) {
            Some(entry) => match entry.kind {
                SysfsKind::File(bytes) => bytes,
                SysfsKind::Dir | SysfsKind::Link(_) => Vec::new(),
            },
            None => Vec::new(),
        }
    }
}

impl Server {
    /// The file that a program gets for the attribute that `path` leads to, if it does.
    pub(super) fn open_attribute(
        &mut self,
        request: &Request,
        process: &Process,
        path: &CString,
        argument: PathArgument,
    ) -> Result<Option<OwnedFd>, Errno> {
        let Some(path) = self.attribute_at(request, process, path, argument) else {
            return Ok(None);
        };
        let made = AttributeFile::new(&self.view, self.shared.vm.as_deref(), path);
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
    ) -> Option<String> {
        let attributes = self.shown.attributes();
        // Nearly every path ends here.
        let last = |path: &[u8]| path.rsplit(|byte| *byte == b'/').next().map(<[u8]>::to_vec);
        let name = last(path.as_bytes());
        if !attributes
            .iter()
            .any(|known| last(known.as_bytes()) == name)
        {
            return None;
        }
        if self.overlay.is_some() {
            let ours = self.path_in_overlay(request, path, argument)?;
            let below = ours.strip_prefix(b"/sys/")?;
            let mut attributes = attributes.iter();
            return attributes.find(|known| known.as_bytes() == below).cloned();
        }
        let (tid, PathArgument { dirfd, follow, .. }) = (request.tid, argument);
        let identity = path::look_up(process, tid, dirfd, path, follow)?;
        let sys = live::root(tid, "sys").ok()?;
        let is_it = |known: &&String| {
            let stat = statat(&sys, known.as_str(), AtFlags::SYMLINK_NOFOLLOW);
            stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == identity)
        };
        attributes.iter().find(is_it).cloned()
    }
}
