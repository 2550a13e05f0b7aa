//! `open`, `openat` and `openat2`.

use std::{
    ffi::CString,
    os::fd::{AsFd, OwnedFd},
};

use ioasid_uapi::{CallError, error::FileError};
use rustix::{
    fs::{CWD, Mode, OFlags, openat},
    io::Errno as HostErrno,
};

use super::status;
use crate::{
    calls::call::PathArgument,
    session::{
        answer::{Answer, Outcome, Pending},
        descriptors::attribute::AttributeFile,
        faults,
        paths::{lookup, overlay::Entry},
        state::State,
    },
    wire::NodeName,
};

/// Flags of an open that say how a file of the machine is opened; those that make files are not
/// among them.
const OPEN_FLAGS: u64 = (libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_CLOEXEC
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW
    | libc::O_NONBLOCK
    | libc::O_PATH
    | libc::O_TRUNC) as u64;

/// Which users may write a file, and which may read it.
const WRITABLE: u16 = 0o222;
const READABLE: u16 = 0o444;

/// `openat2`.
pub(crate) fn open_how(
    state: &mut State,
    call: Pending<'_>,
    (dirfd, path): (i32, u64),
    (how, size): (u64, u64),
) -> Outcome {
    // struct open_how: flags, mode, resolve.
    let mut words = [[0; 8]; 3];
    if size < size_of_val(&words) as u64 {
        return Ok(Answer::Proceed);
    }
    call.read(how, words.as_flattened_mut())?;
    let [flags, _, resolve] = words.map(u64::from_ne_bytes);
    if resolve != 0 && state.paths.overlay().is_none() {
        // The kernel keeps its own rules and opens the placeholder, which is bound late.
        return Ok(Answer::Proceed);
    }
    open(
        state,
        call,
        PathArgument::of_open(dirfd, path, flags),
        flags,
    )
}

/// `open` and `openat`.
pub(crate) fn open(
    state: &mut State,
    call: Pending<'_>,
    argument: PathArgument,
    flags: u64,
) -> Outcome {
    let has = |flag: i32| flags & flag as u64 != 0;
    let trapped = state.paths.overlay().is_some();
    let never_a_node =
        has(libc::O_PATH) || has(libc::O_DIRECTORY) || (has(libc::O_CREAT) && has(libc::O_EXCL));
    if never_a_node && !trapped {
        return Ok(Answer::Proceed);
    }
    let Some(path) = lookup::read_path(call.process, argument.address) else {
        return Ok(Answer::Proceed);
    };
    let cloexec = has(libc::O_CLOEXEC);
    let access = flags & libc::O_ACCMODE as u64;
    let reads = access == libc::O_RDONLY as u64;
    if reads
        && state.machine.view.shows_locked_memory()
        && let Some(answer) = status::open(state, call, &path, cloexec)
    {
        return Ok(answer);
    }
    if let Some(file) = open_fail_nth(state, call, &path)? {
        return state.descriptors.hand_over(call, file.as_fd(), 0, cloexec);
    }
    let both = access == libc::O_RDWR as u64;
    if !reads && let Some(file) = open_attribute(state, call, &path, argument, both)? {
        return state.descriptors.hand_over(call, file.as_fd(), 0, cloexec);
    }
    let node = if trapped && lookup::descriptor_path(path.as_bytes()).is_none() {
        open_path(state, call, &path, argument, flags)
    } else if never_a_node {
        Err(Answer::Proceed)
    } else {
        node_of(state, call, &path, argument, has(libc::O_CREAT))?
    };
    let node = match node {
        Ok(node) => node,
        Err(answer) => return Ok(answer),
    };
    let file = state.open_node(node, OFlags::from_bits_retain(flags as u32))?;
    state.descriptors.hand_over(call, file.as_fd(), 0, cloexec)
}

/// Nothing is at `path`, and the kernel would say so; what it cannot say is which devices there are.
///
/// # Errors
/// If `path` would be a VFIO node.
fn refuse_missing(state: &State, path: &CString) -> Result<(), FileError> {
    let path = path.to_string_lossy();
    let is_node = path
        .strip_prefix("/dev/vfio/")
        .map(|name| name.strip_prefix("devices/vfio").unwrap_or(name))
        .is_some_and(|number| number.parse::<u32>().is_ok());
    if !is_node {
        return Ok(());
    }
    let free = state.machine.free_nodes();
    Err(FileError::NoSuchNode {
        path: path.into_owned(),
        free: match free.is_empty() {
            true => "none".to_owned(),
            false => free.join(", "),
        },
    })
}

