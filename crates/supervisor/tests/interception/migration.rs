//! A program that migrates its device, as it would a real one: by ioctls and a file of data.

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, FromRawFd, RawFd},
        unix::fs::FileExt,
    },
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::{
    check::{ensure, ensure_eq},
    client::{Check, Client, errno, ioctl, iommu, vfio},
};

pub(crate) const CLIENTS: &[Client] = &[("migration", migration)];

const DEVICE_BIND: u64 = 0x3b76;
const DEVICE_RESET: u64 = 0x3b6f;
const DEVICE_FEATURE: u64 = 0x3b75;
const GET: u32 = 1 << 16;
const SET: u32 = 1 << 17;
const PROBE: u32 = 1 << 18;
const ERROR: u32 = 0;
const STOP: u32 = 1;
const RUNNING: u32 = 2;
const STOP_COPY: u32 = 3;
const RESUMING: u32 = 4;

/// One that has 8 bytes of data.
fn feature(device: &File, flags: u32, data: [u32; 2]) -> io::Result<[u32; 2]> {
    let mut argument = [16, flags, data[0], data[1]];
    ioctl(device.as_raw_fd(), DEVICE_FEATURE, &mut argument)?;
    Ok([argument[2], argument[3]])
}

fn state(device: &File) -> io::Result<u32> {
    let [state, fd] = feature(device, 2 | GET, [77, 77])?;
    assert_eq!(fd, u32::MAX);
    Ok(state)
}

/// Takes the device to a state; the file of its data, if there is one.
fn go(device: &File, to: u32) -> io::Result<Option<File>> {
    let [state, fd] = feature(device, 2 | SET, [to, 77])?;
    assert_eq!(state, to);
    // SAFETY: the descriptor is new, and ours.
    let file = |fd| unsafe { File::from_raw_fd(fd) };
    Ok((fd != u32::MAX).then(|| file(fd as RawFd)))
}

fn events(file: &File) -> io::Result<PollFlags> {
    let mut fds = [PollFd::new(file, PollFlags::IN | PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec::default()))?;
    Ok(fds[0].revents())
}

fn sum(device: &File) -> io::Result<u64> {
    let mut sum = [0; 8];
    device.read_exact_at(&mut sum, 0)?;
    Ok(u64::from_le_bytes(sum))
}

fn migration() -> Check {
    let (device, iommu) = (vfio()?, iommu()?);
    ensure_eq!(errno(feature(&device, 1 | GET, [0; 2])), libc::EINVAL);
    let mut bind = [16, 0, iommu.as_raw_fd() as u32, 0];
    ioctl(device.as_raw_fd(), DEVICE_BIND, &mut bind)?;
    device.write_all_at(&[6, 0], (7 << 40) + 4)?;
    device.write_all_at(&42_u64.to_le_bytes(), 0)?;
    device.write_all_at(&[9; 8], 0x100)?;

    ensure_eq!(feature(&device, 1 | GET, [0; 2])?, [1, 0]);
    for number in [1, 2, 9] {
        feature(&device, number | GET | PROBE, [0; 2])?;
        ensure_eq!(errno(feature(&device, number, [0; 2])), libc::EINVAL);
    }
    ensure_eq!(errno(feature(&device, 9 | SET, [0; 2])), libc::EINVAL);
    ensure_eq!(errno(feature(&device, 12 | SET, [0; 2])), libc::EINVAL);
    ensure_eq!(state(&device)?, RUNNING);
    for bad in [ERROR, 5, 6, 7, 77] {
        ensure_eq!(errno(go(&device, bad)), libc::EINVAL);
    }
    ensure!(go(&device, RUNNING)?.is_none());
    ensure!(go(&device, STOP)?.is_none());

    // Saved: a file that is read to its end.
    let mut data = go(&device, STOP_COPY)?.ok_or("no data")?;
    ensure!(rustix::io::fcntl_getfd(&data)?.contains(rustix::io::FdFlags::CLOEXEC));
    let [left, 0] = feature(&device, 9 | GET, [0; 2])? else {
        return Err("the state is large".into());
    };
    ensure_eq!(events(&data)?, PollFlags::IN);
    ensure_eq!(errno(data.write(&[0])), libc::EBADF);
    ensure_eq!(errno(data.read_at(&mut [0; 8], 0)), libc::ESPIPE);
    ensure!(go(&device, STOP_COPY)?.is_none());
    let mut saved = vec![0; 10];
    data.read_exact(&mut saved)?;
    ensure_eq!(feature(&device, 9 | GET, [0; 2])?, [left - 10, 0]);
    data.read_to_end(&mut saved)?;
    ensure_eq!(saved.len(), left as usize);
    ensure_eq!(data.read(&mut [0; 8])?, 0);
    ensure_eq!(feature(&device, 9 | GET, [0; 2])?, [0, 0]);
    ensure!(go(&device, RUNNING)?.is_none());
    ensure_eq!(errno(data.read(&mut [0; 8])), libc::ENODEV);
    device.write_all_at(&1_u64.to_le_bytes(), 0)?;
    ensure_eq!(sum(&device)?, 43);

    // Restored, by a copy of the descriptor.
    let restored = go(&device, RESUMING)?.ok_or("no data")?;
    ensure_eq!(events(&restored)?, PollFlags::OUT);
    ensure_eq!(errno((&restored).read(&mut [0; 8])), libc::EBADF);
    let (first, second) = saved.split_at(saved.len() / 2);
    (&restored).write_all(first)?;
    restored.try_clone()?.write_all(second)?;
    ensure!(go(&device, STOP)?.is_none());
    ensure_eq!(errno((&restored).write(&[0])), libc::ENODEV);
    ensure_eq!(sum(&device)?, 42);
    ensure!(go(&device, RUNNING)?.is_none());

    // One that is cut is none at all, and a reset helps.
    let data = go(&device, RESUMING)?.ok_or("no data")?;
    ensure_eq!(errno((&restored).write(&[0])), libc::ENODEV);
    (&data).write_all(first)?;
    drop(data);
    ensure_eq!(errno(go(&device, STOP)), libc::EINVAL);
    ensure_eq!(state(&device)?, ERROR);
    ensure_eq!(errno(go(&device, RUNNING)), libc::EINVAL);
    ioctl(device.as_raw_fd(), DEVICE_RESET, &mut ())?;
    ensure_eq!(state(&device)?, RUNNING);
    ensure_eq!(sum(&device)?, 0);

    // Too much is refused, and costs nothing.
    let mut data = go(&device, RESUMING)?.ok_or("no data")?;
    let mib = vec![0; 1 << 20];
    for _ in 0..8 {
        data.write_all(&mib)?;
    }
    ensure_eq!(errno(data.write(&[0])), libc::ENOMEM);
    // It outlives the device, and is of no use then.
    drop(device);
    ensure_eq!(errno(data.write(&[0])), libc::ENODEV);
    Ok(())
}
