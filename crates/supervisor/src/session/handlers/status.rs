//! `/proc/PID/status` with what a program has pinned and locked here.
//!
//! The kernel knows nothing of the machine's pins, and the self-test looks for them: so its open of
//! that file gets a copy in which the numbers of the machine's ledgers are added.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs,
    io::{self, Write},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    sync::Arc,
};

use rustix::fs::{MemfdFlags, Mode, OFlags, memfd_create};

use crate::session::{
    answer::{Answer, Pending},
    descriptors::object::Object,
    state::State,
};

/// Answers the open of a process's status; `None` if the path is another one.
pub(crate) fn open(
    state: &State,
    call: Pending<'_>,
    path: &CString,
    cloexec: bool,
) -> Option<Answer> {
    let process = process_of(path.as_bytes(), call.tid)?;
    // Another program's, or none: the kernel says so.
    let process = state.client.process(process).ok()?;
    let text = fs::read_to_string(format!("/proc/{}/status", process.id())).ok()?;
    let (mut pinned, mut locked) = (0, 0);
    let mut seen = BTreeSet::new();
    for file in state.descriptors.files.iter() {
        let context = match &file.object {
            Object::Iommufd(context) => Some(context),
            Object::Container(container) => Some(container.context()),
            _ => None,
        };
        if let Some(context) = context
            && seen.insert(Arc::as_ptr(context.ledger()))
        {
            pinned += context.ledger().pinned(process.number());
            locked += context.ledger().locked(process.number());
        }
    }
    let text = add(&text, "VmLck:", locked);
    let text = add(&text, "VmPin:", pinned);
    Some(match copy(&text) {
        Ok(file) => state.descriptors.give(call, file.as_fd(), cloexec),
        Err(error) => {
            let errno = rustix::io::Errno::from_io_error(&error);
            Answer::Fails(errno.unwrap_or(rustix::io::Errno::MFILE))
        }
    })
}

/// The process whose status lies at this path.
fn process_of(path: &[u8], tid: u32) -> Option<i32> {
    let path = std::str::from_utf8(path).ok()?;
    match path.strip_prefix("/proc/")?.strip_suffix("/status")? {
        "self" | "thread-self" => i32::try_from(tid).ok(),
        number => number.parse().ok(),
    }
}

/// The text with `bytes` more in the line called `name`, whose unit is kB.
fn add(text: &str, name: &str, bytes: u64) -> String {
    let line = |line: &str| {
        let old = line.strip_prefix(name).and_then(|values| {
            let value = values.split_whitespace().next()?;
            value.parse::<u64>().ok()
        });
        match old {
            Some(old) => format!("{name}\t{:8} kB\n", old.saturating_add(bytes >> 10)),
            None => format!("{line}\n"),
        }
    };
    text.lines().map(line).collect()
}

/// A file with this text, open for reading.
fn copy(text: &str) -> io::Result<OwnedFd> {
    let memfd = memfd_create("status", MemfdFlags::CLOEXEC)?;
    let mut memfd = fs::File::from(memfd);
    memfd.write_all(text.as_bytes())?;
    let path = format!("/proc/self/fd/{}", memfd.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_numbers_change() {
        let text = "Name:\tx\nVmLck:\t       0 kB\nVmPin:\t      12 kB\nVmHWM:\t    1234 kB\n";
        let changed = add(&add(text, "VmPin:", 8192), "VmLck:", 4096);
        let expected = "Name:\tx\nVmLck:\t       4 kB\nVmPin:\t      20 kB\nVmHWM:\t    1234 kB\n";
        assert_eq!(changed, expected);
        assert_eq!(add(text, "VmPin:", 0), text);
    }

    #[test]
    fn the_status_of_a_process_has_one_kind_of_name() {
        assert_eq!(process_of(b"/proc/self/status", 7), Some(7));
        assert_eq!(process_of(b"/proc/12/status", 7), Some(12));
        assert_eq!(process_of(b"/proc/12/stat", 7), None);
        assert_eq!(process_of(b"/proc/x/status", 7), None);
    }
}
