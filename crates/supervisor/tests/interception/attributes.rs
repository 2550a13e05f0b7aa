//! Programs that write to `/sys`, and one that lets eventfds do its stores.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::fs::{FileExt, MetadataExt},
    },
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use libtest_mimic::Failed;

use crate::{
    check::{ensure, ensure_eq},
    claims::{self, Claim, Setting, expect_line, succeeded},
    client::{Check, Client, errno, ioctl, iommu, vfio},
    machine::ADDRESS,
    served::Served,
};

pub(crate) const CLIENTS: &[Client] = &[
    ("attributes", attributes),
    ("configuration", configuration),
    ("watches-configuration", watches_configuration),
    ("sets-configuration", sets_configuration),
    ("ioeventfd", ioeventfd),
];

pub(crate) const CLAIMS: &[(&str, Claim)] = &[
    ("writes_to_sysfs_are_carried_out_and_show", |u| {
        claims::client(u, "attributes")
    }),
    ("configuration_space_in_sysfs_is_what_it_is_now", |u| {
        claims::client(u, "configuration")
    }),
    (
        "what_one_program_changes_shows_in_the_sysfs_of_another",
        changes_of_others,
    ),
    ("an_eventfd_makes_the_programs_stores", |u| {
        claims::client(u, "ioeventfd")
    }),
];

/// One program has the file open, and another one writes to the device.
fn changes_of_others(setting: Setting) -> Result<(), Failed> {
    let machine = Served::start(setting)?;
    let mut watcher = machine
        .join(setting, "watches-configuration")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    expect_line(&mut watcher, "watching")?;
    succeeded(&machine.join(setting, "sets-configuration").output()?)?;
    // The end of its input lets it look.
    succeeded(&watcher.wait_with_output()?)
}

fn watches_configuration() -> Check {
    let config = File::open(path("config"))?;
    let mut command = [0; 2];
    config.read_exact_at(&mut command, COMMAND)?;
    ensure_eq!(command, [2, 0]);
    println!("watching");
    io::copy(&mut io::stdin(), &mut io::sink())?;
    config.read_exact_at(&mut command, COMMAND)?;
    ensure_eq!(command, [6, 0]);
    Ok(())
}

fn sets_configuration() -> Check {
    let config = OpenOptions::new().write(true).open(path("config"))?;
    ensure_eq!(errno(config.read_at(&mut [0; 2], COMMAND)), libc::EBADF);
    config.write_all_at(&[6, 0], COMMAND)?;
    Ok(())
}

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
    // Carried out when it was closed, and shown from the next call on that the session is asked
    // about.
    drop(iommu()?);
    let made = parts()?;
    ensure_eq!(made.len(), 3);
    set("0")?;

    // What cannot be written, or does nothing, is not opened: not by root either.
    for (name, reads, expected) in [
        ("vendor", false, libc::EACCES),
        ("vendor", true, libc::EACCES),
        ("remove", true, libc::EACCES),
        ("remove", false, libc::EOPNOTSUPP),
        ("resource0", true, libc::EOPNOTSUPP),
    ] {
        let opened = OpenOptions::new().read(reads).write(true).open(path(name));
        ensure_eq!(errno(opened), expected);
    }
    let shown = fs::metadata(path("resource0"))?;
    ensure_eq!((shown.len(), shown.mode() & 0o7777), (0x4000, 0o600));
    for (name, mode) in [("vendor", 0o444), ("remove", 0o220), ("count", 0o644)] {
        ensure_eq!(fs::metadata(path(name))?.mode() & 0o7777, mode);
    }
    let bar = File::open(path("resource0"))?;
    let fd = bar.as_raw_fd();
    let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
    // SAFETY: a new mapping, which nobody uses.
    let mapped = unsafe { libc::mmap(std::ptr::null_mut(), 4096, prot, flags, fd, 0) };
    ensure_eq!(mapped, libc::MAP_FAILED);
    ensure_eq!(io::Error::last_os_error().raw_os_error(), Some(libc::EPERM));
    let ordinary = std::env::temp_dir().join(format!("count-{}", std::process::id()));
    fs::write(&ordinary, "7")?;
    ensure_eq!(fs::read_to_string(&ordinary)?, "7");
    fs::remove_file(ordinary)?;
    Ok(())
}

