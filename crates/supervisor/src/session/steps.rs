//! What a call does with memory and descriptors of its program, noted for a trace.

use std::{
    mem,
    sync::{Mutex, MutexGuard, PoisonError},
};

use ioasid_trace::schema::{Bytes, Exchange, Hex};

/// The steps of the call that is under way. Pages of earlier calls add to it too.
#[derive(Debug, Default)]
pub(crate) struct Steps(Mutex<Vec<Exchange>>);

impl Steps {
    fn lock(&self) -> MutexGuard<'_, Vec<Exchange>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a step.
    pub(crate) fn add(&self, step: Exchange) {
        self.lock().push(step);
    }

    /// Notes that `bytes` were read at `at`, or that they could not be.
    pub(crate) fn read(&self, at: u64, bytes: &[u8], done: bool) {
        self.add(match done {
            true => Exchange::Read {
                at: Hex(at),
                bytes: bytes.into(),
            },
            false => Exchange::Unreadable {
                at: Hex(at),
                len: Hex(bytes.len() as u64),
            },
        });
    }

    /// Notes that `bytes` were written at `at`, or that they could not be.
    pub(crate) fn wrote(&self, at: u64, bytes: &[u8], done: bool) {
        self.add(match done {
            true => Exchange::Wrote {
                at: Hex(at),
                bytes: Bytes::from(bytes),
            },
            false => Exchange::Unwritable {
                at: Hex(at),
                len: Hex(bytes.len() as u64),
            },
        });
    }

    /// At most `most` bytes from `address` on, as the call has read them: [`image`] of the steps up to now.
    pub(crate) fn image(&self, address: u64, most: usize) -> Vec<u8> {
        image(&self.lock(), address, most, false)
    }

    /// Says which files the descriptors that were given lead to, in the order of giving.
    pub(crate) fn name_given(&self, files: impl IntoIterator<Item = u64>) {
        let mut steps = self.lock();
        let given = steps.iter_mut().filter_map(|step| match step {
            Exchange::Gave {
                fd: Some(_), file, ..
            } => Some(file),
            _ => None,
        });
        for (given, file) in given.zip(files) {
            *given = Some(file);
        }
    }

    /// A call begins, whose allocation number `failing` is to fail, if there is one.
    pub(crate) fn begin(&self, failing: u32) {
        let mut steps = self.lock();
        steps.clear();
        if failing > 0 {
            steps.push(Exchange::Failing {
                allocation: failing,
            });
        }
    }

    /// The call is made again from its beginning: nothing was done.
    pub(crate) fn again(&self) {
        self.lock()
            .retain(|step| matches!(step, Exchange::Failing { .. }));
    }

    /// Takes the steps of the call out.
    pub(crate) fn take(&self) -> Vec<Exchange> {
        mem::take(&mut self.lock())
    }
}

/// At most `most` bytes from `address` on, as a call has read them, and written if `written`.
pub(crate) fn image(steps: &[Exchange], address: u64, most: usize, written: bool) -> Vec<u8> {
    let mut image = Vec::new();
    for step in steps {
        let (at, bytes) = match step {
            Exchange::Read { at, bytes } => (at.0, bytes),
            Exchange::Wrote { at, bytes } if written => (at.0, bytes),
            _ => continue,
        };
        let start = at.checked_sub(address).map(usize::try_from);
        let Some(Ok(start)) =
            start.filter(|start| start.as_ref().is_ok_and(|start| *start <= image.len()))
        else {
            continue;
        };
        let end = (start + bytes.0.len()).min(most);
        image.resize(image.len().max(end), 0);
        if let Some(part) = image.get_mut(start..end) {
            part.copy_from_slice(bytes.0.get(..part.len()).unwrap_or_default());
        }
    }
    image
}
