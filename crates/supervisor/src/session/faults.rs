//! Allocations that a program makes fail: `/proc/self/task/TID/fail-nth`, as a kernel with fault
//! injection has it.
//!
//! What is written there is a countdown over the allocations that the object model makes for the
//! requests of that thread; what is read is what is left. 0 means that it has run out, so that one
//! of them failed. Only where the machine says so: elsewhere the file is the kernel's, which has
//! none.

use std::{collections::HashMap, path::Path};

use ioasid_host::Process;
use ioasid_uapi::{CallError, error::FileError, memory};

use super::pieces::Piece;
use crate::calls::call::Direction;

/// Longest number that is taken.
const NUMBER_BYTES: u64 = 12;

/// The countdowns of a program's threads.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    /// By thread; none is 0.
    countdowns: HashMap<u32, u32>,
}

impl Faults {
    /// What is left of the countdown of thread `tid`; 0 if none runs.
    pub(crate) fn get(&self, tid: u32) -> u32 {
        self.countdowns.get(&tid).copied().unwrap_or(0)
    }

    pub(crate) fn set(&mut self, tid: u32, countdown: u32) {
        match countdown {
            0 => self.countdowns.remove(&tid),
            _ => self.countdowns.insert(tid, countdown),
        };
    }

    /// A thread is gone.
    pub(crate) fn ended(&mut self, tid: i32) {
        self.set(tid.cast_unsigned(), 0);
    }

    /// Reads or writes the file of thread `tid`. As in the kernel, a write is one number wherever
    /// it is written to.
    pub(crate) fn transfer(
        &mut self,
        process: &Process,
        tid: u32,
        direction: Direction,
        piece: &Piece,
        start: u64,
    ) -> Result<u64, CallError> {
        match direction {
            Direction::Read => {
                let text = format!("{}\n", self.get(tid));
                let start = usize::try_from(start).unwrap_or(usize::MAX);
                let rest = text.as_bytes().get(start..).unwrap_or_default();
                let len = usize::try_from(piece.len).map_or(rest.len(), |n| n.min(rest.len()));
                let rest = rest.get(..len).unwrap_or_default();
                memory::write(process, piece.address, rest)?;
                Ok(rest.len() as u64)
            }
            Direction::Write => {
                let mut text = vec![0; piece.len.min(NUMBER_BYTES) as usize];
                memory::read(process, piece.address, &mut text)?;
                self.set(
                    tid,
                    number(&text).ok_or(FileError::BadText {
                        offset: start,
                        len: piece.len,
                    })?,
                );
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

/// The thread whose file `path` names for `caller`.
///
/// # Errors
/// ENOENT if it is none of the caller's.
pub(crate) fn file_at(caller: u32, path: &[u8]) -> Result<Option<u32>, CallError> {
    let Some(tid) = thread_of(path) else {
        return Ok(None);
    };
    let tid = if tid == 0 { caller } else { tid };
    match Path::new(&format!("/proc/{caller}/task/{tid}")).exists() {
        true => Ok(Some(tid)),
        false => Err(FileError::NoThread { tid }.into()),
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
