//! A call that waits, and how it ends.

use std::sync::Arc;

use ioasid_core::host::Caller;
use ioasid_host::Process;
use ioasid_uapi::Errno;

/// A call that waits for its answer, and the process that made it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pending<'a> {
    /// Names the call to the kernel.
    pub(crate) id: u64,
    /// The thread that made it.
    pub(crate) tid: u32,
    pub(crate) process: &'a Arc<Process>,
}

/// How a call ends.
pub(crate) enum Answer {
    /// It returns this.
    Value(u64),
    /// The kernel carries it out.
    Proceed,
    /// It has been answered already, with a descriptor.
    Answered,
    /// It fails as a call did that the session made in its place.
    Fails(rustix::io::Errno),
}

pub(crate) type Outcome = Result<Answer, Errno>;

/// Answers a call that asks for a struct, at `address`, with the bytes of what is known of a file
/// of the machine; the kernel answers if it is none.
pub(crate) fn write_struct(process: &Process, known: Option<&[u8]>, address: u64) -> Outcome {
    let Some(known) = known else {
        return Ok(Answer::Proceed);
    };
    process.write(address, known)?;
    Ok(Answer::Value(0))
}
