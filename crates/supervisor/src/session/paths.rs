//! Calls that take a path, for a program that has no namespace with our entries.
//!
//! What a path means is found in [`super::overlay`]. A path of the host's is left to the kernel, and
//! so is its errno.

use std::{
    ffi::CString,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
};

use ioasid_core::host::Caller;
use ioasid_host::{Process, ProcessError};
use rustix::{
    fs::{Access, AtFlags, CWD, Mode, OFlags, StatxFlags, accessat, openat, readlinkat, statat},
    io::Errno,
};
use zerocopy::IntoBytes;

use super::{
    Server,
    calls::{Answer, Outcome},
    overlay::{Entry, Overlay, Place},
    path, stat,
};
use crate::{listener::Request, sys, wire::NodeName};

/// Longest target of a link that is handed over.
const MAX_TARGET: usize = 4096;

/// Most bytes of one `getdents64`.
const MAX_LISTING: u64 = 1 << 20;

/// Flags of an open that say how a file of ours is opened; those that make files are not among them.
const OPEN_FLAGS: u64 = (libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_CLOEXEC
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_NONBLOCK
    | libc::O_PATH
    | libc::O_TRUNC) as u64;

/// A path argument: the directory it is relative to, its address, whether a link at its end is
/// followed.
#[derive(Clone, Copy)]
pub(super) struct PathArgument {
    pub(super) dirfd: i32,
    pub(super) address: u64,
    pub(super) follow: bool,
}

impl PathArgument {
    /// Relative to the working directory.
    fn here(address: u64, follow: bool) -> Self {
        PathArgument {
            dirfd: libc::AT_FDCWD,
            address,
            follow,
        }
    }

    /// Relative to a descriptor, with flags `AT_*`.
    fn at(dirfd: u64, address: u64, flags: u64) -> Self {
        PathArgument {
            dirfd: dirfd as i32,
            address,
            follow: flags & libc::AT_SYMLINK_NOFOLLOW as u64 == 0,
        }
    }
}

/// An entry of ours that was found.
struct Found<'a> {
    overlay: &'a Overlay,
    path: Vec<u8>,
    entry: &'a Entry,
}

/// Whether [`Server::path_call`] answers this call.
pub(super) fn is_about_a_path(nr: i64) -> bool {
    #[cfg(target_arch = "x86_64")]
    if matches!(
        nr,
        libc::SYS_stat | libc::SYS_lstat | libc::SYS_access | libc::SYS_readlink
    ) {
        return true;
    }
    matches!(
        nr,
        libc::SYS_newfstatat
            | libc::SYS_statx
            | libc::SYS_faccessat
            | libc::SYS_faccessat2
            | libc::SYS_readlinkat
            | libc::SYS_getdents64
            | libc::SYS_getxattr
            | libc::SYS_lgetxattr
            | libc::SYS_listxattr
            | libc::SYS_llistxattr
    )
}

impl Server {
    /// A call that takes a path, other than an open, or lists a directory.
    pub(super) fn path_call(&mut self, request: &Request, process: &Arc<Process>) -> Outcome {
        let [a, b, c, d, e, _] = request.args;
        match request.nr {
            #[cfg(target_arch = "x86_64")]
            libc::SYS_stat => self.stat_path(request, process, PathArgument::here(a, true), b),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_lstat => self.stat_path(request, process, PathArgument::here(a, false), b),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_access => self.access_path(request, process, PathArgument::here(a, true), b),
            #[cfg(target_arch = "x86_64")]
            libc::SYS_readlink => self.read_link(request, process, libc::AT_FDCWD, [a, b, c]),
            libc::SYS_newfstatat => self.stat_path(request, process, PathArgument::at(a, b, d), c),
            libc::SYS_statx => self.statx_path(request, process, PathArgument::at(a, b, c), d, e),
            libc::SYS_faccessat => self.access_path(request, process, PathArgument::at(a, b, 0), c),
            libc::SYS_faccessat2 => {
                self.access_path(request, process, PathArgument::at(a, b, d), c)
            }
            libc::SYS_readlinkat => self.read_link(request, process, a as i32, [b, c, d]),
            libc::SYS_getdents64 => self.list(request, process, [a, b, c]),
            libc::SYS_getxattr | libc::SYS_listxattr => {
                self.attribute(request, process, PathArgument::here(a, true))
            }
            libc::SYS_lgetxattr | libc::SYS_llistxattr => {
                self.attribute(request, process, PathArgument::here(a, false))
            }
            _ => Ok(Answer::Proceed),
        }
    }

