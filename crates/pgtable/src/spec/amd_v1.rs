//! AMD I/O page-table entries for host translations ("v1").
//!
//! AMD I/O Virtualization Technology (IOMMU) specification, section 2.2.3: I/O page tables for host
//! translations. The specification numbers levels from 1; level 0 here is its level 1, and a table
//! at level n here has paging mode n+1.

/// PR: the entry is used.
pub const PRESENT: u64 = 1 << 0;
/// A, in entries that map a page: hardware has used it, if host access updates are on (DTE\[HAD\]).
pub const ACCESSED: u64 = 1 << 5;
/// D, in entries that map a page: hardware has written to it, if host dirty updates are on.
pub const DIRTY: u64 = 1 << 6;
/// Next Level, bits 11:9: 0 the entry maps a page of its level's own size; 7 it maps a page whose
/// size is encoded in its address; else the paging mode of the table it points to.
pub const NEXT_LEVEL: u64 = 7 << NEXT_LEVEL_SHIFT;
/// Position of Next Level.
pub const NEXT_LEVEL_SHIFT: u32 = 9;
/// Next Level of a page of the default size of its level.
pub const NEXT_LEVEL_PAGE: u64 = 0;
/// Next Level of a page whose size is in the address field: for a page of 2^n bytes bits n-2:12 are
/// 1 and bit n-1 is 0. The entry is repeated in each slot that the page covers.
pub const NEXT_LEVEL_SIZED_PAGE: u64 = 7;
/// IR: reads are allowed. Permissions of all levels are ANDed.
pub const READ: u64 = 1 << 61;
/// IW: writes are allowed.
pub const WRITE: u64 = 1 << 62;

/// Levels of a new table: 39 bits of input address (paging mode 3).
pub const MIN_LEVELS: u32 = 3;
/// Most levels: paging mode 6. The top table then has 128 entries in use, for bits 63:57.
pub const MAX_LEVELS: u32 = 6;
/// Highest level whose entries can map a page. The table of mode 6 holds only tables.
pub const TOP_LEAF_LEVEL: u32 = 4;
/// The largest page is 2^51 bytes: larger ones cannot be encoded in 52 bits of address.
pub const MAX_PAGE_SHIFT: u32 = 51;
/// 512 GiB pages are not used: Linux leaves them out for a hardware defect, and so do we.
pub const NO_PAGE_SIZE: u64 = 1 << 39;
