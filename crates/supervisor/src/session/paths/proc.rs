//! What `/proc` shows of where a thread is: its root, its working directory, its descriptors.

use std::{io, os::fd::OwnedFd};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, openat, openat2, readlinkat, statat},
    io::Errno,
};

use super::overlay::Overlay;

/// `/dev` or `/sys` of a thread.
pub(crate) fn directory(tid: u32, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, format!("/proc/{tid}/root"), flags, Mode::empty())?;
    let found = openat2(root, name, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    Ok(found)
}

/// The root directory of a thread, and whether it is one without our entries.
pub(crate) fn root_of(tid: u32) -> Result<(OwnedFd, bool), Errno> {
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
pub(crate) fn start_of(overlay: &Overlay, tid: u32, dirfd: i32) -> Option<(Vec<u8>, bool)> {
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
pub(crate) fn within_root(tid: u32, path: Vec<u8>) -> Option<Vec<u8>> {
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

pub(crate) fn link_of(tid: u32, name: &str) -> Option<Vec<u8>> {
    let link = readlinkat(CWD, format!("/proc/{tid}/{name}"), Vec::new());
    Some(link.ok()?.into_bytes())
}

pub(crate) fn relative(path: &[u8]) -> &[u8] {
    path.strip_prefix(b"/").unwrap_or(path)
}
