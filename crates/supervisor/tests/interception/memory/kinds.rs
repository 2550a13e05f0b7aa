//! The kinds of memory that a program can have, and what may be done with each.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::PathBuf,
    ptr,
};

use libc::{EFAULT, MAP_ANONYMOUS, MAP_PRIVATE, MAP_SHARED, PROT_NONE, PROT_READ, PROT_WRITE};

pub(super) const PAGE: usize = 4096;
pub(super) const RW: i32 = PROT_READ | PROT_WRITE;
/// It may be mapped.
const YES: i32 = 0;
/// It may not.
const NO: i32 = EFAULT;

/// Some memory; what an ioctl that maps it says if a device may read it, and if it may write it
/// too.
pub(super) struct Row {
    pub(super) name: &'static str,
    make: fn() -> io::Result<Memory>,
    pub(super) read: i32,
    pub(super) written: i32,
}

/// `name: memory => read, written;`
macro_rules! table {
    ($($name:literal: $make:expr => $read:ident, $written:ident;)*) => {
        &[$(Row { name: $name, make: || $make, read: $read, written: $written }),*]
    };
}

pub(super) const TABLE: &[Row] = table! {
    "private": anonymous(RW, MAP_PRIVATE) => YES, YES;
    "private, read-only": anonymous(PROT_READ, MAP_PRIVATE) => YES, NO;
    "private, PROT_NONE": anonymous(PROT_NONE, MAP_PRIVATE) => NO, NO;
    "private, write-only": anonymous(PROT_WRITE, MAP_PRIVATE) => NO, YES;
    "shared": anonymous(RW, MAP_SHARED) => YES, YES;
    "shared, read-only": anonymous(PROT_READ, MAP_SHARED) => YES, NO;
    "shared, PROT_NONE": anonymous(PROT_NONE, MAP_SHARED) => NO, NO;
    "/dev/zero, private": device("/dev/zero", MAP_PRIVATE) => YES, YES;
    "/dev/zero, shared": device("/dev/zero", MAP_SHARED) => YES, YES;
    "huge pages, private": huge(MAP_PRIVATE) => YES, YES;
    "huge pages, shared": huge(MAP_SHARED) => YES, YES;
    "memfd": memfd(2, 0)?.map(RW, MAP_SHARED) => YES, YES;
    "memfd, read-only": memfd(2, 0)?.map(PROT_READ, MAP_SHARED) => YES, NO;
    "memfd, private": memfd(2, 0)?.map(RW, MAP_PRIVATE) => YES, YES;
    "memfd, no descriptor": closed(memfd(2, 0)?) => YES, YES;
    "memfd, sealed, read-only": sealed()?.map(PROT_READ, MAP_SHARED) => YES, NO;
    "memfd, sealed, private": sealed()?.map(RW, MAP_PRIVATE) => YES, YES;
    "memfd, sealed later": sealed_later() => YES, YES;
    "memfd, page with the end": memfd(1, 904)?.map(RW, MAP_SHARED) => YES, YES;
    "memfd, past the end": memfd(1, 0)?.map(RW, MAP_SHARED) => NO, NO;
    "memfd, private, past the end": memfd(1, 0)?.map(RW, MAP_PRIVATE) => NO, NO;
    "memfd, no descriptor, past the end": closed(memfd(1, 0)?) => NO, NO;
    "tmpfs": tmpfs()?.map(RW, MAP_SHARED) => YES, YES;
    "tmpfs, read-only": tmpfs()?.map(PROT_READ, MAP_SHARED) => YES, NO;
    "tmpfs, private": tmpfs()?.map(RW, MAP_PRIVATE) => YES, YES;
    "file": disk(2, 0)?.map(RW, MAP_SHARED) => YES, NO;
    "file, read-only": disk(2, 0)?.map(PROT_READ, MAP_SHARED) => YES, NO;
    "file, private": disk(2, 0)?.map(RW, MAP_PRIVATE) => YES, YES;
    "file, private, read-only": disk(2, 0)?.map(PROT_READ, MAP_PRIVATE) => YES, NO;
    "file, opened to read, private": disk(2, 0)?.read_only()?.map(RW, MAP_PRIVATE) => YES, YES;
    "file, private, page with the end": disk(1, 904)?.map(RW, MAP_PRIVATE) => YES, YES;
    "file, private, past the end": disk(1, 0)?.map(RW, MAP_PRIVATE) => NO, NO;
    "file, past the end": disk(1, 0)?.map(RW, MAP_SHARED) => NO, NO;
    "[vdso]": named("[vdso]") => YES, NO;
    "[vvar]": named("[vvar]") => NO, NO;
    "[vsyscall]": named("[vsyscall]") => NO, NO;
    "memory of io_uring": ring_memory() => YES, YES;
    "secret memory": secret() => NO, NO;
    "below the stack": below_the_stack() => NO, NO;
    "private, then nothing": then(private()?, unmap) => NO, NO;
    "private, then read-only": then(private()?, |rest| rest.protect(PROT_READ)) => YES, NO;
    "private, then PROT_NONE": then(private()?, |rest| rest.protect(PROT_NONE)) => NO, NO;
    "private, then a memfd": then(private()?, |rest| memfd(1, 0)?.over(rest)) => YES, YES;
    "memfd, then a file": then(shared()?, |rest| disk(1, 0)?.over(rest)) => YES, NO;
    "memfd, then past the end": then(shared()?, |rest| memfd(0, 0)?.over(rest)) => NO, NO;
};

