//! What `statfs` and `fstatfs` say of a file of the machine.
//!
//! The machine's part of `/sys` lies on a tmpfs or in a scratch directory. Programs ask whether it
//! is sysfs before they believe it, as sd-device and with it libudev do of each device. `/dev` is a
//! tmpfs, and a devtmpfs says that it is one.
//!
//! Layout: `struct statfs` of x86-64 (include/uapi/asm-generic/statfs.h); values: `simple_statfs`
//! (fs/libfs.c).

use zerocopy::{Immutable, IntoBytes};

use crate::{
    calls::call::PathArgument,
    session::{
        answer::{Answer, Outcome, Pending, write_struct},
        descriptors::object::Object,
        paths::{Paths, lookup},
        state::State,
    },
};

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

    /// By the absolute path of an entry of the machine.
    fn of_path(path: &[u8]) -> Self {
        if path == b"/sys" || path.starts_with(b"/sys/") {
            FileSystem::Sysfs
        } else {
            FileSystem::Devtmpfs
        }
    }
}

/// `statfs`.
pub(crate) fn statfs(
    paths: &Paths,
    call: Pending<'_>,
    argument: PathArgument,
    buffer: u64,
) -> Outcome {
    let found = if paths.overlay().is_some() {
        match paths.find_argument(call, argument) {
            Ok(found) => Some(FileSystem::of_path(&found.path)),
            Err(answer) => return Ok(answer),
        }
    } else if paths.has_sys() {
        let path = lookup::read_path(call.process, argument.address);
        let found = path.and_then(|path| {
            lookup::look_up(
                call.process,
                call.tid,
                argument.dirfd,
                &path,
                argument.follow,
            )
            .ok()
        });
        let is_sys = found.is_some_and(|(dev, _)| paths.is_sys(dev));
        is_sys.then_some(FileSystem::Sysfs)
    } else {
        None
    };
    let statfs = found.map(FileSystem::statfs);
    write_struct(call.process, statfs.as_ref().map(Statfs::as_bytes), buffer)
}

/// `fstatfs`.
pub(crate) fn fstatfs(state: &mut State, call: Pending<'_>, fd: i32, buffer: u64) -> Outcome {
    let Some(identity) = state.descriptors.identity(call.process, fd) else {
        return Ok(Answer::Proceed);
    };
    let found = match state.descriptors.files.get(identity) {
        Some(file) => Some(match &file.object {
            Object::Attribute(_) => FileSystem::Sysfs,
            _ if file.node.is_some() => FileSystem::Devtmpfs,
            _ => FileSystem::Anonymous,
        }),
        None if state.paths.is_sys(identity.0) => Some(FileSystem::Sysfs),
        None => state
            .paths
            .path_of_descriptor(call.tid, fd)
            .map(|path| FileSystem::of_path(&path)),
    };
    let statfs = found.map(FileSystem::statfs);
    write_struct(call.process, statfs.as_ref().map(Statfs::as_bytes), buffer)
}
