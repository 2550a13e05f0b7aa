//! A program that uses a device by its group and a container.

use std::{
    fs::{File, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, RawFd},
        unix::fs::{FileExt, FileTypeExt, MetadataExt},
    },
};

use crate::{
    check::{ensure, ensure_eq},
    client::{Check, Client, errno, ioctl, iommu, vfio},
    machine::ADDRESS,
};

pub(crate) const CLIENTS: &[Client] = &[
    ("groups", groups),
    ("compat-groups", compat),
    ("hold-group", hold),
];

const CHECK_EXTENSION: u64 = 0x3b65;
const SET_IOMMU: u64 = 0x3b66;
const GET_STATUS: u64 = 0x3b67;
const SET_CONTAINER: u64 = 0x3b68;
const UNSET_CONTAINER: u64 = 0x3b69;
const GET_DEVICE_FD: u64 = 0x3b6a;
const GET_INFO: u64 = 0x3b70;
const MAP_DMA: u64 = 0x3b71;
const UNMAP_DMA: u64 = 0x3b72;
const DEVICE_BIND: u64 = 0x3b76;
const DEVICE_ATTACH: u64 = 0x3b77;

const TYPE1V2: u64 = 3;
const CONFIG: u64 = 7 << 40;

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn container() -> io::Result<File> {
    open("/dev/vfio/vfio")
}

/// By the number in sysfs where there is one.
fn group() -> io::Result<File> {
    open("/dev/vfio/0")
}

fn by_value(file: &File, request: u64, argument: u64) -> io::Result<i32> {
    // SAFETY: the request takes a number, no pointer.
    let ret = unsafe { libc::ioctl(file.as_raw_fd(), request as _, argument) };
    if ret < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(ret)
}

fn set_container(group: &File, fd: RawFd) -> io::Result<i32> {
    ioctl(group.as_raw_fd(), SET_CONTAINER, &mut fd.clone())
}

/// A container of type 1 with the device's group in it.
pub(crate) fn with_container() -> io::Result<(File, File)> {
    let (file, group) = (container()?, group()?);
    set_container(&group, file.as_raw_fd())?;
    by_value(&file, SET_IOMMU, TYPE1V2)?;
    Ok((file, group))
}

