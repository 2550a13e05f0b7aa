//! The program's `/dev`: the host's nodes, and placeholders for ours.

use std::{
    fs::{self, FileType, Permissions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{CWD, Mode, OFlags, mknodat},
    mount::{MountFlags, OpenTreeFlags, mount, mount_bind, mount_bind_recursive, open_tree},
};

use super::terminals::Terminals;
use crate::{
    entries::placeholder,
    wire::{NodeName, Placeholder},
};

/// What of the host's `/dev` is replaced by ours.
const OURS: [&str; 3] = ["iommu", "ioasid", "vfio"];

/// Covers `/dev` and returns the files that stand for our nodes.
pub(crate) fn build(nodes: &[String], groups: &[u32]) -> io::Result<Vec<Placeholder>> {
    let dev = Path::new("/dev");
    let terminals = Terminals::new(dev);
    let host = cover(dev)?;
    for entry in fs::read_dir(&host.path)? {
        let entry = entry?;
        if OURS.iter().any(|name| entry.file_name() == *name) {
            continue;
        }
        bring(
            &entry.path(),
            &dev.join(entry.file_name()),
            entry.file_type()?,
        )?;
    }
    terminals.provide(&host.path, dev);

    make_directory(&dev.join("vfio"))?;
    make_directory(&dev.join("vfio/devices"))?;
    let mut placeholders = Vec::new();
    for (name, node) in NodeName::FIXED {
        placeholders.push(placeholder(&dev.join(name), node)?);
    }
    for group in groups {
        let path = dev.join("vfio").join(group.to_string());
        placeholders.push(placeholder(&path, NodeName::Group(*group))?);
    }
    for name in nodes {
        if name.is_empty() || name.contains('/') || name.starts_with('.') {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("not a name for a node: {name:?}"),
            ));
        }
        let node = NodeName::Device(name.clone());
        let path = dev.join("vfio/devices").join(name);
        placeholders.push(placeholder(&path, node)?);
    }
    Ok(placeholders)
}

/// The covered directory, still reachable.
pub(crate) struct Covered {
    /// A path that leads to it, as long as this lives.
    pub(crate) path: PathBuf,
    directory: OwnedFd,
}

impl Covered {
    /// Makes it the working directory, for a process that has no `/proc` of its own: a path that
    /// leads to it is `.` then.
    pub(crate) fn enter(mut self) -> io::Result<Self> {
        rustix::process::fchdir(&self.directory)?;
        self.path = PathBuf::from(".");
        Ok(self)
    }
}

/// A copy of the mounts at `path`, not mounted anywhere yet.
pub(crate) fn copy_mounts(path: &Path) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, path, flags)?)
}

/// Mounts an empty tmpfs over `target`: mode 755 and not sticky, since the kernel refuses to open
/// other people's nodes for writing in a sticky directory.
pub(crate) fn cover(target: &Path) -> io::Result<Covered> {
    let directory = rustix::fs::open(
        target,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    mount(
        "ioasid",
        target,
        "tmpfs",
        MountFlags::NOSUID,
        c"mode=755,size=64m",
    )?;
    Ok(Covered {
        path: PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())),
        directory,
    })
}

/// Makes `host` appear at `target`: a link is copied, anything else bound, directories with what
/// is mounted in them.
///
/// What vanished meanwhile, or may not be bound, stays away: a program misses a node then, not
/// its start.
pub(crate) fn bring(host: &Path, target: &Path, kind: FileType) -> io::Result<()> {
    let result = if kind.is_symlink() {
        fs::read_link(host).and_then(|link| symlink(link, target))
    } else if kind.is_dir() {
        fs::create_dir(target)?;
        mount_bind_recursive(host, target).map_err(io::Error::from)
    } else {
        make_mount_point(target, kind)?;
        let bound = mount_bind(host, target).map_err(io::Error::from);
        if bound.is_err() {
            fs::remove_file(target)?;
        }
        bound
    };
    if let Err(error) = result {
        tracing::debug!(host = %host.display(), %error, special = kind.is_char_device(), "left out");
    }
    Ok(())
}

/// Makes a file that something of this kind can be bound over. It is of that kind itself where that
/// is allowed, since a listing of the directory shows the type of what is covered.
fn make_mount_point(target: &Path, kind: FileType) -> io::Result<()> {
    let same = if kind.is_char_device() {
        Some(rustix::fs::FileType::CharacterDevice)
    } else if kind.is_block_device() {
        Some(rustix::fs::FileType::BlockDevice)
    } else if kind.is_socket() {
        Some(rustix::fs::FileType::Socket)
    } else if kind.is_fifo() {
        Some(rustix::fs::FileType::Fifo)
    } else {
        None
    };
    // A character device with the number 0 takes no privilege (`vfs_mknod` in fs/namei.c).
    match same.map(|same| mknodat(CWD, target, same, Mode::empty(), 0)) {
        Some(Ok(())) => Ok(()),
        _ => fs::write(target, b""),
    }
}

/// Makes a directory that every user may search, whatever the umask says.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

fn placeholder(path: &Path, node: NodeName) -> io::Result<Placeholder> {
    let split = path.parent().zip(path.file_name().and_then(|n| n.to_str()));
    let (parent, name) = split.ok_or(io::ErrorKind::InvalidInput)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(parent, flags, Mode::empty())?;
    let (dev, ino) = placeholder::make(parent.as_fd(), name)?;
    Ok(Placeholder { dev, ino, node })
}
