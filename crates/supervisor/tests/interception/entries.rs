//! Programs that look for us: `/dev`, `/sys`, and what of the host's is still there.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink},
    },
    process::Command,
};

use ioasid_machine::sysfs::VFIO_GROUP_MAJOR;

use crate::{
    check::{ensure, ensure_eq},
    client::{Check, Client, alloc, errno, iommu, vfio},
    machine::{ADDRESS, RDEV},
};

pub(crate) const CLIENTS: &[Client] = &[
    ("names", names),
    ("sysfs", sysfs),
    ("stats", stats),
    ("host", host),
    ("bystander", bystander),
    ("no-device", no_device),
];

/// However a node is named, it is the node.
fn names() -> Check {
    let scratch = tempfile::tempdir()?;
    let link = scratch.path().join("link");
    symlink("/dev/iommu", &link)?;
    let open = |path: &str| OpenOptions::new().read(true).write(true).open(path);
    ensure_eq!(alloc(&open("/dev/ioasid")?)?, 1);
    ensure_eq!(alloc(&open("/dev/../dev/./iommu")?)?, 1);
    ensure_eq!(alloc(&open(link.to_str().ok_or("path")?)?)?, 1);
    std::env::set_current_dir("/dev")?;
    ensure_eq!(alloc(&open("iommu")?)?, 1);
    ensure_eq!(alloc(&open("vfio/../iommu")?)?, 1);
    let dir = File::open("/dev/vfio")?;
    let at = rustix::fs::openat(
        &dir,
        "../iommu",
        rustix::fs::OFlags::RDWR,
        rustix::fs::Mode::empty(),
    );
    ensure!(at.is_ok() || std::env::var_os("CONFINED").is_some());
    // A relative path over an absolute link, and an open for reading only: past the open trap.
    std::env::set_current_dir(scratch.path())?;
    let late = open("link")?;
    ensure_eq!(alloc(&late)?, 1);
    ensure_eq!(alloc(&late)?, 2);
    let read_only = File::open("/dev/iommu")?;
    ensure_eq!(alloc(&read_only)?, 1);
    // An open through /proc is a new open.
    let file = iommu()?;
    ensure_eq!(alloc(&file)?, 1);
    let again = open(&format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    ensure_eq!(alloc(&again)?, 1);
    drop(again);
    ensure_eq!(alloc(&file)?, 2);
    // openat2
    let at2 = rustix::fs::openat2(
        rustix::fs::CWD,
        "/dev/iommu",
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
        rustix::fs::ResolveFlags::empty(),
    )?;
    ensure_eq!(alloc(&at2)?, 1);
    ensure!(rustix::io::fcntl_getfd(&at2)?.contains(rustix::io::FdFlags::CLOEXEC));
    Ok(())
}

/// What stands at a path is told by every call that takes one.
fn stats() -> Check {
    // A user namespace has no device nodes: there the kernel itself knows an ordinary file.
    let nodes_are_files =
        !rustix::process::geteuid().is_root() && std::env::var_os("CONFINED").is_none();
    for (path, number) in [
        ("/dev/iommu", (10, 126)),
        ("/dev/vfio/vfio", (10, 196)),
        ("/dev/vfio/0", (VFIO_GROUP_MAJOR, 0)),
        ("/dev/vfio/devices/vfio0", RDEV),
    ] {
        let rdev = rustix::fs::makedev(number.0, number.1);
        for metadata in [fs::metadata(path)?, fs::symlink_metadata(path)?] {
            ensure!(metadata.file_type().is_char_device());
            ensure_eq!(metadata.rdev(), rdev);
        }
        let opened = OpenOptions::new().read(true).write(true).open(path)?;
        let (named, opened) = (fs::metadata(path)?, opened.metadata()?);
        ensure_eq!(
            (named.dev(), named.ino(), named.rdev()),
            (opened.dev(), opened.ino(), opened.rdev())
        );
        let path = std::ffi::CString::new(path)?;
        // SAFETY: zero is a value of every field.
        let mut stat: libc::stat = unsafe { std::mem::zeroed() };
        // SAFETY: a path that ends with 0, and room for what is told of it.
        unsafe {
            ensure_eq!(libc::stat(path.as_ptr(), &mut stat), 0);
            ensure_eq!(stat.st_mode & libc::S_IFMT, libc::S_IFCHR);
            ensure_eq!(stat.st_rdev, rdev);
            ensure_eq!(libc::access(path.as_ptr(), libc::R_OK | libc::W_OK), 0);
            ensure_eq!(libc::access(path.as_ptr(), libc::X_OK), -1);
            // The calls that the C library no longer makes.
            let (at, stat) = (path.as_ptr(), &raw mut stat);
            ensure_eq!(libc::syscall(libc::SYS_stat, at, stat), 0);
            ensure_eq!(libc::syscall(libc::SYS_lstat, at, stat), 0);
            ensure_eq!(libc::syscall(libc::SYS_access, at, libc::R_OK), 0);
            let kind = (*stat).st_mode & libc::S_IFMT;
            ensure!(kind == libc::S_IFCHR || (kind == libc::S_IFREG && nodes_are_files));
            let mut target = [0u8; 8];
            let buffer = target.as_mut_ptr().cast();
            ensure_eq!(libc::readlink(at, buffer, target.len()), -1);
        }
        ensure_eq!(
            io::Error::last_os_error().raw_os_error(),
            Some(libc::EINVAL)
        );
        // As `ls -l` asks.
        let (at, name) = (path.as_ptr(), c"security.selinux".as_ptr());
        let nothing = std::ptr::null_mut();
        // SAFETY: a path and a name that end with 0, and room for no byte.
        unsafe {
            ensure_eq!(libc::lgetxattr(at, name, nothing, 0), -1);
            let no_attribute = [libc::ENODATA, libc::EOPNOTSUPP];
            let errno = io::Error::last_os_error().raw_os_error();
            ensure!(errno.is_some_and(|errno| no_attribute.contains(&errno)));
            ensure_eq!(libc::llistxattr(at, nothing.cast(), 0), 0);
        }
    }
    ensure!(fs::metadata("/dev/vfio/devices")?.is_dir());
    ensure_eq!(errno(fs::metadata("/dev/vfio/devices/vfio9")), libc::ENOENT);
    ensure_eq!(errno(fs::metadata("/dev/iommu/x")), libc::ENOTDIR);
    ensure_eq!(errno(File::open("/dev/vfio/devices/vfio9")), libc::ENOENT);

    let names = |path: &str| -> io::Result<BTreeSet<OsString>> {
        let entries: io::Result<Vec<_>> = fs::read_dir(path)?.collect();
        let entries = entries?;
        let names: BTreeSet<_> = entries.iter().map(fs::DirEntry::file_name).collect();
        assert_eq!(names.len(), entries.len(), "{path}: a name appears once");
        Ok(names)
    };
    let dev = names("/dev")?;
    for name in ["iommu", "vfio", "null", "zero"] {
        ensure!(dev.contains(&OsString::from(name)));
    }
    ensure_eq!(
        names("/dev/vfio")?,
        ["0", "devices", "vfio"].map(OsString::from).into()
    );
    ensure_eq!(
        names("/dev/vfio/devices")?,
        ["vfio0"].map(OsString::from).into()
    );
    // Listed again from the start, the same.
    let mut dir = rustix::fs::Dir::new(File::open("/dev")?)?;
    let count = |dir: &mut rustix::fs::Dir| dir.by_ref().count();
    let first = count(&mut dir);
    dir.rewind();
    ensure_eq!(count(&mut dir), first);
    ensure_eq!(first, dev.len() + 2);
    Ok(())
}

/// sysfs leads to the device, and the host's entries are still there.
fn sysfs() -> Check {
    let link = format!("/sys/bus/pci/devices/{ADDRESS}");
    let real = fs::canonicalize(&link)?;
    ensure_eq!(
        real.to_str(),
        Some(format!("/sys/devices/pci0000:6b/{ADDRESS}").as_str())
    );
    ensure_eq!(fs::read_to_string(format!("{link}/vendor"))?, "0x1b36\n");
    ensure!(
        fs::read_dir("/sys/bus/pci/devices")?.any(|e| e.is_ok_and(|e| e.file_name() == ADDRESS))
    );
    ensure_eq!(
        fs::canonicalize(format!("{link}/subsystem"))?.to_str(),
        Some("/sys/bus/pci")
    );
    let below = format!("{link}/vfio-dev");
    let entries: Vec<_> = fs::read_dir(&below)?.collect::<io::Result<_>>()?;
    ensure_eq!(entries.len(), 1);
    ensure_eq!(entries[0].file_name(), "vfio0");
    ensure!(entries[0].file_type()?.is_dir());
    ensure!(fs::metadata(entries[0].path())?.is_dir());
    ensure_eq!(
        fs::canonicalize(&below)?.to_str(),
        Some(format!("/sys/devices/pci0000:6b/{ADDRESS}/vfio-dev").as_str())
    );
    ensure!(fs::symlink_metadata(&link)?.file_type().is_symlink());
    ensure_eq!(
        fs::read_link(&link)?.to_str(),
        Some(format!("../../../devices/pci0000:6b/{ADDRESS}").as_str())
    );
    // From a descriptor, and from a link of our own.
    let device = File::open(&link)?;
    let vendor = rustix::fs::openat(
        &device,
        "vendor",
        rustix::fs::OFlags::RDONLY,
        rustix::fs::Mode::empty(),
    )?;
    ensure_eq!(io::read_to_string(File::from(vendor))?, "0x1b36\n");
    let scratch = tempfile::tempdir()?;
    let own = scratch.path().join("own");
    symlink(&link, &own)?;
    ensure_eq!(fs::read_to_string(own.join("vendor"))?, "0x1b36\n");
    ensure_eq!(errno(fs::read(format!("{link}/nothing"))), libc::ENOENT);
    ensure_eq!(errno(fs::read(&link)), libc::EISDIR);
    ensure_eq!(
        fs::canonicalize("/sys/bus/pci")?.to_str(),
        Some("/sys/bus/pci")
    );
    ensure!(fs::read_dir("/sys/class")?.count() > 0);
    ensure!(fs::read_to_string("/sys/devices/system/cpu/online")?.starts_with('0'));
    Ok(())
}

/// The host's nodes work as before.
fn host() -> Check {
    fs::write("/dev/null", "x")?;
    let mut bytes = [1; 16];
    io::Read::read_exact(&mut File::open("/dev/zero")?, &mut bytes)?;
    ensure_eq!(bytes, [0; 16]);
    ensure!(fs::metadata("/dev/null")?.file_type().is_char_device());
    ensure_eq!(fs::metadata("/dev")?.mode() & 0o7777, 0o755);
    let scratch = tempfile::tempdir()?;
    let path = scratch.path().join("f");
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .open(&path)?;
    file.write_all_at(b"plain", 0)?;
    ensure_eq!(fs::read(&path)?, b"plain");
    // High descriptors that are not ours are nobody's business.
    // SAFETY: a plain dup.
    let high = unsafe { OwnedFd::from_raw_fd(libc::dup2(file.as_raw_fd(), 1000)) };
    let high = File::from(high);
    ensure_eq!(high.metadata()?.len(), 5);
    high.write_all_at(b"x", 0)?;
    ensure_eq!(fs::read(&path)?, b"xlain");
    ensure_eq!(errno(alloc(&high)), libc::ENOTTY);
    ensure_eq!(errno(alloc(&555)), libc::EBADF);
    Ok(())
}

/// A process without a single file of ours.
fn bystander() -> Check {
    let answer = Command::new("/bin/sh")
        .args([
            "-c",
            "read x; echo $x > /dev/null; ls / > /dev/null; exit 5",
        ])
        .status()?;
    ensure_eq!(answer.code(), Some(5));
    Ok(())
}

fn no_device() -> Check {
    ensure_eq!(errno(vfio()), libc::ENOENT);
    ensure_eq!(fs::read_dir("/dev/vfio/devices")?.count(), 0);
    ensure_eq!(alloc(&iommu()?)?, 1);
    Ok(())
}
