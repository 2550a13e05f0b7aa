//! `stat`, `fstat`, `newfstatat`, `statx` and `lstat`.

use ioasid_core::host::Caller;
use ioasid_host::Process;
use rustix::fs::{AtFlags, CWD, StatxFlags, statat};

use super::stat_layout::{Facts, stat_of, statx_of};
use crate::{
    calls::call::PathArgument,
    session::{
        answer::{Answer, Outcome, Pending, write_struct},
        paths::{Found, Paths, overlay::Entry},
        state::State,
    },
    wire::NodeName,
};

/// `fstat`.
pub(crate) fn stat(state: &mut State, call: Pending<'_>, fd: i32, buffer: u64) -> Outcome {
    let stat = facts(state, call.process, fd).map(Facts::stat);
    let of_link = || {
        let (link, _) = state.paths.link_behind(call.tid, fd)?;
        let stat = statat(CWD, link, AtFlags::SYMLINK_NOFOLLOW).ok()?;
        Some(stat_of(&stat))
    };
    let stat = stat.or_else(of_link);
    write_struct(
        call.process,
        stat.as_ref().map(|stat| &stat.bytes()[..]),
        buffer,
    )
}

/// `stat`, `lstat` and `newfstatat`; `empty_path` says whether an empty path means the descriptor.
pub(crate) fn stat_path(
    state: &mut State,
    call: Pending<'_>,
    (argument, empty_path): (PathArgument, bool),
    buffer: u64,
) -> Outcome {
    if empty_path && is_empty(call.process, argument.address) {
        return stat(state, call, argument.dirfd, buffer);
    }
    let paths = &state.paths;
    let found = match paths.find_argument(call, argument) {
        Ok(found) => found,
        Err(answer) => return Ok(answer),
    };
    let stat = match found.entry {
        Entry::Node(node) => facts_of(paths, &found, node).stat(),
        _ => match statat(CWD, found.file(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat_of(&stat),
            Err(errno) => return Ok(Answer::Fails(errno)),
        },
    };
    call.write(buffer, stat.bytes())?;
    Ok(Answer::Value(0))
}

/// `statx`: `mask` says what is wanted.
pub(crate) fn statx(
    state: &mut State,
    call: Pending<'_>,
    (argument, empty_path): (PathArgument, bool),
    mask: u32,
    buffer: u64,
) -> Outcome {
    if empty_path && is_empty(call.process, argument.address) {
        return statx_descriptor(state, call, argument.dirfd, buffer);
    }
    let paths = &state.paths;
    let found = match paths.find_argument(call, argument) {
        Ok(found) => found,
        Err(answer) => return Ok(answer),
    };
    let statx = match found.entry {
        Entry::Node(node) => facts_of(paths, &found, node).statx(),
        _ => {
            let mask = StatxFlags::from_bits_truncate(mask);
            match rustix::fs::statx(CWD, found.file(), AtFlags::SYMLINK_NOFOLLOW, mask) {
                Ok(statx) => statx_of(&statx),
                Err(errno) => return Ok(Answer::Fails(errno)),
            }
        }
    };
    call.write(buffer, statx.bytes())?;
    Ok(Answer::Value(0))
}

fn statx_descriptor(state: &mut State, call: Pending<'_>, fd: i32, buffer: u64) -> Outcome {
    let statx = facts(state, call.process, fd).map(Facts::statx);
    let of_link = || {
        let (link, _) = state.paths.link_behind(call.tid, fd)?;
        let all = StatxFlags::BASIC_STATS;
        let statx = rustix::fs::statx(CWD, link, AtFlags::SYMLINK_NOFOLLOW, all).ok()?;
        Some(statx_of(&statx))
    };
    let statx = statx.or_else(of_link);
    write_struct(
        call.process,
        statx.as_ref().map(|statx| &statx.bytes()[..]),
        buffer,
    )
}

/// What is known of the file of the machine behind a descriptor: `st_dev` and `st_ino` are the same
/// for every open of a node.
fn facts(state: &mut State, process: &Process, fd: i32) -> Option<Facts> {
    let identity = state.descriptors.identity(process, fd)?;
    let file = state.descriptors.files.get(identity)?;
    let Some(node) = &file.node else {
        return Some(Facts {
            place: identity,
            rdev: None,
        });
    };
    Some(Facts {
        place: state.paths.place_of(&node.name).unwrap_or((0, 0)),
        rdev: Some(node.rdev),
    })
}

fn facts_of(paths: &Paths, found: &Found<'_>, node: &NodeName) -> Facts {
    let place = statat(CWD, found.file(), AtFlags::SYMLINK_NOFOLLOW);
    Facts {
        place: place.map_or((0, 0), |stat| (stat.st_dev, stat.st_ino)),
        rdev: paths.rdev_of(node).or(Some((0, 0))),
    }
}

/// Whether the path at `address` is empty; none is, too.
fn is_empty(process: &Process, address: u64) -> bool {
    let mut first = [0];
    address == 0 || (process.read(address, &mut first).is_ok() && first == [0])
}
