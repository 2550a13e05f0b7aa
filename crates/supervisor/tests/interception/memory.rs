//! Which memory may be mapped for a device: one table, tried with every ioctl that maps.
//!
//! Where the host has io_uring, the answers for memory that a device writes are its kernel's as
//! well: registered buffers are pinned by the same rules (FOLL_WRITE and FOLL_LONGTERM of
//! mm/gup.c).

mod kinds;

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd, RawFd},
    ptr,
};

use libc::{EBADF, EFAULT, EINVAL, MAP_PRIVATE, PROT_READ, PROT_WRITE};

use self::kinds::{Memory, PAGE, RW, Ring, Row, TABLE, anonymous, disk, memfd, sealed, tmpfs};
use crate::{
    check::ensure_eq,
    client::{Check, Client, alloc, errno, ioctl, iommu, vfio},
    groups,
};

pub(crate) const CLIENTS: &[Client] = &[("memory", memory), ("memory-files", files)];

const DESTROY: u64 = 0x3b80;
const IOAS_MAP: u64 = 0x3b85;
const IOAS_UNMAP: u64 = 0x3b86;
const VFIO_IOAS: u64 = 0x3b88;
const IOAS_MAP_FILE: u64 = 0x3b8f;
const DEVICE_BIND: u64 = 0x3b76;
const DEVICE_ATTACH: u64 = 0x3b77;
const DEVICE_DETACH: u64 = 0x3b78;
const MAP_DMA: u64 = 0x3b71;
const UNMAP_DMA: u64 = 0x3b72;
const FIXED: u64 = 1;
const WRITEABLE: u64 = 2;
const READABLE: u64 = 4;
const IOVA: u64 = 0x10_0000;

/// A file of address spaces with a device.
struct Iommufd {
    file: File,
    device: File,
}

impl Iommufd {
    fn new() -> io::Result<Iommufd> {
        let (file, device) = (iommu()?, vfio()?);
        let mut bind = [16u32, 0, file.as_raw_fd() as u32, 0];
        ioctl(device.as_raw_fd(), DEVICE_BIND, &mut bind)?;
        Ok(Iommufd { file, device })
    }

    fn attach(&self, ioas: u32) -> io::Result<()> {
        let mut attach = [12u32, 0, ioas];
        ioctl(self.device.as_raw_fd(), DEVICE_ATTACH, &mut attach).map(drop)
    }

    fn detach(&self) -> io::Result<()> {
        ioctl(self.device.as_raw_fd(), DEVICE_DETACH, &mut [8u32, 0]).map(drop)
    }

    fn call(&self, request: u64, args: &mut [u64]) -> io::Result<()> {
        // The struct is as long as its first field says.
        let mut copy = [0; 8];
        copy[..args.len()].copy_from_slice(args);
        ioctl(self.file.as_raw_fd(), request, &mut copy).map(drop)
    }

    fn map(&self, ioas: u32, memory: &Memory, write: bool) -> io::Result<()> {
        let flags = FIXED | READABLE | if write { WRITEABLE } else { 0 };
        let (base, len) = (memory.base as u64, memory.len as u64);
        self.call(
            IOAS_MAP,
            &mut [40 | flags << 32, ioas.into(), base, len, IOVA],
        )
    }

    /// As [`Iommufd::map`], of a file, by flags.
    fn map_file(&self, ioas: u32, fd: RawFd, flags: u64, start: u64, len: u64) -> io::Result<()> {
        let names = u64::from(ioas) | (fd as u32 as u64) << 32;
        self.call(
            IOAS_MAP_FILE,
            &mut [40 | (FIXED | flags) << 32, names, start, len, IOVA],
        )
    }

    /// ENOENT if nothing is mapped.
    fn unmap(&self, ioas: u32, len: usize) -> io::Result<()> {
        let (head, len) = (24 | u64::from(ioas) << 32, len as u64);
        self.call(IOAS_UNMAP, &mut [head, IOVA, len])
    }

    fn destroy(&self, ioas: u32) -> io::Result<()> {
        ioctl(self.file.as_raw_fd(), DESTROY, &mut [8, ioas]).map(drop)
    }
}

fn map_dma(container: &File, memory: &Memory, write: bool) -> io::Result<()> {
    let flags = 1 | u64::from(write) << 1;
    let (base, len) = (memory.base as u64, memory.len as u64);
    let mut args = [32 | flags << 32, base, IOVA, len];
    ioctl(container.as_raw_fd(), MAP_DMA, &mut args).map(drop)
}

/// The bytes that were mapped.
fn unmap_dma(container: &File, len: usize) -> io::Result<u64> {
    let mut args = [24, IOVA, len as u64];
    ioctl(container.as_raw_fd(), UNMAP_DMA, &mut args)?;
    Ok(args[2])
}

fn memory() -> Check {
    let mut wrong = Vec::new();
    with_iommufd(&mut wrong)?;
    with_container(&mut wrong)?;
    if !wrong.is_empty() {
        return Err(wrong.join("\n").into());
    }
    differences()
}

