//! Intel VT-d second-stage paging entries.
//!
//! VT-d specification, sections 3.7 (second-stage translation) and 9.8 (second-stage paging
//! entries). Level 0 holds SS-PTEs, 1 SS-PDEs, 2 SS-PDPEs, 3 SS-PML4Es.

use bitfield_struct::bitfield;

/// An entry of any level. With neither R nor W it is not present.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct Entry {
    /// R: reads are allowed.
    pub read: bool,
    /// W: writes are allowed.
    pub write: bool,
    /// X (if the IOMMU supports it) and the memory type: not used.
    #[bits(5)]
    __: u8,
    /// PS, at levels 1 and 2: the entry maps a page of 2 MiB or 1 GiB.
    pub page: bool,
    /// A: hardware has used the entry, if accessed/dirty is enabled (SSADE).
    pub accessed: bool,
    /// D, in entries that map a page: hardware has written to the page, if SSADE is set.
    pub dirty: bool,
    /// Ignored, and SNP (snoop): not used.
    #[bits(2)]
    __: u8,
    /// Bits 51:12 of the address of the page or of the next table; they stand where they stand in the
    /// address.
    #[bits(40)]
    pub frame: u64,
    /// Reserved, ignored, and TM (transient mapping): not used.
    #[bits(12)]
    __: u16,
}

/// Levels for an adjusted guest address width of 48 bits.
pub(super) const LEVELS: u32 = 4;
/// Highest level whose entries can map a page (1 GiB).
pub(super) const TOP_LEAF_LEVEL: u32 = 2;
/// Bits of an input address with 4 levels.
pub(super) const INPUT_BITS: u32 = 48;
