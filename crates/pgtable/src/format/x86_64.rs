//! x86-64 first stage, 4 levels.

use ioasid_core::{Access, Prot};

use self::spec::{Entry, INPUT_BITS, LEVELS, TOP_LEAF_LEVEL};
use super::Format;
use crate::spec::entry_shift;

mod spec;

/// See [`crate::TableFormat::X86_64Stage1`].
#[derive(Debug)]
pub(crate) struct X86_64Stage1;

/// The bits of a leaf that do not depend on where it leads.
const ATTRIBUTES: u64 = Entry::new()
    .with_present(true)
    .with_writable(true)
    .with_user(true)
    .with_accessed(true)
    .with_dirty(true)
    .into_bits();

impl Format for X86_64Stage1 {
    const MIN_LEVELS: u32 = LEVELS;
    const MAX_LEVELS: u32 = LEVELS;
    const LAST: u64 = (1 << INPUT_BITS) - 1;
    const ACCESSED: u64 = Entry::new().with_accessed(true).into_bits();
    const DIRTY: u64 = Entry::new().with_dirty(true).into_bits();
    const KIND: u64 = Entry::new().with_present(true).with_page(true).into_bits();

    #[inline]
    fn leaf_sizes(level: u32) -> u64 {
        if level <= TOP_LEAF_LEVEL {
            1 << entry_shift(level)
        } else {
            0
        }
    }

    #[inline]
    fn is_present(entry: u64) -> bool {
        Entry::from_bits(entry).present()
    }

    #[inline]
    fn is_link(entry: u64, _level: u32) -> bool {
        let entry = Entry::from_bits(entry);
        entry.present() && !entry.page()
    }

    #[inline]
    fn link(address: u64, _level: u32) -> u64 {
        Entry::from_bits(address)
            .with_present(true)
            .with_writable(true)
            .with_user(true)
            .with_accessed(true)
            .into_bits()
    }

    /// This format always tracks: without a reader of the dirty bits they are preset, as Linux does,
    /// and no walk has to write.
    #[inline]
    fn attributes(prot: Prot, tracking: bool) -> u64 {
        Entry::new()
            .with_present(true)
            .with_user(true)
            .with_accessed(true)
            .with_writable(prot.write)
            .with_dirty(prot.write && !tracking)
            .into_bits()
    }

    #[inline]
    fn attributes_of(leaf: u64) -> u64 {
        leaf & ATTRIBUTES
    }

    #[inline]
    fn leaf(spa: u64, _shift: u32, level: u32, attributes: u64) -> u64 {
        Entry::from_bits(spa | attributes)
            .with_page(level > 0)
            .into_bits()
    }

    #[inline]
    fn leaf_shift(_leaf: u64, level: u32) -> u32 {
        entry_shift(level)
    }

    #[inline]
    fn needs(access: Access) -> u64 {
        let needs = match access {
            Access::Read => const { Entry::new().with_present(true) },
            Access::Write => const { Entry::new().with_present(true).with_writable(true) },
        };
        needs.into_bits()
    }

    #[inline]
    fn prot(leaf: u64) -> Prot {
        Prot {
            read: true,
            write: Entry::from_bits(leaf).writable(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_keeps_the_contract() {
        super::super::contract::<X86_64Stage1>();
    }
}
