//! A program's `/dev` and `/sys` follow the machine.
//!
//! The program may have put anything in the place of an entry, so nothing is followed on the way to
//! it: no link, and no other mount.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
};

use rustix::{
    fs::{
        AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, chmod, fchmod, fstat, ftruncate,
        mkdirat, openat, openat2, symlinkat, unlinkat,
    },
    io::Errno,
};

use crate::{
    view::{SysfsFile, SysfsKind},
    wire::{Description, NodeName},
};

/// The nodes of devices and groups, by path below `/dev`.
pub(crate) fn nodes(description: &Description) -> BTreeMap<String, NodeName> {
    let devices = description.nodes.iter().map(|name| {
        let node = NodeName::Device(name.clone());
        (format!("vfio/devices/{name}"), node)
    });
    let groups = description.groups.iter();
    let groups = groups.map(|group| (format!("vfio/{group}"), NodeName::Group(*group)));
    devices.chain(groups).collect()
}

/// Brings `/sys` up to date, but for the bytes of the files `live`, which are written as they
/// change.
pub(crate) fn update_sys(
    sys: &OwnedFd,
    old: &Description,
    new: &Description,
    live: &BTreeSet<String>,
) {
    let by_path = |description: &Description| -> BTreeMap<String, SysfsKind> {
        let entries = description.sysfs.iter();
        let mut all: BTreeMap<_, _> = entries
            .map(|entry| (entry.path.clone(), entry.kind.clone()))
            .collect();
        // Parents that are not announced come and go with their children.
        for path in all.keys().cloned().collect::<Vec<_>>() {
            let mut path = path.as_str();
            while let Some((parent, _)) = path.rsplit_once('/') {
                all.entry(parent.to_owned()).or_insert(SysfsKind::Dir);
                path = parent;
            }
        }
        all
    };
    let (old, new) = (by_path(old), by_path(new));
    // Children before their directory, and the other way round.
    for (path, kind) in old.iter().rev() {
        let same_kind = new.get(path).is_some_and(|now| match (kind, now) {
            (SysfsKind::File(_), SysfsKind::File(_)) => true,
            (kind, now) => kind == now,
        });
        if !same_kind {
            let flags = match kind {
                SysfsKind::Dir => AtFlags::REMOVEDIR,
                SysfsKind::File(_) | SysfsKind::Link(_) => AtFlags::empty(),
            };
            report(path, remove(sys, path, flags));
        }
    }
    for (path, kind) in &new {
        let result = match (old.get(path), kind) {
            (Some(before), now) if before == now => continue,
            (Some(SysfsKind::File(_)), SysfsKind::File(_)) if live.contains(path) => continue,
            (Some(SysfsKind::File(_)), SysfsKind::File(file)) => rewrite(sys, path, &file.bytes),
            (_, SysfsKind::File(file)) => create(sys, path, file),
            (_, SysfsKind::Dir) => parent(sys, path)
                .and_then(|(dir, name)| Ok(mkdirat(dir, name, Mode::from_raw_mode(0o755))?)),
            (_, SysfsKind::Link(target)) => {
                parent(sys, path).and_then(|(dir, name)| Ok(symlinkat(target, dir, name)?))
            }
        };
        report(path, result);
    }
}

pub(crate) fn report(path: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(path, %error, "an entry cannot be brought up to date");
    }
}

/// The directory of a path below `root`, and the last name.
pub(crate) fn parent<'a>(root: &OwnedFd, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
    let (directory, name) = path.rsplit_once('/').unwrap_or((".", path));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat2(
        root.as_fd(),
        directory,
        flags,
        Mode::empty(),
        NOTHING_FOLLOWED,
    )?;
    Ok((directory, name))
}

/// Nothing that the program has put in the way is followed.
const NOTHING_FOLLOWED: ResolveFlags = ResolveFlags::NO_SYMLINKS
    .union(ResolveFlags::NO_XDEV)
    .union(ResolveFlags::BENEATH);

pub(crate) fn remove(root: &OwnedFd, path: &str, flags: AtFlags) -> io::Result<()> {
    let (directory, name) = parent(root, path)?;
    match unlinkat(directory, name, flags) {
        // Something else is in it: the host's, or the program's.
        Err(Errno::NOTEMPTY) => Ok(()),
        other => Ok(other?),
    }
}

/// Makes a file.
fn create(root: &OwnedFd, path: &str, entry: &SysfsFile) -> io::Result<()> {
    let (directory, name) = parent(root, path)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, Mode::RUSR | Mode::WUSR)?;
    write(&file, &entry.bytes)?;
    if entry.size > entry.bytes.len() as u64 {
        ftruncate(&file, entry.size)?;
    }
    // Whatever the umask says.
    Ok(fchmod(&file, Mode::from_raw_mode(entry.mode.into()))?)
}

fn rewrite(root: &OwnedFd, path: &str, bytes: &[u8]) -> io::Result<()> {
    let file = open_to_write(root, path, true)?;
    write(&file, bytes)
}

/// Opens an entry's file to write it, and empties it if `truncate` is set. One that can be read
/// alone is made writable for that moment, which its owner may do.
pub(crate) fn open_to_write(root: &OwnedFd, path: &str, truncate: bool) -> io::Result<OwnedFd> {
    let mut flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if truncate {
        flags |= OFlags::TRUNC;
    }
    match openat2(root.as_fd(), path, flags, Mode::empty(), NOTHING_FOLLOWED) {
        Err(Errno::ACCESS) => {}
        other => return Ok(other?),
    }
    let place = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = openat2(root.as_fd(), path, place, Mode::empty(), NOTHING_FOLLOWED)?;
    let found = fstat(&place)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS.into());
    }
    // This very file, whatever the path means meanwhile.
    let again = format!("/proc/self/fd/{}", place.as_raw_fd());
    let mode = Mode::from_raw_mode(found.st_mode);
    chmod(&again, mode | Mode::WUSR)?;
    let file = openat(CWD, &again, flags - OFlags::NOFOLLOW, Mode::empty());
    chmod(&again, mode)?;
    Ok(file?)
}

fn write(file: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let done = rustix::io::write(file, rest)?;
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(())
}
