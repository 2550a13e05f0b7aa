//! The list of intercepted system calls.
//!
//! What is called most stands first: both the filter and the session search from the start.

use std::fmt;

use Asked::{
    Always, CloseRange, Descriptor, EmptyPath, Fcntl, Ioctl, Mmap, Never, Offset, OpenFlags,
    Unshare,
};
use ioasid_preload::call::ACCESS;

use super::{
    call::{self, Buffers, Call, Direction, PathArgument, RegisterQuestion, Transfer},
    filter::KVM_SET_DEVICE_ATTR,
    greeting,
};

/// One intercepted system call.
pub(crate) struct SystemCall {
    name: &'static str,
    pub(crate) number: libc::c_long,
    /// When the filter asks about it, whatever the program's scope is.
    pub(crate) asked: Asked,
    /// In which scope it is always asked about, whatever `asked` says.
    pub(crate) always_in: Option<ScopeBit>,
    /// Its registers.
    parse: fn(&[u64; 6]) -> Call,
}

/// When the filter asks about a call. Arguments are counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Only where its scope says so.
    Never,
    Always,
    /// The descriptor in this argument is reserved.
    Descriptor(u32),
    /// By the request in argument 1.
    Ioctl,
    /// By the offset in argument 3, or as `Descriptor(0)`.
    Offset,
    /// By the flags in this argument.
    OpenFlags(u32),
    /// By the command in argument 1, as `Descriptor(0)`.
    Fcntl,
    /// If this argument has AT_EMPTY_PATH, as `Descriptor(0)`.
    EmptyPath(u32),
    /// By the flags in argument 3, or as `Descriptor(4)`.
    Mmap,
    /// By the last descriptor, in argument 1.
    CloseRange,
    /// By the flags in argument 0.
    Unshare,
}

/// A part of [`super::filter::Scope`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ScopeBit {
    /// [`super::filter::Scope::status`].
    Status,
    /// [`super::filter::Scope::paths`].
    Paths,
}

const fn call(
    name: &'static str,
    number: libc::c_long,
    asked: Asked,
    parse: fn(&[u64; 6]) -> Call,
) -> SystemCall {
    SystemCall {
        name,
        number,
        asked,
        always_in: None,
        parse,
    }
}

/// A call that is always asked about in the scope `bit`.
const fn also(bit: ScopeBit, call: SystemCall) -> SystemCall {
    SystemCall {
        always_in: Some(bit),
        ..call
    }
}

/// A call with a path, or that lists a directory.
const fn path(
    name: &'static str,
    number: libc::c_long,
    asked: Asked,
    parse: fn(&[u64; 6]) -> Call,
) -> SystemCall {
    also(ScopeBit::Paths, call(name, number, asked, parse))
}

/// A call that changes which user, and which right, locked memory counts for.
const fn user(name: &'static str, number: libc::c_long) -> SystemCall {
    also(
        ScopeBit::Status,
        call(name, number, Never, |_| Call::ChangeUser),
    )
}

