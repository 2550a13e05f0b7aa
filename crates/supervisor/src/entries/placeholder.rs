//! Files that stand for the machine's nodes.
//!
//! A placeholder is a file with an inode of its own on a file system made for it, and it is known
//! by that inode. So a node stays the node in every mount namespace, behind every bind mount and
//! below every root directory that a program makes.
//!
//! Where the kernel opens it past the session - for reading, by io_uring - the open must succeed,
//! since the session puts the right file in its place at the first ioctl. Root therefore makes a
//! character device that can always be opened, that of `/dev/null`. A user namespace has no
//! `mknod`, and what it has of file systems opens no device: there it is an empty file.

use std::{io, os::fd::BorrowedFd};

use rustix::{
    fs::{
        AtFlags, FileType, Mode, OFlags, Stat, fchmod, fstat, makedev, mknodat, openat, statat,
        unlinkat,
    },
    io::Errno,
};

/// The device number of `/dev/null` (Documentation/admin-guide/devices.txt).
const NULL: (u32, u32) = (1, 3);

/// Everybody may open a node, whatever the umask says.
const MODE: Mode = Mode::from_bits_retain(0o666);

/// Makes the placeholder `name` in `directory`; returns its device and inode number.
///
/// # Errors
/// Those of `mknodat` and `openat`: EEXIST if there is something of that name.
pub(crate) fn make(directory: BorrowedFd<'_>, name: &str) -> io::Result<(u64, u64)> {
    let stat = match make_device(directory, name)? {
        Some(stat) => stat,
        None => make_file(directory, name)?,
    };
    Ok((stat.st_dev, stat.st_ino))
}

/// `None` if no device can be made here, or none that can be opened.
fn make_device(directory: BorrowedFd<'_>, name: &str) -> io::Result<Option<Stat>> {
    let device = makedev(NULL.0, NULL.1);
    match mknodat(directory, name, FileType::CharacterDevice, MODE, device) {
        Ok(()) => {}
        Err(error @ Errno::EXIST) => return Err(error.into()),
        Err(_) => return Ok(None),
    }
    let made = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NOCTTY;
    if let Ok(file) = openat(directory, name, flags, Mode::empty())
        && fchmod(&file, MODE).is_ok()
    {
        return Ok(Some(made));
    }
    unlinkat(directory, name, AtFlags::empty())?;
    Ok(None)
}

fn make_file(directory: BorrowedFd<'_>, name: &str) -> io::Result<Stat> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(directory, name, flags, MODE)?;
    fchmod(&file, MODE)?;
    Ok(fstat(&file)?)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_placeholder_has_an_inode_of_its_own_and_can_be_opened() {
        let scratch = tempfile::tempdir().unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(scratch.path(), flags, Mode::empty()).unwrap();
        let a = make(directory.as_fd(), "a").unwrap();
        let b = make(directory.as_fd(), "b").unwrap();
        assert_ne!(a, b);
        let opened = std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open(scratch.path().join("a"))
            .unwrap();
        let stat = fstat(&opened).unwrap();
        assert_eq!((stat.st_dev, stat.st_ino), a);
        assert_eq!(stat.st_mode & 0o777, 0o666);
        assert_eq!(opened.metadata().unwrap().len(), 0);
        let again = make(directory.as_fd(), "a").unwrap_err();
        assert_eq!(again.kind(), io::ErrorKind::AlreadyExists);
    }
}