/// Where configuration space is in a device's file, and COMMAND in it.
const CONFIG: u64 = 7 << 40;
const COMMAND: u64 = 4;
const SET_IRQS: u64 = 0x3b6e;

/// `config` is what configuration space is, for whoever reads it, on whatever number and by
/// whatever call, and a write to it reaches the device.
fn configuration() -> Check {
    let (context, device) = (iommu()?, vfio()?);
    let mut bind = [16_u32, 0, context.as_raw_fd() as u32, 0];
    ioctl(device.as_raw_fd(), DEVICE_BIND, &mut bind)?;
    // Open from here on, and on another number as well.
    let long = File::open(path("config"))?;
    ensure!(long.as_raw_fd() < 100);
    ensure_eq!(long.metadata()?.len(), 4096);
    let command = |file: &File, at: u64| -> io::Result<u16> {
        let mut bytes = [0; 2];
        file.read_exact_at(&mut bytes, at)?;
        Ok(u16::from_le_bytes(bytes))
    };
    let device_command = || command(&device, CONFIG + COMMAND);
    ensure_eq!(command(&long, COMMAND)?, 0x2);
    device.write_all_at(&[6, 0], CONFIG + COMMAND)?;
    ensure_eq!(command(&long, COMMAND)?, 0x6);
    ensure_eq!(fs::read(path("config"))?[4], 6);
    // SAFETY: the file is open, and the number is taken by nobody else.
    let pages = unsafe {
        let (prot, flags) = (libc::PROT_READ, libc::MAP_SHARED);
        libc::mmap(std::ptr::null_mut(), 4096, prot, flags, long.as_raw_fd(), 0)
    };
    ensure!(pages != libc::MAP_FAILED);
    device.write_all_at(&[2, 0], CONFIG + COMMAND)?;
    // SAFETY: a page of the file, mapped above.
    ensure_eq!(unsafe { pages.cast::<u16>().add(2).read_volatile() }, 0x2);

    // As setpci and hexedit do it.
    let mut config = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path("config"))?;
    config.write_all_at(&[6, 0], COMMAND)?;
    ensure_eq!((device_command()?, command(&long, COMMAND)?), (6, 6));
    ensure_eq!(command(&config, COMMAND)?, 6);
    config.seek(SeekFrom::Start(COMMAND))?;
    config.write_all(&[2, 0])?;
    let mut status = [0; 2];
    config.read_exact(&mut status)?;
    ensure_eq!(status, [0x10, 0]);
    ensure_eq!(device_command()?, 2);
    ensure_eq!(config.seek(SeekFrom::End(0))?, 4096);
    ensure_eq!(config.write(b"x")?, 0);

    // Interrupts by message, which SET_IRQS turns on.
    let control = command(&long, 0x34)? & 0xff;
    let capabilities = std::iter::successors(Some(u64::from(control)), |at| {
        let next = command(&long, *at).ok()? >> 8;
        (next != 0).then_some(next.into())
    });
    let mut msix = capabilities.filter(|at| command(&long, *at).is_ok_and(|id| id & 0xff == 0x11));
    let msix = msix.next().ok_or("no MSI-X")?;
    ensure_eq!(command(&long, msix + 2)? & 0x8000, 0);
    // SAFETY: a call without pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    let mut set = [24_u32, 1 << 2 | 1 << 5, 2, 0, 1, fd as u32];
    ioctl(device.as_raw_fd(), SET_IRQS, &mut set)?;
    ensure_eq!(command(&long, msix + 2)? & 0x8000, 0x8000);

    // A shell puts the file on number 1.
    let script = format!(
        "printf '\\006' | dd of={} bs=1 seek=4 conv=notrunc status=none",
        path("config")
    );
    ensure!(
        Command::new("/bin/sh")
            .args(["-c", &script])
            .status()?
            .success()
    );
    drop(iommu()?);
    ensure_eq!(device_command()?, 6);
    drop(device);
    drop(iommu()?);
    ensure_eq!(command(&long, COMMAND)?, 2);
    ensure_eq!(command(&long, msix + 2)? & 0x8000, 0);
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
