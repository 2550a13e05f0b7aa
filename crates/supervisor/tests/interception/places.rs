//! Programs that make a world of their own: mount namespaces, bind mounts, roots. And what of the
//! host's world must be the same in theirs.

use std::{
    collections::BTreeSet,
    ffi::CStr,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::{
            fs::{FileTypeExt, MetadataExt, symlink},
            process::CommandExt,
        },
    },
    path::Path,
    process::Command,
};

use rustix::{
    fs::{CWD, Mode, OFlags, openat, readlinkat, statat},
    mount::{MountPropagationFlags, mount_bind, mount_bind_recursive, mount_change},
    process::{chroot, pivot_root},
    thread::UnshareFlags,
};

use crate::{
    check::{ensure, ensure_eq},
    client::{Check, Client, alloc, iommu},
    machine::ADDRESS,
};

pub(crate) const CLIENTS: &[Client] = &[
    ("places", places),
    ("place", place),
    ("terminals", terminals),
    ("dev", dev),
    ("statfs", statfs),
];

/// The status of a child whose host refuses what it is to be given.
const REFUSED: i32 = 76;

/// A user and mount namespace in which nothing of the host's changes.
fn namespace() -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid(), rustix::process::getegid());
    // SAFETY: the child has one thread and no descriptor that another one shares.
    unsafe {
        rustix::thread::unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS)?;
    }
    // As root, since a program may be anybody in a namespace of its own.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {} 1", uid.as_raw()))?;
    fs::write("/proc/self/gid_map", format!("0 {} 1", gid.as_raw()))?;
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    Ok(mount_change("/", private)?)
}

/// What a child does before it looks for the node at the path that this returns.
type Arrangement = fn(&Path) -> io::Result<()>;

fn bind_a_node(scratch: &Path) -> io::Result<()> {
    namespace()?;
    let node = scratch.join("node");
    fs::write(&node, b"")?;
    Ok(mount_bind("/dev/iommu", &node)?)
}

fn bind_the_directory(scratch: &Path) -> io::Result<()> {
    namespace()?;
    let dev = scratch.join("dev");
    fs::create_dir(&dev)?;
    mount_bind_recursive("/dev", &dev)?;
    symlink(dev.join("iommu"), scratch.join("node"))
}

fn new_root(scratch: &Path) -> io::Result<()> {
    namespace()?;
    let root = scratch.join("root");
    fs::create_dir(&root)?;
    mount_bind_recursive("/", &root)?;
    Ok(())
}

fn change_root(scratch: &Path) -> io::Result<()> {
    new_root(scratch)?;
    chroot(scratch.join("root"))?;
    std::env::set_current_dir("/")
}

fn replace_root(scratch: &Path) -> io::Result<()> {
    new_root(scratch)?;
    std::env::set_current_dir(scratch.join("root"))?;
    // The old root lies over the new one.
    pivot_root(".", ".")?;
    Ok(())
}

/// As `ip netns exec` makes a world: a sysfs of its own network namespace over the old one.
fn own_sysfs(_: &Path) -> io::Result<()> {
    namespace()?;
    // SAFETY: as in `namespace`.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET)? };
    let flags = rustix::mount::MountFlags::empty();
    Ok(rustix::mount::mount("own", "/sys", "sysfs", flags, None)?)
}

/// A node is the node wherever a program has put it.
fn places() -> Check {
    let all: [(&str, Arrangement, &str); 6] = [
        ("a mount namespace", |_| namespace(), "/dev/iommu"),
        ("a node that is bound elsewhere", bind_a_node, "node"),
        (
            "a directory that is bound elsewhere",
            bind_the_directory,
            "node",
        ),
        ("chroot", change_root, "/dev/iommu"),
        ("pivot_root", replace_root, "/dev/iommu"),
        ("a sysfs of its own", own_sysfs, "/dev/iommu"),
    ];
    for (what, arrange, path) in all {
        let scratch = tempfile::tempdir()?;
        let path = scratch.path().join(path);
        let there = scratch.path().to_owned();
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["part:client", "place"]).env("PLACE", &path);
        // SAFETY: the child makes system calls and touches what is its own. It may allocate: this
        // process has one thread.
        unsafe {
            command.pre_exec(move || match arrange(&there) {
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    libc::_exit(REFUSED)
                }
                other => other,
            });
        }
        match command.status()?.code() {
            Some(0) => {}
            Some(REFUSED) => println!("skipped: this host refuses {what}"),
            other => return Err(format!("{what}: {other:?}").into()),
        }
    }
    Ok(())
}

