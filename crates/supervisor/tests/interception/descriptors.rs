//! Descriptors by every way that there is: how they are opened, what names them, which number they
//! have.

use std::{
    fs::{File, OpenOptions},
    io::{self, Seek as _, SeekFrom},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::{
            fs::{FileExt, OpenOptionsExt},
            net::UnixStream,
        },
    },
};

use rustix::fs::{OFlags, ResolveFlags};

use crate::{
    check::{ensure, ensure_eq},
    client::{Check, Client, alloc, errno, ioctl, iommu, vfio},
    machine::ADDRESS,
    uring,
};

pub(crate) const CLIENTS: &[Client] = &[
    ("opened-for-reading", opened_for_reading),
    ("access-modes", access_modes),
    ("opened-past-the-filter", opened_past_the_filter),
    ("named-by-an-ioctl", named_by_an_ioctl),
    ("not-regular", not_regular),
    ("any-number", any_number),
    ("many", many),
];

const SET_IOMMU: u64 = 0x3b66;
const SET_CONTAINER: u64 = 0x3b68;
const UNSET_CONTAINER: u64 = 0x3b69;
const GET_DEVICE_FD: u64 = 0x3b6a;
const MAP_DMA: u64 = 0x3b71;
const DEVICE_BIND: u64 = 0x3b76;
const TYPE1V2: u64 = 3;
const CONFIG: u64 = 7 << 40;
/// What configuration space begins with.
const IDS: [u8; 4] = [0x36, 0x1b, 0x05, 0x00];

const CONTAINER: &str = "/dev/vfio/vfio";
const GROUP: &str = "/dev/vfio/0";
const IOMMU: &str = "/dev/iommu";
const DEVICE: &str = "/dev/vfio/devices/vfio0";

fn by_value(file: &File, request: u64, argument: u64) -> io::Result<i32> {
    // SAFETY: the request takes a number, no pointer.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ret)
}

fn set_container(group: &File, container: &File) -> io::Result<i32> {
    ioctl(
        group.as_raw_fd(),
        SET_CONTAINER,
        &mut container.as_raw_fd().clone(),
    )
}

fn bind(device: &impl AsRawFd, iommu: &impl AsRawFd) -> io::Result<u32> {
    let mut bind = [16u32, 0, iommu.as_raw_fd() as u32, 0];
    ioctl(device.as_raw_fd(), DEVICE_BIND, &mut bind)?;
    Ok(bind[3])
}

