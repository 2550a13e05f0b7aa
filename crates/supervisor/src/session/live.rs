//! Devices that come and go while a program runs: its `/dev` and `/sys` follow the machine.
//!
//! A change is brought in before the program's next call that the session is asked about, which a new
//! process always makes. The program may have put anything in the place of our entries, so nothing is
//! followed on the way to them: no link, and no other mount.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd, OwnedFd},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, mkdirat, openat, openat2, symlinkat, unlinkat},
    io::Errno,
};

use super::{Server, overlay::Overlay};
use crate::{
    placeholder,
    run::describe,
    view::{MachineView, SysfsEntry, SysfsKind},
    wire::{Description, NodeName, Placeholder},
};

/// What a program has been shown.
#[derive(Debug)]
pub(super) struct Shown {
    generation: u64,
    description: Description,
    attributes: Vec<String>,
}

impl Shown {
    /// What a program of `vm` finds when it starts.
    pub(super) fn new(view: &dyn MachineView, vm: Option<&str>) -> Self {
        // A change meanwhile is brought in once more.
        let generation = view.generation();
        Shown {
            generation,
            description: describe(view, vm),
            attributes: view.attributes(vm),
        }
    }

    /// What is added to `/sys`.
    pub(super) fn sysfs(&self) -> &[SysfsEntry] {
        &self.description.sysfs
    }

    /// Attributes that can be written, below `/sys`.
    pub(super) fn attributes(&self) -> &[String] {
        &self.attributes
    }
}

/// `/dev` or `/sys` of a process.
pub(super) fn root(tid: u32, name: &str) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, format!("/proc/{tid}/root"), flags, Mode::empty())?;
    let found = openat2(root, name, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    Ok(found)
}

impl Server {
    /// Brings in what has changed since the last time.
    pub(super) fn follow_changes(&mut self, tid: u32) {
        if self.view.generation() == self.shown.generation {
            return;
        }
        let new = Shown::new(&*self.view, self.shared.vm.as_deref());
        let old = std::mem::replace(&mut self.shown, new);
        let roots = match &self.overlay {
            Some(overlay) => scratch(overlay),
            None => root(tid, "dev").and_then(|dev| Ok((dev, root(tid, "sys")?))),
        };
        let (dev, sys) = match roots {
            Ok(roots) => roots,
            Err(error) => {
                tracing::debug!(%error, "a program's /dev and /sys cannot be brought up to date");
                return;
            }
        };
        self.update_nodes(&dev, &old.description);
        update_sys(&sys, &old.description, &self.shown.description);
        if let Some(overlay) = &mut self.overlay
            && let Err(error) = overlay.replan(&self.shown.description)
        {
            tracing::warn!(%error, "the machine describes what cannot be shown");
        }
    }

    fn update_nodes(&mut self, dev: &OwnedFd, old: &Description) {
        let (old, new) = (nodes(old), nodes(&self.shown.description));
        for (path, node) in &old {
            if !new.contains_key(path) {
                let gone = |placeholder: &Placeholder| placeholder.node == *node;
                self.placeholders.retain(|known| !gone(known));
                report(path, remove(dev, path, AtFlags::empty()));
            }
        }
        for (path, node) in new {
            if !old.contains_key(&path) {
                let made = parent(dev, &path)
                    .and_then(|(directory, name)| placeholder::make(directory.as_fd(), name));
                match made {
                    Ok((dev, ino)) => self.placeholders.push(Placeholder { dev, ino, node }),
                    Err(error) => report(&path, Err(error)),
                }
            }
        }
    }
}

/// `/dev` and `/sys` of a program without namespaces.
fn scratch(overlay: &Overlay) -> io::Result<(OwnedFd, OwnedFd)> {
    let open = |path: &[u8]| {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(CWD, overlay.in_scratch(path), flags, Mode::empty())
    };
    Ok((open(b"/dev")?, open(b"/sys")?))
}

/// The nodes of devices and groups, by path below `/dev`.
fn nodes(description: &Description) -> BTreeMap<String, NodeName> {
    let devices = description.nodes.iter().map(|name| {
        let node = NodeName::Device(name.clone());
        (format!("vfio/devices/{name}"), node)
    });
    let groups = description.groups.iter();
    let groups = groups.map(|group| (format!("vfio/{group}"), NodeName::Group(*group)));
    devices.chain(groups).collect()
}

fn update_sys(sys: &OwnedFd, old: &Description, new: &Description) {
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
            (Some(SysfsKind::File(_)), SysfsKind::File(bytes)) => rewrite(sys, path, bytes),
            (_, SysfsKind::File(bytes)) => create(sys, path, bytes, 0o644).map(drop),
            (_, SysfsKind::Dir) => parent(sys, path)
                .and_then(|(dir, name)| Ok(mkdirat(dir, name, Mode::from_raw_mode(0o755))?)),
            (_, SysfsKind::Link(target)) => {
                parent(sys, path).and_then(|(dir, name)| Ok(symlinkat(target, dir, name)?))
            }
        };
        report(path, result);
    }
}

fn report(path: &str, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(path, %error, "an entry cannot be brought up to date");
    }
}

/// The directory of a path below `root`, and the last name.
fn parent<'a>(root: &OwnedFd, path: &'a str) -> io::Result<(OwnedFd, &'a str)> {
    let (directory, name) = path.rsplit_once('/').unwrap_or((".", path));
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = openat2(root.as_fd(), directory, flags, Mode::empty(), OURS_ALONE)?;
    Ok((directory, name))
}

/// Nothing that the program has put in our way is followed.
const OURS_ALONE: ResolveFlags = ResolveFlags::NO_SYMLINKS
    .union(ResolveFlags::NO_XDEV)
    .union(ResolveFlags::BENEATH);

fn remove(root: &OwnedFd, path: &str, flags: AtFlags) -> io::Result<()> {
    let (directory, name) = parent(root, path)?;
    match unlinkat(directory, name, flags) {
        // Something else is in it: the host's, or the program's.
        Err(Errno::NOTEMPTY) => Ok(()),
        other => Ok(other?),
    }
}

/// Makes a file; gives its inode.
fn create(root: &OwnedFd, path: &str, bytes: &[u8], mode: u32) -> io::Result<(u64, u64)> {
    let (directory, name) = parent(root, path)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, Mode::from_raw_mode(mode))?;
    write(&file, bytes)?;
    // Whatever the umask says.
    rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    let stat = rustix::fs::fstat(&file)?;
    Ok((stat.st_dev, stat.st_ino))
}

fn rewrite(root: &OwnedFd, path: &str, bytes: &[u8]) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat2(root.as_fd(), path, flags, Mode::empty(), OURS_ALONE)?;
    write(&file, bytes)
}

fn write(file: &OwnedFd, bytes: &[u8]) -> io::Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        let done = rustix::io::write(file, rest)?;
        rest = rest.get(done..).unwrap_or_default();
    }
    Ok(())
}
