//! Allocations that a program makes fail: `/proc/self/task/TID/fail-nth`, as a kernel with fault
//! injection has it.
//!
//! What is written there is a countdown over the allocations that the object model makes for the
//! requests of that thread; what is read is what is left. 0 means that it has run out, so that one of
//! them failed. Only where the machine says so: elsewhere the file is the kernel's, which has none.

use std::{collections::HashMap, io, os::fd::OwnedFd, path::Path};

use ioasid_core::{failpoint, host::Caller};
use ioasid_host::Process;
use ioasid_uapi::Errno;

use super::{
    Server,
    calls::Outcome,
    transfer::{Direction, Piece},
};
use crate::listener::Request;

/// Longest number that is taken.
const NUMBER_BYTES: u64 = 12;

/// The countdowns of a program's threads.
#[derive(Debug, Default)]
pub(super) struct Failing {
    /// By thread; none is 0.
    countdowns: HashMap<u32, u32>,
}

impl Failing {
    fn get(&self, tid: u32) -> u32 {
        self.countdowns.get(&tid).copied().unwrap_or(0)
    }

    fn set(&mut self, tid: u32, countdown: u32) {
        match countdown {
            0 => self.countdowns.remove(&tid),
            _ => self.countdowns.insert(tid, countdown),
        };
    }

    /// A thread is gone.
    pub(super) fn ended(&mut self, tid: i32) {
        self.set(tid.cast_unsigned(), 0);
    }

    /// Reads or writes the file of thread `tid`. As in the kernel, a write is one number wherever it
    /// is written to.
    pub(super) fn transfer(
        &mut self,
        process: &Process,
        tid: u32,
        direction: Direction,
        piece: &Piece,
        start: u64,
    ) -> Result<u64, Errno> {
        match direction {
            Direction::Read => {
                let text = format!("{}\n", self.get(tid));
                let start = usize::try_from(start).unwrap_or(usize::MAX);
                let rest = text.as_bytes().get(start..).unwrap_or_default();
                let len = usize::try_from(piece.len).map_or(rest.len(), |n| n.min(rest.len()));
                let rest = rest.get(..len).unwrap_or_default();
                process.write(piece.address, rest)?;
                Ok(rest.len() as u64)
            }
            Direction::Write => {
                let mut text = vec![0; piece.len.min(NUMBER_BYTES) as usize];
                process.read(piece.address, &mut text)?;
                self.set(tid, number(&text).ok_or(Errno::EINVAL)?);
                Ok(piece.len)
            }
        }
    }
}

/// A number, with or without the end of a line.
fn number(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?;
    text.strip_suffix('\n').unwrap_or(text).parse().ok()
}

/// `TID` of `/proc/self/task/TID/fail-nth`, or 0 for the thread's own file.
fn thread_of(path: &[u8]) -> Option<u32> {
    let path = std::str::from_utf8(path).ok()?;
    if path == "/proc/thread-self/fail-nth" {
        return Some(0);
    }
    let rest = path.strip_prefix("/proc/self/task/")?;
    rest.strip_suffix("/fail-nth")?.parse().ok()
}

impl Server {
    /// Answers a request while the countdown of its thread runs.
    pub(super) fn with_failing(&mut self, request: &Request) -> Outcome {
        let armed = self.failing.get(request.tid);
        if armed == 0 {
            return self.outcome(request);
        }
        let (outcome, left) = failpoint::counting_down(armed, || self.outcome(request));
        // Otherwise what the request itself has set stands.
        if left != armed {
            self.failing.set(request.tid, left);
        }
        outcome
    }

    /// The file, if `path` names one of the caller's threads and this machine has such files.
    pub(super) fn open_fail_nth(
        &mut self,
        caller: u32,
        path: &[u8],
    ) -> Result<Option<OwnedFd>, Errno> {
        if !self.view.injects_faults() {
            return Ok(None);
        }
        let Some(tid) = thread_of(path) else {
            return Ok(None);
        };
        let tid = if tid == 0 { caller } else { tid };
        if !Path::new(&format!("/proc/{caller}/task/{tid}")).exists() {
            return Err(Errno::ENOENT);
        }
        let file = self.files.create_fail_nth(tid);
        self.count_open_files();
        file.map(Some).map_err(|_: io::Error| Errno::ENOMEM)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_threads_are_recognised() {
        assert_eq!(thread_of(b"/proc/self/task/7/fail-nth"), Some(7));
        assert_eq!(thread_of(b"/proc/thread-self/fail-nth"), Some(0));
        assert_eq!(thread_of(b"/proc/self/task/7/stat"), None);
        assert_eq!(thread_of(b"/proc/self/task//fail-nth"), None);
        assert_eq!(thread_of(b"/dev/iommu"), None);
    }

    #[test]
    fn a_number_is_all_that_can_be_written() {
        assert_eq!(number(b"17"), Some(17));
        assert_eq!(number(b"0\n"), Some(0));
        assert_eq!(number(b""), None);
        assert_eq!(number(b"-1"), None);
        assert_eq!(number(b"1 2"), None);
    }
}
