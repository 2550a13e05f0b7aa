//! The programs that are run. They know Linux and nothing of us.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            fs::{FileExt, FileTypeExt, MetadataExt},
            net::UnixStream,
            process::CommandExt,
        },
    },
    process::{Command, ExitCode},
    thread,
};

use crate::{
    attributes,
    check::{ensure, ensure_eq},
    descriptors, entries, groups, hardship,
    machine::{ADDRESS, RDEV},
    memory, migration, places,
};

pub(crate) const IOAS_ALLOC: u64 = 0x3b81;
const DESTROY: u64 = 0x3b80;
const DEVICE_BIND: u64 = 0x3b76;
const DEVICE_GET_INFO: u64 = 0x3b6b;

pub(crate) type Check = Result<(), Box<dyn std::error::Error>>;

pub(crate) type Client = (&'static str, fn() -> Check);

const CLIENTS: &[Client] = &[
    ("objects", objects),
    ("device", device),
    ("events", events),
    ("identity", identity),
    ("hold", hold),
    ("after-exec", after_exec),
    ("hostile", hostile),
];

pub(crate) fn main(words: Vec<OsString>) -> ExitCode {
    let name = words[0].to_str().unwrap();
    let all = CLIENTS.iter().chain(hardship::CLIENTS);
    let all = all.chain(entries::CLIENTS).chain(groups::CLIENTS);
    let all = all.chain(attributes::CLIENTS).chain(migration::CLIENTS);
    let all = all.chain(places::CLIENTS);
    let all = all.chain(memory::CLIENTS);
    let all = all.chain(descriptors::CLIENTS);
    let (_, client) = all.into_iter().find(|(n, _)| *n == name).unwrap();
    let result = client();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("client {name}: {error}");
            ExitCode::from(77)
        }
    }
}

pub(crate) fn ioctl<T>(fd: RawFd, request: u64, argument: &mut T) -> io::Result<i32> {
    // SAFETY: each caller passes the structure that the request names.
    let ret = unsafe { libc::ioctl(fd, request as _, std::ptr::from_mut(argument)) };
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(ret)
    }
}

pub(crate) fn iommu() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/iommu")
}

pub(crate) fn vfio() -> io::Result<File> {
    let path = "/dev/vfio/devices/vfio0";
    OpenOptions::new().read(true).write(true).open(path)
}

pub(crate) fn alloc(fd: &impl AsRawFd) -> io::Result<u32> {
    let mut argument = [12u32, 0, 0];
    ioctl(fd.as_raw_fd(), IOAS_ALLOC, &mut argument)?;
    Ok(argument[2])
}

pub(crate) fn destroy(fd: &impl AsRawFd, id: u32) -> io::Result<()> {
    ioctl(fd.as_raw_fd(), DESTROY, &mut [8u32, id]).map(drop)
}

pub(crate) fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().and_then(|e| e.raw_os_error()).unwrap_or(0)
}

