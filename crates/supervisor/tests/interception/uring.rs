//! An open by io_uring, which no seccomp filter sees.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr,
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::{
    io_uring::{
        IORING_OFF_CQ_RING, IORING_OFF_SQ_RING, IORING_OFF_SQES, IoringEnterFlags, IoringOp,
        io_uring_cqe, io_uring_enter, io_uring_params, io_uring_setup, io_uring_sqe,
    },
    mm::{MapFlags, ProtFlags, mmap},
};

/// Entries of the ring.
const ENTRIES: u32 = 1;

/// Opens `path` with `flags`.
pub(crate) fn open(path: &CStr, flags: i32) -> io::Result<OwnedFd> {
    let mut params = io_uring_params::default();
    // SAFETY: the ring is used below as its parameters say, and by this thread alone.
    let ring = unsafe { io_uring_setup(ENTRIES, &mut params)? };
    let map = |offset: u64| {
        // SAFETY: a new mapping, which stays until the process ends.
        unsafe {
            mmap(
                ptr::null_mut(),
                4096,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                &ring,
                offset,
            )
        }
    };
    let submissions = map(IORING_OFF_SQ_RING)?.cast::<u8>();
    let completions = map(IORING_OFF_CQ_RING)?.cast::<u8>();
    let entries = map(IORING_OFF_SQES)?.cast::<io_uring_sqe>();
    let mut entry = io_uring_sqe {
        opcode: IoringOp::Openat,
        fd: libc::AT_FDCWD,
        ..io_uring_sqe::default()
    };
    entry.addr_or_splice_off_in.addr = path.as_ptr().cast_mut().cast::<std::ffi::c_void>().into();
    entry.op_flags.open_flags = rustix::fs::OFlags::from_bits_retain(flags as u32);
    // SAFETY: the kernel gave the places of the ring's words; a page holds a ring of one entry.
    unsafe {
        entries.write(entry);
        submissions
            .add(params.sq_off.array as usize)
            .cast::<u32>()
            .write(0);
        let tail = submissions
            .add(params.sq_off.tail as usize)
            .cast::<AtomicU32>();
        (*tail).store(1, Ordering::Release);
        io_uring_enter(&ring, 1, 1, IoringEnterFlags::GETEVENTS)?;
        let done = completions.add(params.cq_off.cqes as usize);
        let result = done.cast::<io_uring_cqe>().read().res;
        let fd = match result {
            0.. => OwnedFd::from_raw_fd(result),
            _ => return Err(io::Error::from_raw_os_error(-result)),
        };
        debug_assert!(fd.as_raw_fd() != ring.as_raw_fd());
        Ok(fd)
    }
}
