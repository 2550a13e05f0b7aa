//! Calls about descriptors themselves.

use std::os::fd::AsFd;

use ioasid_uapi::error::FileError;
use rustix::fs::OFlags;

use crate::session::{
    answer::{Answer, Outcome, Pending},
    descriptors::Descriptors,
};

/// `dup` and `fcntl(F_DUPFD)`: the copy gets a reserved number too, so that `read` on it works.
pub(crate) fn duplicate(
    descriptors: &mut Descriptors,
    call: Pending<'_>,
    fd: i32,
    least: u32,
    cloexec: bool,
) -> Outcome {
    if descriptors.file(call.process, fd).is_none() {
        return Ok(Answer::Proceed);
    }
    let Ok(file) = call.process.get_fd(fd) else {
        return Ok(Answer::Proceed);
    };
    let least = least.max(descriptors.numbers().base);
    descriptors.hand_over(call, file.as_fd(), least, cloexec)
}

/// `fcntl(F_GETFL)`: how a file of the machine was opened, whatever stands behind it.
pub(crate) fn flags(descriptors: &mut Descriptors, call: Pending<'_>, fd: i32) -> Outcome {
    let Some(access) = descriptors.file(call.process, fd).map(|file| file.access()) else {
        return Ok(Answer::Proceed);
    };
    let Ok(file) = call.process.get_fd(fd) else {
        return Ok(Answer::Proceed);
    };
    let flags = rustix::fs::fcntl_getfl(&file).map_err(|_| FileError::Closed { fd })?;
    let flags = flags.difference(OFlags::ACCMODE).union(access);
    Ok(Answer::Value(flags.bits().into()))
}
