//! A call that waits, and how it ends.

use std::{os::fd::BorrowedFd, sync::Arc};

use ioasid_host::Process;
use ioasid_uapi::{
    CallError,
    error::{FileError, RequestError},
    memory,
};

use crate::system::listener::Listener;

/// A call that waits for its answer, and the process that made it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending<'a> {
    /// Names the call to the kernel.
    pub(crate) id: u64,
    /// The thread that made it.
    pub(crate) tid: u32,
    pub(crate) process: &'a Arc<Process>,
}

impl Pending<'_> {
    /// Fills `into` from `address` of the process on.
    pub(crate) fn read(&self, address: u64, into: &mut [u8]) -> Result<(), RequestError> {
        memory::read(&**self.process, address, into)
    }

    /// Writes `bytes` from `address` of the process on.
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), RequestError> {
        memory::write(&**self.process, address, bytes)
    }

    /// Answers it with a new descriptor of a page that the process is to share with its session.
    ///
    /// # Errors
    /// EMFILE if the process has no number left.
    pub(crate) fn hand_over(&self, listener: &Listener, page: BorrowedFd<'_>) -> Outcome {
        match listener.reply_with_fd(self.id, page, None, true) {
            Ok(fd) => Ok(Answer::Answered(Some(fd))),
            Err(_) => Err(FileError::NoNumber.into()),
        }
    }
}

/// How a call ends.
pub(crate) enum Answer {
    /// It returns this.
    Value(u64),
    /// The kernel carries it out.
    Proceed,
    /// It has been answered already, with this descriptor, if its thread was still there.
    Answered(Option<i32>),
    /// It fails as a call did that the session made in its place.
    Fails(rustix::io::Errno),
}

pub(crate) type Outcome = Result<Answer, CallError>;

/// Answers a call that asks for a struct, at `address`, with the bytes of what is known of a file
/// of the machine; the kernel answers if it is none.
pub(crate) fn write_struct(process: &Process, known: Option<&[u8]>, address: u64) -> Outcome {
    let Some(known) = known else {
        return Ok(Answer::Proceed);
    };
    memory::write(process, address, known)?;
    Ok(Answer::Value(0))
}
