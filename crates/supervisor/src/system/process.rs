//! System calls about processes and descriptors that no safe wrapper covers.
// UNSAFETY: these calls take pointers or change the whole process; each block says why it is sound.
#![allow(unsafe_code)]

use std::{
    io::{self, Read, Write},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::ret::{check, check_int};

/// `ioctl` with a pointer-sized buffer on a descriptor number that need not be open: the
/// launcher's greeting, which the session answers.
pub(crate) fn greeting_ioctl(request: u32, buffer: &mut [u8; 8]) -> io::Result<i32> {
    // SAFETY: descriptor -1 is never open, so the kernel itself touches nothing; the session
    // reads and writes eight bytes at the buffer, which outlives the call.
    check_int(unsafe { libc::ioctl(-1, libc::Ioctl::from(request), buffer.as_mut_ptr()) })
}

/// Leaves the namespaces that `flags` names. Only for a process of one thread.
pub(crate) fn unshare(flags: rustix::thread::UnshareFlags) -> io::Result<()> {
    // SAFETY: the descriptor table is not among the namespaces that the launcher leaves.
    unsafe { rustix::thread::unshare_unsafe(flags) }.map_err(io::Error::from)
}

/// Reads entries of a directory as the kernel writes them.
pub(crate) fn getdents64(directory: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most as many bytes as the buffer has.
    let read = check(unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            directory.as_raw_fd(),
            buffer.as_mut_ptr(),
            buffer.len(),
        )
    })?;
    usize::try_from(read).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// Runs `job` in a child that ends with it, and gives back what it failed with, as text. Only for a
/// process of one thread.
pub(crate) fn in_a_child<E: ToString>(
    job: impl FnOnce() -> Result<(), E>,
) -> io::Result<Option<String>> {
    let (mut ours, mut theirs) = io::pipe()?;
    // SAFETY: with one thread no lock is held by another, so the child may run any code; it ends
    // by `_exit` and runs no destructor of its parent's.
    let pid = check_int(unsafe { libc::fork() })?;
    if pid == 0 {
        let code = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(job)) {
            Ok(Ok(())) => 0,
            Ok(Err(error)) => {
                let _ = theirs.write_all(error.to_string().as_bytes());
                1
            }
            Err(_) => 1,
        };
        // SAFETY: ends this process.
        unsafe { libc::_exit(code) }
    }
    drop(theirs);
    let mut text = String::new();
    let read = ours.read_to_string(&mut text);
    let pid = rustix::process::Pid::from_raw(pid);
    let status = loop {
        match rustix::process::waitpid(pid, rustix::process::WaitOptions::empty()) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?,
        }
    };
    let ended_well = status.is_some_and(|(_, status)| status.exit_status() == Some(0));
    read?;
    Ok((!ended_well).then_some(text))
}

/// Whether the process of this pidfd ends within `time`.
pub(crate) fn ends_within(handle: &OwnedFd, time: Duration) -> bool {
    let until = Instant::now() + time;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&left)) {
            Ok(0) => return false,
            Ok(_) => return true,
            // Not known: it is asked again.
            Err(_) => {}
        }
    }
}

/// Takes over a descriptor that the parent left open for us.
///
/// Refuses a number that is not open. The caller must ask for each number once, before it opens
/// anything of its own.
pub(crate) fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    if fd < 3 {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: F_GETFD takes no pointer.
    check_int(unsafe { libc::fcntl(fd, libc::F_GETFD) })?;
    // SAFETY: open, and ours alone: the parent passed it for this purpose and its number on the
    // command line.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Lets the child of `command` inherit `fd` under its number.
pub(crate) fn inherit(command: &mut std::process::Command, fd: OwnedFd) {
    let pass = move || -> io::Result<()> {
        rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).map_err(io::Error::from)
    };
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe { std::os::unix::process::CommandExt::pre_exec(command, pass) };
}
