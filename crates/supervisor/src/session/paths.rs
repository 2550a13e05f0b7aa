//! Calls that take a path, for a program that has no namespace with our entries.
//!
//! What a path means is found in [`super::overlay`]. A path of the host's is left to the kernel, and
//! so is its errno.

use std::{
    ffi::CString,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::PathBuf,
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
use crate::{listener::Request, wire::NodeName};

/// Longest target of a link that is handed over.
const MAX_TARGET: usize = 4096;

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
pub(super) struct Found<'a> {
    overlay: &'a Overlay,
    /// Its absolute path.
    pub(super) path: Vec<u8>,
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
        let (root, foreign) = root_of(request.tid).map_err(|errno| {
            if errno == Errno::ACCESS {
                self.warn_of_closed_memory(&ProcessError::Denied(errno));
            }
            Answer::Proceed
        })?;
        // A program that has changed its root may have left our entries behind.
        if foreign {
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

    /// The absolute path of the entry of ours that descriptor `fd` is, if the program has no namespace.
    pub(super) fn path_of_descriptor(&self, request: &Request, fd: u64) -> Option<Vec<u8>> {
        let overlay = self.overlay.as_ref()?;
        overlay.path_of(&link_of(request.tid, &format!("fd/{}", fd as i32))?)
    }

    pub(super) fn find_argument(
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
        process: &Process,
        path: &CString,
        argument: PathArgument,
        flags: u64,
    ) -> Result<NodeName, Answer> {
        let has = |flag: i32| flags & flag as u64 != 0;
        if let Some(directory) = self.merged_directory(request, path, argument) {
            return Err(self.give(request, directory.as_fd(), has(libc::O_CLOEXEC)));
        }
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
        let cloexec = has(libc::O_CLOEXEC);
        if matches!(found.entry, Entry::Link(_)) && has(libc::O_PATH) && !has(libc::O_DIRECTORY) {
            let Ok(file) = found.overlay.open_link(&found.path) else {
                return Err(Answer::Fails(Errno::NOMEM));
            };
            // On a number of ours `fstat` is asked about.
            let given = self.hand_over(request, process, file.as_fd(), self.base, cloexec);
            return Err(given.unwrap_or(Answer::Fails(Errno::MFILE)));
        }
        let mut flags = (flags & OPEN_FLAGS) | (libc::O_NOFOLLOW | libc::O_CLOEXEC) as u64;
        if has(libc::O_PATH) {
            // The kernel gives a process no descriptor of that kind (`seccomp_notify_addfd`).
            flags &= !(libc::O_PATH | libc::O_ACCMODE) as u64;
        }
        let flags = OFlags::from_bits_retain(flags as u32);
        let file = found.overlay.in_scratch(&found.path);
        let file = openat(CWD, file, flags, Mode::empty()).map_err(Answer::Fails)?;
        Err(self.give(request, file.as_fd(), cloexec))
    }

    /// Answers an open with `file`, on any number.
    fn give(&self, request: &Request, file: BorrowedFd<'_>, cloexec: bool) -> Answer {
        let listener = &self.shared.listener;
        match listener.reply_with_fd(request.id, file, None, cloexec) {
            Ok(_) => Answer::Answered,
            Err(error) => Answer::Fails(Errno::from_io_error(&error).unwrap_or(Errno::MFILE)),
        }
    }

    /// The host's directory with entries of ours that a path leads to from one that only we have, as
    /// `..` does. Everybody may list it: it is opened with our rights.
    fn merged_directory(
        &self,
        request: &Request,
        path: &CString,
        PathArgument { dirfd, follow, .. }: PathArgument,
    ) -> Option<OwnedFd> {
        let (overlay, path) = (self.overlay.as_ref()?, path.as_bytes());
        if path.starts_with(b"/") {
            return None;
        }
        let (start, _) = start_of(overlay, request.tid, dirfd).filter(|(_, inside)| *inside)?;
        let (root, _) = root_of(request.tid).ok().filter(|(_, foreign)| !foreign)?;
        let Place::Host(found) = overlay.walk(&root, &start, path, follow)? else {
            return None;
        };
        overlay.get(&found).filter(|entry| **entry == Entry::Dir)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(&root, relative(&found), flags, Mode::empty()).ok()?;
        let mode = rustix::fs::fstat(&directory).ok()?.st_mode;
        (mode & 0o5 == 0o5).then_some(directory)
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
                let Some((_, target)) = self.link_behind(request, dirfd as u64) else {
                    return Ok(Answer::Proceed);
                };
                return copy_target(process, target, buffer, size);
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
        copy_target(process, &target, buffer, size)
    }

    /// The link of ours that descriptor `fd` stands for: its path and its target.
    fn link_behind(&self, request: &Request, fd: u64) -> Option<(PathBuf, &[u8])> {
        let overlay = self.overlay.as_ref()?;
        let path = self.path_of_descriptor(request, fd)?;
        match overlay.get(&path) {
            Some(Entry::Link(target)) => Some((overlay.in_scratch(&path), target)),
            _ => None,
        }
    }

    /// What `fstat` says of such a descriptor.
    pub(super) fn stat_of_link(&self, request: &Request, fd: u64) -> Option<rustix::fs::Stat> {
        let (link, _) = self.link_behind(request, fd)?;
        statat(CWD, link, AtFlags::SYMLINK_NOFOLLOW).ok()
    }

    /// What `statx` says of it.
    pub(super) fn statx_of_link(&self, request: &Request, fd: u64) -> Option<rustix::fs::Statx> {
        let (link, _) = self.link_behind(request, fd)?;
        let all = StatxFlags::BASIC_STATS;
        rustix::fs::statx(CWD, link, AtFlags::SYMLINK_NOFOLLOW, all).ok()
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
}

impl Found<'_> {
    fn file(&self) -> PathBuf {
        self.overlay.in_scratch(&self.path)
    }
}

/// Hands over the target of a link, as much of it as there is room for.
fn copy_target(process: &Process, target: &[u8], buffer: u64, size: i32) -> Outcome {
    let Some(size) = usize::try_from(size).ok().filter(|size| *size > 0) else {
        return Ok(Answer::Fails(Errno::INVAL));
    };
    let len = target.len().min(size).min(MAX_TARGET);
    process.write(buffer, target.get(..len).unwrap_or_default())?;
    Ok(Answer::Value(len as u64))
}

/// The root directory of a thread, and whether it is one without our entries.
pub(super) fn root_of(tid: u32) -> Result<(OwnedFd, bool), Errno> {
    let path = format!("/proc/{tid}/root");
    let link = readlinkat(CWD, &path, Vec::new())?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, path, flags, Mode::empty())?;
    let foreign = link.as_bytes() != b"/" && !has_our_directories(&root);
    Ok((root, foreign))
}

