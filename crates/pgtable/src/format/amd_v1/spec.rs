//! AMD I/O page-table entries for host translations ("v1").
//!
//! AMD I/O Virtualization Technology (IOMMU) specification, section 2.2.3: I/O page tables for host
//! translations. The specification numbers levels from 1; level 0 here is its level 1, and a table
//! at level n here has paging mode n+1.

use bitfield_struct::bitfield;

use crate::spec::PAGE_SHIFT;

/// An entry of any level.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct Entry {
    /// PR: the entry is used.
    pub present: bool,
    /// Ignored.
    #[bits(4)]
    __: u8,
    /// A, in entries that map a page: hardware has used it, if host access updates are on
    /// (DTE\[HAD\]).
    pub accessed: bool,
    /// D, in entries that map a page: hardware has written to it, if host dirty updates are on.
    pub dirty: bool,
    /// Ignored.
    #[bits(2)]
    __: u8,
    /// Next Level: [`OWN_SIZE`] the entry maps a page of its level's own size; [`ENCODED_SIZE`] it
    /// maps a page whose size is encoded in its address; else the paging mode of the table that it
    /// points to.
    #[bits(3)]
    pub next_level: u8,
    /// Bits 51:12 of the address of the page or of the next table; they stand where they stand in the
    /// address.
    #[bits(40)]
    pub frame: u64,
    /// Reserved, and FC (forced coherence): not used.
    #[bits(9)]
    __: u16,
    /// IR: reads are allowed. Permissions of all levels are ANDed.
    pub read: bool,
    /// IW: writes are allowed.
    pub write: bool,
    /// Ignored.
    __: bool,
}

/// Next Level of a page of the default size of its level.
pub(super) const OWN_SIZE: u8 = 0;
/// Next Level of a page whose size is in the address field: for a page of 2^n bytes bits n-2:12 are
/// 1 and bit n-1 is 0. The entry is repeated in each slot that the page covers.
pub(super) const ENCODED_SIZE: u8 = 7;

impl Entry {
    /// Whether it points to a table of paging mode `mode`. One comparison: each step of a walk asks.
    #[inline]
    pub(super) const fn is_link_to(self, mode: u32) -> bool {
        let mask = Entry::new().with_present(true).with_next_level(7);
        let present = Entry::new().with_present(true);
        let link = present.into_bits() | (mode as u64) << Entry::NEXT_LEVEL_OFFSET;
        self.into_bits() & mask.into_bits() == link
    }

    /// The same for a page of 2^`shift` bytes at the same address, with its size encoded.
    #[inline]
    pub(super) const fn with_encoded_size(self, shift: u32) -> Self {
        let ones = (1 << (shift - 1)) - (1 << PAGE_SHIFT);
        Entry::from_bits(self.into_bits() | ones).with_next_level(ENCODED_SIZE)
    }

    /// The size that is encoded in the address, as a power of two.
    #[inline]
    pub(super) const fn encoded_shift(self) -> u32 {
        PAGE_SHIFT + 1 + (self.into_bits() >> PAGE_SHIFT).trailing_ones()
    }
}

/// Levels of a new table: 39 bits of input address (paging mode 3).
pub(super) const MIN_LEVELS: u32 = 3;
/// Most levels: paging mode 6. The top table then has 128 entries in use, for bits 63:57.
pub(super) const MAX_LEVELS: u32 = 6;
/// Highest level whose entries can map a page. The table of mode 6 holds only tables.
pub(super) const TOP_LEAF_LEVEL: u32 = 4;
/// The largest page is 2^51 bytes: larger ones cannot be encoded in 52 bits of address.
pub(super) const MAX_PAGE_SHIFT: u32 = 51;
/// 512 GiB pages are not used: Linux leaves them out for a hardware defect, and so does this crate.
pub(super) const NO_PAGE_SIZE: u64 = 1 << 39;
