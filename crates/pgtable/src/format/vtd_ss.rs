//! Intel VT-d second stage, 4 levels.

use ioasid_core::Prot;

use super::Format;
use crate::spec::{entry_shift, vtd_ss as bits};

/// See [`crate::TableFormat::VtdSecondStage`].
#[derive(Debug)]
pub(crate) struct VtdSecondStage;

impl Format for VtdSecondStage {
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
        entry & (bits::READ | bits::WRITE) != 0
    }

    /// Links are made with every permission, so one bit is enough.
    #[inline]
    fn is_link(entry: u64, _level: u32) -> bool {
        entry & (bits::READ | bits::PAGE) == bits::READ
    }

    /// The accessed bit of a link is preset, so that walks write to leaves only.
    #[inline]
    fn link(address: u64, _level: u32) -> u64 {
        address | bits::READ | bits::WRITE | bits::ACCESSED
    }

    /// Without tracking SSADE is clear, and hardware ignores both bits.
    #[inline]
    fn attributes(prot: Prot, _tracking: bool) -> u64 {
        let read = if prot.read { bits::READ } else { 0 };
        let write = if prot.write { bits::WRITE } else { 0 };
        read | write
    }

    #[inline]
    fn attributes_of(leaf: u64) -> u64 {
        leaf & (bits::READ | bits::WRITE | bits::ACCESSED | bits::DIRTY)
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
            read: leaf & bits::READ != 0,
            write: leaf & bits::WRITE != 0,
        }
    }
}
