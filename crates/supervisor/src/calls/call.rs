//! An intercepted system call with typed arguments. Addresses are the program's, and nothing behind
//! them has been read.

/// A system call that the filter has asked about. The session has one handler for each variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// The launcher's question whether its memory can be reached; see [`super::greeting`].
    Greeting {
        /// Where the question is, and the answer is wanted.
        buffer: u64,
    },
    /// A question of the library in the program ([`ioasid_preload::call`]).
    Register(RegisterQuestion),
    /// `KVM_SET_DEVICE_ATTR`.
    KvmAttribute {
        /// A device of KVM's.
        fd: i32,
        /// Of a `struct kvm_device_attr`.
        attribute: u64,
    },
    /// Any other ioctl.
    Ioctl {
        fd: i32,
        request: u32,
        argument: u64,
    },
    /// `open`, `openat`.
    Open {
        at: PathArgument,
        /// `O_*`.
        flags: u64,
    },
    /// `openat2`.
    OpenHow {
        dirfd: i32,
        path: u64,
        /// Of a `struct open_how`.
        how: u64,
        /// Its size in bytes.
        size: u64,
    },
    /// `read`, `write` and their variants.
    Transfer(Transfer),
    /// `fstat`.
    Stat { fd: i32, buffer: u64 },
    /// `stat`, `lstat`, `newfstatat`.
    StatPath {
        at: PathArgument,
        /// Whether an empty path means the descriptor (`AT_EMPTY_PATH`).
        empty_path: bool,
        buffer: u64,
    },
    /// `statx`.
    Statx {
        at: PathArgument,
        empty_path: bool,
        /// `STATX_*`.
        mask: u32,
        buffer: u64,
    },
    /// `statfs`.
    Statfs { at: PathArgument, buffer: u64 },
    /// `fstatfs`.
    Fstatfs { fd: i32, buffer: u64 },
    /// `access`, `faccessat`, `faccessat2`.
    Access {
        at: PathArgument,
        /// `R_OK`, `W_OK`, `X_OK`.
        mode: u32,
    },
    /// `readlink`, `readlinkat`.
    ReadLink {
        at: PathArgument,
        buffer: u64,
        /// Bytes of the buffer; the kernel takes an `int`.
        size: i32,
    },
    /// `getdents64`.
    List { fd: i32, buffer: u64, size: u64 },
    /// `getxattr`, `lgetxattr`.
    GetXattr { at: PathArgument },
    /// `listxattr`, `llistxattr`.
    ListXattr { at: PathArgument },
    /// `mount`.
    Mount {
        source: u64,
        target: u64,
        filesystem: u64,
        /// `MS_*`.
        flags: u64,
    },
    /// `mmap`.
    Mmap(Mmap),
    /// `lseek`.
    Seek { fd: i32, offset: i64, whence: u32 },
    /// `ftruncate`.
    Truncate { fd: i32, len: u64 },
    /// `fallocate`.
    Allocate {
        fd: i32,
        /// `FALLOC_FL_*`.
        mode: u32,
        offset: u64,
        len: u64,
    },
    /// `fsync`, `fdatasync`.
    Sync { fd: i32 },
    /// `fcntl(F_ADD_SEALS)`.
    AddSeals { fd: i32 },
    /// `fcntl(F_GET_SEALS)`.
    GetSeals { fd: i32 },
    /// `fcntl(F_GETFL)`.
    GetFlags { fd: i32 },
    /// `dup`, `fcntl(F_DUPFD)`, `fcntl(F_DUPFD_CLOEXEC)`.
    Duplicate {
        fd: i32,
        /// The least number that the copy may have.
        least: u32,
        cloexec: bool,
    },
    /// `close`, `close_range`, `dup2`, `dup3`: descriptors are closed, or stand for other files.
    Close,
    /// `execve`, `execveat`: the process gets another address space.
    Exec,
    /// `unshare`, `setns`: the kernel may want a process that shares its memory with no other.
    LeaveNamespace,
    /// `capset`, `setuid`, `setreuid`, `setresuid`: locked memory may count for another user.
    ChangeUser,
    /// A call that the table does not have, or an `fcntl` that the filter does not ask about.
    Other,
}

/// A path in a call's arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PathArgument {
    /// The directory that a relative path starts at, or `AT_FDCWD`.
    pub(crate) dirfd: i32,
    /// Where the path is.
    pub(crate) address: u64,
    /// Whether a link at its end is followed.
    pub(crate) follow: bool,
}

impl PathArgument {
    /// Relative to the working directory.
    pub(super) fn here(address: u64, follow: bool) -> Self {
        PathArgument {
            dirfd: libc::AT_FDCWD,
            address,
            follow,
        }
    }

    /// Relative to a descriptor, with flags `AT_*`.
    pub(super) fn at(dirfd: u64, address: u64, flags: u64) -> Self {
        PathArgument {
            dirfd: dirfd as i32,
            address,
            follow: flags & libc::AT_SYMLINK_NOFOLLOW as u64 == 0,
        }
    }

    /// Of an open with these flags `O_*`.
    pub(crate) fn of_open(dirfd: i32, address: u64, flags: u64) -> Self {
        PathArgument {
            dirfd,
            address,
            follow: flags & libc::O_NOFOLLOW as u64 == 0,
        }
    }
}

/// The registers of a question of the library; what they mean, its kind says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegisterQuestion {
    pub(crate) address: u64,
    /// An encoded [`ioasid_preload::call::Shape`].
    pub(crate) shape: u64,
    pub(crate) value: u64,
    pub(crate) buffer: u64,
}

/// Which way bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// To the program.
    Read,
    /// From the program.
    Write,
}

/// The arguments of `read`, `write` and their variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Transfer {
    pub(crate) fd: i32,
    pub(crate) direction: Direction,
    pub(crate) buffers: Buffers,
    /// Where in the file; without one, at the file's position.
    pub(crate) offset: Option<u64>,
    /// `RWF_*`.
    pub(crate) flags: u64,
}

/// Where the bytes are in the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Buffers {
    /// In one run.
    One { address: u64, len: u64 },
    /// In `count` runs, each a `struct iovec` at `address`.
    Vector { address: u64, count: u64 },
}

/// The arguments of `mmap` but the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mmap {
    pub(crate) len: u64,
    /// `PROT_*`.
    pub(crate) prot: u64,
    /// `MAP_*`.
    pub(crate) flags: u64,
    pub(crate) fd: i32,
    pub(crate) offset: u64,
}