fn open_device(group: &File) -> io::Result<File> {
    let mut name = [0; 64];
    name[..ADDRESS.len()].copy_from_slice(ADDRESS.as_bytes());
    let fd = ioctl(group.as_raw_fd(), GET_DEVICE_FD, &mut name)?;
    // SAFETY: the descriptor is new, and ours.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// A group and a container that were never open for writing, as alioth 0.12 opens them
/// (`src/vfio/{container,group}.rs`); the container is an argument first.
fn opened_for_reading() -> Check {
    let memory = vec![0u64; 4096];
    let page = memory.as_ptr().align_offset(4096);
    for path in [CONTAINER, IOMMU] {
        let container = File::open(path)?;
        let group = File::open(GROUP)?;
        set_container(&group, &container)?;
        by_value(&container, SET_IOMMU, TYPE1V2)?;
        let address = memory[page..].as_ptr() as u64;
        let mut map = [32 | 3 << 32, address, 0x1000, 0x1000];
        ioctl(container.as_raw_fd(), MAP_DMA, &mut map)?;
        let device = open_device(&group)?;
        device.write_all_at(&[6, 4], CONFIG + 4)?;
        let mut ids = [0; 4];
        device.read_exact_at(&mut ids, CONFIG)?;
        ensure_eq!(ids, IDS);
        ensure_eq!(
            errno(File::open(GROUP).and_then(|again| by_value(&again, UNSET_CONTAINER, 0))),
            libc::EBUSY
        );
        drop(device);
        by_value(&group, UNSET_CONTAINER, 0)?;
    }
    // The node of a device, and the iommufd as the argument alone.
    let (iommu, device) = (File::open(IOMMU)?, File::open(DEVICE)?);
    ensure_eq!(bind(&device, &iommu)?, 1);
    ensure_eq!(alloc(&iommu)?, 2);
    let mut ids = [0; 4];
    device.read_exact_at(&mut ids, CONFIG)?;
    ensure_eq!(ids, IDS);
    ensure_eq!(errno(device.write_all_at(&[6, 0], CONFIG + 4)), libc::EBADF);
    Ok(())
}

/// An ioctl looks at no mode; everything else does.
fn access_modes() -> Check {
    for mode in [
        libc::O_RDONLY,
        libc::O_WRONLY,
        libc::O_RDWR,
        libc::O_ACCMODE,
    ] {
        let flags = mode | libc::O_CLOEXEC | libc::O_NONBLOCK;
        let open = |path: &std::ffi::CStr| -> io::Result<File> {
            // SAFETY: a terminated path, no other pointer.
            let fd = unsafe { libc::open(path.as_ptr(), flags) };
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: new, and ours.
            Ok(unsafe { File::from_raw_fd(fd) })
        };
        let (iommu, device) = (open(c"/dev/iommu")?, open(c"/dev/vfio/devices/vfio0")?);
        bind(&device, &iommu)?;
        for file in [&iommu, &device] {
            // SAFETY: takes no pointer.
            let shown = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GETFL) };
            ensure_eq!(
                shown & !libc::O_LARGEFILE & !0o100_000,
                flags & !libc::O_CLOEXEC
            );
            ensure!(rustix::io::fcntl_getfd(file)?.contains(rustix::io::FdFlags::CLOEXEC));
        }
        let mut bytes = [0; 4];
        let read = errno(device.read_at(&mut bytes, CONFIG));
        let written = errno(device.write_at(&[6, 0], CONFIG + 4));
        let readable = matches!(mode, libc::O_RDONLY | libc::O_RDWR);
        let writable = matches!(mode, libc::O_WRONLY | libc::O_RDWR);
        ensure_eq!(read, if readable { 0 } else { libc::EBADF });
        ensure_eq!(written, if writable { 0 } else { libc::EBADF });
    }
    Ok(())
}

/// Opens that the filter does not see or does not decide.
fn opened_past_the_filter() -> Check {
    // io_uring, where the host has it.
    match uring::open(c"/dev/iommu", libc::O_RDWR | libc::O_CLOEXEC) {
        Ok(iommu) => {
            let device = uring::open(c"/dev/vfio/devices/vfio0", libc::O_RDWR)?;
            ensure_eq!(bind(&device, &iommu)?, 1);
            let device = File::from(device);
            device.write_all_at(&[6, 0], CONFIG + 4)?;
            device.write_all_at(&41u64.to_le_bytes(), 0)?;
            let group = uring::open(c"/dev/vfio/0", libc::O_RDWR);
            drop((device, iommu));
            let container = File::from(uring::open(c"/dev/vfio/vfio", libc::O_RDWR)?);
            set_container(&File::from(group?), &container)?;
        }
        Err(error) => eprintln!("no io_uring here ({error}): not tried"),
    }
    // By rules that only the kernel keeps.
    let root = File::open("/")?;
    let mode = rustix::fs::Mode::empty();
    for resolve in [
        ResolveFlags::empty(),
        ResolveFlags::BENEATH,
        ResolveFlags::NO_SYMLINKS,
    ] {
        for flags in [OFlags::RDWR, OFlags::RDONLY, OFlags::WRONLY] {
            let iommu = rustix::fs::openat2(&root, "dev/iommu", flags, mode, resolve)?;
            let device =
                rustix::fs::openat2(&root, "dev/vfio/devices/vfio0", flags, mode, resolve)?;
            ensure_eq!(bind(&device, &iommu)?, 1);
        }
    }
    // Copies made before the first call are the same open file.
    let first = File::open(IOMMU)?;
    let second = first.try_clone()?;
    let third = first.try_clone()?;
    ensure_eq!(alloc(&second)?, 1);
    drop(second);
    ensure_eq!(alloc(&first)?, 2);
    drop(first);
    ensure_eq!(alloc(&third)?, 3);
    let other = File::open(IOMMU)?;
    ensure_eq!(alloc(&other)?, 1);
    Ok(())
}