/// All of them.
pub(crate) static TABLE: &[SystemCall] = &[
    call("ioctl", libc::SYS_ioctl, Ioctl, ioctl),
    call("read", libc::SYS_read, Descriptor(0), |a| {
        plain(a, Direction::Read, None)
    }),
    call("write", libc::SYS_write, Descriptor(0), |a| {
        plain(a, Direction::Write, None)
    }),
    call("readv", libc::SYS_readv, Descriptor(0), |a| {
        vector(a, Direction::Read, None, 0)
    }),
    call("writev", libc::SYS_writev, Descriptor(0), |a| {
        vector(a, Direction::Write, None, 0)
    }),
    call("fstat", libc::SYS_fstat, Descriptor(0), |a| Call::Stat {
        fd: fd(a[0]),
        buffer: a[1],
    }),
    call("lseek", libc::SYS_lseek, Descriptor(0), |a| Call::Seek {
        fd: fd(a[0]),
        offset: a[1].cast_signed(),
        whence: a[2] as u32,
    }),
    call("ftruncate", libc::SYS_ftruncate, Descriptor(0), |a| {
        Call::Truncate {
            fd: fd(a[0]),
            len: a[1],
        }
    }),
    call("fallocate", libc::SYS_fallocate, Descriptor(0), |a| {
        Call::Allocate {
            fd: fd(a[0]),
            mode: a[1] as u32,
            offset: a[2],
            len: a[3],
        }
    }),
    call("fsync", libc::SYS_fsync, Descriptor(0), |a| Call::Sync {
        fd: fd(a[0]),
    }),
    call("fdatasync", libc::SYS_fdatasync, Descriptor(0), |a| {
        Call::Sync { fd: fd(a[0]) }
    }),
    call("dup", libc::SYS_dup, Descriptor(0), |a| Call::Duplicate {
        fd: fd(a[0]),
        least: 0,
        cloexec: false,
    }),
    call("close", libc::SYS_close, Descriptor(0), |_| Call::Close),
    call("pread64", libc::SYS_pread64, Offset, |a| {
        plain(a, Direction::Read, Some(a[3]))
    }),
    call("pwrite64", libc::SYS_pwrite64, Offset, |a| {
        plain(a, Direction::Write, Some(a[3]))
    }),
    call("preadv", libc::SYS_preadv, Offset, |a| {
        vector(a, Direction::Read, Some(a[3]), 0)
    }),
    call("pwritev", libc::SYS_pwritev, Offset, |a| {
        vector(a, Direction::Write, Some(a[3]), 0)
    }),
    call("preadv2", libc::SYS_preadv2, Offset, |a| {
        vector2(a, Direction::Read)
    }),
    call("pwritev2", libc::SYS_pwritev2, Offset, |a| {
        vector2(a, Direction::Write)
    }),
    call("dup2", libc::SYS_dup2, Descriptor(1), |_| Call::Close),
    call("dup3", libc::SYS_dup3, Descriptor(1), |_| Call::Close),
    call("close_range", libc::SYS_close_range, CloseRange, |_| {
        Call::Close
    }),
    path("openat", libc::SYS_openat, OpenFlags(2), |a| Call::Open {
        at: PathArgument::of_open(fd(a[0]), a[1], a[2]),
        flags: a[2],
    }),
    path("open", libc::SYS_open, OpenFlags(1), |a| Call::Open {
        at: PathArgument::of_open(libc::AT_FDCWD, a[0], a[1]),
        flags: a[1],
    }),
    call("mmap", libc::SYS_mmap, Mmap, |a| {
        Call::Mmap(call::Mmap {
            len: a[1],
            prot: a[2],
            flags: a[3],
            fd: fd(a[4]),
            offset: a[5],
        })
    }),
    call("fcntl", libc::SYS_fcntl, Fcntl, fcntl),
    path("newfstatat", libc::SYS_newfstatat, EmptyPath(3), |a| {
        Call::StatPath {
            at: PathArgument::at(a[0], a[1], a[3]),
            empty_path: empty_path(a[3]),
            buffer: a[2],
        }
    }),
    path("statx", libc::SYS_statx, EmptyPath(2), |a| Call::Statx {
        at: PathArgument::at(a[0], a[1], a[2]),
        empty_path: empty_path(a[2]),
        mask: a[3] as u32,
        buffer: a[4],
    }),
    call("openat2", libc::SYS_openat2, Always, |a| Call::OpenHow {
        dirfd: fd(a[0]),
        path: a[1],
        how: a[2],
        size: a[3],
    }),
    call("statfs", libc::SYS_statfs, Always, |a| Call::Statfs {
        at: PathArgument::here(a[0], true),
        buffer: a[1],
    }),
    call("fstatfs", libc::SYS_fstatfs, Always, |a| Call::Fstatfs {
        fd: fd(a[0]),
        buffer: a[1],
    }),
    call("mount", libc::SYS_mount, Always, |a| Call::Mount {
        source: a[0],
        target: a[1],
        filesystem: a[2],
        flags: a[3],
    }),
    call("execve", libc::SYS_execve, Always, |_| Call::Exec),
    call("execveat", libc::SYS_execveat, Always, |_| Call::Exec),
    call("unshare", libc::SYS_unshare, Unshare, |_| {
        Call::LeaveNamespace
    }),
    call("setns", libc::SYS_setns, Always, |_| Call::LeaveNamespace),
    path("faccessat", libc::SYS_faccessat, Never, |a| Call::Access {
        at: PathArgument::at(a[0], a[1], 0),
        mode: a[2] as u32,
    }),
    path("faccessat2", libc::SYS_faccessat2, Never, |a| {
        Call::Access {
            at: PathArgument::at(a[0], a[1], a[3]),
            mode: a[2] as u32,
        }
    }),
    path("readlinkat", libc::SYS_readlinkat, Never, |a| {
        Call::ReadLink {
            at: PathArgument::at(a[0], a[1], libc::AT_SYMLINK_NOFOLLOW as u64),
            buffer: a[2],
            size: a[3] as i32,
        }
    }),
    path("getdents64", libc::SYS_getdents64, Never, |a| Call::List {
        fd: fd(a[0]),
        buffer: a[1],
        size: a[2],
    }),
    path("getxattr", libc::SYS_getxattr, Never, |a| Call::GetXattr {
        at: PathArgument::here(a[0], true),
    }),
    path("lgetxattr", libc::SYS_lgetxattr, Never, |a| {
        Call::GetXattr {
            at: PathArgument::here(a[0], false),
        }
    }),
    path("listxattr", libc::SYS_listxattr, Never, |a| {
        Call::ListXattr {
            at: PathArgument::here(a[0], true),
        }
    }),
    path("llistxattr", libc::SYS_llistxattr, Never, |a| {
        Call::ListXattr {
            at: PathArgument::here(a[0], false),
        }
    }),
    path("stat", libc::SYS_stat, Never, |a| Call::StatPath {
        at: PathArgument::here(a[0], true),
        empty_path: false,
        buffer: a[1],
    }),
    path("lstat", libc::SYS_lstat, Never, |a| Call::StatPath {
        at: PathArgument::here(a[0], false),
        empty_path: false,
        buffer: a[1],
    }),
    path("access", libc::SYS_access, Never, |a| Call::Access {
        at: PathArgument::here(a[0], true),
        mode: a[1] as u32,
    }),
    path("readlink", libc::SYS_readlink, Never, |a| Call::ReadLink {
        at: PathArgument::here(a[0], false),
        buffer: a[1],
        size: a[2] as i32,
    }),
    user("capset", libc::SYS_capset),
    user("setuid", libc::SYS_setuid),
    user("setreuid", libc::SYS_setreuid),
    user("setresuid", libc::SYS_setresuid),
];

