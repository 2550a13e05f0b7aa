//! x86-64 paging entries as IOMMUs use them for the first stage.
//!
//! Intel SDM volume 3, section 4.5 (4-level paging), tables 4-15 to 4-20; VT-d specification,
//! section 9.7 (first-stage paging entries). Level 0 is the page table, 1 the page directory, 2 the
//! page-directory-pointer table, 3 the PML4.

/// P: the entry is used. There is no read permission of its own: what is present can be read.
pub const PRESENT: u64 = 1 << 0;
/// R/W: writes are allowed.
pub const WRITABLE: u64 = 1 << 1;
/// U/S: user accesses are allowed. Requests of devices are user accesses.
pub const USER: u64 = 1 << 2;
/// A: hardware has used the entry.
pub const ACCESSED: u64 = 1 << 5;
/// D, in entries that map a page: hardware has written to the page.
pub const DIRTY: u64 = 1 << 6;
/// PS, at levels 1 and 2: the entry maps a page of 2 MiB or 1 GiB.
pub const PAGE: u64 = 1 << 7;

/// Levels of 4-level paging.
pub const LEVELS: u32 = 4;
/// Highest level whose entries can map a page (1 GiB).
pub const TOP_LEAF_LEVEL: u32 = 2;
/// Bits of an input address in the positive half: bits 63:47 must be equal, here 0.
pub const INPUT_BITS: u32 = 47;