/// Objects belong to the open file: dup, fork, exec, threads and SCM_RIGHTS share them, another
/// open does not, and the last close ends them.
fn objects() -> Check {
    let file = iommu()?;
    let other = iommu()?;
    ensure_eq!(alloc(&file)?, 1);
    ensure_eq!(alloc(&file)?, 2);
    ensure_eq!(alloc(&other)?, 1);
    ensure_eq!(errno(destroy(&file, 7)), libc::ENOENT);

    let duplicate = file.try_clone()?;
    ensure_eq!(alloc(&duplicate)?, 3);
    // SAFETY: a plain dup.
    let low = unsafe { OwnedFd::from_raw_fd(libc::dup2(file.as_raw_fd(), 77)) };
    ensure_eq!(alloc(&low)?, 4);
    drop(low);
    drop(duplicate);

    // SAFETY: the child makes system calls only.
    match unsafe { libc::fork() } {
        0 => {
            let code = match alloc(&file) {
                Ok(5) => 0,
                _ => 1,
            };
            // SAFETY: ends the child without its parent's destructors.
            unsafe { libc::_exit(code) }
        }
        pid => {
            let mut status = 0;
            // SAFETY: waits for the child just made.
            unsafe { libc::waitpid(pid, &mut status, 0) };
            ensure_eq!(status, 0);
        }
    }

    let (here, there) = UnixStream::pair()?;
    let mut sender = ioasid_supervisor::wire::Channel::new(here);
    let mut receiver = ioasid_supervisor::wire::Channel::new(there);
    sender.send(&(), Some(file.as_fd()))?;
    receiver.receive::<()>(100)?;
    let passed = receiver.take_fd().ok_or("nothing passed")?;
    ensure!(passed.as_raw_fd() != file.as_raw_fd());
    drop(file);
    ensure_eq!(alloc(&passed)?, 6);

    let ids: BTreeSet<u32> = thread::scope(|scope| {
        let work = || {
            (0..250)
                .map(|_| alloc(&passed).unwrap())
                .collect::<Vec<_>>()
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect()
    });
    ensure_eq!(ids, (7..1007).collect());

    // A program that replaces itself keeps it too.
    rustix::io::fcntl_setfd(&passed, rustix::io::FdFlags::empty())?;
    let fd = passed.as_raw_fd().to_string();
    let status = crate::part("part:client")
        .arg("after-exec")
        .env("FD", &fd)
        .status()?;
    ensure!(status.success());
    ensure_eq!(alloc(&passed)?, 1008);

    drop(passed);
    for _ in 0..200 {
        ensure_eq!(alloc(&iommu()?)?, 1);
    }
    Ok(())
}

fn after_exec() -> Check {
    if let Ok(fd) = std::env::var("FD") {
        let fd: RawFd = fd.parse()?;
        ensure_eq!(alloc(&fd)?, 1007);
        // Once more through exec without fork, and with vfork before it.
        // SAFETY: inherited for this purpose.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        ensure!(Command::new("/bin/true").status()?.success());
        let error = crate::part("part:client")
            .arg("after-exec")
            .env_remove("FD")
            .env("AGAIN", fd.as_raw_fd().to_string())
            .exec();
        return Err(error.into());
    }
    let fd: RawFd = std::env::var("AGAIN")?.parse()?;
    ensure_eq!(errno(destroy(&fd, 5000)), libc::ENOENT);
    destroy(&fd, 3)?;
    ensure_eq!(alloc(&fd)?, 3);
    Ok(())
}

/// A device node is a character device with the number that sysfs shows, and its registers work.
fn device() -> Check {
    let file = vfio()?;
    let metadata = file.metadata()?;
    ensure!(metadata.file_type().is_char_device());
    ensure_eq!(metadata.rdev(), rustix::fs::makedev(RDEV.0, RDEV.1));
    let stat = rustix::fs::fstat(&file)?;
    ensure_eq!(stat.st_rdev, metadata.rdev());
    ensure_eq!(stat.st_mode & 0o170_000, 0o020_000);
    let dev = format!("/sys/bus/pci/devices/{ADDRESS}/vfio-dev/vfio0/dev");
    ensure_eq!(fs::read_to_string(dev)?, format!("{}:{}\n", RDEV.0, RDEV.1));

    let mut info = [20u32, 0, 0, 0, 0];
    ensure_eq!(
        errno(ioctl(file.as_raw_fd(), DEVICE_GET_INFO, &mut info)),
        libc::EINVAL
    );
    let iommu = iommu()?;
    let mut bind = [16u32, 0, iommu.as_raw_fd() as u32, 0];
    ioctl(file.as_raw_fd(), DEVICE_BIND, &mut bind)?;
    ensure_eq!(bind[3], 1);
    ioctl(file.as_raw_fd(), DEVICE_GET_INFO, &mut info)?;
    ensure_eq!(info[1] & 3, 3);

    // Memory space on, then the counter in BAR 0.
    let config = 7u64 << 40;
    file.write_all_at(&[6, 0], config + 4)?;
    file.write_all_at(&41u64.to_le_bytes(), 0)?;
    let copy = file.try_clone()?;
    copy.write_all_at(&1u64.to_le_bytes(), 0)?;
    let mut sum = [0; 8];
    copy.read_exact_at(&mut sum, 0)?;
    ensure_eq!(u64::from_le_bytes(sum), 42);
    let mut ids = [0; 4];
    file.read_exact_at(&mut ids, config)?;
    ensure_eq!(ids, [0x36, 0x1b, 0x05, 0x00]);
    ensure!(file.read_at(&mut ids, 1 << 50).is_err());

    // The close of the last copy gives the device back before the next open.
    drop((file, copy));
    for _ in 0..50 {
        let file = vfio()?;
        bind[3] = 0;
        ioctl(file.as_raw_fd(), DEVICE_BIND, &mut bind)?;
    }
    Ok(())
}

/// A page of our own, and what a program may do with it.
struct Page(*mut u8);

impl Page {
    fn new() -> io::Result<Page> {
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping replaces nothing.
        let page = unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, kind, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Page(page.cast()))
    }

    /// An ioctl whose structure lies in the page, which is read-only meanwhile.
    fn read_only_ioctl<const N: usize>(
        &self,
        fd: &impl AsRawFd,
        request: u64,
        structure: [u32; N],
    ) -> io::Result<()> {
        // SAFETY: the page is ours, and larger than every structure.
        unsafe {
            self.0.cast::<[u32; N]>().write(structure);
            libc::mprotect(self.0.cast(), 4096, libc::PROT_READ);
            let ret = libc::ioctl(fd.as_raw_fd(), request as _, self.0);
            let error = io::Error::last_os_error();
            libc::mprotect(self.0.cast(), 4096, libc::PROT_READ | libc::PROT_WRITE);
            if ret < 0 { Err(error) } else { Ok(()) }
        }
    }
}

