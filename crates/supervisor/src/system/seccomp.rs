//! The system calls of a seccomp filter with a listener.
// UNSAFETY: these calls take pointers; each block says why it is sound.
#![allow(unsafe_code)]

use std::{
    io, mem,
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd},
    ptr,
};

use super::ret::{check, check_int};

/// One BPF instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if the comparison holds.
    pub jt: u8,
    /// Instructions to skip if it does not.
    pub jf: u8,
    /// Immediate.
    pub k: u32,
}

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
    // SAFETY: the kernel has just made this descriptor, and nothing else owns it.
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
