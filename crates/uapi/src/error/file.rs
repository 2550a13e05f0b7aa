//! What any file can be asked for, and what files of the machine refuse.

use std::fmt;

/// What a program wanted of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `ioctl`.
    Ioctl,
    /// `read` and its variants.
    Read,
    /// `write` and its variants.
    Write,
    /// `mmap`.
    Map,
    /// `lseek`.
    Seek,
    /// `ftruncate`.
    Truncate,
    /// `fsync`.
    Sync,
    /// `fallocate`.
    Allocate,
    /// Seals of a memory file.
    Seal,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Operation::Ioctl => "ioctl",
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Map => "mmap",
            Operation::Seek => "lseek",
            Operation::Truncate => "ftruncate",
            Operation::Sync => "fsync",
            Operation::Allocate => "fallocate",
            Operation::Seal => "F_ADD_SEALS",
        })
    }
}

/// Why a file of the machine refuses what any file can be asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// The machine has no such device, or group, any more (ENODEV).
    #[error("the machine has no {name} any more")]
    Gone {
        /// Name of the node below `/dev/vfio`.
        name: String,
    },
    /// The file has no such operation (ENOTTY for an ioctl, ENODEV for mmap, ESPIPE for lseek, else
    /// EINVAL).
    #[error("{operation} means nothing on this kind of file")]
    NoOperation {
        /// What was wanted.
        operation: Operation,
    },
    /// `fallocate` on a file that is no regular one: of a device (ENODEV), of sysfs (EOPNOTSUPP).
    #[error("{}", if *in_sys { "a file of /sys has no extents" } else { "a device has no extents" })]
    NoExtents {
        /// Whether it is a file of sysfs.
        in_sys: bool,
    },
    /// The flags of a read, write or `fallocate` ask for what the file does not do (EOPNOTSUPP).
    #[error("the flags {flags:#x} of {operation} mean nothing on this kind of file")]
    FlagsNotSupported {
        /// What was wanted.
        operation: Operation,
        /// The flags.
        flags: u64,
    },
    /// The file is not open for that (EBADF; EACCES for mmap, EPERM for seals).
    #[error("the file was not opened for {operation}")]
    NotOpenFor {
        /// What was wanted.
        operation: Operation,
    },
    /// A read or write at an offset of a file without places (ESPIPE).
    #[error("a file of events has no offsets: use read or write without one")]
    NoOffsets,
    /// An offset, or the end of what lies there, is no offset (EINVAL).
    #[error("{len:#x} bytes at {offset:#x} are not in the offsets that a file can have")]
    BadOffset {
        /// The offset.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// `lseek` does not know this origin (EINVAL).
    #[error("lseek cannot start from {whence}")]
    BadWhence {
        /// What the program said.
        whence: u32,
    },
    /// A vector of buffers that is too long, or with a negative length (EINVAL).
    #[error(
        "a vector of {count} buffers is too long (the most is {limit}), or has a negative length"
    )]
    BadVector {
        /// Buffers.
        count: u64,
        /// The most.
        limit: u64,
    },
    /// Registers cannot be mapped because accesses to them would not be caught (EINVAL).
    #[error("registers cannot be mapped: the program was started with --mmio off")]
    MappingOff,
    /// The node of a BAR in sysfs cannot be mapped, as on a kernel that is locked down (EPERM).
    #[error("BARs are mapped through VFIO, not through sysfs")]
    Lockdown,
    /// An attribute of sysfs that cannot be opened for that (EACCES).
    #[error("/sys/{path} cannot be opened for that")]
    AttributeMode {
        /// Its path.
        path: String,
    },
    /// An attribute of sysfs that Linux has, and that does nothing here (EOPNOTSUPP).
    #[error("what /sys/{path} does is not built")]
    AttributeNotBuilt {
        /// Its path.
        path: String,
    },
    /// What is written to a file is not what it takes (EINVAL).
    #[error("{len} bytes at offset {offset} are not what the file takes")]
    BadText {
        /// Where.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// A program opens a node that it has not: of a group or device that the host's own driver has, or that is
    /// not there (ENOENT).
    #[error("no device that a program may open is {path}; free are: {free}")]
    NoSuchNode {
        /// What it opens.
        path: String,
        /// The nodes that nobody uses, each with its device.
        free: String,
    },
    /// A file without a name, opened again through `/proc` (ENXIO).
    #[error("the file has no node that could be opened again")]
    NoNode,
    /// No thread of the caller has this file (ENOENT).
    #[error("the caller has no thread {tid}")]
    NoThread {
        /// The thread.
        tid: u32,
    },
    /// A descriptor that was closed meanwhile (EBADF).
    #[error("descriptor {fd} was closed meanwhile")]
    Closed {
        /// The descriptor.
        fd: i32,
    },
    /// The program can be given no further descriptor (EMFILE).
    #[error("no descriptor number is free")]
    NoNumber,
    /// The supervisor has no memory, thread or descriptor for it (ENOMEM).
    #[error("the host has no memory or descriptor left for it")]
    NoResource,
    /// The host does not answer about a file that it was asked about (EIO).
    #[error("the host does not answer about the file")]
    HostFailed,
}
