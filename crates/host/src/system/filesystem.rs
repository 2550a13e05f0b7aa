//! Which kind of file system a mapped file lies on, as far as pinning its pages goes.
//!
//! A file system is known by its device number, which a mapping shows and which is asked for
//! without the help of the file system.

use std::sync::OnceLock;

use rustix::fs::{MemfdFlags, makedev};

use super::file_id::identify;

/// What a file system does with the pages of its files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filesystem {
    /// Its files are memory, and can be mapped here: memfds, tmpfs, hugetlbfs.
    Memory,
    /// Its files are memory as well, and are not mapped here: ramfs.
    Ram,
    /// It has its files on a disk, and keeps track of which pages are dirty.
    Disk,
    /// As a disk, but a page may come from a server that never answers: FUSE, a network.
    Server,
    /// None of these: devices, objects of the kernel that can be mapped, a file system that is not
    /// mounted where the process can see it.
    Other,
}

impl Filesystem {
    /// The one with the device number `dev`; `mountinfo` gives the text of the mount table that it
    /// may be in.
    pub(crate) fn of(dev: u64, mountinfo: impl FnOnce() -> Option<String>) -> Self {
        if is_kernels_own(dev) {
            return Filesystem::Memory;
        }
        let text = mountinfo().unwrap_or_default();
        let found = text.lines().filter_map(parse_mount);
        let kind = found.filter(|(number, _)| *number == dev).map(|(_, k)| k);
        match kind.into_iter().next() {
            Some("tmpfs" | "hugetlbfs") => Filesystem::Memory,
            Some("ramfs" | "rootfs") => Filesystem::Ram,
            Some("proc" | "sysfs" | "devtmpfs" | "debugfs" | "binder") => Filesystem::Other,
            Some(kind) if comes_from_a_server(kind) => Filesystem::Server,
            Some(_) => Filesystem::Disk,
            // On a block device, but which: better not ask it for a page.
            None if rustix::fs::major(dev) != 0 => Filesystem::Server,
            None => Filesystem::Other,
        }
    }
}

/// Whether `dev` is one of the kernel's own mounts behind memfds, anonymous shared memory and
/// System V segments.
fn is_kernels_own(dev: u64) -> bool {
    static DEVICES: OnceLock<Vec<u64>> = OnceLock::new();
    let devices = DEVICES.get_or_init(|| {
        let kinds = [
            MemfdFlags::empty(),
            MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
        ];
        let devices = kinds.iter().filter_map(|&kind| {
            let file = rustix::fs::memfd_create(c"ioasid", kind | MemfdFlags::CLOEXEC).ok()?;
            Some(identify(std::os::fd::AsFd::as_fd(&file), "").ok()?.0.dev)
        });
        devices.collect()
    });
    devices.contains(&dev)
}

fn comes_from_a_server(kind: &str) -> bool {
    const TYPES: [&str; 12] = [
        "9p", "afs", "ceph", "cifs", "coda", "gfs2", "lustre", "ocfs2", "orangefs", "smb3",
        "vboxsf", "virtiofs",
    ];
    kind.starts_with("fuse") || kind.starts_with("nfs") || TYPES.contains(&kind)
}

/// Device and file-system type of a line of `/proc/PID/mountinfo`, proc_pid_mountinfo(5). The
/// kernel escapes white space in what users chose, so the fields are where they seem to be.
fn parse_mount(line: &str) -> Option<(u64, &str)> {
    let (left, right) = line.split_once(" - ")?;
    let (major, minor) = left.split(' ').nth(2)?.split_once(':')?;
    let dev = makedev(major.parse().ok()?, minor.parse().ok()?);
    Some((dev, right.split(' ').next()?))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_memfd_is_memory_and_proc_is_not() {
        let memfd = rustix::fs::memfd_create(c"test", MemfdFlags::CLOEXEC).unwrap();
        let (id, kind) = identify(memfd.as_fd(), "").unwrap();
        assert_eq!(kind, rustix::fs::FileType::RegularFile);
        assert_eq!(Filesystem::of(id.dev, || None), Filesystem::Memory);
        let proc = std::fs::File::open("/proc/self/maps").unwrap();
        let (id, _) = identify(proc.as_fd(), "").unwrap();
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").ok();
        assert_eq!(Filesystem::of(id.dev, mounts), Filesystem::Other);
    }

    #[test]
    fn the_type_of_a_mount_is_not_what_its_path_or_source_says() {
        let dev = makedev(0, 4242);
        let of = |line: &str| Filesystem::of(dev, || Some(line.to_owned()));
        let line = r"36 35 0:4242 / /a\040-\040tmpfs rw,noatime shared:1 - fuse.x tmpfs rw";
        assert_eq!(parse_mount(line), Some((dev, "fuse.x")));
        assert_eq!(of(line), Filesystem::Server);
        let line = "37 35 0:4242 / /b rw - tmpfs fuse rw";
        assert_eq!(of(line), Filesystem::Memory);
        assert_eq!(of("36 35 0:4242 / /b rw"), Filesystem::Other, "no type");
    }

    #[test]
    fn each_type_is_of_its_kind() {
        use Filesystem::*;
        let mounts = [
            ("ext4", Disk),
            ("btrfs", Disk),
            ("overlay", Disk),
            ("xfs", Disk),
            ("nfs4", Server),
            ("fuseblk", Server),
            ("virtiofs", Server),
            ("hugetlbfs", Memory),
            ("ramfs", Ram),
            ("devtmpfs", Other),
            ("sysfs", Other),
        ];
        for (name, kind) in mounts {
            let line = format!("36 35 0:4242 / /mnt rw shared:1 - {name} none rw");
            let found = Filesystem::of(makedev(0, 4242), || Some(line));
            assert_eq!(found, kind, "{name}");
        }
        let unseen = |major| Filesystem::of(makedev(major, 4242), || Some(String::new()));
        assert_eq!((unseen(0), unseen(259)), (Other, Server));
    }
}