/// Each row for a device that reads, and for one that writes too; made anew.
fn rows() -> impl Iterator<Item = (&'static Row, bool, Memory)> {
    let both = TABLE.iter().flat_map(|row| [(row, false), (row, true)]);
    both.filter_map(|(row, write)| Some((row, write, row.memory()?)))
}

/// Writes down what is not as the table says.
fn expect(wrong: &mut Vec<String>, row: &Row, how: &str, write: bool, found: i32) {
    let right = if write { row.written } else { row.read };
    if found != right {
        let what = if write { "written" } else { "read" };
        wrong.push(format!("{}, {what}, {how}: {found}, not {right}", row.name));
    }
}

fn with_iommufd(wrong: &mut Vec<String>) -> Check {
    let ring = Ring::new();
    let ring = ring.inspect_err(|error| eprintln!("skipped: io_uring: {error}"));
    let iommufd = Iommufd::new()?;
    let ioas = alloc(&iommufd.file)?;
    iommufd.attach(ioas)?;
    // What a compatible container maps goes to the same address space.
    ioctl(iommufd.file.as_raw_fd(), VFIO_IOAS, &mut [12u32, ioas, 1])?;
    for (row, write, memory) in rows() {
        let found = errno(iommufd.map(ioas, &memory, write));
        expect(wrong, row, "IOAS_MAP", write, found);
        let left = errno(iommufd.unmap(ioas, memory.len));
        ensure_eq!(left, if found == 0 { 0 } else { libc::ENOENT });
        let found = errno(map_dma(&iommufd.file, &memory, write));
        expect(wrong, row, "compatible MAP_DMA", write, found);
        let left = unmap_dma(&iommufd.file, memory.len)?;
        ensure_eq!(left, if found == 0 { memory.len as u64 } else { 0 });
        if let (Ok(ring), true) = (&ring, write) {
            expect(wrong, row, "this kernel", write, ring.pin(&memory));
        }
    }
    iommufd.detach()?;
    // With no device nothing is looked at. An attach that fails leaves the device where it was.
    for (row, write, memory) in rows() {
        let lazy = alloc(&iommufd.file)?;
        iommufd.map(lazy, &memory, write)?;
        let found = errno(iommufd.attach(lazy));
        expect(wrong, row, "attach", write, found);
        if found != 0 {
            iommufd.attach(ioas)?;
        }
        iommufd.detach()?;
        iommufd.unmap(lazy, memory.len)?;
        iommufd.attach(lazy)?;
        iommufd.detach()?;
        iommufd.destroy(lazy)?;
    }
    Ok(())
}

fn with_container(wrong: &mut Vec<String>) -> Check {
    let (container, _group) = groups::with_container()?;
    for (row, write, memory) in rows() {
        let found = errno(map_dma(&container, &memory, write));
        expect(wrong, row, "MAP_DMA", write, found);
        let left = unmap_dma(&container, memory.len)?;
        ensure_eq!(left, if found == 0 { memory.len as u64 } else { 0 });
    }
    Ok(())
}

/// Where the two interfaces differ.
fn differences() -> Check {
    // What is there already is pinned without a look at the mapping by /dev/iommu.
    let touched = || -> io::Result<Memory> {
        let memory = anonymous(PROT_WRITE, MAP_PRIVATE)?;
        for page in 0..2 {
            // SAFETY: our memory.
            unsafe { ptr::write_volatile((memory.base + page * PAGE) as *mut u8, 1) };
        }
        Ok(memory)
    };
    {
        let iommufd = Iommufd::new()?;
        let ioas = alloc(&iommufd.file)?;
        iommufd.attach(ioas)?;
        iommufd.map(ioas, &touched()?, false)?;
        iommufd.unmap(ioas, 2 * PAGE)?;
        let bar = Memory::of(&iommufd.device, PAGE)?;
        for write in [false, true] {
            ensure_eq!(errno(iommufd.map(ioas, &bar, write)), EFAULT);
        }
        // The same address is looked at anew each time.
        let memory = anonymous(RW, MAP_PRIVATE)?;
        iommufd.map(ioas, &memory, true)?;
        iommufd.unmap(ioas, memory.len)?;
        memory.protect(PROT_READ)?;
        ensure_eq!(errno(iommufd.map(ioas, &memory, true)), EFAULT);
        iommufd.map(ioas, &memory, false)?;
    }
    let (container, group) = groups::with_container()?;
    ensure_eq!(errno(map_dma(&container, &touched()?, false)), EFAULT);
    let device = groups::device(&group, crate::machine::ADDRESS)?;
    let bar = Memory::of(&device, PAGE)?;
    for write in [false, true] {
        map_dma(&container, &bar, write)?;
        ensure_eq!(unmap_dma(&container, PAGE)?, PAGE as u64);
    }
    Ok(())
}

/// A file; the bytes of it that IOAS_MAP_FILE is asked for, from a page on, to be read or written
/// too; what it says.
struct Case {
    name: &'static str,
    make: fn() -> io::Result<OwnedFd>,
    first: u64,
    pages: u64,
    flags: u64,
    right: i32,
}

