//! What all formats agree on: tables of 512 entries of 8 bytes, aligned to 4 KiB; each level translates
//! 9 bits of the input address; bits 51:12 of an entry hold an address. The other bits are in the
//! `spec` module of each format.

pub use ioasid_core::memory::{PAGE_SHIFT, PAGE_SIZE};

/// Bits 51:12 of an entry: the address of a page or of the next table.
pub const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// Output addresses have 52 bits.
pub const ADDRESS_BITS: u32 = 52;

/// Address bits that one level translates.
pub const LEVEL_BITS: u32 = 9;

/// Entries in a table.
pub const ENTRIES: usize = 1 << LEVEL_BITS;

/// The number of low address bits that one entry of a table at `level` covers (level 0 holds 4 KiB
/// pages).
pub const fn entry_shift(level: u32) -> u32 {
    PAGE_SHIFT + LEVEL_BITS * level
}
