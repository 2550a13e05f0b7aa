//! AMD I/O page tables for host translations, 3 to 6 levels, pages of (almost) every power of two.

use ioasid_core::{Access, Prot};

use self::spec::{ENCODED_SIZE, Entry, OWN_SIZE};
use super::Format;
use crate::spec::{LEVEL_BITS, entry_shift};

mod spec;

/// See [`crate::TableFormat::AmdV1`].
#[derive(Debug)]
pub(crate) struct AmdV1;

/// The bits of a leaf that do not depend on where it leads.
const ATTRIBUTES: u64 = Entry::new()
    .with_present(true)
    .with_read(true)
    .with_write(true)
    .with_accessed(true)
    .with_dirty(true)
    .into_bits();

impl Format for AmdV1 {
    const MIN_LEVELS: u32 = spec::MIN_LEVELS;
    const MAX_LEVELS: u32 = spec::MAX_LEVELS;
    const LAST: u64 = u64::MAX;
    const ACCESSED: u64 = Entry::new().with_accessed(true).into_bits();
    const DIRTY: u64 = Entry::new().with_dirty(true).into_bits();
    const KIND: u64 = Entry::new()
        .with_present(true)
        .with_next_level(7)
        .into_bits();

    #[inline]
    fn leaf_sizes(level: u32) -> u64 {
        if level > spec::TOP_LEAF_LEVEL {
            return 0;
        }
        let smallest = entry_shift(level);
        let largest = (smallest + LEVEL_BITS - 1).min(spec::MAX_PAGE_SHIFT);
        ((2 << largest) - (1 << smallest)) & !spec::NO_PAGE_SIZE
    }

    #[inline]
    fn is_present(entry: u64) -> bool {
        Entry::from_bits(entry).present()
    }

    /// Links are made to the next level only: none is skipped.
    #[inline]
    fn is_link(entry: u64, level: u32) -> bool {
        Entry::from_bits(entry).is_link_to(level)
    }

    /// The paging mode of the table below a table at `level` is `level`.
    #[inline]
    fn link(address: u64, level: u32) -> u64 {
        Entry::from_bits(address)
            .with_next_level(level as u8)
            .with_present(true)
            .with_read(true)
            .with_write(true)
            .into_bits()
    }

    /// Without tracking DTE\[HAD\] is 0, and hardware ignores both bits.
    #[inline]
    fn attributes(prot: Prot, _tracking: bool) -> u64 {
        Entry::new()
            .with_present(true)
            .with_read(prot.read)
            .with_write(prot.write)
            .into_bits()
    }

    #[inline]
    fn attributes_of(leaf: u64) -> u64 {
        leaf & ATTRIBUTES
    }

    #[inline]
    fn leaf(spa: u64, shift: u32, level: u32, attributes: u64) -> u64 {
        let leaf = Entry::from_bits(spa | attributes).with_present(true);
        let leaf = if shift == entry_shift(level) {
            leaf.with_next_level(OWN_SIZE)
        } else {
            leaf.with_encoded_size(shift)
        };
        leaf.into_bits()
    }

    #[inline]
    fn leaf_shift(leaf: u64, level: u32) -> u32 {
        let leaf = Entry::from_bits(leaf);
        if leaf.next_level() == ENCODED_SIZE {
            leaf.encoded_shift()
        } else {
            entry_shift(level)
        }
    }

    #[inline]
    fn needs(access: Access) -> u64 {
        let needs = match access {
            Access::Read => const { Entry::new().with_present(true).with_read(true) },
            Access::Write => const { Entry::new().with_present(true).with_write(true) },
        };
        needs.into_bits()
    }

    #[inline]
    fn prot(leaf: u64) -> Prot {
        let leaf = Entry::from_bits(leaf);
        Prot {
            read: leaf.read(),
            write: leaf.write(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_keeps_the_contract() {
        super::super::contract::<AmdV1>();
    }

    #[test]
    fn page_sizes_are_encoded_as_in_the_specification() {
        let sized = |spa, shift, level| AmdV1::leaf(spa, shift, level, 0);
        // Two 4 KiB slots: bit 12 clear. 64 KiB: bits 14:12 set, bit 15 clear. 8 GiB: 31:12 set.
        assert_eq!(sized(0x8000, 13, 0), 0x8000 | 0xe01);
        assert_eq!(sized(0x7_0000, 16, 0), 0x7_7000 | 0xe01);
        assert_eq!(sized(0, 33, 2), 0xffff_f000 | 0xe01);
        assert_eq!(sized(0x20_0000, 21, 1), 0x20_0001);
    }
}