    /// The entry of ours that a path leads to. The error is how the call ends otherwise.
    fn find(
        &self,
        request: &Request,
        path: &CString,
        argument: PathArgument,
    ) -> Result<Found<'_>, Answer> {
        let overlay = self.overlay.as_ref().ok_or(Answer::Proceed)?;
        let (root, own_root) = root_of(request.tid).map_err(|errno| {
            if errno == Errno::ACCESS {
                self.warn_of_closed_memory(&ProcessError::Denied);
            }
            Answer::Proceed
        })?;
        // A program that has changed its root has left our entries behind.
        if own_root {
            return Err(Answer::Proceed);
        }
        let path = path.as_bytes();
        let (start, inside) = if path.starts_with(b"/") {
            (Vec::new(), false)
        } else {
            start_of(overlay, request.tid, argument.dirfd).ok_or(Answer::Proceed)?
        };
        match overlay.walk(&root, &start, path, argument.follow) {
            Some(Place::Ours(path)) => {
                let entry = overlay.get(&path).ok_or(Answer::Proceed)?;
                Ok(Found {
                    overlay,
                    path,
                    entry,
                })
            }
            Some(Place::Nowhere(errno)) => Err(Answer::Fails(errno)),
            // From a directory that only we have, the kernel would find our scratch directory.
            Some(Place::Host(_)) if inside => Err(Answer::Fails(Errno::NOENT)),
            Some(Place::Host(_)) | None => Err(Answer::Proceed),
        }
    }

    /// The absolute path of the entry of ours that a path leads to.
    pub(super) fn path_in_overlay(
        &self,
        request: &Request,
        path: &CString,
        argument: PathArgument,
    ) -> Option<Vec<u8>> {
        self.find(request, path, argument)
            .ok()
            .map(|found| found.path)
    }

    fn find_argument(
        &self,
        request: &Request,
        process: &Process,
        argument: PathArgument,
    ) -> Result<Found<'_>, Answer> {
        let path = path::read_path(process, argument.address).ok_or(Answer::Proceed)?;
        if path.is_empty() {
            return Err(Answer::Proceed);
        }
        self.find(request, &path, argument)
    }

    /// `open`: the node that is to be opened, or how the call ends.
    pub(super) fn open_path(
        &self,
        request: &Request,
        path: &CString,
        argument: PathArgument,
        flags: u64,
    ) -> Result<NodeName, Answer> {
        let has = |flag: i32| flags & flag as u64 != 0;
        let found = self.find(request, path, argument)?;
        if let Entry::Node(node) = found.entry
            && !has(libc::O_PATH)
            && !has(libc::O_DIRECTORY)
        {
            if has(libc::O_CREAT) && has(libc::O_EXCL) {
                return Err(Answer::Fails(Errno::EXIST));
            }
            return Ok(node.clone());
        }
        if has(libc::O_CREAT) && has(libc::O_EXCL) {
            return Err(Answer::Fails(Errno::EXIST));
        }
        let flags = (flags & OPEN_FLAGS) | (libc::O_NOFOLLOW | libc::O_CLOEXEC) as u64;
        let flags = OFlags::from_bits_retain(flags as u32);
        let file = found.overlay.in_scratch(&found.path);
        let file = openat(CWD, file, flags, Mode::empty()).map_err(Answer::Fails)?;
        let listener = &self.shared.listener;
        match listener.reply_with_fd(request.id, file.as_fd(), None, has(libc::O_CLOEXEC)) {
            Ok(_) => Err(Answer::Answered),
            Err(error) => {
                let errno = Errno::from_io_error(&error).unwrap_or(Errno::MFILE);
                Err(Answer::Fails(errno))
            }
        }
    }

    /// `stat` and its kin.
    fn stat_path(
        &self,
        request: &Request,
        process: &Arc<Process>,
        argument: PathArgument,
        address: u64,
    ) -> Outcome {
        let found = match self.find_argument(request, process, argument) {
            Ok(found) => found,
            Err(answer) => return Ok(answer),
        };
        let stat = match found.entry {
            Entry::Node(node) => self.facts_of(&found, node).stat(),
            _ => match statat(CWD, found.file(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat::Stat::from(stat),
                Err(errno) => return Ok(Answer::Fails(errno)),
            },
        };
        process.write(address, stat.as_bytes())?;
        Ok(Answer::Value(0))
    }

    /// `statx`: `mask` says what is wanted.
    fn statx_path(
        &self,
        request: &Request,
        process: &Arc<Process>,
        argument: PathArgument,
        mask: u64,
        address: u64,
    ) -> Outcome {
        let found = match self.find_argument(request, process, argument) {
            Ok(found) => found,
            Err(answer) => return Ok(answer),
        };
        let statx = match found.entry {
            Entry::Node(node) => self.facts_of(&found, node).statx(),
            _ => {
                let mask = StatxFlags::from_bits_truncate(mask as u32);
                match rustix::fs::statx(CWD, found.file(), AtFlags::SYMLINK_NOFOLLOW, mask) {
                    Ok(statx) => stat::Statx::from(statx),
                    Err(errno) => return Ok(Answer::Fails(errno)),
                }
            }
        };
        process.write(address, statx.as_bytes())?;
        Ok(Answer::Value(0))
    }

    fn facts_of(&self, found: &Found<'_>, node: &NodeName) -> stat::Facts {
        let place = statat(CWD, found.file(), AtFlags::SYMLINK_NOFOLLOW);
        stat::Facts {
            place: place.map_or((0, 0), |stat| (stat.st_dev, stat.st_ino)),
            rdev: self.rdev_of(node).or(Some((0, 0))),
        }
    }

    /// `access` and its kin.
    fn access_path(
        &self,
        request: &Request,
        process: &Arc<Process>,
        argument: PathArgument,
        mode: u64,
    ) -> Outcome {
        let found = match self.find_argument(request, process, argument) {
            Ok(found) => found,
            Err(answer) => return Ok(answer),
        };
        let access = Access::from_bits_retain(mode as u32);
        Ok(
            match accessat(CWD, found.file(), access, AtFlags::empty()) {
                Ok(()) => Answer::Value(0),
                Err(errno) => Answer::Fails(errno),
            },
        )
    }

    /// `readlink` and its kin.
    fn read_link(
        &self,
        request: &Request,
        process: &Arc<Process>,
        dirfd: i32,
        [address, buffer, size]: [u64; 3],
    ) -> Outcome {
        let Some(overlay) = &self.overlay else {
            return Ok(Answer::Proceed);
        };
        let size = size as i32;
        let Some(text) = path::read_path(process, address) else {
            return Ok(Answer::Proceed);
        };
        let target = if let Some(fd) = path::descriptor_path(text.as_bytes()) {
            // The name of a file in our scratch directory is that of the entry.
            let link = link_of(request.tid, &format!("fd/{fd}"));
            match link.and_then(|link| overlay.path_of(&link)) {
                Some(path) => path,
                None => return Ok(Answer::Proceed),
            }
        } else {
            let argument = PathArgument {
                dirfd,
                address,
                follow: false,
            };
            if text.is_empty() {
                return Ok(Answer::Proceed);
            }
            match self.find(request, &text, argument) {
                Ok(Found {
                    entry: Entry::Link(target),
                    ..
                }) => target.clone(),
                Ok(_) => return Ok(Answer::Fails(Errno::INVAL)),
                Err(answer) => return Ok(answer),
            }
        };
        let Some(size) = usize::try_from(size).ok().filter(|size| *size > 0) else {
            return Ok(Answer::Fails(Errno::INVAL));
        };
        let len = target.len().min(size).min(MAX_TARGET);
        process.write(buffer, target.get(..len).unwrap_or_default())?;
        Ok(Answer::Value(len as u64))
    }

    /// `getxattr`, `listxattr` and their kin: an entry of ours has no extended attributes.
    fn attribute(
        &self,
        request: &Request,
        process: &Arc<Process>,
        argument: PathArgument,
    ) -> Outcome {
        let lists = matches!(request.nr, libc::SYS_listxattr | libc::SYS_llistxattr);
        Ok(match self.find_argument(request, process, argument) {
            Ok(_) if lists => Answer::Value(0),
            Ok(_) => Answer::Fails(Errno::NODATA),
            Err(answer) => answer,
        })
    }

    /// `getdents64`: adds our entries to a directory of the host's, and says of what type ours are.
    fn list(
        &self,
        request: &Request,
        process: &Arc<Process>,
        [fd, buffer, size]: [u64; 3],
    ) -> Outcome {
        let Some(listing) = self.listing(request, process, fd, size) else {
            return Ok(Answer::Proceed);
        };
        match listing {
            Ok(listing) => {
                process.write(buffer, &listing)?;
                Ok(Answer::Value(listing.len() as u64))
            }
            Err(errno) => Ok(Answer::Fails(errno)),
        }
    }

    fn listing(
        &self,
        request: &Request,
        process: &Process,
        fd: u64,
        size: u64,
    ) -> Option<Result<Vec<u8>, Errno>> {
        let overlay = self.overlay.as_ref()?;
        let (root, _) = root_of(request.tid).ok().filter(|(_, own)| !own)?;
        let link = link_of(request.tid, &format!("fd/{}", fd as i32))?;
        let scratch = overlay.path_of(&link);
        let merged = scratch.is_none();
        let path = scratch.unwrap_or(link);
        if overlay.get(&path) != Some(&Entry::Dir) {
            return None;
        }
        let directory = process.get_fd(fd as i32).ok()?;
        // At the start, as after a rewind: what we add comes with the first piece.
        let start = rustix::fs::tell(&directory) == Ok(0);
        if merged && !start {
            return None;
        }
        let mut ours = Vec::new();
        if merged {
            for (name, entry) in overlay.children(&path) {
                let full = [path.as_slice(), name].join(&b'/');
                if statat(&root, relative(&full), AtFlags::SYMLINK_NOFOLLOW).is_err() {
                    ours.push((name, entry, inode(overlay, &full)));
                }
            }
        }
        let added: usize = ours.iter().map(|(name, ..)| record_len(name)).sum();
        let room = usize::try_from(size.min(MAX_LISTING)).ok()?;
        let mut listing = vec![0; room.checked_sub(added)?];
        let read = match sys::getdents64(directory.as_fd(), &mut listing) {
            Ok(read) => read,
            Err(error) => return Some(Err(Errno::from_io_error(&error).unwrap_or(Errno::IO))),
        };
        listing.truncate(read);
        let offset = each_record(&mut listing, |name, kind| {
            if let Some(entry @ Entry::Node(_)) = overlay.get(&[&path, name].join(&b'/')) {
                *kind = type_of(entry);
            }
        });
        for (name, entry, inode) in ours {
            push_record(&mut listing, name, type_of(entry), inode, offset);
        }
        Some(Ok(listing))
    }
}

