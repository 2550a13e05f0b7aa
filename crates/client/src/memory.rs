//! Memory that a device may write at any moment.
//!
//! There is never a reference to it: the bytes are copied in and out, and a status byte is loaded
//! as an atomic.
// UNSAFETY: an `mmap` and raw copies inside it; every offset is checked first.
#![allow(unsafe_code)]

use std::{
    fmt,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr::{self, NonNull},
    str::FromStr,
    sync::atomic::{AtomicU8, Ordering},
};

use crate::error::{Error, Result};

/// Where memory comes from, and how it is mapped for DMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemoryKind {
    /// Private anonymous memory, mapped by address (`IOMMU_IOAS_MAP`).
    Private,
    /// A memfd, mapped by file descriptor (`IOMMU_IOAS_MAP_FILE`).
    File,
    /// A memfd mapped shared here, mapped for DMA by address (`IOMMU_IOAS_MAP`).
    Shared,
}

impl MemoryKind {
    /// Every kind.
    pub const ALL: [MemoryKind; 3] = [MemoryKind::Private, MemoryKind::File, MemoryKind::Shared];
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MemoryKind::Private => "private",
            MemoryKind::File => "file",
            MemoryKind::Shared => "shared",
        })
    }
}

/// A text that names no [`MemoryKind`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a kind of memory (private, file, shared)")]
pub struct UnknownMemoryKind(String);

impl FromStr for MemoryKind {
    type Err = UnknownMemoryKind;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        MemoryKind::ALL
            .into_iter()
            .find(|kind| kind.to_string() == text)
            .ok_or_else(|| UnknownMemoryKind(text.to_owned()))
    }
}

/// Zeroed, page-aligned memory for DMA; freed when dropped.
pub struct DmaMemory {
    base: NonNull<u8>,
    len: usize,
    kind: MemoryKind,
    file: Option<OwnedFd>,
}

// SAFETY: the memory is reached only through raw copies and atomics, from any thread.
unsafe impl Send for DmaMemory {}
// SAFETY: as above.
unsafe impl Sync for DmaMemory {}

impl DmaMemory {
    /// `len` bytes (rounded up to pages) of the given kind.
    ///
    /// # Errors
    /// [`Error::System`] if the system has no memory or refuses the mapping.
    pub fn new(len: usize, kind: MemoryKind) -> Result<DmaMemory> {
        let len = len.max(1).next_multiple_of(4096);
        let file = match kind {
            MemoryKind::Private => None,
            MemoryKind::File | MemoryKind::Shared => Some(memfd(len)?),
        };
        let (flags, fd) = match &file {
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1),
            Some(file) => (libc::MAP_SHARED, file.as_raw_fd()),
        };
        let prot = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no existing memory.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, fd, 0) };
        if base == libc::MAP_FAILED {
            return Err(Error::last_os("mapping memory"));
        }
        let base = NonNull::new(base.cast()).ok_or(Error::Limit("memory at address 0"))?;
        Ok(DmaMemory {
            base,
            len,
            kind,
            file,
        })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Whether there are no bytes; never true.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it came from.
    pub fn kind(&self) -> MemoryKind {
        self.kind
    }

    /// Address in this process.
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// The memfd behind it, if there is one.
    pub fn file(&self) -> Option<&OwnedFd> {
        self.file.as_ref()
    }

    /// Pointer to `len` bytes at `offset`.
    ///
    /// # Panics
    /// If they do not all lie inside.
    fn at(&self, offset: u64, len: usize) -> *mut u8 {
        let end = usize::try_from(offset)
            .ok()
            .and_then(|offset| offset.checked_add(len));
        assert!(
            end.is_some_and(|end| end <= self.len),
            "{len} bytes at {offset:#x} lie outside of {:#x} bytes",
            self.len
        );
        // SAFETY: `offset + len <= self.len`, checked above.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }

    /// Copies `data.len()` bytes from `offset`.
    ///
    /// # Panics
    /// If they do not all lie inside.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let from = self.at(offset, data.len());
        // SAFETY: `from` is valid for `data.len()` bytes (`at`), and no reference to them exists.
        unsafe { ptr::copy_nonoverlapping(from, data.as_mut_ptr(), data.len()) };
    }

    /// Copies `data` to `offset`.
    ///
    /// # Panics
    /// If it does not all lie inside.
    pub fn write(&self, offset: u64, data: &[u8]) {
        let to = self.at(offset, data.len());
        // SAFETY: `to` is valid for `data.len()` bytes (`at`), and no reference to them exists.
        unsafe { ptr::copy_nonoverlapping(data.as_ptr(), to, data.len()) };
    }

    /// Loads one byte; what another CPU wrote before it is visible afterwards.
    ///
    /// # Panics
    /// If it lies outside.
    pub fn load(&self, offset: u64) -> u8 {
        let at = self.at(offset, 1);
        // SAFETY: `at` is valid for one byte (`at`), and bytes have no alignment.
        unsafe { AtomicU8::from_ptr(at) }.load(Ordering::Acquire)
    }

    /// Sets `len` bytes from `offset` to `byte`.
    ///
    /// # Panics
    /// If they do not all lie inside.
    pub fn fill(&self, offset: u64, len: u64, byte: u8) {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let to = self.at(offset, len);
        // SAFETY: `to` is valid for `len` bytes (`at`), and no reference to them exists.
        unsafe { ptr::write_bytes(to, byte, len) };
    }

    /// Fills `len` bytes from `offset` with the pattern that `seed` names.
    ///
    /// # Panics
    /// If they do not all lie inside.
    pub fn fill_pattern(&self, offset: u64, len: u64, seed: u64) {
        let mut page = [0; 4096];
        let mut done = 0;
        while done < len {
            let part = (len - done).min(4096) as usize;
            pattern(seed, done, &mut page[..part]);
            self.write(offset + done, &page[..part]);
            done += part as u64;
        }
    }

    /// The first of `len` bytes from `offset` that differs from the pattern that `seed` names, as
    /// an offset from `offset`.
    ///
    /// # Panics
    /// If they do not all lie inside.
    pub fn first_difference(&self, offset: u64, len: u64, seed: u64) -> Option<u64> {
        let (mut expected, mut found) = ([0; 4096], [0; 4096]);
        let mut done = 0;
        while done < len {
            let part = (len - done).min(4096) as usize;
            pattern(seed, done, &mut expected[..part]);
            self.read(offset + done, &mut found[..part]);
            if expected[..part] != found[..part] {
                let same = expected.iter().zip(&found).take_while(|(a, b)| a == b);
                return Some(done + same.count() as u64);
            }
            done += part as u64;
        }
        None
    }
}