/// A fault queue: a descriptor that an ioctl gives, with events to poll for and to read.
fn events() -> Check {
    const FAULT_QUEUE_ALLOC: u64 = 0x3b8e;
    let file = iommu()?;
    let open_files = || fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let page = Page::new()?;
    // One whose answer cannot be written leaves neither object nor descriptor.
    let before = open_files();
    for _ in 0..200 {
        let refused = page.read_only_ioctl(&file, FAULT_QUEUE_ALLOC, [16, 0, 0, 0]);
        ensure_eq!(errno(refused), libc::EFAULT);
    }
    ensure_eq!(open_files(), before);

    let mut queue = [16u32, 0, 0, 0];
    ioctl(file.as_raw_fd(), FAULT_QUEUE_ALLOC, &mut queue)?;
    let [_, _, id, fd] = queue;
    ensure_eq!(id, 1);
    // SAFETY: the descriptor is new, and ours.
    let events = unsafe { File::from_raw_fd(fd as RawFd) };
    ensure_eq!(open_files(), before + 1);
    ensure!(rustix::io::fcntl_getfd(&events)?.contains(rustix::io::FdFlags::CLOEXEC));
    let flags = rustix::fs::fcntl_getfl(&events)?;
    ensure_eq!(
        flags & rustix::fs::OFlags::ACCMODE,
        rustix::fs::OFlags::RDWR
    );
    ensure_eq!(events.metadata()?.mode() & libc::S_IFMT, 0);
    ensure_eq!(errno(alloc(&events)), libc::ENOTTY);
    let again = OpenOptions::new()
        .read(true)
        .write(true)
        .open(format!("/proc/self/fd/{fd}"));
    ensure_eq!(errno(again), libc::ENXIO);

    use io::{IoSliceMut, Read as _, Seek as _, Write as _};
    let mut file_of_events = &events;
    let mut record = [0u8; 80];
    ensure_eq!(file_of_events.read(&mut record)?, 0);
    ensure_eq!(errno(file_of_events.read(&mut record[..41])), libc::ESPIPE);
    let (a, b) = record.split_at_mut(40);
    let mut pieces = [IoSliceMut::new(a), IoSliceMut::new(b)];
    ensure_eq!(file_of_events.read_vectored(&mut pieces)?, 0);
    ensure_eq!(errno(file_of_events.write(&[0; 7])), libc::ESPIPE);
    ensure_eq!(errno(file_of_events.write(&[1; 8])), libc::EINVAL);
    ensure_eq!(errno(events.read_at(&mut record, 0)), libc::ESPIPE);
    ensure_eq!(errno(file_of_events.stream_position()), libc::ESPIPE);
    let mut fds = [rustix::event::PollFd::new(
        &events,
        rustix::event::PollFlags::IN | rustix::event::PollFlags::OUT,
    )];
    rustix::event::poll(&mut fds, Some(&rustix::time::Timespec::default()))?;
    ensure_eq!(fds[0].revents(), rustix::event::PollFlags::OUT);

    // The file holds its object until its last copy is closed.
    let copy = events.try_clone()?;
    ensure_eq!(errno(destroy(&file, id)), libc::EBUSY);
    drop(events);
    ensure_eq!(errno(destroy(&file, id)), libc::EBUSY);
    drop(copy);
    destroy(&file, id)?;
    ensure_eq!(alloc(&file)?, 1);
    Ok(())
}

/// Prints uid, gid and effective capabilities.
fn identity() -> Check {
    let status = fs::read_to_string("/proc/self/status")?;
    for line in status.lines() {
        if ["Uid:", "Gid:", "CapEff:", "NoNewPrivs:"]
            .iter()
            .any(|name| line.starts_with(name))
        {
            println!("{line}");
        }
    }
    ensure_eq!(alloc(&iommu()?)?, 1);
    Ok(())
}

/// Holds a bound device until stdin ends, or is killed.
fn hold() -> Check {
    let iommu = iommu()?;
    ensure_eq!(alloc(&iommu)?, 1);
    let file = vfio()?;
    let mut bind = [16u32, 0, iommu.as_raw_fd() as u32, 0];
    ioctl(file.as_raw_fd(), DEVICE_BIND, &mut bind)?;
    println!("holding");
    io::copy(&mut io::stdin(), &mut io::sink())?;
    Ok(())
}