impl Found<'_> {
    fn file(&self) -> std::path::PathBuf {
        self.overlay.in_scratch(&self.path)
    }
}

/// The root directory of a thread, and whether it is another one than ours.
fn root_of(tid: u32) -> Result<(OwnedFd, bool), Errno> {
    let path = format!("/proc/{tid}/root");
    let link = readlinkat(CWD, &path, Vec::new())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, path, flags, Mode::empty())?;
    Ok((root, link.as_bytes() != b"/"))
}

/// Where a relative path starts, and whether that is a directory that only we have.
fn start_of(overlay: &Overlay, tid: u32, dirfd: i32) -> Option<(Vec<u8>, bool)> {
    let name = match dirfd {
        libc::AT_FDCWD => "cwd".to_owned(),
        fd => format!("fd/{fd}"),
    };
    let link = link_of(tid, &name)?;
    match overlay.path_of(&link) {
        Some(path) => Some((path, true)),
        None => link.starts_with(b"/").then_some((link, false)),
    }
}

fn link_of(tid: u32, name: &str) -> Option<Vec<u8>> {
    let link = readlinkat(CWD, format!("/proc/{tid}/{name}"), Vec::new());
    Some(link.ok()?.into_bytes())
}

fn inode(overlay: &Overlay, path: &[u8]) -> u64 {
    let stat = statat(CWD, overlay.in_scratch(path), AtFlags::SYMLINK_NOFOLLOW);
    stat.map_or(1, |stat| stat.st_ino)
}

