//! Errno numbers: the only place in the project that has them.
//!
//! Every error of a lower floor says in its documentation which errno it is; below are the tables
//! that make it true, one file for each crate.

use std::fmt;

mod core;
mod iommufd;
mod request;
mod vfio;

/// A Linux error number, positive (`include/uapi/asm-generic/errno{-base,}.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($(#[doc = $doc:literal])* $name:ident = $value:literal;)*) => {
        impl Errno {
            $($(#[doc = $doc])* pub const $name: Errno = Errno($value);)*

            /// The kernel's name of the number, if it is one that this crate gives.
            pub const fn name(self) -> Option<&'static str> {
                match self {
                    $(Errno::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    /// Operation not permitted.
    EPERM = 1;
    /// No such object.
    ENOENT = 2;
    /// Input/output error.
    EIO = 5;
    /// No such device or address.
    ENXIO = 6;
    /// Argument list too long: a struct has bytes that are not known, and they are not 0.
    E2BIG = 7;
    /// Bad file descriptor.
    EBADF = 9;
    /// Try again.
    EAGAIN = 11;
    /// Out of memory, or over a limit.
    ENOMEM = 12;
    /// Permission denied.
    EACCES = 13;
    /// Bad address.
    EFAULT = 14;
    /// Device or resource busy.
    EBUSY = 16;
    /// Exists already.
    EEXIST = 17;
    /// No such device.
    ENODEV = 19;
    /// Invalid argument.
    EINVAL = 22;
    /// Too many open files.
    EMFILE = 24;
    /// Not an ioctl of this file.
    ENOTTY = 25;
    /// No space left.
    ENOSPC = 28;
    /// Illegal seek.
    ESPIPE = 29;
    /// Result out of range.
    ERANGE = 34;
    /// Would deadlock.
    EDEADLK = 35;
    /// Invalid exchange.
    EBADE = 52;
    /// Value too large.
    EOVERFLOW = 75;
    /// File descriptor in bad state.
    EBADFD = 77;
    /// Too many users.
    EUSERS = 87;
    /// Message too long: the array is too short for the answer.
    EMSGSIZE = 90;
    /// Not supported.
    EOPNOTSUPP = 95;
    /// Address in use.
    EADDRINUSE = 98;
}

impl Errno {
    /// The positive number.
    pub const fn get(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Errno {}