/// `name: file, first page, pages, flags => answer;`
macro_rules! cases {
    ($($name:literal: $make:expr, $first:literal, $pages:literal, $flags:ident => $right:ident;)*) => {
        &[$(Case {
            name: $name,
            make: || Ok($make),
            first: $first,
            pages: $pages,
            flags: $flags,
            right: $right,
        }),*]
    };
}

const READ: u64 = READABLE;
const WRITE: u64 = READABLE | WRITEABLE;
const OK: i32 = 0;

const FILES: &[Case] = cases! {
    "a memfd": memfd(2, 0)?.0, 0, 2, WRITE => OK;
    "its second page": memfd(2, 0)?.0, 1, 1, WRITE => OK;
    "past its end": memfd(2, 0)?.0, 1, 2, READ => EINVAL;
    "all past its end": memfd(2, 0)?.0, 2, 1, READ => EINVAL;
    "no bytes": memfd(2, 0)?.0, 0, 0, READ => EINVAL;
    "a page before the one with the end": memfd(1, 904)?.0, 0, 1, WRITE => OK;
    "a page with the end": memfd(1, 904)?.0, 0, 2, READ => EINVAL;
    "a sealed memfd": sealed()?.0, 0, 2, READ => OK;
    "a memfd opened for reading": memfd(2, 0)?.read_only()?.0, 0, 2, READ => OK;
    "a memfd of huge pages": huge_memfd()?, 0, 512, WRITE => OK;
    "a file on tmpfs": tmpfs()?.0, 0, 2, WRITE => OK;
    "a file": disk(2, 0)?.0, 0, 2, READ => EINVAL;
    "a file of /proc": File::open("/proc/self/maps")?.into(), 0, 1, READ => EINVAL;
    "a device": File::open("/dev/zero")?.into(), 0, 1, READ => EINVAL;
    "a directory": File::open("/")?.into(), 0, 1, READ => EINVAL;
    "a directory on tmpfs": File::open("/dev")?.into(), 0, 1, READ => EINVAL;
    "a pipe": io::pipe()?.0.into(), 0, 1, READ => EINVAL;
    "a path to a memfd": path_only(&memfd(2, 0)?.0)?, 0, 1, READ => EBADF;
    "a path to a file": path_only(&disk(2, 0)?.0)?, 0, 1, READ => EBADF;
    "a path to a directory": path_only(&File::open("/")?)?, 0, 1, READ => EBADF;
};

fn path_only(file: &impl AsRawFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, rustix::fs::Mode::empty())?)
}

fn huge_memfd() -> io::Result<OwnedFd> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::HUGETLB;
    let file = rustix::fs::memfd_create(c"huge", flags)?;
    rustix::fs::ftruncate(&file, 2 << 20)?;
    // There must be a page for it.
    Memory::of(&file, 2 << 20)?;
    Ok(file)
}

/// What IOAS_MAP_FILE takes.
fn files() -> Check {
    let iommufd = Iommufd::new()?;
    let ioas = alloc(&iommufd.file)?;
    let lazy = alloc(&iommufd.file)?;
    iommufd.attach(ioas)?;
    let page = PAGE as u64;
    for case in FILES {
        let file = match (case.make)() {
            Ok(file) => file,
            Err(error) => {
                eprintln!("skipped: {}: {error}", case.name);
                continue;
            }
        };
        let map = |ioas| {
            let (start, len) = (case.first * page, case.pages * page);
            errno(iommufd.map_file(ioas, file.as_raw_fd(), case.flags, start, len))
        };
        let found = map(ioas);
        if found != case.right {
            return Err(format!("{}: {found}, not {}", case.name, case.right).into());
        }
        // Without a device only what no file has to be looked at for is refused.
        let at_once = case.right == EBADF || case.pages == 0;
        ensure_eq!(map(lazy), if at_once { case.right } else { OK });
        let len = case.pages as usize * PAGE;
        ensure_eq!(iommufd.unmap(ioas, len).is_ok(), case.right == OK);
        ensure_eq!(iommufd.unmap(lazy, len).is_ok(), !at_once);
    }
    // The length comes before the descriptor.
    let closed = |start, len| errno(iommufd.map_file(ioas, 999, READ, start, len));
    ensure_eq!(closed(0, 0), EINVAL);
    ensure_eq!(closed(u64::MAX - 1, page), libc::EOVERFLOW);
    ensure_eq!(closed(u64::MAX - page + 1, page), EBADF);
    // A file may grow until a device needs its pages.
    let part = memfd(1, 904)?.0;
    iommufd.map_file(lazy, part.as_raw_fd(), READ, 0, 2 * page)?;
    iommufd.detach()?;
    ensure_eq!(errno(iommufd.attach(lazy)), EINVAL);
    rustix::fs::ftruncate(&part, 2 * page)?;
    iommufd.attach(lazy)?;
    Ok(())
}