impl Row {
    /// The memory, made anew; `None`, and a word on it, if this host has no such thing.
    pub(super) fn memory(&self) -> Option<Memory> {
        let made = (self.make)();
        made.inspect_err(|error| eprintln!("skipped: {}: {error}", self.name))
            .ok()
    }
}

/// A mapping, until dropped.
pub(super) struct Memory {
    pub(super) base: usize,
    pub(super) len: usize,
    /// Bytes to unmap; none of what is not ours.
    owned: usize,
    /// What it needs to stay as it is.
    _file: Option<OwnedFd>,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.owned > 0 {
            // SAFETY: our mapping, or what became of it.
            unsafe { libc::munmap(self.base as *mut _, self.owned) };
        }
    }
}

impl Memory {
    /// A new mapping of a file, whole pages.
    pub(super) fn of(file: &impl AsRawFd, len: usize) -> io::Result<Memory> {
        let base = map(0, len, RW, MAP_SHARED, file.as_raw_fd())?;
        Ok(Memory {
            base,
            len,
            owned: len,
            _file: None,
        })
    }

    pub(super) fn protect(&self, prot: i32) -> io::Result<()> {
        // SAFETY: our mapping, which nothing refers to.
        check(unsafe { libc::mprotect(self.base as *mut _, self.len, prot) })
    }

