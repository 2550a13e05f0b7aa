//! The guest's own memory, by the addresses that its devices use: physical ones.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt as _,
};

use anyhow::{Context as _, Result, ensure};

use crate::mapping::Mapping;

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

/// Pages of this program, which a device can be pointed at.
#[derive(Debug)]
pub(crate) struct Ram {
    memory: Mapping,
    /// Where each of them is.
    pages: Vec<u64>,
}

impl Ram {
    /// This many pages, filled with 0.
    ///
    /// # Errors
    /// If there is no memory, or the program may not know where it is.
    pub(crate) fn new(pages: usize) -> Result<Self> {
        let memory = Mapping::anonymous(pages * PAGE).context("allocating memory")?;
        let pages = places(&memory)?;
        Ok(Self { memory, pages })
    }

    /// The address of page `page`.
    pub(crate) fn at(&self, page: usize) -> u64 {
        self.pages[page]
    }

    /// Puts `bytes`, a multiple of 8, to the beginning of a page.
    pub(crate) fn put(&self, page: usize, bytes: &[u8]) {
        let (words, _) = bytes.as_chunks::<8>();
        for (index, word) in words.iter().enumerate() {
            let at = page * PAGE + 8 * index;
            self.memory.store(at, 8, u64::from_le_bytes(*word));
        }
    }

    /// All of a page.
    pub(crate) fn get(&self, page: usize) -> Vec<u8> {
        let words = (0..PAGE).step_by(8);
        words
            .flat_map(|at| self.word(page, at).to_le_bytes())
            .collect()
    }

    /// Eight bytes of a page.
    pub(crate) fn word(&self, page: usize, at: usize) -> u64 {
        self.memory.load(page * PAGE + at, 8)
    }

    /// That the kernel has not moved the pages, as it might: all that was done until now was done where
    /// it was meant to be.
    ///
    /// # Errors
    /// If it has.
    pub(crate) fn has_stayed(&self) -> Result<()> {
        ensure!(
            places(&self.memory)? == self.pages,
            "the kernel moved the pages"
        );
        Ok(())
    }
}

/// Where the pages of a mapping are (Documentation/admin-guide/mm/pagemap.rst).
fn places(memory: &Mapping) -> Result<Vec<u64>> {
    let pagemap = File::open("/proc/self/pagemap").context("opening the page map")?;
    let mut places = Vec::new();
    for at in (0..memory.len()).step_by(PAGE) {
        let mut entry = [0; 8];
        let page = (memory.address() + at) / PAGE;
        pagemap.read_exact_at(&mut entry, page as u64 * 8)?;
        let entry = u64::from_le_bytes(entry);
        let frame = entry & ((1 << 55) - 1);
        ensure!(
            entry >> 63 == 1 && frame != 0,
            "a page is nowhere: {entry:#x}"
        );
        places.push(frame * PAGE as u64);
    }
    Ok(places)
}

/// The first address behind the guest's memory below 4 GiB: firmware keeps the last pages for itself,
/// and the size is a multiple of 128 MiB.
///
/// # Errors
/// If the kernel does not tell.
pub(crate) fn end() -> Result<u64> {
    let iomem = fs::read_to_string("/proc/iomem").context("reading the memory map")?;
    let ends = iomem.lines().filter_map(|line| {
        let (range, name) = line.split_once(" : ")?;
        let (_, last) = range.split_once('-')?;
        let last = u64::from_str_radix(last, 16).ok()?;
        (name == "System RAM" && last < 1 << 32).then_some(last)
    });
    let last = ends.max().context("no memory")?;
    Ok(last.next_multiple_of(128 << 20))
}

/// Bytes that are different for each seed and not all alike (xorshift).
pub(crate) fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = (0..len.div_ceil(8)).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.take(len).collect()
}
