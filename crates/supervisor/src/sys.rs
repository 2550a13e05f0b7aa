//! The system calls that no safe wrapper covers: seccomp's, `unshare`, and two signal calls.
// UNSAFETY: these calls take pointers or change the whole process; each block says why it is sound.
#![allow(unsafe_code)]

use std::{
    io::{self, Read, Write},
    mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
    sync::atomic::{AtomicI32, Ordering},
};

use crate::filter::Instruction;

/// Installs `program` as a seccomp filter of this thread and returns the listener.
///
/// The flags are NEW_LISTENER and WAIT_KILLABLE_RECV: without the second a signal makes the kernel
/// restart a request that has been carried out already, so that it happens twice.
pub(crate) fn install_filter(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut code: Vec<libc::sock_filter> = program
        .iter()
        .map(|i| libc::sock_filter {
            code: i.code,
            jt: i.jt,
            jf: i.jf,
            k: i.k,
        })
        .collect();
    let len = u16::try_from(code.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let fprog = libc::sock_fprog {
        len,
        filter: code.as_mut_ptr(),
    };
    let flags =
        libc::SECCOMP_FILTER_FLAG_NEW_LISTENER | libc::SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV;
    // SAFETY: `fprog` points to `len` instructions that live until the call returns; the kernel
    // copies and checks them.
    let fd = check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_ulong::from(libc::SECCOMP_SET_MODE_FILTER),
            flags,
            ptr::from_ref(&fprog),
        )
    })?;
    let fd = RawFd::try_from(fd).map_err(|_| io::ErrorKind::InvalidData)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the kernel's notification structures have the sizes this program was compiled with, or
/// larger ones, which [`notif_recv`] could not hold.
pub(crate) fn notif_sizes_fit() -> io::Result<bool> {
    let mut sizes = libc::seccomp_notif_sizes {
        seccomp_notif: 0,
        seccomp_notif_resp: 0,
        seccomp_data: 0,
    };
    // SAFETY: the kernel writes the three numbers of this structure and nothing more.
    check(unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::c_ulong::from(libc::SECCOMP_GET_NOTIF_SIZES),
            0 as libc::c_ulong,
            ptr::from_mut(&mut sizes),
        )
    })?;
    Ok(
        usize::from(sizes.seccomp_notif) <= mem::size_of::<libc::seccomp_notif>()
            && usize::from(sizes.seccomp_notif_resp) <= mem::size_of::<libc::seccomp_notif_resp>(),
    )
}

/// Takes the next notification.
pub(crate) fn notif_recv(listener: BorrowedFd<'_>) -> io::Result<libc::seccomp_notif> {
    // SAFETY: a plain structure of integers, for which zero is a value; the kernel insists on it.
    let mut notif: libc::seccomp_notif = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes at most this structure: `notif_sizes_fit` was checked.
    check_int(unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_RECV,
            ptr::from_mut(&mut notif),
        )
    })?;
    Ok(notif)
}

/// Answers a notification.
pub(crate) fn notif_send(
    listener: BorrowedFd<'_>,
    mut response: libc::seccomp_notif_resp,
) -> io::Result<()> {
    // SAFETY: the kernel reads this structure, which lives until the call returns.
    check_int(unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SEND,
            ptr::from_mut(&mut response),
        )
    })
    .map(drop)
}

/// Whether the program still waits for the answer to `id`.
pub(crate) fn notif_id_valid(listener: BorrowedFd<'_>, mut id: u64) -> bool {
    // SAFETY: the kernel reads the eight bytes of `id`.
    check_int(unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_ID_VALID,
            ptr::from_mut(&mut id),
        )
    })
    .is_ok()
}

/// Puts a descriptor into the program's table.
pub(crate) fn notif_addfd(
    listener: BorrowedFd<'_>,
    mut addfd: libc::seccomp_notif_addfd,
) -> io::Result<i32> {
    // SAFETY: the kernel reads this structure; the descriptor in it is the caller's business.
    check_int(unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_ADDFD,
            ptr::from_mut(&mut addfd),
        )
    })
}

/// Asks for wake-ups on the waker's CPU.
pub(crate) fn notif_sync_wake_up(listener: BorrowedFd<'_>) -> io::Result<()> {
    const SYNC_WAKE_UP: libc::c_ulong = 1;
    // SAFETY: the argument is a number, not a pointer.
    check_int(unsafe {
        libc::ioctl(
            listener.as_raw_fd(),
            libc::SECCOMP_IOCTL_NOTIF_SET_FLAGS,
            SYNC_WAKE_UP,
        )
    })
    .map(drop)
}

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

/// The program that gets the signals sent to this process; 0 if none.
static SIGNAL_TARGET: AtomicI32 = AtomicI32::new(0);

/// Forwards SIGTERM, SIGHUP, SIGINT and SIGQUIT to `pid` until dropped.
///
/// A signal of the terminal's is not forwarded: the program is in the same process group and got
/// it too. Signals that were ignored stay ignored.
#[derive(Debug)]
pub(crate) struct ForwardSignals {
    previous: Vec<(libc::c_int, SavedAction)>,
}

struct SavedAction(libc::sigaction);

impl std::fmt::Debug for SavedAction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SavedAction")
    }
}

extern "C" fn forward(signal: libc::c_int, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let pid = SIGNAL_TARGET.load(Ordering::Acquire);
    // SAFETY: with SA_SIGINFO the kernel gives a valid structure.
    let from_kernel = unsafe { (*info).si_code } == libc::SI_KERNEL;
    if pid > 0 && !from_kernel {
        // SAFETY: `__errno_location` is always valid, and `kill` may be called in a handler; errno
        // is put back for the code that was interrupted.
        unsafe {
            let errno = *libc::__errno_location();
            libc::kill(pid, signal);
            *libc::__errno_location() = errno;
        }
    }
}

impl ForwardSignals {
    /// Starts forwarding. Call before the child can be asked to end; set its pid with `target`.
    pub(crate) fn start() -> Self {
        let mut previous = Vec::new();
        for signal in [libc::SIGTERM, libc::SIGHUP, libc::SIGINT, libc::SIGQUIT] {
            // SAFETY: zero is a value of every field of `sigaction`.
            let mut old: libc::sigaction = unsafe { mem::zeroed() };
            // SAFETY: a null action only reads the present one into `old`.
            let read = unsafe { libc::sigaction(signal, ptr::null(), &mut old) };
            if read != 0 || old.sa_sigaction == libc::SIG_IGN {
                continue;
            }
            // SAFETY: as above.
            let mut new: libc::sigaction = unsafe { mem::zeroed() };
            let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) =
                forward;
            new.sa_sigaction = handler as libc::sighandler_t;
            new.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            // SAFETY: the handler has the signature that SA_SIGINFO asks for and calls only what a
            // handler may call.
            if unsafe { libc::sigaction(signal, &new, ptr::null_mut()) } == 0 {
                previous.push((signal, SavedAction(old)));
            }
        }
        ForwardSignals { previous }
    }

    /// The process that gets them from now on.
    pub(crate) fn target(&self, pid: i32) {
        SIGNAL_TARGET.store(pid, Ordering::Release);
    }
}

impl Drop for ForwardSignals {
    fn drop(&mut self) {
        SIGNAL_TARGET.store(0, Ordering::Release);
        for (signal, action) in &self.previous {
            // SAFETY: puts back what `start` read.
            unsafe { libc::sigaction(*signal, &action.0, ptr::null_mut()) };
        }
    }
}

fn check(ret: libc::c_long) -> io::Result<libc::c_long> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

fn check_int(ret: libc::c_int) -> io::Result<libc::c_int> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}
