//! Which file a path of the program's means.
//!
//! The path is looked up as the program would, in its root and from its working directory, and what
//! comes out is an inode. A link, a detour or a bind mount of a node is therefore the node. A
//! look-up that this cannot do (an absolute link below a relative path) is left to the kernel,
//! which opens the placeholder; the session then puts a file of the machine in its place at the
//! first ioctl.

use std::{ffi::CString, os::fd::OwnedFd};

use ioasid_core::host::Caller;
use ioasid_host::Process;
use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags, fstat, openat, openat2},
    io::Errno,
};

use crate::session::identity::Identity;

/// Longest path, with its terminator.
const PATH_MAX: u64 = 4096;

/// Reads the string at `address`. `None` if it is not readable or not terminated: the kernel then
/// gives the errno.
pub(crate) fn read_path(process: &Process, address: u64) -> Option<CString> {
    let mut path = Vec::new();
    let mut at = address;
    let end = address.checked_add(PATH_MAX)?;
    while at < end {
        // Up to the end of the page: the next one need not be there.
        let piece = (4096 - at % 4096).min(256).min(end - at);
        let mut bytes = [0u8; 256];
        let bytes = bytes.get_mut(..usize::try_from(piece).ok()?)?;
        process.read(at, bytes).ok()?;
        if let Some(nul) = bytes.iter().position(|b| *b == 0) {
            path.extend_from_slice(bytes.get(..nul)?);
            return CString::new(path).ok();
        }
        path.extend_from_slice(bytes);
        at += piece;
    }
    None
}

/// The inode of the file that `path` leads to for the thread `tid`, from its descriptor `dirfd`.
///
/// # Errors
/// What the kernel says of the path, or of the folder that it begins in.
pub(crate) fn look_up(
    process: &Process,
    tid: u32,
    dirfd: i32,
    path: &CString,
    follow: bool,
) -> Result<Identity, Errno> {
    if let Some(fd) = descriptor_path(path.as_bytes()) {
        return process.fd_identity(fd).map_err(|_| Errno::BADF);
    }
    let mut flags = OFlags::PATH | OFlags::CLOEXEC;
    if !follow {
        flags |= OFlags::NOFOLLOW;
    }
    let found = if path.as_bytes().starts_with(b"/") {
        let root = directory(&format!("/proc/{tid}/root"))?;
        openat2(root, path, flags, Mode::empty(), ResolveFlags::IN_ROOT)
    } else if dirfd == libc::AT_FDCWD {
        let cwd = directory(&format!("/proc/{tid}/cwd"))?;
        openat(cwd, path, flags, Mode::empty())
    } else {
        let dir = directory(&format!("/proc/{tid}/fd/{dirfd}"))?;
        openat(dir, path, flags, Mode::empty())
    };
    let stat = fstat(found?)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn directory(path: &str) -> Result<OwnedFd, Errno> {
    openat(
        CWD,
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// `N` of `/proc/self/fd/N` and its kin. Those links are of the reader, so they cannot be followed
/// from here.
pub(crate) fn descriptor_path(path: &[u8]) -> Option<i32> {
    let path = std::str::from_utf8(path).ok()?;
    ["/proc/self/fd/", "/proc/thread-self/fd/", "/dev/fd/"]
        .iter()
        .find_map(|prefix| path.strip_prefix(prefix)?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_descriptors_are_recognised() {
        assert_eq!(descriptor_path(b"/proc/self/fd/7"), Some(7));
        assert_eq!(descriptor_path(b"/dev/fd/900"), Some(900));
        assert_eq!(descriptor_path(b"/dev/fd/"), None);
        assert_eq!(descriptor_path(b"/dev/fd/1/x"), None);
        assert_eq!(descriptor_path(b"/dev/iommu"), None);
        assert_eq!(descriptor_path(b"\xff"), None);
    }
}