    /// Memory that is somebody else's.
    fn foreign(base: usize, len: usize) -> Memory {
        Memory {
            base,
            len,
            owned: 0,
            _file: None,
        }
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn map(at: usize, len: usize, prot: i32, flags: i32, fd: RawFd) -> io::Result<usize> {
    // SAFETY: a new mapping, or one over memory of ours that nothing refers to.
    let base = unsafe { libc::mmap(at as *mut _, len, prot, flags, fd, 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    Ok(base as usize)
}

pub(super) fn anonymous(prot: i32, kind: i32) -> io::Result<Memory> {
    let base = map(0, 2 * PAGE, prot, kind | MAP_ANONYMOUS, -1)?;
    Ok(Memory {
        base,
        len: 2 * PAGE,
        owned: 2 * PAGE,
        _file: None,
    })
}

fn huge(kind: i32) -> io::Result<Memory> {
    let len = 2 << 20;
    let base = map(0, len, RW, kind | MAP_ANONYMOUS | libc::MAP_HUGETLB, -1)?;
    Ok(Memory {
        base,
        len,
        owned: len,
        _file: None,
    })
}

/// A file that is two pages of memory when it is mapped, whatever its size.
pub(super) struct Mappable(pub(super) OwnedFd);

impl Mappable {
    fn map(self, prot: i32, kind: i32) -> io::Result<Memory> {
        let base = map(0, 2 * PAGE, prot, kind, self.0.as_raw_fd())?;
        Ok(Memory {
            base,
            len: 2 * PAGE,
            owned: 2 * PAGE,
            _file: Some(self.0),
        })
    }

    /// Mapped shared over other memory.
    fn over(self, at: &Memory) -> io::Result<()> {
        let flags = MAP_SHARED | libc::MAP_FIXED;
        map(at.base, at.len, RW, flags, self.0.as_raw_fd()).map(drop)
    }

    pub(super) fn read_only(self) -> io::Result<Mappable> {
        let path = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        Ok(Mappable(File::open(path)?.into()))
    }
}

/// A memfd of some pages and bytes.
pub(super) fn memfd(pages: usize, bytes: usize) -> io::Result<Mappable> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create(c"memory", flags)?;
    rustix::fs::ftruncate(&file, (pages * PAGE + bytes) as u64)?;
    Ok(Mappable(file))
}

fn closed(file: Mappable) -> io::Result<Memory> {
    let mut memory = file.map(RW, MAP_SHARED)?;
    memory._file = None;
    Ok(memory)
}

fn seal(file: &Mappable, seals: i32) -> io::Result<()> {
    // SAFETY: takes numbers.
    check(unsafe { libc::fcntl(file.0.as_raw_fd(), libc::F_ADD_SEALS, seals) })
}

pub(super) fn sealed() -> io::Result<Mappable> {
    let file = memfd(2, 0)?;
    seal(&file, libc::F_SEAL_WRITE)?;
    Ok(file)
}

/// Mapped first, and then sealed against further mappings that write.
fn sealed_later() -> io::Result<Memory> {
    let file = memfd(2, 0)?;
    let copy = Mappable(file.0.try_clone()?);
    let memory = file.map(RW, MAP_SHARED)?;
    seal(&copy, libc::F_SEAL_FUTURE_WRITE)?;
    Ok(memory)
}

/// A directory on a file system with one of these numbers where we can make files
/// (`linux/magic.h`).
fn directory(magics: &[i64]) -> io::Result<PathBuf> {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let exe = std::env::current_exe()?;
    let places = ["/dev/shm", "/tmp", "/var/tmp", "/run", "/home", "/root"].map(PathBuf::from);
    let places = places.into_iter().chain([target]);
    let mut places = places.chain(exe.parent().map(PathBuf::from));
    let found = places.find(|place| {
        let magic = rustix::fs::statfs(place).map(|fs| fs.f_type);
        magic.is_ok_and(|magic| magics.contains(&magic)) && tempfile::tempfile_in(place).is_ok()
    });
    found.ok_or_else(|| io::Error::other("no such file system that can be written"))
}

fn file_in(magics: &[i64], len: usize) -> io::Result<Mappable> {
    let file = tempfile::tempfile_in(directory(magics)?)?;
    file.set_len(len as u64)?;
    Ok(Mappable(file.into()))
}

pub(super) fn tmpfs() -> io::Result<Mappable> {
    file_in(&[0x0102_1994], 2 * PAGE)
}

/// A file of some pages and bytes on a file system that keeps track of dirty pages: ext4, XFS,
/// btrfs, overlay, f2fs.
pub(super) fn disk(pages: usize, bytes: usize) -> io::Result<Mappable> {
    const MAGICS: [i64; 5] = [0xef53, 0x5846_5342, 0x9123_683e, 0x794c_7630, 0xf2f5_2010];
    file_in(&MAGICS, pages * PAGE + bytes)
}

fn device(path: &str, kind: i32) -> io::Result<Memory> {
    let file = File::options().read(true).write(true).open(path)?;
    Mappable(file.into()).map(RW, kind)
}

/// Where a mapping with this name is.
fn line(name: &str) -> io::Result<(usize, usize)> {
    let maps = fs::read_to_string("/proc/self/maps")?;
    let line = maps.lines().find(|line| line.ends_with(name));
    let range = line.and_then(|line| line.split(' ').next()?.split_once('-'));
    let parse = |text| usize::from_str_radix(text, 16).ok();
    let range = range.and_then(|(start, end)| Some((parse(start)?, parse(end)?)));
    range.ok_or_else(|| io::Error::other("no such mapping"))
}

fn named(name: &str) -> io::Result<Memory> {
    Ok(Memory::foreign(line(name)?.0, PAGE))
}

fn below_the_stack() -> io::Result<Memory> {
    Ok(Memory::foreign(line("[stack]")?.0 - PAGE, PAGE))
}

fn secret() -> io::Result<Memory> {
    // SAFETY: memfd_secret takes flags alone.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, 0) } as RawFd;
    check(fd)?;
    // SAFETY: new, and ours.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::fs::ftruncate(&file, 2 * PAGE as u64)?;
    Mappable(file).map(RW, MAP_SHARED)
}

fn private() -> io::Result<Memory> {
    anonymous(RW, MAP_PRIVATE)
}

fn shared() -> io::Result<Memory> {
    memfd(2, 0)?.map(RW, MAP_SHARED)
}

/// Memory whose second page becomes something else.
fn then(memory: Memory, change: fn(&Memory) -> io::Result<()>) -> io::Result<Memory> {
    change(&Memory::foreign(memory.base + PAGE, PAGE))?;
    Ok(memory)
}

fn unmap(memory: &Memory) -> io::Result<()> {
    // SAFETY: our mapping, which nothing refers to. Nothing else comes there before the whole is
    // unmapped: this program has one thread.
    check(unsafe { libc::munmap(memory.base as *mut _, memory.len) })
}

/// io_uring as far as it pins memory.
pub(super) struct Ring(OwnedFd);

impl Ring {
    pub(super) fn new() -> io::Result<Ring> {
        // struct io_uring_params of linux/io_uring.h, all zero.
        let mut params = [0u64; 15];
        // SAFETY: the struct has the size that the call writes.
        let fd =
            unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, params.as_mut_ptr()) } as RawFd;
        check(fd)?;
        // SAFETY: new, and ours.
        Ok(Ring(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// What the host's kernel says to pinning `memory` for writing.
    pub(super) fn pin(&self, memory: &Memory) -> i32 {
        const REGISTER_BUFFERS: i32 = 0;
        const UNREGISTER_BUFFERS: i32 = 1;
        let buffer = libc::iovec {
            iov_base: memory.base as *mut _,
            iov_len: memory.len,
        };
        let call = |what: i32, buffer: *const libc::iovec, count: u32| {
            let fd = self.0.as_raw_fd();
            // SAFETY: `count` buffers are at `buffer`; nothing is read or written in them.
            unsafe { libc::syscall(libc::SYS_io_uring_register, fd, what, buffer, count) }
        };
        if call(REGISTER_BUFFERS, &raw const buffer, 1) < 0 {
            return io::Error::last_os_error().raw_os_error().unwrap_or(0);
        }
        call(UNREGISTER_BUFFERS, ptr::null(), 0);
        0
    }
}

/// A page that the kernel has allocated itself: the queue of an io_uring.
fn ring_memory() -> io::Result<Memory> {
    let ring = Ring::new()?;
    let base = map(0, PAGE, RW, MAP_SHARED, ring.0.as_raw_fd())?;
    Ok(Memory {
        base,
        len: PAGE,
        owned: PAGE,
        _file: Some(ring.0),
    })
}