/// The node that a path leads to by way of the kernel, or how the call ends, which makes a file that is not
/// there if it `creates` one.
fn node_of(
    state: &State,
    call: Pending<'_>,
    path: &CString,
    PathArgument { dirfd, follow, .. }: PathArgument,
    creates: bool,
) -> Result<Result<NodeName, Answer>, CallError> {
    let identity = match lookup::look_up(call.process, call.tid, dirfd, path, follow) {
        Ok(identity) => identity,
        Err(error) => {
            if error == HostErrno::NOENT && !creates {
                refuse_missing(state, path)?;
            }
            return Ok(Err(Answer::Proceed));
        }
    };
    if let Some(node) = state.paths.node_at(identity) {
        return Ok(Ok(node.clone()));
    }
    match state.descriptors.files.get(identity) {
        // A file of the machine that is opened again through /proc is a new open of its node.
        Some(file) => Ok(Ok(file
            .node
            .as_ref()
            .ok_or(FileError::NoNode)?
            .name
            .clone())),
        None => Ok(Err(Answer::Proceed)),
    }
}

/// The node that is to be opened, or how the call ends, for a program without namespaces.
fn open_path(
    state: &State,
    call: Pending<'_>,
    path: &CString,
    argument: PathArgument,
    flags: u64,
) -> Result<NodeName, Answer> {
    let has = |flag: i32| flags & flag as u64 != 0;
    if let Some(directory) = state.paths.merged_directory(call.tid, path, argument) {
        return Err(state
            .descriptors
            .give(call, directory.as_fd(), has(libc::O_CLOEXEC)));
    }
    let found = state.paths.find(call.tid, path, argument)?;
    if let Entry::Node(node) = found.entry
        && !has(libc::O_PATH)
        && !has(libc::O_DIRECTORY)
    {
        if has(libc::O_CREAT) && has(libc::O_EXCL) {
            return Err(Answer::Fails(HostErrno::EXIST));
        }
        return Ok(node.clone());
    }
    if has(libc::O_CREAT) && has(libc::O_EXCL) {
        return Err(Answer::Fails(HostErrno::EXIST));
    }
    let cloexec = has(libc::O_CLOEXEC);
    if matches!(found.entry, Entry::Link(_)) && has(libc::O_PATH) && !has(libc::O_DIRECTORY) {
        let Ok(file) = found.overlay.open_link(&found.path) else {
            return Err(Answer::Fails(HostErrno::NOMEM));
        };
        // On a reserved number `fstat` is asked about.
        let given = state.descriptors.hand_over(call, file.as_fd(), 0, cloexec);
        return Err(given.unwrap_or(Answer::Fails(HostErrno::MFILE)));
    }
    let mut flags = (flags & OPEN_FLAGS) | (libc::O_NOFOLLOW | libc::O_CLOEXEC) as u64;
    if has(libc::O_PATH) {
        // The kernel gives a process no descriptor of that kind (`seccomp_notify_addfd`).
        flags &= !(libc::O_PATH | libc::O_ACCMODE) as u64;
    }
    let flags = OFlags::from_bits_retain(flags as u32);
    let file = found.overlay.in_scratch(&found.path);
    let file = openat(CWD, file, flags, Mode::empty()).map_err(Answer::Fails)?;
    Err(state.descriptors.give(call, file.as_fd(), cloexec))
}

/// `fail-nth`, if `path` names that of one of the caller's threads and this machine has such files.
fn open_fail_nth(
    state: &mut State,
    call: Pending<'_>,
    path: &CString,
) -> Result<Option<OwnedFd>, CallError> {
    if !state.machine.view.injects_faults() {
        return Ok(None);
    }
    let Some(tid) = faults::file_at(call.tid, path.as_bytes())? else {
        return Ok(None);
    };
    let file = state.descriptors.files.create_fail_nth(tid);
    state.descriptors.count();
    Ok(file.map(Some).map_err(|_| FileError::NoResource)?)
}

/// The file that a program gets for the attribute that `path` leads to, if it does; `reads` says
/// whether it wants to read it too. What can be opened is what can be done, for root as well
/// (`kernfs_fop_open`, fs/kernfs/file.c).
fn open_attribute(
    state: &mut State,
    call: Pending<'_>,
    path: &CString,
    argument: PathArgument,
    reads: bool,
) -> Result<Option<OwnedFd>, CallError> {
    let Some(found) = state.paths.attribute_at(call, path, argument) else {
        return Ok(None);
    };
    if found.mode & WRITABLE == 0 || (reads && found.mode & READABLE == 0) {
        let path = found.path;
        return Err(FileError::AttributeMode { path }.into());
    }
    if !found.is_built {
        let path = found.path;
        return Err(FileError::AttributeNotBuilt { path }.into());
    }
    let files = &mut state.descriptors.files;
    let made = AttributeFile::new(&state.machine, found.path, reads);
    let made = made.and_then(|(file, program)| {
        files.add_attribute(file, &program)?;
        Ok(program)
    });
    state.descriptors.count();
    Ok(made.map(Some).map_err(|_| FileError::NoResource)?)
}
