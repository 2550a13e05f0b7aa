//! What `statfs` and `fstatfs` say of a file of ours.
//!
//! Our part of `/sys` lies on a tmpfs or in a scratch directory. Programs ask whether it is sysfs before
//! they believe it, as sd-device and with it libudev do of each device. `/dev` is a tmpfs, and a devtmpfs
//! says that it is one.
//!
//! Layout: `struct statfs` of x86-64 (include/uapi/asm-generic/statfs.h); values: `simple_statfs`
//! (fs/libfs.c).

use std::sync::Arc;

use ioasid_host::Process;
use zerocopy::{Immutable, IntoBytes};

use super::{
    Server,
    calls::{Answer, Outcome, tell},
    files::Object,
    path,
    paths::PathArgument,
};
use crate::listener::Request;

/// Numbers of file systems (include/uapi/linux/magic.h).
const SYSFS_MAGIC: i64 = 0x6265_6572;
const TMPFS_MAGIC: i64 = 0x0102_1994;
const ANON_INODE_FS_MAGIC: i64 = 0x0904_1934;

const PAGE_SIZE: i64 = 4096;
const NAME_MAX: i64 = 255;
/// The flags are valid; and those that a sysfs is mounted with everywhere (include/linux/statfs.h).
const ST_VALID: i64 = 0x20;
const ST_NOSUID: i64 = 0x2;
const ST_NODEV: i64 = 0x4;
const ST_NOEXEC: i64 = 0x8;
const ST_RELATIME: i64 = 0x1000;

/// `struct statfs`, 120 bytes.
#[derive(Debug, Default, IntoBytes, Immutable)]
#[repr(C)]
struct Statfs {
    kind: i64,
    block_size: i64,
    blocks: u64,
    free: u64,
    available: u64,
    files: u64,
    free_files: u64,
    id: [i32; 2],
    name_max: i64,
    fragment_size: i64,
    flags: i64,
    spare: [i64; 4],
}

const _: () = assert!(size_of::<Statfs>() == 120);

/// What a file lies on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FileSystem {
    Sysfs,
    /// `/dev`.
    Devtmpfs,
    /// A file without a name.
    Anonymous,
}

impl FileSystem {
    fn statfs(self) -> Statfs {
        let (kind, flags) = match self {
            FileSystem::Sysfs => (SYSFS_MAGIC, ST_NOSUID | ST_NODEV | ST_NOEXEC | ST_RELATIME),
            FileSystem::Devtmpfs => (TMPFS_MAGIC, ST_NOSUID | ST_RELATIME),
            FileSystem::Anonymous => (ANON_INODE_FS_MAGIC, 0),
        };
        Statfs {
            kind,
            block_size: PAGE_SIZE,
            name_max: NAME_MAX,
            fragment_size: PAGE_SIZE,
            flags: ST_VALID | flags,
            ..Statfs::default()
        }
    }

    /// By the absolute path of an entry of ours.
    fn of_path(path: &[u8]) -> Self {
        if path == b"/sys" || path.starts_with(b"/sys/") {
            FileSystem::Sysfs
        } else {
            FileSystem::Devtmpfs
        }
    }
}

impl Server {
    /// `statfs`.
    pub(super) fn statfs(
        &self,
        request: &Request,
        process: &Arc<Process>,
        path: u64,
        address: u64,
    ) -> Outcome {
        let argument = PathArgument {
            dirfd: libc::AT_FDCWD,
            address: path,
            follow: true,
        };
        let found = if self.overlay.is_some() {
            match self.find_argument(request, process, argument) {
                Ok(found) => Some(FileSystem::of_path(&found.path)),
                Err(answer) => return Ok(answer),
            }
        } else if !self.sys.is_empty() {
            let path = path::read_path(process, path);
            let found = path
                .and_then(|path| path::look_up(process, request.tid, argument.dirfd, &path, true));
            let ours = found.is_some_and(|(dev, _)| self.sys.contains(&dev));
            ours.then_some(FileSystem::Sysfs)
        } else {
            None
        };
        tell(process, found.map(FileSystem::statfs), address)
    }

    /// `fstatfs`.
    pub(super) fn fstatfs(
        &mut self,
        request: &Request,
        process: &Arc<Process>,
        fd: u64,
        address: u64,
    ) -> Outcome {
        let Some(identity) = self.identity(process, fd) else {
            return Ok(Answer::Proceed);
        };
        let found = match self.files.get(identity) {
            Some(file) => Some(match &file.object {
                Object::Attribute(_) => FileSystem::Sysfs,
                _ if file.node.is_some() => FileSystem::Devtmpfs,
                _ => FileSystem::Anonymous,
            }),
            None if self.sys.contains(&identity.0) => Some(FileSystem::Sysfs),
            None => self
                .path_of_descriptor(request, fd)
                .map(|path| FileSystem::of_path(&path)),
        };
        tell(process, found.map(FileSystem::statfs), address)
    }
}
