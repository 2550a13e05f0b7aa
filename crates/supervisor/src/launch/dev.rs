//! The program's `/dev`: the host's nodes, and placeholders for ours.

use std::{
    fs::{self, FileType},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, FileTypeExt, symlink},
    },
    path::Path,
};

use rustix::{
    fs::{Access, AtFlags, CWD, Mode, OFlags, accessat, major, minor, mknodat, statat},
    mount::{MountFlags, OpenTreeFlags, mount, mount_bind, mount_bind_recursive, open_tree},
};

use super::{
    terminals::{self, Terminals},
    umask::ClearUmask,
    view::View,
};
use crate::{
    entries::placeholder,
    wire::{NodeName, Placeholder},
};

/// What of the host's `/dev` is replaced by ours.
const OURS: [&str; 3] = ["iommu", "ioasid", "vfio"];

/// Where it is.
const DEV: &str = "/dev";

/// An empty `/dev`, and what it covers.
pub(crate) struct Cover {
    view: View,
    host: Covered,
}

impl Cover {
    /// Covers `/dev`.
    pub(crate) fn new() -> io::Result<Self> {
        let dev = Path::new(DEV);
        let view = View::of(dev);
        let host = cover(dev)?;
        Ok(Cover { view, host })
    }
}

/// Fills `/dev` and returns the files that stand for our nodes. The working directory is the host's `/dev`
/// afterwards.
///
/// What a program may open is bound, so that it is what it is on the host. The rest of the host's nodes,
/// most of them by number, are links into a second view of it: a mount costs more to make and to
/// take away than everything else about an entry.
pub(crate) fn build(
    Cover { view, host }: Cover,
    nodes: &[String],
    groups: &[u32],
) -> io::Result<Vec<Placeholder>> {
    let dev = Path::new(DEV);
    let umask = ClearUmask::new();
    host.enter()?;
    for entry in fs::read_dir(HERE)? {
        let entry = entry?;
        let name = entry.file_name();
        let kind = entry.file_type()?;
        if OURS.iter().any(|ours| name == *ours)
            || (name == terminals::NODE && kind.is_char_device())
        {
            continue;
        }
        let (from, to) = (entry.path(), dev.join(&name));
        if is_hardly_opened(&from, kind) && view.link(&name).is_ok() {
            continue;
        }
        bring(&from, &to, kind)?;
    }
    Terminals::new(Path::new(HERE), dev).provide(&view);

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
    drop(umask);
    Ok(placeholders)
}

/// Major numbers of the virtual consoles, of what shows their memory, and of loop devices
/// (Documentation/admin-guide/devices.txt).
const CONSOLE: u32 = 4;
const CONSOLE_MEMORY: u32 = 7;
const LOOP: u32 = 7;
/// The first minor number of [`CONSOLE`] that is a serial line.
const SERIAL: u32 = 64;

/// Whether this is a node that this user cannot open, or one of those that come by the dozen and that
/// nearly no program opens.
fn is_hardly_opened(host: &Path, kind: FileType) -> bool {
    if kind.is_dir() || kind.is_symlink() {
        return false;
    }
    let Ok(stat) = statat(CWD, host, AtFlags::SYMLINK_NOFOLLOW) else {
        return false;
    };
    let (major, minor) = (major(stat.st_rdev), minor(stat.st_rdev));
    let may = |access| accessat(CWD, host, access, AtFlags::EACCESS).is_ok();
    (kind.is_char_device() && (major == CONSOLE_MEMORY || (major == CONSOLE && minor < SERIAL)))
        || (kind.is_block_device() && major == LOOP)
        || !(may(Access::READ_OK) || may(Access::WRITE_OK))
}

/// The covered directory, still reachable.
pub(crate) struct Covered(OwnedFd);

/// A path that leads to what was entered last. Shorter for the kernel than one through `/proc`, which a
/// process may not have.
pub(crate) const HERE: &str = ".";

impl Covered {
    /// Makes it the working directory.
    pub(crate) fn enter(&self) -> io::Result<()> {
        Ok(rustix::process::fchdir(&self.0)?)
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
    Ok(Covered(directory))
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
        make_directory(target)?;
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

/// Makes a directory that every user may search. The umask is clear ([`ClearUmask`]).
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o755).create(path)
}

fn placeholder(path: &Path, node: NodeName) -> io::Result<Placeholder> {
    let split = path.parent().zip(path.file_name().and_then(|n| n.to_str()));
    let (parent, name) = split.ok_or(io::ErrorKind::InvalidInput)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = rustix::fs::open(parent, flags, Mode::empty())?;
    let (dev, ino) = placeholder::make(parent.as_fd(), name)?;
    Ok(Placeholder { dev, ino, node })
}