/// What is no open file of the kind is refused, however it is reached.
fn named_by_an_ioctl() -> Check {
    let path = |path: &str| {
        let mut options = OpenOptions::new();
        options.read(true).custom_flags(libc::O_PATH).open(path)
    };
    let named = path(IOMMU)?;
    // Without namespaces the file is handed over, and the kernel hands over none of that kind
    // (`seccomp_notify_addfd`): the node itself is open, and its flags say so.
    if !rustix::fs::fcntl_getfl(&named)?.contains(rustix::fs::OFlags::PATH) {
        return Ok(());
    }
    ensure_eq!(errno(alloc(&named)), libc::EBADF);
    let device = vfio()?;
    ensure_eq!(errno(bind(&device, &named)), libc::EBADF);
    ensure_eq!(errno(bind(&path(DEVICE)?, &iommu()?)), libc::EBADF);
    let container = path(CONTAINER)?;
    let group = File::open(GROUP)?;
    ensure_eq!(errno(set_container(&group, &container)), libc::EBADF);
    let null = File::open("/dev/null")?;
    ensure_eq!(errno(set_container(&group, &null)), libc::EBADFD);
    ensure_eq!(errno(set_container(&group, &device)), libc::EBADFD);
    drop(group);
    // The path of an open file of ours is none either.
    let open = iommu()?;
    let again = path(&format!("/proc/self/fd/{}", open.as_raw_fd()))?;
    ensure_eq!(errno(alloc(&again)), libc::EBADF);
    ensure_eq!(errno(bind(&device, &again)), libc::EBADF);
    for wrong in [&null, &File::open(CONTAINER)?, &device] {
        ensure_eq!(errno(bind(&device, wrong)), libc::EBADFD);
    }
    ensure_eq!(bind(&device, &open)?, 1);
    Ok(())
}

/// What is for regular files alone (fs/open.c, fs/read_write.c, fs/sync.c).
fn not_regular() -> Check {
    let mut all = Vec::new();
    for path in [IOMMU, DEVICE, CONTAINER, GROUP] {
        all.push(OpenOptions::new().read(true).write(true).open(path)?);
    }
    for file in &mut all {
        ensure_eq!(errno(file.stream_position()), libc::ESPIPE);
        ensure_eq!(errno(file.seek(SeekFrom::End(0))), libc::ESPIPE);
        ensure_eq!(errno(file.set_len(0)), libc::EINVAL);
        ensure_eq!(errno(file.sync_all()), libc::EINVAL);
        ensure_eq!(errno(file.sync_data()), libc::EINVAL);
        let fd = file.as_raw_fd();
        // SAFETY: these take no pointers.
        let ret = unsafe { libc::fallocate(fd, 0, 0, 4096) };
        ensure_eq!(
            (ret, io::Error::last_os_error().raw_os_error()),
            (-1, Some(libc::ENODEV))
        );
        // SAFETY: likewise.
        let ret = unsafe { libc::fcntl(fd, libc::F_GET_SEALS) };
        ensure_eq!(
            (ret, io::Error::last_os_error().raw_os_error()),
            (-1, Some(libc::EINVAL))
        );
    }
    Ok(())
}

