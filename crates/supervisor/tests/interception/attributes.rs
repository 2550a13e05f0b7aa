//! Programs that write to `/sys`, and one that lets eventfds do its stores.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::FileExt,
    },
    process::Command,
    time::{Duration, Instant},
};

use crate::{
    check::{ensure, ensure_eq},
    client::{Check, Client, errno, ioctl, iommu, vfio},
    machine::ADDRESS,
};

pub(crate) const CLIENTS: &[Client] = &[("attributes", attributes), ("ioeventfd", ioeventfd)];

const DEVICE_BIND: u64 = 0x3b76;
const IOEVENTFD: u64 = 0x3b74;

fn path(name: &str) -> String {
    format!("/sys/bus/pci/devices/{ADDRESS}/{name}")
}

fn set(text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path("count"))?;
    file.write_all(text.as_bytes())
}

fn parts() -> io::Result<Vec<String>> {
    let entries = fs::read_dir(format!("/sys/bus/pci/devices/{ADDRESS}/"))?;
    let names = entries.map(|entry| Ok(entry?.file_name().into_string().unwrap_or_default()));
    let mut parts: Vec<String> = names.collect::<io::Result<_>>()?;
    parts.retain(|name| name.starts_with("part"));
    parts.sort();
    Ok(parts)
}

fn attributes() -> Check {
    ensure!(parts()?.is_empty());
    set("2")?;
    ensure_eq!(parts()?, ["part0", "part1"]);
    ensure_eq!(fs::read_to_string(path("count"))?, "2\n");
    let name = fs::read_to_string(path("part1/name"))?;
    ensure_eq!(name.as_str(), "part 1\n");
    let link = fs::canonicalize("/sys/bus/pci/devices/part1")?;
    ensure_eq!(link, fs::canonicalize(path("part1"))?);
    ensure_eq!(errno(set("x")), libc::EINVAL);
    ensure_eq!(errno(set("99")), libc::ERANGE);
    ensure_eq!(parts()?.len(), 2);

    let both = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path("count"))?;
    let mut text = [0; 8];
    ensure_eq!(both.read_at(&mut text, 0)?, 2);
    both.write_at(b"1\n", 0)?;
    ensure_eq!(both.read_at(&mut text, 0)?, 2);
    ensure_eq!(&text[..2], &b"1\n"[..]);
    drop(both);
    ensure_eq!(parts()?, ["part0"]);
    ensure!(fs::metadata("/sys/bus/pci/devices/part1").is_err());

    // The shell puts the file on number 1.
    let script = format!("echo 3 > {}", path("count"));
    let status = Command::new("/bin/sh").args(["-c", &script]).status()?;
    ensure!(status.success());
    // Carried out when it was closed, and shown from the next call on that the session is asked about.
    drop(iommu()?);
    let made = parts()?;
    ensure_eq!(made.len(), 3);
    set("0")?;

    let vendor = OpenOptions::new().write(true).open(path("vendor"));
    if let Ok(mut vendor) = vendor {
        // A plain file of the program's own /sys.
        let _ = vendor.write_all(b"0x1b36\n");
    }
    let ordinary = std::env::temp_dir().join(format!("count-{}", std::process::id()));
    fs::write(&ordinary, "7")?;
    ensure_eq!(fs::read_to_string(&ordinary)?, "7");
    fs::remove_file(ordinary)?;
    Ok(())
}

fn ioeventfd() -> Check {
    let (context, device) = (iommu()?, vfio()?);
    let mut bind = [16_u32, 0, context.as_raw_fd() as u32, 0];
    ioctl(device.as_raw_fd(), DEVICE_BIND, &mut bind)?;
    // SAFETY: a call without pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    ensure!(fd >= 0);
    // SAFETY: nobody else has the number.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut request = [
        32_u32,
        4,
        0x100,
        0,
        0x1234_5678,
        0,
        fd.as_raw_fd() as u32,
        0,
    ];
    ioctl(device.as_raw_fd(), IOEVENTFD, &mut request)?;
    let twice = ioctl(device.as_raw_fd(), IOEVENTFD, &mut request.clone());
    ensure_eq!(errno(twice), libc::EEXIST);
    let one = 1_u64.to_ne_bytes();
    // SAFETY: eight bytes that live during the call.
    let written = unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    ensure_eq!(written, 8);
    let end = Instant::now() + Duration::from_secs(600);
    let mut value = [0; 4];
    while u32::from_le_bytes(value) != 0x1234_5678 {
        ensure!(Instant::now() < end);
        device.read_at(&mut value, 0x100)?;
    }
    request[6] = -1_i32 as u32;
    ioctl(device.as_raw_fd(), IOEVENTFD, &mut request)?;
    let gone = ioctl(device.as_raw_fd(), IOEVENTFD, &mut request);
    ensure_eq!(errno(gone), libc::ENODEV);
    Ok(())
}
