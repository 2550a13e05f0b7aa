//! Intel VT-d second-stage paging entries.
//!
//! VT-d specification, sections 3.7 (second-stage translation) and 9.8 (second-stage paging
//! entries). Level 0 holds SS-PTEs, 1 SS-PDEs, 2 SS-PDPEs, 3 SS-PML4Es.

/// R: reads are allowed. An entry with neither R nor W is not present.
pub const READ: u64 = 1 << 0;
/// W: writes are allowed.
pub const WRITE: u64 = 1 << 1;
/// PS, at levels 1 and 2: the entry maps a page of 2 MiB or 1 GiB.
pub const PAGE: u64 = 1 << 7;
/// A: hardware has used the entry, if accessed/dirty is enabled (SSADE).
pub const ACCESSED: u64 = 1 << 8;
/// D, in entries that map a page: hardware has written to the page, if SSADE is set.
pub const DIRTY: u64 = 1 << 9;

/// Levels for an adjusted guest address width of 48 bits.
pub const LEVELS: u32 = 4;
/// Highest level whose entries can map a page (1 GiB).
pub const TOP_LEAF_LEVEL: u32 = 2;
/// Bits of an input address with 4 levels.
pub const INPUT_BITS: u32 = 48;
