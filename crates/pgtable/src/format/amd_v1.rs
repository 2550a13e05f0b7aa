//! AMD I/O page tables for host translations, 3 to 6 levels, pages of (almost) every power of two.

use ioasid_core::Prot;

use super::Format;
use crate::spec::{LEVEL_BITS, PAGE_SHIFT, amd_v1 as bits, entry_shift};

/// See [`crate::TableFormat::AmdV1`].
#[derive(Debug)]
pub(crate) struct AmdV1;

/// Next Level of an entry.
#[inline]
fn next_level(entry: u64) -> u64 {
    (entry & bits::NEXT_LEVEL) >> bits::NEXT_LEVEL_SHIFT
}

impl Format for AmdV1 {
    const MIN_LEVELS: u32 = bits::MIN_LEVELS;
    const MAX_LEVELS: u32 = bits::MAX_LEVELS;
    const LAST: u64 = u64::MAX;
    const ACCESSED: u64 = bits::ACCESSED;
    const DIRTY: u64 = bits::DIRTY;

    #[inline]
    fn leaf_sizes(level: u32) -> u64 {
        if level > bits::TOP_LEAF_LEVEL {
            return 0;
        }
        let smallest = entry_shift(level);
        let largest = (smallest + LEVEL_BITS - 1).min(bits::MAX_PAGE_SHIFT);
        ((2 << largest) - (1 << smallest)) & !bits::NO_PAGE_SIZE
    }

    #[inline]
    fn is_present(entry: u64) -> bool {
        entry & bits::PRESENT != 0
    }

    /// Links are made to the next level only: none is skipped.
    #[inline]
    fn is_link(entry: u64, level: u32) -> bool {
        let next = u64::from(level) << bits::NEXT_LEVEL_SHIFT;
        entry & (bits::PRESENT | bits::NEXT_LEVEL) == bits::PRESENT | next
    }

    /// The paging mode of the table below a table at `level` is `level`.
    #[inline]
    fn link(address: u64, level: u32) -> u64 {
        let next = u64::from(level) << bits::NEXT_LEVEL_SHIFT;
        address | next | bits::PRESENT | bits::READ | bits::WRITE
    }

    /// Without tracking DTE\[HAD\] is 0, and hardware ignores both bits.
    #[inline]
    fn attributes(prot: Prot, _tracking: bool) -> u64 {
        let read = if prot.read { bits::READ } else { 0 };
        let write = if prot.write { bits::WRITE } else { 0 };
        bits::PRESENT | read | write
    }

    #[inline]
    fn attributes_of(leaf: u64) -> u64 {
        leaf & (bits::PRESENT | bits::READ | bits::WRITE | bits::ACCESSED | bits::DIRTY)
    }

    #[inline]
    fn leaf(spa: u64, shift: u32, level: u32, attributes: u64) -> u64 {
        let entry = spa | attributes | bits::PRESENT;
        if shift == entry_shift(level) {
            return entry;
        }
        // Bits shift-2 to 12 set, bit shift-1 clear.
        let size = (1 << (shift - 1)) - (1 << PAGE_SHIFT);
        entry | size | bits::NEXT_LEVEL_SIZED_PAGE << bits::NEXT_LEVEL_SHIFT
    }

    #[inline]
    fn leaf_shift(leaf: u64, level: u32) -> u32 {
        if next_level(leaf) == bits::NEXT_LEVEL_SIZED_PAGE {
            PAGE_SHIFT + 1 + (leaf >> PAGE_SHIFT).trailing_ones()
        } else {
            entry_shift(level)
        }
    }

    #[inline]
    fn prot(leaf: u64) -> Prot {
        Prot {
            read: leaf & bits::READ != 0,
            write: leaf & bits::WRITE != 0,
        }
    }
}
