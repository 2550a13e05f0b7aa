//! First-stage tables: x86-64 paging entries, written by hand into a guest's memory.

use crate::guest::Memory;

/// Bits of an entry (Intel VT-d specification, 9.7).
pub(crate) const PRESENT: u64 = 1 << 0;
pub(crate) const WRITE: u64 = 1 << 1;
pub(crate) const USER: u64 = 1 << 2;
pub(crate) const ACCESSED: u64 = 1 << 5;
pub(crate) const DIRTY: u64 = 1 << 6;
/// The entry maps a page, at a level above the lowest.
const PAGE: u64 = 1 << 7;
pub(crate) const EXTENDED_ACCESSED: u64 = 1 << 10;
/// What an ordinary page or table has.
pub(crate) const ALL: u64 = PRESENT | WRITE | USER;
/// The guest-physical address in an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Size of a page by the level of its entry.
pub(crate) const fn page_size(level: u32) -> u64 {
    4096 << (9 * level)
}

/// A table of 4 or 5 levels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Table {
    pub(crate) root: u64,
    pub(crate) levels: u32,
}

impl Table {
    pub(crate) fn new(memory: &Memory, levels: u32) -> Table {
        Table {
            root: memory.page(),
            levels,
        }
    }

    /// Bits of an input address.
    pub(crate) const fn address_width(&self) -> u32 {
        12 + 9 * self.levels
    }

    /// Guest-physical address of the entry of `level` for `address`; tables above it must be there.
    pub(crate) fn entry(&self, memory: &Memory, address: u64, level: u32) -> u64 {
        self.walk(address, level, |at| memory.load(at) & ADDRESS)
    }

    fn walk(&self, address: u64, level: u32, mut next: impl FnMut(u64) -> u64) -> u64 {
        let mut table = self.root;
        let mut above = self.levels - 1;
        loop {
            let at = table + 8 * (address >> (12 + 9 * above) & 511);
            if above == level {
                return at;
            }
            table = next(at);
            above -= 1;
        }
    }

    /// Maps the page of `level` at `address` to `target` with these bits; tables that are made on the way have
    /// the bits `above`.
    pub(crate) fn map_with(
        &self,
        memory: &Memory,
        (address, level): (u64, u32),
        target: u64,
        bits: u64,
        above: u64,
    ) {
        let at = self.walk(address, level, |at| match memory.load(at) {
            0 => {
                let table = memory.page();
                memory.store(at, table | above);
                table
            }
            entry => entry & ADDRESS,
        });
        let page = if level > 0 { PAGE } else { 0 };
        memory.store(at, target | bits | page);
    }

    /// The same with [`ALL`] and the accessed and dirty bits set, as a stock kernel makes them.
    pub(crate) fn map(&self, memory: &Memory, address: u64, level: u32, target: u64) {
        let above = ALL | ACCESSED;
        self.map_with(memory, (address, level), target, above | DIRTY, above);
    }

    /// Maps `len` bytes page by page.
    pub(crate) fn map_range(&self, memory: &Memory, address: u64, target: u64, len: u64) {
        for offset in (0..len).step_by(4096) {
            self.map(memory, address + offset, 0, target + offset);
        }
    }
}
