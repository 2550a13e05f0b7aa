//! Devices that come and go while a program runs: its `/dev` and `/sys` follow the machine.
//!
//! A change is brought in before the program's next call that the session is asked about, which a new
//! process always makes. The program may have put anything in the place of our entries, so nothing is
//! followed on the way to them: no link, and no other mount.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
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

use super::{Server, overlay::Overlay};
use crate::{
    placeholder,
    run::describe,
    view::{MachineView, SysfsEntry, SysfsFile, SysfsKind},
    wire::{Description, NodeName, Placeholder},
};

/// What a program has been shown.
#[derive(Debug)]
pub(super) struct Shown {
    generation: u64,
    description: Description,
    /// The permissions of files below `/sys`, and whether a write to them does something. By the last
    /// name, so that nearly every path is known not to be one of them.
    files: HashMap<Vec<u8>, Vec<ShownFile>>,
}

/// A file that a program finds in `/sys`.
#[derive(Clone, Debug)]
pub(super) struct ShownFile {
    /// Below `/sys`.
    pub(super) path: String,
    /// Permissions.
    pub(super) mode: u16,
    /// A write is carried out.
    pub(super) is_built: bool,
}

impl Shown {
    /// What a program of `vm` finds when it starts.
    pub(super) fn new(view: &dyn MachineView, vm: Option<&str>) -> Self {
        // A change meanwhile is brought in once more.
        let generation = view.generation();
        let description = describe(view, vm);
        let built: BTreeSet<_> = view.attributes(vm).into_iter().collect();
        let mut files: HashMap<_, Vec<_>> = HashMap::new();
        for entry in &description.sysfs {
            if let SysfsKind::File(file) = &entry.kind {
                let name = entry.path.rsplit('/').next().unwrap_or_default();
                let shown = ShownFile {
                    path: entry.path.clone(),
                    mode: file.mode,
                    is_built: built.contains(&entry.path),
                };
                files.entry(name.into()).or_default().push(shown);
            }
        }
        Shown {
            generation,
            description,
            files,
        }
    }

    /// What is added to `/sys`.
    pub(super) fn sysfs(&self) -> &[SysfsEntry] {
        &self.description.sysfs
    }

    /// The files of ours below `/sys` whose last name is that of `path`.
    pub(super) fn files_named_as(&self, path: &[u8]) -> &[ShownFile] {
        let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        self.files.get(name).map_or(&[], Vec::as_slice)
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
        let live = self.view.live_files(self.shared.vm.as_deref());
        let live = live.iter().map(|file| file.path().to_owned()).collect();
        update_sys(&sys, &old.description, &self.shown.description, &live);
        self.attach_current_below(&sys);
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

    /// Finds the files that are kept current, before the program's first instruction.
    pub(super) fn attach_current(&mut self, tid: u32) {
        if self.current.is_attached() {
            return;
        }
        let sys = match &self.overlay {
            Some(overlay) => scratch(overlay).map(|(_, sys)| sys),
            None => root(tid, "sys"),
        };
        match sys {
            Ok(sys) => self.attach_current_below(&sys),
            Err(error) => {
                tracing::debug!(%error, "a program's /sys cannot be kept current");
                self.current.give_up();
            }
        }
    }

    /// Finds them anew, as the machine has changed.
    fn attach_current_below(&mut self, sys: &OwnedFd) {
        let files = self.view.live_files(self.shared.vm.as_deref());
        let open = |sys: &OwnedFd, path: &str| open_to_write(sys, path, false);
        self.current.attach(sys, files, self.shown.sysfs(), open);
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

/// Brings `/sys` up to date, but for the bytes of the files `live`, which are written as they change.
fn update_sys(sys: &OwnedFd, old: &Description, new: &Description, live: &BTreeSet<String>) {
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

/// Opens a file of ours to write it, and empties it if `truncate` is set. One that can be read alone is made
/// writable for that moment, which its owner may do.
fn open_to_write(root: &OwnedFd, path: &str, truncate: bool) -> io::Result<OwnedFd> {
    let mut flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if truncate {
        flags |= OFlags::TRUNC;
    }
    match openat2(root.as_fd(), path, flags, Mode::empty(), OURS_ALONE) {
        Err(Errno::ACCESS) => {}
        other => return Ok(other?),
    }
    let place = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let place = openat2(root.as_fd(), path, place, Mode::empty(), OURS_ALONE)?;
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
