//! What the programs of several tests have: a flat memory, and devices.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod device;

use std::ops::Range;

use ioasid_core::{memory::MemoryGone, sync::Mutex};

/// It starts here.
pub(crate) const BASE: u64 = 0x10_0000;
/// And has this many bytes.
pub(crate) const SIZE: usize = 0x8000;

#[derive(Debug)]
pub(crate) struct FlatMemory {
    bytes: Mutex<Vec<u8>>,
    /// Nothing can be written from this offset on.
    pub(crate) writable: Mutex<usize>,
}

impl Default for FlatMemory {
    fn default() -> Self {
        FlatMemory {
            bytes: Mutex::new(vec![0; SIZE]),
            writable: Mutex::new(SIZE),
        }
    }
}

impl FlatMemory {
    fn range(address: u64, len: usize) -> Result<Range<usize>, MemoryGone> {
        let start = address.checked_sub(BASE).ok_or(MemoryGone { done: 0 })?;
        let start = usize::try_from(start).map_err(|_| MemoryGone { done: 0 })?;
        match start.checked_add(len) {
            Some(end) if end <= SIZE => Ok(start..end),
            _ => Err(MemoryGone { done: 0 }),
        }
    }

    /// As the program's own loads.
    pub(crate) fn read(&self, address: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        let range = Self::range(address, dst.len())?;
        dst.copy_from_slice(&self.bytes.lock()[range]);
        Ok(())
    }

    /// As the program's own stores.
    pub(crate) fn write(&self, address: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let range = Self::range(address, src.len())?;
        if range.end > *self.writable.lock() {
            return Err(MemoryGone { done: 0 });
        }
        self.bytes.lock()[range].copy_from_slice(src);
        Ok(())
    }

    /// Fills it, whether it can be written or not.
    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        let range = Self::range(address, bytes.len()).unwrap();
        self.bytes.lock()[range].copy_from_slice(bytes);
    }

    /// The word at `address`.
    pub(crate) fn word(&self, address: u64) -> u32 {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes).unwrap();
        u32::from_ne_bytes(bytes)
    }
}
