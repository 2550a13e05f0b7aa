//! `access`, `readlink` and extended attributes by path, for a program that has no namespace with
//! the machine's entries.
//!
//! What a path means is found in [`crate::session::paths`]. A path of the host's is left to the
//! kernel, and so is its errno.

use ioasid_host::Process;
use ioasid_uapi::memory;
use rustix::{
    fs::{Access, AtFlags, CWD, accessat},
    io::Errno,
};

use crate::{
    calls::call::PathArgument,
    session::{
        answer::{Answer, Outcome, Pending},
        paths::{Found, Paths, lookup, overlay::Entry, proc::link_of},
    },
};

/// Longest target of a link that is handed over.
const MAX_TARGET: usize = 4096;

/// `access` and its variants.
pub(crate) fn access(
    paths: &Paths,
    call: Pending<'_>,
    argument: PathArgument,
    mode: u32,
) -> Outcome {
    let found = match paths.find_argument(call, argument) {
        Ok(found) => found,
        Err(answer) => return Ok(answer),
    };
    let access = Access::from_bits_retain(mode);
    Ok(
        match accessat(CWD, found.file(), access, AtFlags::empty()) {
            Ok(()) => Answer::Value(0),
            Err(errno) => Answer::Fails(errno),
        },
    )
}

/// `readlink` and `readlinkat`.
pub(crate) fn read_link(
    paths: &Paths,
    call: Pending<'_>,
    argument: PathArgument,
    (buffer, size): (u64, i32),
) -> Outcome {
    let Some(overlay) = paths.overlay() else {
        return Ok(Answer::Proceed);
    };
    let Some(text) = lookup::read_path(call.process, argument.address) else {
        return Ok(Answer::Proceed);
    };
    if let Some(fd) = lookup::descriptor_path(text.as_bytes()) {
        // The name of a file in the scratch directory is that of the entry.
        let link = link_of(call.tid, &format!("fd/{fd}"));
        return match link.and_then(|link| overlay.path_of(&link)) {
            Some(path) => copy_target(call.process, &path, buffer, size),
            None => Ok(Answer::Proceed),
        };
    }
    if text.is_empty() {
        return match paths.link_behind(call.tid, argument.dirfd) {
            Some((_, target)) => copy_target(call.process, target, buffer, size),
            None => Ok(Answer::Proceed),
        };
    }
    match paths.find(call.tid, &text, argument) {
        Ok(Found {
            entry: Entry::Link(target),
            ..
        }) => copy_target(call.process, target, buffer, size),
        Ok(_) => Ok(Answer::Fails(Errno::INVAL)),
        Err(answer) => Ok(answer),
    }
}

/// `getxattr` and `lgetxattr`: an entry of the machine has no extended attributes.
pub(crate) fn get_attribute(paths: &Paths, call: Pending<'_>, argument: PathArgument) -> Outcome {
    Ok(match paths.find_argument(call, argument) {
        Ok(_) => Answer::Fails(Errno::NODATA),
        Err(answer) => answer,
    })
}

/// `listxattr` and `llistxattr`.
pub(crate) fn list_attributes(paths: &Paths, call: Pending<'_>, argument: PathArgument) -> Outcome {
    Ok(match paths.find_argument(call, argument) {
        Ok(_) => Answer::Value(0),
        Err(answer) => answer,
    })
}

/// Hands over the target of a link, as much of it as there is room for.
fn copy_target(process: &Process, target: &[u8], buffer: u64, size: i32) -> Outcome {
    let Some(size) = usize::try_from(size).ok().filter(|size| *size > 0) else {
        return Ok(Answer::Fails(Errno::INVAL));
    };
    let len = target.len().min(size).min(MAX_TARGET);
    memory::write(process, buffer, target.get(..len).unwrap_or_default())?;
    Ok(Answer::Value(len as u64))
}