/// The node at `PLACE` is `/dev/iommu`, however it is opened.
fn place() -> Check {
    let path = std::env::var("PLACE")?;
    for write in [true, false] {
        let file = OpenOptions::new().read(true).write(write).open(&path)?;
        // Before the session has heard of it, if it is opened for reading.
        let metadata = fstat(&file)?;
        ensure_eq!(metadata, (libc::S_IFCHR, rustix::fs::makedev(10, 126)));
        ensure_eq!(alloc(&file)?, 1);
        ensure_eq!(alloc(&file)?, 2);
    }
    let metadata = fs::metadata(&path)?;
    ensure!(metadata.file_type().is_char_device());
    ensure_eq!(metadata.rdev(), rustix::fs::makedev(10, 126));
    let vendor = format!("/sys/bus/pci/devices/{ADDRESS}/vendor");
    ensure_eq!(fs::read_to_string(vendor)?, "0x1b36\n");
    Ok(())
}

/// Kind and device number of an open file, as the C library's `fstat` tells them.
fn fstat(file: &File) -> io::Result<(u32, u64)> {
    // SAFETY: zero is a value of every field, and there is room for what is told.
    unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        match libc::fstat(file.as_raw_fd(), &mut stat) {
            0 => Ok((stat.st_mode & libc::S_IFMT, stat.st_rdev)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

/// Pseudo-terminals are made, have a name that leads to them, and carry bytes.
fn terminals() -> Check {
    // Asked before: a host may have no terminals for this user.
    if std::env::var_os("NO_TERMINALS").is_some() {
        println!("skipped: this host has no pseudo-terminals for this user");
        return Ok(());
    }
    let master = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/ptmx")?;
    let mut name = [0; 64];
    // SAFETY: a terminal's descriptor, and room for its name.
    let name = unsafe {
        ensure_eq!(libc::unlockpt(master.as_raw_fd()), 0);
        let fd = master.as_raw_fd();
        ensure_eq!(libc::ptsname_r(fd, name.as_mut_ptr(), name.len()), 0);
        CStr::from_ptr(name.as_ptr()).to_str()?
    };
    ensure!(name.starts_with("/dev/pts/"));
    let by_name = OpenOptions::new().read(true).write(true).open(name)?;
    const TIOCGPTPEER: libc::c_ulong = 0x5441;
    // SAFETY: a terminal's descriptor; a new one is returned.
    let peer = unsafe {
        let flags = libc::O_RDWR | libc::O_NOCTTY;
        let fd = libc::ioctl(master.as_raw_fd(), TIOCGPTPEER, flags);
        ensure!(fd >= 0);
        File::from(OwnedFd::from_raw_fd(fd))
    };
    let [a, b] = [by_name.metadata()?, peer.metadata()?];
    ensure_eq!((a.dev(), a.ino(), a.rdev()), (b.dev(), b.ino(), b.rdev()));
    let mut bytes = [0; 4];
    (&by_name).write_all(b"ab\n")?;
    (&master).read_exact(&mut bytes)?;
    ensure_eq!(&bytes, b"ab\r\n");
    Ok(())
}

/// What the host has in its `/dev` is there, of the same kind, and opens alike.
fn dev() -> Check {
    let facts = std::env::var("HOST")?;
    let mut compared = 0;
    let mut linked = BTreeSet::new();
    for line in facts.lines() {
        let words: Vec<_> = line.split(' ').collect();
        let [name, kind, rdev, errno] = words[..] else {
            return Err(format!("not a fact: {line}").into());
        };
        let found = facts_of(name);
        let expected = (kind.parse()?, rdev.parse()?, errno.parse()?);
        if found != expected {
            return Err(format!("/dev/{name}: {found:?}, on the host {expected:?}").into());
        }
        if is_one_of_many(name, kind.parse()?, rdev.parse()?) {
            linked.insert(name.to_owned());
        }
        compared += 1;
    }
    ensure!(compared > 0);
    // A mount for each would cost every start.
    for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
        let point = line.split(' ').nth(4).unwrap_or_default();
        let name = point.strip_prefix("/dev/").unwrap_or_default();
        ensure!(!linked.contains(name));
    }
    // Without namespaces, or where the kernel makes no second view, they are what they are.
    if Path::new("/dev/.host").exists() {
        for name in linked {
            let stat = fs::symlink_metadata(Path::new("/dev").join(name))?;
            ensure!(stat.file_type().is_symlink());
        }
    }
    Ok(())
}

/// A virtual console, its memory, or a loop device.
fn is_one_of_many(name: &str, kind: u32, rdev: u64) -> bool {
    let (major, minor) = (rustix::fs::major(rdev), rustix::fs::minor(rdev));
    let is_console = kind == libc::S_IFCHR && (major == 7 || (major == 4 && minor < 64));
    !name.contains('/') && (is_console || (kind == libc::S_IFBLK && major == 7))
}

/// What can be opened without a change to the host or to a device.
const HARMLESS: [&str; 17] = [
    "null",
    "zero",
    "full",
    "random",
    "urandom",
    "tty",
    "ptmx",
    "fuse",
    "kvm",
    "net/tun",
    "fd",
    "pts",
    "shm",
    "mqueue",
    "hugepages",
    "log",
    "vhost-net",
];

/// Kind and device number of an entry of `/dev`, and with which errno it opens for reading.
pub(crate) fn facts_of(name: &str) -> (u32, u64, i32) {
    let path = Path::new("/dev").join(name);
    let Ok(stat) = statat(CWD, &path, rustix::fs::AtFlags::empty()) else {
        return (0, 0, libc::ENOENT);
    };
    if !HARMLESS.contains(&name) {
        return (stat.st_mode & libc::S_IFMT, stat.st_rdev, 0);
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let opened = openat(CWD, &path, flags, Mode::empty());
    let errno = opened.err().map_or(0, rustix::io::Errno::raw_os_error);
    (stat.st_mode & libc::S_IFMT, stat.st_rdev, errno)
}

/// `/sys` is sysfs and `/dev` a tmpfs to those who ask; what is opened in them, too.
fn statfs() -> Check {
    const SYSFS: i64 = 0x6265_6572;
    const TMPFS: i64 = 0x0102_1994;
    let link = format!("/sys/bus/pci/devices/{ADDRESS}");
    for path in ["/sys", "/sys/bus", "/sys/bus/pci/devices", &link] {
        ensure_eq!(rustix::fs::statfs(path)?.f_type as i64, SYSFS);
        let directory = File::open(path)?;
        ensure_eq!(rustix::fs::fstatfs(&directory)?.f_type as i64, SYSFS);
    }
    let vendor = format!("{link}/vendor");
    ensure_eq!(rustix::fs::statfs(&vendor)?.f_type as i64, SYSFS);
    let vendor = File::open(vendor)?;
    let told = rustix::fs::fstatfs(&vendor)?;
    ensure_eq!(told.f_type as i64, SYSFS);
    ensure_eq!((told.f_bsize as i64, told.f_namelen as i64), (4096, 255));
    ensure_eq!(rustix::fs::statfs("/dev/iommu")?.f_type as i64, TMPFS);
    ensure_eq!(rustix::fs::fstatfs(&iommu()?)?.f_type as i64, TMPFS);
    // What is not ours is told as it is.
    let proc = rustix::fs::statfs("/proc")?.f_type as i64;
    ensure_eq!(proc, 0x9fa0);
    let missing = rustix::fs::statfs("/sys/bus/pci/devices/nothing");
    ensure_eq!(missing.err(), Some(rustix::io::Errno::NOENT));
    // As sd-device walks to a device: one name after the other, without following links.
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut at = openat(CWD, "/", OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    for name in ["sys", "bus", "pci", "devices", ADDRESS] {
        at = openat(&at, name, flags, Mode::empty())?;
    }
    let stat = statat(&at, "", rustix::fs::AtFlags::EMPTY_PATH)?;
    ensure_eq!(stat.st_mode & libc::S_IFMT, libc::S_IFLNK);
    let target = readlinkat(&at, "", Vec::new())?;
    ensure!(target.to_bytes().ends_with(ADDRESS.as_bytes()));
    // And back from a device, where directories of the host's come again.
    let bus = format!("/sys/devices/pci0000:6b/{ADDRESS}");
    let mut at = openat(CWD, &*bus, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    for name in ["..", "..", "..", "bus", "pci"] {
        at = openat(&at, name, flags, Mode::empty())?;
    }
    let [there, here] = [
        statat(&at, "", rustix::fs::AtFlags::EMPTY_PATH)?,
        rustix::fs::stat("/sys/bus/pci")?,
    ];
    ensure_eq!((there.st_dev, there.st_ino), (here.st_dev, here.st_ino));
    Ok(())
}