/// The name of the call with this number, if it is one of these.
pub(crate) fn name(number: i64) -> Option<&'static str> {
    let found = TABLE.iter().find(|call| call.number == number);
    found.map(|call| call.name)
}

/// What the call with this number and these registers means.
pub(crate) fn parse(number: i64, args: &[u64; 6]) -> Call {
    let mut all = TABLE.iter();
    let found = all.find(|call| call.number == number);
    found.map_or(Call::Other, |call| (call.parse)(args))
}

/// A descriptor: the kernel looks at 32 bits of the register.
fn fd(register: u64) -> i32 {
    register as i32
}

fn empty_path(flags: u64) -> bool {
    flags & libc::AT_EMPTY_PATH as u64 != 0
}

fn ioctl(a: &[u64; 6]) -> Call {
    match (fd(a[0]), a[1] as u32) {
        (-1, greeting::REQUEST) => Call::Greeting { buffer: a[2] },
        (-1, ACCESS) => Call::Register(RegisterQuestion {
            address: a[2],
            shape: a[3],
            value: a[4],
            buffer: a[5],
        }),
        (fd, KVM_SET_DEVICE_ATTR) => Call::KvmAttribute {
            fd,
            attribute: a[2],
        },
        (fd, request) => Call::Ioctl {
            fd,
            request,
            argument: a[2],
        },
    }
}

fn fcntl(a: &[u64; 6]) -> Call {
    let fd = fd(a[0]);
    match a[1] as i32 {
        libc::F_GETFL => Call::GetFlags { fd },
        libc::F_ADD_SEALS => Call::AddSeals { fd },
        libc::F_GET_SEALS => Call::GetSeals { fd },
        command @ (libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) => Call::Duplicate {
            fd,
            least: u32::try_from(a[2]).unwrap_or(u32::MAX),
            cloexec: command == libc::F_DUPFD_CLOEXEC,
        },
        _ => Call::Other,
    }
}

/// `read`, `write` and those with an offset: address and length.
fn plain(a: &[u64; 6], direction: Direction, offset: Option<u64>) -> Call {
    Call::Transfer(Transfer {
        fd: fd(a[0]),
        direction,
        buffers: Buffers::One {
            address: a[1],
            len: a[2],
        },
        offset,
        flags: 0,
    })
}

