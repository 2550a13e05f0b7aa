//! What a process has mapped where: one mapping (VMA) by address.
//!
//! Asked with the `PROCMAP_QUERY` ioctl (Linux 6.11), or found in the text of `/proc/PID/maps`
//! where the kernel does not know it. Both go through one open file, which stays bound to the
//! address space it was opened on.
// UNSAFETY: one ioctl.
#![allow(unsafe_code)]

use std::{
    fs::File,
    io,
    os::{fd::AsRawFd, unix::fs::FileExt},
    sync::atomic::{AtomicBool, Ordering},
};

use ioasid_core::range::AddrRange;

/// Bytes of the longest name of a mapping without a file, with its NUL: `[anon:` and 79 bytes that
/// the program has chosen (PR_SET_VMA_ANON_NAME).
const LONGEST_NAME: usize = 128;

/// One mapping of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Vma {
    /// User addresses.
    pub(crate) range: AddrRange,
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// Whether writes reach the file (`MAP_SHARED`).
    pub(crate) shared: bool,
    /// Offset in the file of the first address, in bytes.
    pub(crate) offset: u64,
    /// Device and inode of the file; inode 0 if there is none.
    pub(crate) dev: u64,
    pub(crate) ino: u64,
}

impl Vma {
    /// Whether all of it may be pinned for whatever use, as private memory.
    pub(crate) fn is_plain(&self) -> bool {
        self.ino == 0 && self.readable && self.writable
    }

    /// The file and offset behind `address`, if writes to it reach a file.
    pub(crate) fn shared_file(&self, address: u64) -> Option<(u64, u64, u64)> {
        let inside = address.checked_sub(self.range.start())?;
        (self.shared && self.ino != 0 && self.range.contains(address))
            .then(|| Some((self.dev, self.ino, self.offset.checked_add(inside)?)))?
    }
}

/// An open `/proc/PID/maps`.
#[derive(Debug)]
pub(crate) struct Maps {
    file: File,
    /// Whether the kernel has refused the ioctl: then only text is read.
    text_only: AtomicBool,
}

impl Maps {
    pub(crate) fn new(file: File) -> Self {
        Maps {
            file,
            text_only: AtomicBool::new(false),
        }
    }

    /// As [`Maps::new`], never asking by ioctl.
    #[cfg(test)]
    pub(crate) fn text(file: File) -> Self {
        Maps {
            file,
            text_only: AtomicBool::new(true),
        }
    }

    /// The mapping at `address`; `None` if there is none, or the address space is gone.
    pub(crate) fn find(&self, address: u64) -> Option<Vma> {
        if !self.text_only.load(Ordering::Relaxed) {
            match self.query(address, &mut []) {
                Ok((vma, _)) => return Some(vma),
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {
                    self.text_only.store(true, Ordering::Relaxed);
                }
                Err(_) => return None,
            }
        }
        self.read_text()
            .ok()?
            .lines()
            .filter_map(parse_line)
            .find(|vma| vma.range.contains(address))
    }

    /// What the kernel calls the mapping at `address`, if that has no file: `[heap]`, `[vvar]`;
    /// empty if it has no name.
    pub(crate) fn name(&self, address: u64) -> String {
        if !self.text_only.load(Ordering::Relaxed) {
            let mut name = [0; LONGEST_NAME];
            return match self.query(address, &mut name) {
                Ok((_, len)) => String::from_utf8_lossy(&name[..len.min(name.len())]).into_owned(),
                Err(_) => String::new(),
            };
        }
        let text = self.read_text().unwrap_or_default();
        let here = |line: &&str| parse_line(line).is_some_and(|vma| vma.range.contains(address));
        let line = text.lines().find(here).unwrap_or_default();
        line.split_ascii_whitespace()
            .nth(5)
            .unwrap_or("")
            .to_owned()
    }

    /// Every mapping; none if the address space is gone.
    pub(crate) fn all(&self) -> Vec<Vma> {
        let text = self.read_text().unwrap_or_default();
        text.lines().filter_map(parse_line).collect()
    }

    /// The mapping at `address`. Its name goes to `name`, unless that is empty; the answer is its
    /// length.
    fn query(&self, address: u64, name: &mut [u8]) -> io::Result<(Vma, usize)> {
        let mut query = spec::ProcmapQuery {
            size: size_of::<spec::ProcmapQuery>() as u64,
            address,
            vma_name_size: name.len() as u32,
            // A buffer without an address of its own is refused.
            vma_name_addr: if name.is_empty() {
                0
            } else {
                name.as_mut_ptr() as u64
            },
            ..Default::default()
        };
        // SAFETY: PROCMAP_QUERY reads and writes `size` bytes of this struct, which lives across
        // the call and has the kernel's layout, and at most `vma_name_size` bytes of `name`, which
        // is borrowed for the call; the buffer for the build id has size 0.
        let done =
            unsafe { libc::ioctl(self.file.as_raw_fd(), spec::PROCMAP_QUERY, &raw mut query) };
        if done < 0 {
            return Err(io::Error::last_os_error());
        }
        let last = query.vma_end.wrapping_sub(1);
        let range = AddrRange::new(query.vma_start, last)
            .filter(|range| range.contains(address))
            .ok_or(io::ErrorKind::InvalidData)?;
        let vma = Vma {
            range,
            readable: query.vma_flags & spec::VMA_READABLE != 0,
            writable: query.vma_flags & spec::VMA_WRITABLE != 0,
            shared: query.vma_flags & spec::VMA_SHARED != 0,
            offset: query.vma_offset,
            dev: rustix::fs::makedev(query.dev_major, query.dev_minor),
            ino: query.inode,
        };
        // The length that the kernel gives has the NUL in it.
        Ok((vma, (query.vma_name_size as usize).saturating_sub(1)))
    }