/// Wrong pointers, numbers and paths are errnos.
fn hostile() -> Check {
    let file = iommu()?;
    let fd = file.as_raw_fd();
    // SAFETY: the kernel checks every one of these pointers.
    unsafe {
        let call = |request: u64, pointer: usize| {
            let ret = libc::ioctl(fd, request as _, pointer);
            if ret < 0 {
                io::Error::last_os_error().raw_os_error()
            } else {
                None
            }
        };
        ensure_eq!(call(IOAS_ALLOC, 0), Some(libc::EFAULT));
        ensure_eq!(call(IOAS_ALLOC, usize::MAX), Some(libc::EFAULT));
        ensure_eq!(call(IOAS_ALLOC, 1 << 63), Some(libc::EFAULT));
        ensure_eq!(call(0x3bff, 0), Some(libc::ENOTTY));
        ensure_eq!(
            libc::open(std::ptr::without_provenance(8), libc::O_RDWR),
            -1
        );
        ensure_eq!(
            io::Error::last_os_error().raw_os_error(),
            Some(libc::EFAULT)
        );
        ensure_eq!(libc::read(fd, std::ptr::null_mut(), 8), -1);
        ensure_eq!(
            io::Error::last_os_error().raw_os_error(),
            Some(libc::EINVAL)
        );
    }
    // A structure that cannot be answered, at the end of a page, and over the edge of two.
    let page = Page::new()?;
    ensure_eq!(
        errno(page.read_only_ioctl(&file, IOAS_ALLOC, [12, 0, 0])),
        libc::EFAULT
    );
    let ioas = alloc(&file)?;
    ensure_eq!(ioas, 1);
    let map = [40, 7, ioas, 0, 0, 0, 4096, 0, 0x10000, 0];
    let (low, high) = (page.0 as usize as u32, (page.0 as usize >> 32) as u32);
    let map = [map[0], map[1], map[2], 0, low, high, 4096, 0, map[8], 0];
    ensure_eq!(
        errno(page.read_only_ioctl(&file, 0x3b85, map)),
        libc::EFAULT
    );
    // SAFETY: two pages of our own, of which the second one goes.
    unsafe {
        let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        let two = libc::mmap(std::ptr::null_mut(), 8192, prot, kind, -1, 0).cast::<u8>();
        let edge = two.add(4096 - 6).cast::<[u32; 3]>();
        edge.write_unaligned([12, 0, 0]);
        ensure_eq!(libc::ioctl(fd, IOAS_ALLOC as _, edge), 0);
        ensure_eq!(edge.read_unaligned()[2], 2);
        let end = two.add(4096 - 12).cast::<[u32; 3]>();
        end.write_unaligned([12, 0, 0]);
        libc::munmap(two.add(4096).cast(), 4096);
        ensure_eq!(libc::ioctl(fd, IOAS_ALLOC as _, end), 0);
        ensure_eq!(end.read_unaligned()[2], 3);
        let beyond = two.add(4096 - 8);
        beyond.cast::<u32>().write_unaligned(12);
        ensure_eq!(libc::ioctl(fd, IOAS_ALLOC as _, beyond), -1);
        ensure_eq!(
            io::Error::last_os_error().raw_os_error(),
            Some(libc::EFAULT)
        );
    }
    for id in 1..=3 {
        destroy(&file, id)?;
    }
    let long = "/".repeat(5000);
    let open = |path: &str| OpenOptions::new().read(true).write(true).open(path);
    ensure_eq!(errno(open(&long)), libc::ENAMETOOLONG);
    ensure_eq!(errno(open("/dev/nothing")), libc::ENOENT);
    ensure_eq!(errno(open("")), libc::ENOENT);
    ensure_eq!(
        errno(ioctl(-1, IOAS_ALLOC, &mut [12u32, 0, 0])),
        libc::EBADF
    );
    ensure_eq!(errno(ioctl(-1, 0x3bfe, &mut [0u32; 2])), libc::ENOTTY);
    // More files than there are numbers of ours, up to the limit.
    let mut files = Vec::new();
    for _ in 0..300 {
        files.push(iommu()?);
    }
    for file in &files {
        ensure_eq!(alloc(file)?, 1);
    }
    let few = libc::rlimit {
        rlim_cur: 64,
        rlim_max: 64,
    };
    files.clear();
    // SAFETY: lowers our own limit.
    unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &few) };
    ensure_eq!(alloc(&iommu()?)?, 1);
    let error = loop {
        match iommu() {
            Ok(file) => files.push(file),
            Err(error) => break error,
        }
    };
    ensure_eq!(error.raw_os_error(), Some(libc::EMFILE));
    ensure_eq!(alloc(&file)?, 1);
    Ok(())
}
