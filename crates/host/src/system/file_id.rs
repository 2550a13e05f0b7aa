//! Which file a descriptor leads to, asked without the help of its file system.

use std::os::fd::BorrowedFd;

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags};

/// Device and inode number: which file it is, whatever descriptor leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct FileId {
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

/// Identity and type of a file, from what the kernel has at hand: never asks a file system's
/// server.
pub(crate) fn identify(dir: BorrowedFd<'_>, path: &str) -> rustix::io::Result<(FileId, FileType)> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::EMPTY_PATH;
    let Statx {
        stx_dev_major: major,
        stx_dev_minor: minor,
        stx_ino: ino,
        stx_mode: mode,
        ..
    } = rustix::fs::statx(dir, path, flags, StatxFlags::INO | StatxFlags::TYPE)?;
    let dev = rustix::fs::makedev(major, minor);
    Ok((FileId { dev, ino }, FileType::from_raw_mode(mode.into())))
}