fn relative(path: &[u8]) -> &[u8] {
    path.strip_prefix(b"/").unwrap_or(path)
}

/// `DT_*` of an entry.
fn type_of(entry: &Entry) -> u8 {
    match entry {
        Entry::Node(_) => libc::DT_CHR,
        Entry::Dir => libc::DT_DIR,
        Entry::File => libc::DT_REG,
        Entry::Link(_) => libc::DT_LNK,
    }
}

/// Offsets in `struct linux_dirent64`: inode, offset, length of the record, type, name.
const OFFSET: usize = 8;
const LENGTH: usize = 16;
const TYPE: usize = 18;
const NAME: usize = 19;

fn record_len(name: &[u8]) -> usize {
    (NAME + name.len() + 1).next_multiple_of(8)
}

fn push_record(listing: &mut Vec<u8>, name: &[u8], kind: u8, inode: u64, offset: u64) {
    let end = listing.len() + record_len(name);
    listing.extend(inode.to_ne_bytes());
    listing.extend(offset.to_ne_bytes());
    listing.extend((record_len(name) as u16).to_ne_bytes());
    listing.push(kind);
    listing.extend(name);
    listing.resize(end, 0);
}

/// Shows each name to `see`, which may change the type; returns the offset in the last record.
fn each_record(listing: &mut [u8], mut see: impl FnMut(&[u8], &mut u8)) -> u64 {
    let mut offset = 0;
    let mut rest = listing;
    while let Some((head, _)) = rest.split_first_chunk::<NAME>() {
        let length = usize::from(u16::from_ne_bytes([head[LENGTH], head[LENGTH + 1]]));
        let (_, tail) = head.split_at(OFFSET);
        offset = tail.first_chunk().map_or(0, |o| u64::from_ne_bytes(*o));
        if length < NAME || length > rest.len() {
            break;
        }
        let (record, others) = rest.split_at_mut(length);
        let (head, name) = record.split_at_mut(NAME);
        let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
        see(&name[..end], &mut head[TYPE]);
        rest = others;
    }
    offset
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_read_as_they_are_written() {
        let mut listing = Vec::new();
        push_record(&mut listing, b"iommu", libc::DT_REG, 7, 42);
        push_record(&mut listing, b"a-longer-name", libc::DT_DIR, 8, 43);
        assert_eq!(listing.len() % 8, 0);
        let mut names = Vec::new();
        let last = each_record(&mut listing, |name, kind| {
            names.push((name.to_vec(), *kind));
            *kind = libc::DT_CHR;
        });
        assert_eq!(last, 43);
        assert_eq!(names[0], (b"iommu".to_vec(), libc::DT_REG));
        assert_eq!(names[1], (b"a-longer-name".to_vec(), libc::DT_DIR));
        each_record(&mut listing, |_, kind| assert_eq!(*kind, libc::DT_CHR));
    }
}