/// A copy at the lowest number that is free.
fn low(file: &impl AsFd) -> io::Result<File> {
    let place = File::open("/dev/null")?;
    // SAFETY: replaces a descriptor that is ours.
    let fd = unsafe { libc::dup2(file.as_fd().as_raw_fd(), place.as_raw_fd()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    ensure_low(fd)?;
    Ok(place)
}

fn ensure_low(fd: RawFd) -> io::Result<()> {
    match fd {
        ..512 => Ok(()),
        _ => Err(io::Error::other("not a low number")),
    }
}

fn passed(file: &impl AsFd) -> Result<OwnedFd, Box<dyn std::error::Error>> {
    let (here, there) = UnixStream::pair()?;
    let mut sender = ioasid_supervisor::wire::Channel::new(here);
    let mut receiver = ioasid_supervisor::wire::Channel::new(there);
    sender.send(&(), Some(file.as_fd()))?;
    receiver.receive::<()>(100)?;
    Ok(receiver.take_fd().ok_or("nothing passed")?)
}

/// Registers and configuration space are reached on any number, in any shape.
fn any_number() -> Check {
    let (iommu, original) = (iommu()?, vfio()?);
    bind(&original, &iommu)?;
    original.write_all_at(&[6, 0], CONFIG + 4)?;
    let received = File::from(passed(&original)?);
    ensure_low(received.as_raw_fd())?;
    let mut total = 0;
    for device in [low(&original)?, received] {
        let mut ids = [0; 4];
        device.read_exact_at(&mut ids, CONFIG)?;
        ensure_eq!(ids, IDS);
        device.write_all_at(&[6, 4], CONFIG + 4)?;
        let mut command = [0; 2];
        device.read_exact_at(&mut command, CONFIG + 4)?;
        ensure_eq!(command, [6, 4]);
        // Region 0: a counter.
        device.write_all_at(&41u64.to_le_bytes(), 0)?;
        device.write_all_at(&1u64.to_le_bytes(), 0)?;
        total += 42;
        let mut sum = [0; 8];
        device.read_exact_at(&mut sum, 0)?;
        ensure_eq!(u64::from_le_bytes(sum), total);
        let mut all = vec![0; 4096];
        ensure_eq!(device.read_at(&mut all, CONFIG)?, 4096.min(all.len()));
        ensure_eq!(all[..4], IDS);
        ensure_eq!(errno(device.read_at(&mut all, 1 << 50)), libc::EINVAL);
        // In pieces.
        let (mut a, mut b) = ([0; 2], [0; 2]);
        let mut pieces = [io::IoSliceMut::new(&mut a), io::IoSliceMut::new(&mut b)];
        ensure_eq!(rustix::io::preadv(&device, &mut pieces, CONFIG)?, 4);
        ensure_eq!([a[0], a[1], b[0], b[1]], IDS);
        // A new copy of a copy.
        let copy = low(&device)?;
        copy.read_exact_at(&mut sum, 0)?;
        ensure_eq!(u64::from_le_bytes(sum), total);
    }
    // Ordinary files are what they were, wherever in them.
    let directory = tempfile::tempdir()?;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(directory.path().join("file"))?;
    for offset in [0, 0xffff, 0x1_0000, 1 << 41] {
        file.write_all_at(b"here", offset)?;
        let mut bytes = [0; 4];
        low(&file)?.read_exact_at(&mut bytes, offset)?;
        ensure_eq!(&bytes, b"here");
    }
    Ok(())
}

/// More open files than there were numbers for once.
fn many() -> Check {
    let metadata = iommu()?.metadata()?;
    let files = (0..300).map(|_| vfio()).collect::<io::Result<Vec<_>>>()?;
    for file in &files {
        use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
        let found = file.metadata()?;
        ensure!(found.file_type().is_char_device());
        ensure!(found.rdev() != metadata.rdev());
        let mut file = file;
        ensure_eq!(errno(file.stream_position()), libc::ESPIPE);
    }
    let iommu = iommu()?;
    bind(files.last().ok_or("none")?, &iommu)?;
    let mut ids = [0; 4];
    files
        .last()
        .ok_or("none")?
        .read_exact_at(&mut ids, CONFIG)?;
    ensure_eq!(ids, IDS);
    Ok(())
}
