//! Paths of the machine: what a program tree finds under `/dev` and `/sys`, and what a path leads
//! to.
//!
//! A program with namespaces has the entries there, and a path is looked up as the program would
//! ([`lookup`]). For a program without, each path is walked in a tree in which the machine's
//! entries lie over the host's ([`overlay`]). Either way the entries follow the machine while the
//! program runs: a change is brought in before the program's next call that the session is asked
//! about, which a new process always makes.

mod current;
pub(crate) mod lookup;
pub(crate) mod overlay;
pub(crate) mod proc;
pub(crate) mod shown;
mod update;

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::Arc,
};

use current::Current;
use ioasid_host::ProcessError;
use overlay::{Entry, Overlay, Place};
use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, openat, statat},
    io::Errno,
};
use shown::{Shown, ShownFile};
use update::{nodes, open_to_write, parent, remove, report, update_sys};

use super::{
    answer::{Answer, Pending},
    identity::Identity,
    machine::Machine,
    program::Program,
};
use crate::{
    calls::call::PathArgument,
    entries::placeholder,
    view::SysfsEntry,
    wire::{Description, Mode as ProgramMode, NodeName, Placeholder},
};

/// What a program tree finds under `/dev` and `/sys`.
#[derive(Debug)]
pub(crate) struct Paths {
    program: Arc<Program>,
    machine: Machine,
    placeholders: Vec<Placeholder>,
    /// The machine's `/dev` and `/sys`, if the program has no namespace with them.
    overlay: Option<Overlay>,
    /// Device numbers of the file systems of the machine's part of the programs' `/sys`, if they
    /// have one.
    sys: Vec<u64>,
    /// What the program has been shown of the machine.
    shown: Shown,
    /// What of it is kept current.
    current: Current,
}

/// An entry of the machine that a path leads to, for a program without namespaces.
pub(crate) struct Found<'a> {
    pub(crate) overlay: &'a Overlay,
    /// Its absolute path.
    pub(crate) path: Vec<u8>,
    pub(crate) entry: &'a Entry,
}

impl Paths {
    /// What the machine shows now, to a program of this mode.
    ///
    /// # Errors
    /// If an overlay cannot be made.
    pub(crate) fn new(
        program: &Arc<Program>,
        machine: &Machine,
        mode: ProgramMode,
    ) -> io::Result<Self> {
        let (placeholders, overlay, sys) = match mode {
            ProgramMode::Namespaces { placeholders, sys } => (placeholders, None, sys),
            ProgramMode::Paths { .. } => {
                let overlay = Overlay::new(&machine.describe())?;
                (overlay.placeholders(), Some(overlay), None)
            }
        };
        Ok(Paths {
            program: Arc::clone(program),
            machine: machine.clone(),
            placeholders,
            overlay,
            sys: sys.into_iter().collect(),
            shown: Shown::new(machine),
            current: Current::default(),
        })
    }

    /// The tree of a program without namespaces: every path is asked about.
    pub(crate) fn overlay(&self) -> Option<&Overlay> {
        self.overlay.as_ref()
    }

    /// Removes the files that stand for entries.
    pub(crate) fn remove_overlay(&mut self) {
        drop(self.overlay.take());
    }

    /// Whether the file system with this device number is the machine's part of a `/sys`.
    pub(crate) fn is_sys(&self, device: u64) -> bool {
        self.sys.contains(&device)
    }

    /// Whether the programs' `/sys` has a part of the machine's.
    pub(crate) fn has_sys(&self) -> bool {
        !self.sys.is_empty()
    }

    /// A program has mounted a sysfs, over which the machine's part lies with this device number.
    pub(crate) fn add_sys(&mut self, device: u64) {
        self.sys.push(device);
    }

    /// What is added to `/sys`.
    pub(crate) fn sysfs(&self) -> &[SysfsEntry] {
        self.shown.sysfs()
    }

    /// The device number of a node: major and minor.
    pub(crate) fn rdev_of(&self, node: &NodeName) -> Option<(u32, u32)> {
        self.machine.rdev_of(node)
    }

