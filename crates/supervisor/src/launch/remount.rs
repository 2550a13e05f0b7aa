//! A sysfs that a program mounts on `/sys`, as `ip netns exec` does.
//!
//! The session answers that `mount` by a process of its own that enters the program's namespaces,
//! mounts what was asked for, and puts the machine's devices over it as at the start.

use std::{
    ffi::OsString,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::{Command, ExitCode, Stdio},
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno,
    mount::{MountFlags, mount},
    process::{chroot, fchdir},
    thread::move_into_link_name_space,
};
use serde::{Deserialize, Serialize};

use super::{
    dev::cover,
    error::LaunchError,
    sysfs,
    words::{EXIT_FAILED, REMOUNT, VERB, descriptor},
};
use crate::{
    system::process::inherit,
    view::SysfsEntry,
    wire::{Channel, REPLY_BYTES, REQUEST_BYTES, WireError},
};

/// What is to be mounted, and for which thread.
#[derive(Debug, Serialize, Deserialize)]
struct Order {
    tid: u32,
    source: String,
    flags: u32,
    entries: Vec<SysfsEntry>,
}

/// How it went.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Outcome {
    /// The mount failed with this errno, and nothing was done.
    Refused(i32),
    /// The sysfs is there and the machine's devices are not, for this reason.
    Bare(String),
    /// Both are; the device number is that of the machine's part.
    Done(u64),
}

/// Mounts a sysfs on `/sys` for the thread `tid`, as a call of its would, with `entries` in it.
/// Returns when that is done.
///
/// # Errors
/// If the process that does it cannot be started or breaks off.
pub(crate) fn mount_sysfs(
    tid: u32,
    source: String,
    flags: u32,
    entries: &[SysfsEntry],
) -> Result<Outcome, WireError> {
    let (ours, theirs) = UnixStream::pair()?;
    let mut command = Command::new("/proc/self/exe");
    command
        .args([VERB, REMOUNT, &theirs.as_raw_fd().to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    inherit(&mut command, OwnedFd::from(theirs));
    let mut child = command.spawn()?;
    // The command keeps the other end open.
    drop(command);
    let mut channel = Channel::new(ours);
    let order = Order {
        tid,
        source,
        flags,
        entries: entries.to_vec(),
    };
    let sent = channel.send(&order, None);
    let outcome = sent.and_then(|()| channel.receive(REQUEST_BYTES));
    drop(channel);
    child.wait()?;
    outcome
}

/// The process that does it: `word` is the descriptor of the socket.
pub(crate) fn main(word: Option<OsString>) -> ExitCode {
    let Ok(socket) = descriptor(word) else {
        return ExitCode::from(EXIT_FAILED);
    };
    let mut channel = Channel::new(UnixStream::from(socket));
    let answered = channel.receive(REPLY_BYTES).and_then(|order: Order| {
        let outcome = match enter(order.tid).and_then(|()| place(&order)) {
            Ok(()) => over(&order.entries),
            Err(errno) => Outcome::Refused(errno.raw_os_error()),
        };
        channel.send(&outcome, None)
    });
    match answered {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::from(EXIT_FAILED),
    }
}

/// Enters the namespaces and the root directory of a thread.
fn enter(tid: u32) -> Result<(), Errno> {
    let open = |path: String, flags| openat(CWD, path, flags | OFlags::CLOEXEC, Mode::empty());
    let root = open(
        format!("/proc/{tid}/root"),
        OFlags::PATH | OFlags::DIRECTORY,
    )?;
    let mut spaces = Vec::new();
    // The user namespace first: it gives the right to the others.
    for name in ["user", "mnt", "net"] {
        let theirs = open(format!("/proc/{tid}/ns/{name}"), OFlags::RDONLY)?;
        let own = open(format!("/proc/self/ns/{name}"), OFlags::RDONLY)?;
        let [a, b] = [rustix::fs::fstat(&theirs)?, rustix::fs::fstat(&own)?];
        if a.st_ino != b.st_ino {
            spaces.push(theirs);
        }
    }
    for space in &spaces {
        move_into_link_name_space(space.as_fd(), None)?;
    }
    fchdir(&root)?;
    chroot(".")
}

fn place(order: &Order) -> Result<(), Errno> {
    let flags = MountFlags::from_bits_retain(order.flags);
    mount(order.source.as_str(), "/sys", "sysfs", flags, None)
}

fn over(entries: &[SysfsEntry]) -> Outcome {
    // By the working directory: this process has no `/proc` of its own there.
    let covered = cover(Path::new("/sys")).and_then(|host| host.enter());
    let filled = covered
        .map_err(LaunchError::Covered)
        .and_then(|()| sysfs::fill(entries));
    match filled {
        Ok(device) => Outcome::Done(device),
        // The process that asked is another one: it gets the sentence.
        Err(error) => Outcome::Bare(error.to_string()),
    }
}
