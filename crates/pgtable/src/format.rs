//! What a format has to say; everything else is the generic walker's.
//!
//! # Writing a format
//! Its own files: the entry as a documented type in `format/NAME/spec.rs`, [`Format`] for it in
//! `format/NAME.rs` with a test that calls `contract`, a walker written from the specification in
//! `tests/walker_NAME.rs`. Then a line or two in three files: `mod` and `use` here, a variant of
//! [`TableFormat`](crate::TableFormat) in `config.rs`, the `match` in `table.rs`. Every other test runs
//! for all of [`TableFormat::ALL`](crate::TableFormat::ALL).

use ioasid_core::{Access, Prot};

use crate::spec;

mod amd_v1;
mod vtd_ss;
mod x86_64;

pub(crate) use amd_v1::AmdV1;
pub(crate) use vtd_ss::VtdSecondStage;
pub(crate) use x86_64::X86_64Stage1;

/// A page-table format: constants and pure functions on entries.
///
/// The contract, on which the memory safety of the walker stands (see `arena.rs`):
/// * an entry of 0 is not present, and if the bits that some entries have in common make a present
///   entry, all of them are;
/// * [`Format::link`] makes an entry that [`Format::is_link`] knows again at the same level, with
///   the table's address in bits 51:12;
/// * [`Format::leaf`] makes an entry that is present and never a link at its level, whichever of
///   [`Format::ACCESSED`] and [`Format::DIRTY`] are added to it or taken from it;
/// * an entry with the [`Format::KIND`] bits of a present one is present, and with those of a leaf of
///   its level's own size it is such a leaf.
///
/// Levels count from 0, the table of 4 KiB pages.
pub(crate) trait Format: Send + Sync + 'static {
    /// Levels of a new table.
    const MIN_LEVELS: u32;
    /// Levels that it can grow to.
    const MAX_LEVELS: u32;
    /// Last input address.
    const LAST: u64;
    /// The accessed bit of a leaf.
    const ACCESSED: u64;
    /// The dirty bit of a leaf.
    const DIRTY: u64;
    /// The bits that say whether an entry is present, a link or a leaf. No walk changes them.
    const KIND: u64;

    /// Sizes of the leaves that a table at `level` can hold, as a bitmap of powers of two.
    fn leaf_sizes(level: u32) -> u64;

    /// Whether the entry is used.
    fn is_present(entry: u64) -> bool;

    /// Whether the entry of a table at `level` (above 0) points to a table.
    fn is_link(entry: u64, level: u32) -> bool;

    /// The entry of a table at `level` for the table at `address`, with every permission.
    fn link(address: u64, level: u32) -> u64;

    /// The attribute bits of a leaf. With `tracking`, walks will set accessed and dirty; without,
    /// they are preset where the format has no way to switch them off.
    fn attributes(prot: Prot, tracking: bool) -> u64;

    /// The attribute bits of a present leaf, accessed and dirty included.
    fn attributes_of(leaf: u64) -> u64;

    /// The entry for a leaf of 2^`shift` bytes at `spa` in a table at `level`. `shift` is one of
    /// [`Format::leaf_sizes`] and `spa` is aligned to it. The next leaf of that size differs by
    /// 2^`shift`.
    fn leaf(spa: u64, shift: u32, level: u32, attributes: u64) -> u64;

    /// The size of a present leaf in a table at `level`, as a power of two.
    fn leaf_shift(leaf: u64, level: u32) -> u32;

    /// What a present leaf allows.
    fn prot(leaf: u64) -> Prot;

    /// The bits that make an entry a present one that allows `access`: an entry which is no link and
    /// has all of them is a leaf for it, and any other is not.
    fn needs(access: Access) -> u64;

    /// The bits that a walk for `access` sets in a leaf.
    #[inline]
    fn marks(access: Access) -> u64 {
        match access {
            Access::Read => Self::ACCESSED,
            Access::Write => Self::ACCESSED | Self::DIRTY,
        }
    }

    /// Last input address that `levels` levels reach.
    #[inline]
    fn reach(levels: u32) -> u64 {
        let bits = spec::entry_shift(levels);
        let all = if bits >= u64::BITS {
            u64::MAX
        } else {
            (1 << bits) - 1
        };
        all.min(Self::LAST)
    }
}

/// Checks the contract of [`Format`]; each format calls it in a test of its own.
#[cfg(test)]
pub(crate) fn contract<F: Format>() {
    assert!(!F::is_present(0));
    assert_eq!(F::KIND & (spec::ADDRESS | F::ACCESSED | F::DIRTY), 0);
    let prots = [Prot::READ, Prot::WRITE, Prot::RW];
    for level in 0..F::MAX_LEVELS {
        assert!(!F::is_link(0, level));
        assert!(
            [Access::Read, Access::Write]
                .map(F::needs)
                .iter()
                .all(|bits| *bits != 0)
        );
        if level > 0 {
            let link = F::link(0x7fff_1234_5000, level);
            assert!(F::is_link(link, level) && F::is_present(link));
            assert_eq!(link & spec::ADDRESS, 0x7fff_1234_5000);
        }
        let sizes = F::leaf_sizes(level);
        for shift in (0..u64::BITS).filter(|shift| sizes & 1 << shift != 0) {
            assert!(shift >= spec::entry_shift(level) && shift < spec::entry_shift(level + 1));
            for (prot, tracking) in prots.into_iter().flat_map(|p| [(p, false), (p, true)]) {
                let attributes = F::attributes(prot, tracking);
                for spa in [0, 1 << shift, (1 << spec::ADDRESS_BITS) - (1 << shift)] {
                    let leaf = F::leaf(spa, shift, level, attributes);
                    for marks in [0, F::ACCESSED, F::DIRTY, F::ACCESSED | F::DIRTY] {
                        for leaf in [leaf | marks, leaf & !marks] {
                            assert!(F::is_present(leaf));
                            let more = |bit: u32| leaf | 1 << bit;
                            assert!((0..u64::BITS).all(|bit| F::is_present(more(bit))));
                            assert!(level == 0 || !F::is_link(leaf, level));
                            for access in [Access::Read, Access::Write] {
                                let needs = F::needs(access);
                                assert_eq!(leaf & needs == needs, F::prot(leaf).allows(access));
                                assert_eq!(needs & F::marks(access), 0);
                            }
                            assert_eq!(F::leaf_shift(leaf, level), shift);
                            assert_eq!(leaf & spec::ADDRESS & !((1 << shift) - 1), spa);
                            assert_eq!(F::prot(leaf), F::prot(F::attributes(prot, true)));
                            let again = F::leaf(spa, shift, level, F::attributes_of(leaf));
                            assert_eq!(again, leaf);
                            let other = leaf ^ !F::KIND;
                            assert!(F::is_present(other));
                            if shift == spec::entry_shift(level) {
                                assert!(level == 0 || !F::is_link(other, level));
                                assert_eq!(F::leaf_shift(other, level), shift);
                            }
                        }
                    }
                }
                let (first, second) = (
                    F::leaf(0, shift, level, attributes),
                    F::leaf(1 << shift, shift, level, attributes),
                );
                assert_eq!(second - first, 1 << shift);
            }
        }
    }
}