/// Whether a program's own root directory has the `/dev` and `/sys` that our entries lie over.
fn has_our_directories(root: &OwnedFd) -> bool {
    ["dev", "sys"].iter().all(|name| {
        let there = statat(root, *name, AtFlags::SYMLINK_NOFOLLOW);
        let here = statat(CWD, format!("/{name}"), AtFlags::SYMLINK_NOFOLLOW);
        let place = |stat: rustix::fs::Stat| (stat.st_dev, stat.st_ino);
        there.is_ok() && there.map(place) == here.map(place)
    })
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
        None => within_root(tid, link).map(|path| (path, false)),
    }
}

/// The path of a directory as the thread sees it from its root.
pub(super) fn within_root(tid: u32, path: Vec<u8>) -> Option<Vec<u8>> {
    let root = link_of(tid, "root")?;
    if root == b"/" {
        return path.starts_with(b"/").then_some(path);
    }
    let below = path.strip_prefix(root.as_slice())?;
    match below {
        b"" => Some(b"/".to_vec()),
        below => below.starts_with(b"/").then(|| below.to_vec()),
    }
}

pub(super) fn link_of(tid: u32, name: &str) -> Option<Vec<u8>> {
    let link = readlinkat(CWD, format!("/proc/{tid}/{name}"), Vec::new());
    Some(link.ok()?.into_bytes())
}

pub(super) fn relative(path: &[u8]) -> &[u8] {
    path.strip_prefix(b"/").unwrap_or(path)
}
