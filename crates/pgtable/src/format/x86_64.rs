//! x86-64 first stage, 4 levels.

use ioasid_core::Prot;

use super::Format;
use crate::spec::{entry_shift, x86_64 as bits};

/// See [`crate::TableFormat::X86_64Stage1`].
#[derive(Debug)]
pub(crate) struct X86_64Stage1;

impl Format for X86_64Stage1 {
    const MIN_LEVELS: u32 = bits::LEVELS;
    const MAX_LEVELS: u32 = bits::LEVELS;
    const LAST: u64 = (1 << bits::INPUT_BITS) - 1;
    const ACCESSED: u64 = bits::ACCESSED;
    const DIRTY: u64 = bits::DIRTY;

    #[inline]
    fn leaf_sizes(level: u32) -> u64 {
        if level <= bits::TOP_LEAF_LEVEL {
            1 << entry_shift(level)
        } else {
            0
        }
    }

    #[inline]
    fn is_present(entry: u64) -> bool {
        entry & bits::PRESENT != 0
    }

    #[inline]
    fn is_link(entry: u64, _level: u32) -> bool {
        entry & (bits::PRESENT | bits::PAGE) == bits::PRESENT
    }

    #[inline]
    fn link(address: u64, _level: u32) -> u64 {
        address | bits::PRESENT | bits::WRITABLE | bits::USER | bits::ACCESSED
    }

    /// This format always tracks: without a reader of the dirty bits they are preset, as Linux does,
    /// and no walk has to write.
    #[inline]
    fn attributes(prot: Prot, tracking: bool) -> u64 {
        let mut attributes = bits::PRESENT | bits::USER | bits::ACCESSED;
        if prot.write {
            attributes |= bits::WRITABLE;
            if !tracking {
                attributes |= bits::DIRTY;
            }
        }
        attributes
    }

    #[inline]
    fn attributes_of(leaf: u64) -> u64 {
        leaf & (bits::PRESENT | bits::WRITABLE | bits::USER | bits::ACCESSED | bits::DIRTY)
    }

    #[inline]
    fn leaf(spa: u64, _shift: u32, level: u32, attributes: u64) -> u64 {
        let page = if level > 0 { bits::PAGE } else { 0 };
        spa | attributes | page
    }

    #[inline]
    fn leaf_shift(_leaf: u64, level: u32) -> u32 {
        entry_shift(level)
    }

    #[inline]
    fn prot(leaf: u64) -> Prot {
        Prot {
            read: true,
            write: leaf & bits::WRITABLE != 0,
        }
    }
}