    /// The node that a file stands for.
    pub(crate) fn node_at(&self, identity: Identity) -> Option<&NodeName> {
        let mut all = self.placeholders.iter();
        let found = all.find(|placeholder| (placeholder.dev, placeholder.ino) == identity);
        found.map(|placeholder| &placeholder.node)
    }

    /// The file that stands for a node.
    pub(crate) fn place_of(&self, node: &NodeName) -> Option<Identity> {
        let found = self.placeholders.iter().find(|p| p.node == *node);
        found.map(|placeholder| (placeholder.dev, placeholder.ino))
    }

    /// Whether the file stands for memory of a BAR, which is not in it. That it cannot be mapped is
    /// logged once.
    pub(crate) fn is_bar(&mut self, identity: Identity) -> bool {
        self.current.is_bar(identity)
    }

    /// The entry of the machine that a path leads to. The error is how the call ends otherwise.
    pub(crate) fn find(
        &self,
        tid: u32,
        path: &CString,
        argument: PathArgument,
    ) -> Result<Found<'_>, Answer> {
        let overlay = self.overlay.as_ref().ok_or(Answer::Proceed)?;
        let (root, foreign) = proc::root_of(tid).map_err(|errno| {
            if errno == Errno::ACCESS {
                self.program
                    .warn_of_closed_memory(&ProcessError::Denied(errno));
            }
            Answer::Proceed
        })?;
        // A program that has changed its root may have left the machine's entries behind.
        if foreign {
            return Err(Answer::Proceed);
        }
        let path = path.as_bytes();
        let (start, inside) = if path.starts_with(b"/") {
            (Vec::new(), false)
        } else {
            proc::start_of(overlay, tid, argument.dirfd).ok_or(Answer::Proceed)?
        };
        match overlay.walk(&root, &start, path, argument.follow) {
            Some(Place::Ours(path)) => {
                let entry = overlay.get(&path).ok_or(Answer::Proceed)?;
                Ok(Found {
                    overlay,
                    path,
                    entry,
                })
            }
            Some(Place::Nowhere(errno)) => Err(Answer::Fails(errno)),
            // From a directory that only the overlay has, the kernel would find the scratch
            // directory.
            Some(Place::Host(_)) if inside => Err(Answer::Fails(Errno::NOENT)),
            Some(Place::Host(_)) | None => Err(Answer::Proceed),
        }
    }

    /// The absolute path of the machine's entry that a path leads to.
    pub(crate) fn path_in_overlay(
        &self,
        tid: u32,
        path: &CString,
        argument: PathArgument,
    ) -> Option<Vec<u8>> {
        self.find(tid, path, argument).ok().map(|found| found.path)
    }

    /// The absolute path of the machine's entry that descriptor `fd` is, if the program has no
    /// namespace.
    pub(crate) fn path_of_descriptor(&self, tid: u32, fd: i32) -> Option<Vec<u8>> {
        let overlay = self.overlay.as_ref()?;
        overlay.path_of(&proc::link_of(tid, &format!("fd/{fd}"))?)
    }

    pub(crate) fn find_argument(
        &self,
        call: Pending<'_>,
        argument: PathArgument,
    ) -> Result<Found<'_>, Answer> {
        if self.overlay.is_none() {
            return Err(Answer::Proceed);
        }
        let path = lookup::read_path(call.process, argument.address).ok_or(Answer::Proceed)?;
        if path.is_empty() {
            return Err(Answer::Proceed);
        }
        self.find(call.tid, &path, argument)
    }

    /// The host's directory with entries of the machine that a path leads to from one that only the
    /// overlay has, as `..` does. Everybody may list it: it is opened with our rights.
    pub(crate) fn merged_directory(
        &self,
        tid: u32,
        path: &CString,
        PathArgument { dirfd, follow, .. }: PathArgument,
    ) -> Option<OwnedFd> {
        let (overlay, path) = (self.overlay.as_ref()?, path.as_bytes());
        if path.starts_with(b"/") {
            return None;
        }
        let (start, _) = proc::start_of(overlay, tid, dirfd).filter(|(_, inside)| *inside)?;
        let (root, _) = proc::root_of(tid).ok().filter(|(_, foreign)| !foreign)?;
        let Place::Host(found) = overlay.walk(&root, &start, path, follow)? else {
            return None;
        };
        overlay.get(&found).filter(|entry| **entry == Entry::Dir)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(&root, proc::relative(&found), flags, Mode::empty()).ok()?;
        let mode = rustix::fs::fstat(&directory).ok()?.st_mode;
        (mode & 0o5 == 0o5).then_some(directory)
    }

    /// The overlay's link that descriptor `fd` stands for: its path and its target.
    pub(crate) fn link_behind(&self, tid: u32, fd: i32) -> Option<(PathBuf, &[u8])> {
        let overlay = self.overlay.as_ref()?;
        let path = self.path_of_descriptor(tid, fd)?;
        match overlay.get(&path) {
            Some(Entry::Link(target)) => Some((overlay.in_scratch(&path), target)),
            _ => None,
        }
    }

    /// The machine's file of `/sys` that a path leads to.
    pub(crate) fn attribute_at(
        &self,
        call: Pending<'_>,
        path: &CString,
        argument: PathArgument,
    ) -> Option<ShownFile> {
        let mut named = self.shown.files_named_as(path.as_bytes()).iter();
        // Nearly every path ends here.
        if named.len() == 0 {
            return None;
        }
        if self.overlay.is_some() {
            let entry = self.path_in_overlay(call.tid, path, argument)?;
            let below = entry.strip_prefix(b"/sys/")?;
            return named.find(|known| known.path.as_bytes() == below).cloned();
        }
        let PathArgument { dirfd, follow, .. } = argument;
        let identity = lookup::look_up(call.process, call.tid, dirfd, path, follow).ok()?;
        let sys = proc::directory(call.tid, "sys").ok()?;
        let is_it = |known: &&ShownFile| {
            let stat = statat(&sys, known.path.as_str(), AtFlags::SYMLINK_NOFOLLOW);
            stat.is_ok_and(|stat| (stat.st_dev, stat.st_ino) == identity)
        };
        named.find(is_it).cloned()
    }

    /// Brings in what has changed since the last time.
    pub(crate) fn follow_changes(&mut self, tid: u32) {
        if self.machine.view.generation() == self.shown.generation() {
            return;
        }
        let new = Shown::new(&self.machine);
        let old = std::mem::replace(&mut self.shown, new);
        let roots = match &self.overlay {
            Some(overlay) => scratch(overlay),
            None => {
                proc::directory(tid, "dev").and_then(|dev| Ok((dev, proc::directory(tid, "sys")?)))
            }
        };
        let (dev, sys) = match roots {
            Ok(roots) => roots,
            Err(error) => {
                tracing::debug!(%error, "a program's /dev and /sys cannot be brought up to date");
                return;
            }
        };
        self.update_nodes(&dev, old.description());
        let live = self.machine.live_files();
        let live = live.iter().map(|file| file.path().to_owned()).collect();
        update_sys(&sys, old.description(), self.shown.description(), &live);
        self.attach_current_below(&sys);
        if let Some(overlay) = &mut self.overlay
            && let Err(error) = overlay.replan(self.shown.description())
        {
            tracing::warn!(%error, "the machine describes what cannot be shown");
        }
    }

    fn update_nodes(&mut self, dev: &OwnedFd, old: &Description) {
        let (old, new) = (nodes(old), nodes(self.shown.description()));
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
    pub(crate) fn attach_current(&mut self, tid: u32) {
        if self.current.is_attached() {
            return;
        }
        let sys = match &self.overlay {
            Some(overlay) => scratch(overlay).map(|(_, sys)| sys),
            None => proc::directory(tid, "sys"),
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
        let files = self.machine.live_files();
        let open = |sys: &OwnedFd, path: &str| open_to_write(sys, path, false);
        self.current.attach(sys, files, self.shown.sysfs(), open);
    }
}

impl Found<'_> {
    /// The file that stands for the entry.
    pub(crate) fn file(&self) -> PathBuf {
        self.overlay.in_scratch(&self.path)
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
