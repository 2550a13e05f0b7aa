//! The program's `/sys`: the host's, with the machine's devices in it.
//!
//! A directory that has entries of the machine somewhere below it is made anew, with its host
//! children bound or linked one by one; every other directory of the host's is bound as a whole. So
//! `readlink`, `realpath` and `readdir` work as on a real one, with no system call trapped.

use std::{
    collections::BTreeMap,
    fs, io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{MetadataExt, symlink},
    },
    path::Path,
};

use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, move_mount},
};

use super::{
    dev::{HERE, bring, copy_mounts, cover, make_directory},
    error::LaunchError,
    umask::ClearUmask,
};
use crate::{
    entries::sysfs_tree::{Tree, create_file, plant},
    view::SysfsEntry,
};

/// Where it is.
const SYS: &str = "/sys";

/// Covers `/sys` and returns the device number of what it is covered with. Does nothing if there is
/// nothing to add; otherwise the working directory is the host's `/sys` afterwards.
pub(crate) fn build(entries: &[SysfsEntry]) -> Result<Option<u64>, LaunchError> {
    if entries.is_empty() {
        return Ok(None);
    }
    let uncovered = copy_mounts(Path::new(SYS));
    let host = cover(Path::new(SYS)).map_err(LaunchError::Sys)?;
    host.enter().map_err(LaunchError::Sys)?;
    let device = fill(entries)?;
    // A program misses no more than such a mount without it.
    if let Err(error) = uncovered.and_then(|mounts| keep(&mounts)) {
        tracing::debug!(%error, "no sysfs can be mounted in a user namespace of the program's");
    }
    Ok(Some(device))
}

/// Keeps the host's `/sys` in sight: a user namespace may mount a sysfs only where one is mounted
/// that nothing covers (`mount_too_revealing` in fs/namespace.c).
fn keep(mounts: &OwnedFd) -> io::Result<()> {
    let place = Path::new("/dev/.sys");
    make_directory(place)?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    Ok(move_mount(mounts.as_fd(), "", CWD, place, flags)?)
}

/// Fills what the working directory is covered with; returns its device number.
pub(crate) fn fill(entries: &[SysfsEntry]) -> Result<u64, LaunchError> {
    let tree = plant(entries)?;
    let umask = ClearUmask::new();
    mirror(Some(Path::new(HERE)), Path::new(SYS), &tree).map_err(LaunchError::Sys)?;
    drop(umask);
    Ok(fs::metadata(SYS).map_err(LaunchError::Sys)?.dev())
}

fn mirror(host: Option<&Path>, target: &Path, ours: &BTreeMap<String, Tree>) -> io::Result<()> {
    // A directory that we may not list is taken as empty: ours are what matters.
    if let Some(entries) = host.and_then(|path| fs::read_dir(path).ok()) {
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            if name.to_str().is_none_or(|n| !ours.contains_key(n)) {
                bring(&entry.path(), &target.join(&name), entry.file_type()?)?;
            }
        }
    }
    for (name, tree) in ours {
        let path = target.join(name);
        match tree {
            Tree::Dir(children) => {
                make_directory(&path)?;
                let below = host
                    .map(|h| h.join(name))
                    .filter(|p| fs::symlink_metadata(p).is_ok_and(|m| m.is_dir()));
                mirror(below.as_deref(), &path, children)?;
            }
            Tree::File(file) => drop(create_file(&path, file, file.mode)?),
            Tree::Link(to) => symlink(to, &path)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::{SysfsFile, SysfsKind};

    fn file(path: &str) -> SysfsEntry {
        SysfsEntry {
            path: path.to_owned(),
            kind: SysfsKind::File(SysfsFile::read_only("x\n")),
        }
    }

    #[test]
    fn a_mirror_has_the_hosts_entries_and_ours() {
        let scratch = std::env::temp_dir().join(format!("ioasid-mirror-{}", std::process::id()));
        fs::create_dir_all(scratch.join("new")).unwrap();
        fs::create_dir_all(scratch.join("host/bus/pci")).unwrap();
        symlink("../x", scratch.join("host/bus/pci/link")).unwrap();
        let ours = plant(&[file("bus/pci/mine"), file("bus/mdev/mine")]).unwrap();
        mirror(Some(&scratch.join("host")), &scratch.join("new"), &ours).unwrap();
        let read = |p: &str| fs::read(scratch.join("new").join(p)).unwrap();
        assert_eq!(read("bus/pci/mine"), b"x\n");
        assert_eq!(read("bus/mdev/mine"), b"x\n");
        let link = fs::read_link(scratch.join("new/bus/pci/link")).unwrap();
        assert_eq!(link, Path::new("../x"));
        fs::remove_dir_all(scratch).unwrap();
    }
}