pub(crate) fn device(group: &File, name: &str) -> io::Result<File> {
    let mut bytes = [0; 64];
    bytes[..name.len()].copy_from_slice(name.as_bytes());
    let fd = ioctl(group.as_raw_fd(), GET_DEVICE_FD, &mut bytes)?;
    // SAFETY: the descriptor is new, and ours.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// As the kernel's own headers have it: argsz, flags, vaddr, iova, size.
fn map(container: &File, memory: &[u64], iova: u64, size: u64) -> io::Result<i32> {
    let address = memory.as_ptr() as u64;
    let mut args = [32 | 3 << 32, address, iova, size];
    ioctl(container.as_raw_fd(), MAP_DMA, &mut args)
}

fn unmap(container: &File, iova: u64, size: u64) -> io::Result<u64> {
    let mut args = [24, iova, size];
    ioctl(container.as_raw_fd(), UNMAP_DMA, &mut args)?;
    Ok(args[2])
}

fn groups() -> Check {
    let (file, group_file) = (container()?, group()?);
    for (file, major) in [(&file, 10), (&group_file, 510)] {
        let metadata = file.metadata()?;
        ensure!(metadata.file_type().is_char_device());
        ensure_eq!(rustix::fs::major(metadata.rdev()), major);
        ensure!(file.read_at(&mut [0; 4], 0).is_err());
    }
    ensure_eq!(errno(group()), libc::EBUSY);
    ensure_eq!(errno(open("/dev/vfio/77")), libc::ENOENT);
    let mut status = [8u32, 0];
    ioctl(group_file.as_raw_fd(), GET_STATUS, &mut status)?;
    ensure_eq!(status[1], 1);

    ensure_eq!(errno(set_container(&group_file, 999)), libc::EBADF);
    let other = File::open("/dev/null")?;
    ensure_eq!(
        errno(set_container(&group_file, other.as_raw_fd())),
        libc::EBADFD
    );
    set_container(&group_file, file.as_raw_fd())?;
    ensure_eq!(errno(device(&group_file, ADDRESS)), libc::EINVAL);
    ensure_eq!(by_value(&file, CHECK_EXTENSION, TYPE1V2)?, 1);
    by_value(&file, SET_IOMMU, TYPE1V2)?;
    let mut info = [0u32; 64];
    info[0] = 256;
    ioctl(file.as_raw_fd(), GET_INFO, &mut info)?;
    ensure_eq!((info[1], info[4]), (3, 24));

    let memory = vec![0u64; 4096];
    let page = memory.as_ptr().align_offset(4096);
    let pages = &memory[page..];
    map(&file, pages, 0x1000, 0x2000)?;
    ensure_eq!(errno(map(&file, pages, 0x2000, 0x1000)), libc::EEXIST);
    ensure_eq!(errno(unmap(&file, 0x1000, 0x1000)), libc::EINVAL);

    let opened = device(&group_file, ADDRESS)?;
    ensure!(rustix::io::fcntl_getfd(&opened)?.contains(rustix::io::FdFlags::CLOEXEC));
    let again = device(&group_file, ADDRESS)?;
    ensure!(again.as_raw_fd() != opened.as_raw_fd());
    opened.write_all_at(&[6, 0], CONFIG + 4)?;
    opened.write_all_at(&41u64.to_le_bytes(), 0)?;
    again.write_all_at(&1u64.to_le_bytes(), 0)?;
    let mut sum = [0; 8];
    again.try_clone()?.read_exact_at(&mut sum, 0)?;
    ensure_eq!(u64::from_le_bytes(sum), 42);
    let mut attach = [12u32, 0, 1];
    let attached = ioctl(opened.as_raw_fd(), DEVICE_ATTACH, &mut attach);
    ensure_eq!(errno(attached), libc::ENOTTY);

    // The device's own node cannot be bound meanwhile.
    let iommu = iommu()?;
    let own = vfio()?;
    let mut bind = [16u32, 0, iommu.as_raw_fd() as u32, 0];
    let bound = ioctl(own.as_raw_fd(), DEVICE_BIND, &mut bind);
    ensure_eq!(errno(bound), libc::EBUSY);

    // What is left keeps the rest, in any order; the last close is seen before the next open.
    ensure_eq!(
        errno(by_value(&group_file, UNSET_CONTAINER, 0)),
        libc::EBUSY
    );
    drop(group_file);
    ensure_eq!(errno(group()), libc::EBUSY);
    ensure_eq!(unmap(&file, 0, 0x1_0000)?, 0x2000);
    map(&file, pages, 0, 0x1000)?;
    drop((file, opened));
    again.read_exact_at(&mut sum, 0)?;
    ensure_eq!(errno(group()), libc::EBUSY);
    drop(again);
    ioctl(own.as_raw_fd(), DEVICE_BIND, &mut bind)?;
    ensure_eq!(errno(group()), libc::EBUSY);
    drop(own);
    for _ in 0..20 {
        let (file, group) = (container()?, group()?);
        set_container(&group, file.as_raw_fd())?;
        by_value(&file, SET_IOMMU, TYPE1V2)?;
        let device = device(&group, ADDRESS)?;
        device.read_exact_at(&mut sum, CONFIG)?;
    }
    Ok(())
}

/// `/dev/iommu` in the place of a container.
fn compat() -> Check {
    let (iommu, group_file) = (iommu()?, group()?);
    set_container(&group_file, iommu.as_raw_fd())?;
    by_value(&iommu, SET_IOMMU, TYPE1V2)?;
    let memory = vec![0u64; 4096];
    let page = memory.as_ptr().align_offset(4096);
    map(&iommu, &memory[page..], 0x1000, 0x1000)?;
    let opened = device(&group_file, ADDRESS)?;
    let mut ids = [0; 4];
    opened.read_exact_at(&mut ids, CONFIG)?;
    ensure_eq!(ids, [0x36, 0x1b, 0x05, 0x00]);
    ensure_eq!(unmap(&iommu, 0x1000, 0x1000)?, 0x1000);
    // The device does not need its group's file.
    drop(group_file);
    opened.read_exact_at(&mut ids, CONFIG)?;
    let group_file = group()?;
    drop((iommu, opened, group_file));
    drop(group()?);
    Ok(())
}

/// Holds all three until it is killed.
fn hold() -> Check {
    let (file, group) = (container()?, group()?);
    set_container(&group, file.as_raw_fd())?;
    by_value(&file, SET_IOMMU, TYPE1V2)?;
    let memory = vec![0u64; 4096];
    let page = memory.as_ptr().align_offset(4096);
    map(&file, &memory[page..], 0x1000, 0x1000)?;
    let device = device(&group, ADDRESS)?;
    println!("holding");
    let _ = io::copy(&mut io::stdin(), &mut io::sink());
    drop((file, group, device, memory));
    Ok(())
}