/// `readv` and `writev`: address and number of pieces.
fn vector(a: &[u64; 6], direction: Direction, offset: Option<u64>, flags: u64) -> Call {
    Call::Transfer(Transfer {
        fd: fd(a[0]),
        direction,
        buffers: Buffers::Vector {
            address: a[1],
            count: a[2],
        },
        offset,
        flags,
    })
}

/// `preadv2` and `pwritev2`: an offset of -1 is none, and there are flags.
fn vector2(a: &[u64; 6], direction: Direction) -> Call {
    let offset = Some(a[3]).filter(|offset| *offset != u64::MAX);
    vector(a, direction, offset, a[5])
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let argument = |index: &u32| match index {
            0 => "the descriptor".to_owned(),
            1 => "the new descriptor".to_owned(),
            index => format!("argument {index}"),
        };
        match self {
            Never => f.write_str("never"),
            Always => f.write_str("always"),
            Descriptor(index) => write!(f, "{} is reserved", argument(index)),
            Ioctl => {
                f.write_str("the type byte of the request is `;`, or it is KVM_SET_DEVICE_ATTR")
            }
            Offset => f.write_str(
                "the offset is one of a device's regions, or the descriptor is reserved",
            ),
            OpenFlags(_) => f.write_str("the flags say so (below)"),
            Fcntl => f.write_str(
                "the descriptor is reserved, and it is F_DUPFD, F_DUPFD_CLOEXEC, F_GETFL, \
                 F_ADD_SEALS or F_GET_SEALS",
            ),
            EmptyPath(_) => f.write_str("AT_EMPTY_PATH is set, and the descriptor is reserved"),
            Mmap => f.write_str("it shares a file, or the descriptor is reserved"),
            CloseRange => f.write_str("a reserved one may be in the range"),
            Unshare => f.write_str("it leaves a user namespace, or what threads share"),
        }
    }
}

impl fmt::Display for ScopeBit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ScopeBit::Status => "status",
            ScopeBit::Paths => "paths",
        })
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeSet, fmt::Write as _};

    use super::*;

    #[test]
    fn each_call_stands_once() {
        let numbers: BTreeSet<_> = TABLE.iter().map(|call| call.number).collect();
        assert_eq!(numbers.len(), TABLE.len());
    }

    /// The table as the documentation has it.
    fn documentation() -> String {
        let mut text =
            "| call | asked about when | always in the scope |\n|---|---|---|\n".to_owned();
        for call in TABLE {
            let scope = call.always_in.map(|bit| format!("`{bit}`"));
            let scope = scope.unwrap_or_default();
            writeln!(text, "| `{}` | {} | {scope} |", call.name, call.asked).unwrap();
        }
        text
    }

    #[test]
    fn the_documentation_is_the_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/calls/intercepted.md");
        if std::env::var_os("IOASID_WRITE_DOCS").is_some() {
            std::fs::write(path, documentation()).unwrap();
        }
        let written = std::fs::read_to_string(path).unwrap();
        assert_eq!(
            written,
            documentation(),
            "run this test with IOASID_WRITE_DOCS=1"
        );
    }

    #[test]
    fn registers_become_arguments() {
        let args = [3, 0x1000, 16, 1 << 40, 5, 6];
        let Call::Transfer(read) = parse(libc::SYS_preadv2, &args) else {
            panic!("preadv2 is a transfer");
        };
        assert_eq!((read.fd, read.offset, read.flags), (3, Some(1 << 40), 6));
        let none = [3, 0x1000, 16, u64::MAX, 5, 6];
        let Call::Transfer(read) = parse(libc::SYS_preadv2, &none) else {
            panic!("preadv2 is a transfer");
        };
        assert_eq!(read.offset, None);
        let no_descriptor = [u64::from(u32::MAX), ACCESS.into(), 1, 2, 3, 4];
        let question = parse(libc::SYS_ioctl, &no_descriptor);
        assert!(matches!(question, Call::Register(_)), "{question:?}");
        let seals = [3, libc::F_GET_SEALS as u64, 0, 0, 0, 0];
        assert_eq!(parse(libc::SYS_fcntl, &seals), Call::GetSeals { fd: 3 });
        assert_eq!(parse(libc::SYS_getppid, &args), Call::Other);
    }
}