impl Drop for DmaMemory {
    fn drop(&mut self) {
        // SAFETY: mapped in `new` with this length; nothing refers to it any more.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

impl fmt::Debug for DmaMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaMemory")
            .field("len", &self.len)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

fn memfd(len: usize) -> Result<OwnedFd> {
    // SAFETY: the name is a C string; the result is checked.
    let fd = unsafe { libc::memfd_create(c"guest-memory".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(Error::last_os("creating a memfd"));
    }
    // SAFETY: a new descriptor that nobody else owns.
    let file = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: a plain system call on our own descriptor.
    if unsafe { libc::ftruncate(file.as_raw_fd(), len as libc::off_t) } != 0 {
        return Err(Error::last_os("sizing a memfd"));
    }
    Ok(file)
}

/// Fills `bytes` with the part of the endless pattern `seed` that starts at `position`: each 8-byte
/// word depends on the seed and on its own place, so a word that moved is seen.
fn pattern(seed: u64, position: u64, bytes: &mut [u8]) {
    for (index, word) in bytes.chunks_mut(8).enumerate() {
        let value = mix(seed ^ (position / 8 + index as u64));
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
}

/// The finalizer of splitmix64: a bijection whose outputs look random.
fn mix(mut value: u64) -> u64 {
    value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_that_moved_or_changed_is_seen() {
        for kind in MemoryKind::ALL {
            let memory = DmaMemory::new(3 * 4096, kind).unwrap();
            memory.fill_pattern(0, 3 * 4096, 7);
            assert_eq!(memory.first_difference(0, 3 * 4096, 7), None);
            assert_eq!(memory.first_difference(0, 3 * 4096, 8), Some(0));
            memory.write(5000, &[memory.load(5000) ^ 1]);
            assert_eq!(memory.first_difference(0, 3 * 4096, 7), Some(5000));
            let mut word = [0; 8];
            memory.read(8, &mut word);
            memory.write(0, &word);
            assert_eq!(memory.first_difference(0, 4096, 7), Some(0));
        }
    }

    #[test]
    #[should_panic(expected = "lie outside")]
    fn a_read_past_the_end_is_refused() {
        let memory = DmaMemory::new(4096, MemoryKind::Private).unwrap();
        memory.read(4090, &mut [0; 8]);
    }

    #[test]
    fn kinds_print_as_they_parse() {
        for kind in MemoryKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
        }
        assert!("shm".parse::<MemoryKind>().is_err());
    }
}
