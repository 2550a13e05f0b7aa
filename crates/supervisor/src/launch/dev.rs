//! The program's `/dev`: the host's nodes, and placeholder files for ours.
//!
//! A placeholder stands for a node of ours. It cannot be a device node of its own: a user namespace has
//! no `mknod`. So it is the host's `/dev/null`, bound, and known by that mount: a path to it shows a
//! character device, as programs expect. Where it cannot be bound, it is an empty file.

use std::{
    fs::{self, FileType, OpenOptions, Permissions},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Mode, OFlags, StatxFlags},
    mount::{MountFlags, mount, mount_bind, mount_bind_recursive},
};

use crate::wire::{NodeName, Placeholder};

/// What of the host's `/dev` is replaced by ours.
const OURS: [&str; 3] = ["iommu", "ioasid", "vfio"];

/// Covers `/dev` and returns the inodes that stand for our nodes.
pub(super) fn build(nodes: &[String], groups: &[u32]) -> io::Result<Vec<Placeholder>> {
    let dev = Path::new("/dev");
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

    make_directory(&dev.join("vfio"))?;
    make_directory(&dev.join("vfio/devices"))?;
    let null = host.path.join("null");
    let mut placeholders = Vec::new();
    for (name, node) in NodeName::FIXED {
        placeholders.push(placeholder(&dev.join(name), &null, node)?);
    }
    for group in groups {
        let path = dev.join("vfio").join(group.to_string());
        placeholders.push(placeholder(&path, &null, NodeName::Group(*group))?);
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
        placeholders.push(placeholder(&path, &null, node)?);
    }
    Ok(placeholders)
}

/// The covered directory, still reachable.
pub(super) struct Covered {
    /// A path that leads to it, as long as this lives.
    pub(super) path: PathBuf,
    _directory: OwnedFd,
}

/// Mounts an empty tmpfs over `target`: mode 755 and not sticky, since the kernel refuses to open
/// other people's nodes for writing in a sticky directory.
pub(super) fn cover(target: &Path) -> io::Result<Covered> {
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
        _directory: directory,
    })
}

/// Makes `host` appear at `target`: a link is copied, anything else bound, directories with what
/// is mounted in them.
///
/// What vanished meanwhile, or may not be bound, stays away: a program misses a node then, not
/// its start.
pub(super) fn bring(host: &Path, target: &Path, kind: FileType) -> io::Result<()> {
    let result = if kind.is_symlink() {
        fs::read_link(host).and_then(|link| symlink(link, target))
    } else if kind.is_dir() {
        fs::create_dir(target)?;
        mount_bind_recursive(host, target).map_err(io::Error::from)
    } else {
        fs::write(target, b"")?;
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

/// Makes a directory that everybody may search, whatever the umask says.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    fs::create_dir(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o755))
}

fn placeholder(path: &Path, null: &Path, node: NodeName) -> io::Result<Placeholder> {
    let file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.set_permissions(Permissions::from_mode(0o666))?;
    let is_node = fs::metadata(null).is_ok_and(|null| null.file_type().is_char_device());
    let bound = is_node && mount_bind(null, path).is_ok();
    let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
    let statx = rustix::fs::statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, wanted)?;
    Ok(Placeholder {
        dev: rustix::fs::makedev(statx.stx_dev_major, statx.stx_dev_minor),
        ino: statx.stx_ino,
        mount: bound.then_some(statx.stx_mnt_id),
        node,
    })
}