    /// The whole text, from the start.
    fn read_text(&self) -> io::Result<String> {
        let mut text = Vec::new();
        let mut piece = vec![0; 64 << 10];
        loop {
            match self.file.read_at(&mut piece, text.len() as u64) {
                Ok(0) => break,
                Ok(n) => text.extend_from_slice(&piece[..n]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        // A path is the client's bytes, in any encoding.
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// `start-end perms offset major:minor inode path`, proc_pid_maps(5).
fn parse_line(line: &str) -> Option<Vma> {
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let permissions = fields.next()?.as_bytes();
    let offset = hex(fields.next()?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let ino = fields.next()?.parse().ok()?;
    Some(Vma {
        range: AddrRange::new(hex(start)?, hex(end)?.checked_sub(1)?)?,
        readable: *permissions.first()? == b'r',
        writable: *permissions.get(1)? == b'w',
        shared: *permissions.get(3)? == b's',
        offset,
        dev: rustix::fs::makedev(
            u32::from_str_radix(major, 16).ok()?,
            u32::from_str_radix(minor, 16).ok()?,
        ),
        ino,
    })
}

/// `PROCMAP_QUERY` of `linux/fs.h`.
mod spec {
    /// `struct procmap_query`.
    #[repr(C)]
    #[derive(Default)]
    pub(super) struct ProcmapQuery {
        pub(super) size: u64,
        pub(super) query_flags: u64,
        pub(super) address: u64,
        pub(super) vma_start: u64,
        /// Exclusive.
        pub(super) vma_end: u64,
        pub(super) vma_flags: u64,
        pub(super) vma_page_size: u64,
        pub(super) vma_offset: u64,
        pub(super) inode: u64,
        pub(super) dev_major: u32,
        pub(super) dev_minor: u32,
        pub(super) vma_name_size: u32,
        pub(super) build_id_size: u32,
        pub(super) vma_name_addr: u64,
        pub(super) build_id_addr: u64,
    }

    const SIZE: u64 = size_of::<ProcmapQuery>() as u64;
    const _: () = assert!(SIZE == 104);

    /// `_IOWR('f', 17, struct procmap_query)`.
    pub(super) const PROCMAP_QUERY: libc::c_ulong = 3 << 30 | SIZE << 16 | (b'f' as u64) << 8 | 17;

    pub(super) const VMA_READABLE: u64 = 1;
    pub(super) const VMA_WRITABLE: u64 = 2;
    pub(super) const VMA_SHARED: u64 = 8;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_and_its_last_address_is_inclusive() {
        let line = "7f0000000000-7f0000002000 rw-s 00003000 00:01 1042   /memfd:a b (deleted)";
        let vma = parse_line(line).unwrap();
        assert_eq!(
            vma.range,
            AddrRange::new(0x7f00_0000_0000, 0x7f00_0000_1fff).unwrap()
        );
        assert!(vma.readable && vma.writable && vma.shared);
        assert_eq!((vma.offset, vma.dev, vma.ino), (0x3000, 1, 1042));
        assert_eq!(vma.shared_file(0x7f00_0000_1000), Some((1, 1042, 0x4000)));
        assert_eq!(vma.shared_file(0x7f00_0000_2000), None);
        assert_eq!(parse_line("ffffffffff600000-ffffffffff601000 --xp"), None);
    }

    #[test]
    fn text_and_ioctl_say_the_same() {
        let file = || File::open("/proc/self/maps").unwrap();
        let (text, asked) = (Maps::text(file()), Maps::new(file()));
        let stack = 0;
        for address in [&raw const stack as u64, tests_address(), 0] {
            let (text, asked) = (text.find(address), asked.find(address));
            // Other tests map and unmap meanwhile, and a mapping may merge with its neighbour.
            let facts = |vma: Vma| (vma.readable, vma.writable, vma.shared, vma.dev, vma.ino);
            assert_eq!(text.map(facts), asked.map(facts), "{address:#x}");
        }
    }

    #[test]
    fn a_name_is_that_of_the_mapping() {
        let file = || File::open("/proc/self/maps").unwrap();
        let text = std::fs::read_to_string("/proc/self/maps").unwrap();
        let line = text.lines().find(|line| line.ends_with("[vdso]"));
        let vdso = parse_line(line.unwrap()).unwrap().range.start();
        for maps in [Maps::text(file()), Maps::new(file())] {
            assert_eq!(maps.name(vdso), "[vdso]");
            assert_eq!(maps.name(0), "");
        }
    }

    fn tests_address() -> u64 {
        tests_address as *const () as u64
    }
}
