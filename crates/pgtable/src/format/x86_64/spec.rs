//! x86-64 paging entries as IOMMUs use them for the first stage.
//!
//! Intel SDM volume 3, section 4.5 (4-level paging), tables 4-15 to 4-20; VT-d specification,
//! section 9.7 (first-stage paging entries). Level 0 is the page table, 1 the page directory, 2 the
//! page-directory-pointer table, 3 the PML4.

use bitfield_struct::bitfield;

/// An entry of any level.
#[bitfield(u64)]
#[derive(PartialEq, Eq)]
pub(super) struct Entry {
    /// P: the entry is used. There is no read permission of its own: what is present can be read.
    pub present: bool,
    /// R/W: writes are allowed.
    pub writable: bool,
    /// U/S: user accesses are allowed. Requests of devices are user accesses.
    pub user: bool,
    /// PWT and PCD, the memory type: not used.
    #[bits(2)]
    __: u8,
    /// A: hardware has used the entry.
    pub accessed: bool,
    /// D, in entries that map a page: hardware has written to the page.
    pub dirty: bool,
    /// PS, at levels 1 and 2: the entry maps a page of 2 MiB or 1 GiB.
    pub page: bool,
    /// G and ignored bits: not used.
    #[bits(4)]
    __: u8,
    /// Bits 51:12 of the address of the page or of the next table; they stand where they stand in the
    /// address.
    #[bits(40)]
    pub frame: u64,
    /// Ignored, protection key and XD: not used.
    #[bits(12)]
    __: u16,
}

/// Levels of 4-level paging.
pub(super) const LEVELS: u32 = 4;
/// Highest level whose entries can map a page (1 GiB).
pub(super) const TOP_LEAF_LEVEL: u32 = 2;
/// Bits of an input address in the positive half: bits 63:47 must be equal, here 0.
pub(super) const INPUT_BITS: u32 = 47;
