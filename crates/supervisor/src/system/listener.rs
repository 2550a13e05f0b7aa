//! The seccomp notification descriptor, typed.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
};

use rustix::io::Errno;

use super::seccomp;

/// A system call that waits for an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Names the request to the kernel.
    pub id: u64,
    /// The thread that made the call, as this process numbers it; 0 if it cannot see it.
    pub tid: u32,
    /// System call number.
    pub nr: i64,
    /// Arguments, as they stood in the registers.
    pub args: [u64; 6],
}

/// The notification descriptor of one program tree.
#[derive(Debug)]
pub struct Listener(OwnedFd);

impl Listener {
    /// Takes over a listener and asks for wake-ups on this CPU, which costs nothing where the
    /// kernel does not know it.
    ///
    /// # Errors
    /// If `fd` is another kind of file, whose system calls may block for ever, or the kernel's
    /// notification structures are larger than the ones this was compiled with.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let kind = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
        if kind.as_os_str() != "anon_inode:seccomp notify" {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the descriptor is not a seccomp listener",
            ));
        }
        if !seccomp::notif_sizes_fit()? {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "this kernel's seccomp notifications are larger than expected",
            ));
        }
        if let Err(error) = seccomp::notif_sync_wake_up(fd.as_fd()) {
            tracing::debug!(%error, "no synchronous wake-ups");
        }
        Ok(Listener(fd))
    }

    /// Takes the next request. `None` if the one that was announced is gone already.
    ///
    /// # Errors
    /// What the kernel says; ENOENT and EINTR never.
    pub fn receive(&self) -> io::Result<Option<Request>> {
        match seccomp::notif_recv(self.0.as_fd()) {
            Ok(notif) => Ok(Some(Request {
                id: notif.id,
                tid: notif.pid,
                nr: notif.data.nr.into(),
                args: notif.data.args,
            })),
            Err(error) => match error.raw_os_error() {
                Some(code) if code == Errno::NOENT.raw_os_error() => Ok(None),
                Some(code) if code == Errno::INTR.raw_os_error() => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Whether the program still waits for `id`: if so, its thread cannot have been replaced by
    /// another one of the same number.
    pub fn is_waiting(&self, id: u64) -> bool {
        seccomp::notif_id_valid(self.0.as_fd(), id)
    }

    /// Makes the call return `value`. A program that is gone does not see it.
    pub fn reply(&self, id: u64, value: i64) {
        self.send(id, value, 0, 0);
    }

    /// Makes the call fail with `errno`, a positive number.
    pub fn fail(&self, id: u64, errno: i32) {
        self.send(id, 0, errno.saturating_neg(), 0);
    }

    /// Lets the kernel carry out the call.
    pub fn proceed(&self, id: u64) {
        self.send(id, 0, 0, libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32);
    }

    fn send(&self, id: u64, val: i64, error: i32, flags: u32) {
        let response = libc::seccomp_notif_resp {
            id,
            val,
            error,
            flags,
        };
        if let Err(error) = seccomp::notif_send(self.0.as_fd(), response) {
            tracing::trace!(id, %error, "nobody waits for this answer");
        }
    }

    /// Puts `file` into the program's table, as `number` or as the lowest free one, and makes the
    /// call return that number.
    ///
    /// # Errors
    /// EBADF if `number` is over the program's limit, EMFILE if its table is full, ENOENT if it is
    /// gone. The request then still waits.
    pub fn reply_with_fd(
        &self,
        id: u64,
        file: BorrowedFd<'_>,
        number: Option<u32>,
        cloexec: bool,
    ) -> io::Result<i32> {
        self.add(id, file, number, cloexec, libc::SECCOMP_ADDFD_FLAG_SEND)
    }

    /// Replaces descriptor `number` of the program by `file`, as `dup2` would. The request still
    /// waits.
    ///
    /// # Errors
    /// As [`Listener::reply_with_fd`].
    pub fn replace_fd(
        &self,
        id: u64,
        file: BorrowedFd<'_>,
        number: u32,
        cloexec: bool,
    ) -> io::Result<i32> {
        self.add(id, file, Some(number), cloexec, 0)
    }

    fn add(
        &self,
        id: u64,
        file: BorrowedFd<'_>,
        number: Option<u32>,
        cloexec: bool,
        flags: libc::c_ulong,
    ) -> io::Result<i32> {
        let setfd = if number.is_some() {
            libc::SECCOMP_ADDFD_FLAG_SETFD
        } else {
            0
        };
        seccomp::notif_addfd(
            self.0.as_fd(),
            libc::seccomp_notif_addfd {
                id,
                flags: (flags | setfd) as u32,
                srcfd: file.as_raw_fd() as u32,
                newfd: number.unwrap_or(0),
                newfd_flags: if cloexec { libc::O_CLOEXEC as u32 } else { 0 },
            },
        )
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
