//! [`PageTable`]: one tree in the format that was asked for.
//!
//! The format is chosen once per call by a `match`; what runs below is compiled for that format.

use std::fmt;

use ioasid_core::{Access, AddrRange, Prot};

use crate::{
    arena::FreedTables,
    config::{TableConfig, TableFormat},
    custom::{CustomFormat, CustomTable},
    error::{MapError, WalkFault},
    format::{AmdV1, VtdSecondStage, X86_64Stage1},
    translation::{Translation, Unmapped},
    tree::Tree,
};

enum Trees {
    X86_64Stage1(Tree<X86_64Stage1>),
    VtdSecondStage(Tree<VtdSecondStage>),
    AmdV1(Tree<AmdV1>),
    Custom(&'static CustomFormat, Box<dyn CustomTable>),
}

/// A page table in one of the [formats](TableFormat).
///
/// Any thread may call any method at any time. Walks ([`translate`](PageTable::translate),
/// [`iova_to_phys`](PageTable::iova_to_phys)) take no lock; the others take turns.
///
/// # Protocol
/// A walk that began before a change may still use the old translation when the changing call
/// returns. A caller that must not let that happen
/// 1. calls `unmap`, `read_dirty` or `set_dirty_tracking`;
/// 2. waits until all walks that began before have ended (the barrier);
/// 3. gives freed tables back with [`recycle`](PageTable::recycle).
///
/// ```
/// use ioasid_core::{Access, AddrRange, Prot};
/// use ioasid_pgtable::{PageTable, TableConfig, TableFormat, WalkFault};
///
/// let table = PageTable::new(TableConfig::new(TableFormat::AmdV1));
/// table.map(0x20_0000, 0x4000_0000, 0x20_0000, Prot::READ)?;
/// let found = table.translate(0x20_1234, Access::Read).expect("mapped");
/// assert_eq!((found.spa, found.len), (0x4000_1234, 0x1f_edcc));
/// assert_eq!(table.translate(0x20_1234, Access::Write), Err(WalkFault::Permission));
///
/// let range = AddrRange::new(0x20_0000, 0x3f_ffff).expect("not empty");
/// let unmapped = table.unmap(range);
/// // Here a domain waits for its readers.
/// table.recycle(unmapped.freed);
/// assert_eq!(table.iova_to_phys(0x20_1234), None);
/// # Ok::<(), ioasid_pgtable::MapError>(())
/// ```
pub struct PageTable {
    trees: Trees,
}

/// Runs the body with `$tree` bound to the tree of whatever format. A custom table answers to the
/// same names, or to the second body; it is the rare case, and the others are laid out without it.
macro_rules! on_tree {
    ($table:expr, $tree:ident => $body:expr) => {
        on_tree!($table, $tree => $body, $tree => $body)
    };
    ($table:expr, $tree:ident => $body:expr, $custom:ident => $otherwise:expr) => {
        match &$table.trees {
            Trees::X86_64Stage1($tree) => $body,
            Trees::VtdSecondStage($tree) => $body,
            Trees::AmdV1($tree) => $body,
            Trees::Custom(_, $custom) => rarely(|| $otherwise),
        }
    };
}

/// Runs `op` out of line.
#[cold]
#[inline(never)]
fn rarely<R>(op: impl FnOnce() -> R) -> R {
    op()
}

impl PageTable {
    /// An empty table; its top table is allocated here.
    pub fn new(config: TableConfig) -> Self {
        let tracking = config.dirty_tracking;
        let trees = match config.format {
            TableFormat::X86_64Stage1 => Trees::X86_64Stage1(Tree::new(tracking)),
            TableFormat::VtdSecondStage => Trees::VtdSecondStage(Tree::new(tracking)),
            TableFormat::AmdV1 => Trees::AmdV1(Tree::new(tracking)),
            TableFormat::Custom(format) => Trees::Custom(format, (format.make)(tracking)),
        };
        PageTable { trees }
    }

    /// The format.
    pub fn format(&self) -> TableFormat {
        match &self.trees {
            Trees::X86_64Stage1(_) => TableFormat::X86_64Stage1,
            Trees::VtdSecondStage(_) => TableFormat::VtdSecondStage,
            Trees::AmdV1(_) => TableFormat::AmdV1,
            Trees::Custom(format, _) => TableFormat::Custom(format),
        }
    }

    /// The input addresses that can be mapped.
    pub fn aperture(&self) -> AddrRange {
        on_tree!(self, tree => tree.aperture())
    }

    /// The sizes of all leaves, as a bitmap of powers of two. The smallest is 4 KiB, but for custom
    /// formats.
    pub fn page_sizes(&self) -> u64 {
        on_tree!(self, tree => tree.page_sizes())
    }

    /// Maps `len` bytes at `iova` to those at `spa`, with the largest leaves that the alignment
    /// allows. All of it or nothing. No barrier is needed: what was not mapped is in no cache.
    ///
    /// x86-64 has no read permission: what is mapped for writing can be read there.
    ///
    /// # Errors
    /// [`MapError::NoPermission`], [`MapError::Empty`], [`MapError::Unaligned`],
    /// [`MapError::OutOfRange`], [`MapError::OutputOutOfRange`] and [`MapError::Exists`], checked in this
    /// order.
    pub fn map(&self, iova: u64, spa: u64, len: u64, prot: Prot) -> Result<(), MapError> {
        on_tree!(self, tree => tree.map(iova, spa, len, prot))
    }

    /// Unmaps every leaf that lies in `range` whole. A leaf that reaches beyond it stays as it is
    /// ([`PageTable::cut`] makes a boundary); what is not mapped is passed over.
    ///
    /// The freed tables go to [`PageTable::recycle`] after the barrier.
    pub fn unmap(&self, range: AddrRange) -> Unmapped {
        on_tree!(self, tree => tree.unmap(range), custom => Unmapped {
            bytes: custom.unmap(range),
            freed: FreedTables::none(),
        })
    }

    /// Takes back what [`PageTable::unmap`] freed, **after** the caller's barrier: the tables are
    /// used again from here on. Tables of another page table are refused.
    ///
    /// Called before the barrier it spoils the answers of walks in flight, not memory.
    pub fn recycle(&self, freed: FreedTables) {
        on_tree!(self, tree => tree.recycle(freed), _custom => drop(freed));
    }

    /// Splits the leaf that `iova` lies inside, so that no leaf crosses `iova`. The translation
    /// stays the same at every moment, accessed and dirty bits are inherited, and no barrier is
    /// needed; a walk in flight may still see the old, longer leaf. Nothing is done if no leaf
    /// crosses `iova`.
    ///
    /// # Errors
    /// [`MapError::Unaligned`] if `iova` is not a multiple of 4 KiB, [`MapError::OutOfRange`] if it
    /// is outside the aperture.
    pub fn cut(&self, iova: u64) -> Result<(), MapError> {
        on_tree!(self, tree => tree.cut(iova))
    }

    /// What hardware does for one access: walks, checks the permission and, while dirty tracking is
    /// on, sets the accessed and (for a write) the dirty bit of the leaf.
    ///
    /// # Errors
    /// [`WalkFault`], in the order in which a walk finds them: out of range, not present,
    /// permission.
    // Inlined into the engine's loop: as a call, the result travels through memory and successive
    // walks overlap badly (3 times the time for independent addresses).
    #[inline(always)]
    pub fn translate(&self, iova: u64, access: Access) -> Result<Translation, WalkFault> {
        on_tree!(self, tree => tree.translate(iova, access))
    }

    /// As [`PageTable::translate`], for `want` bytes: where the next leaves go on in memory and allow
    /// the same, `len` may go beyond the first one. Those counted are marked as the first is; `len` can
    /// exceed `want`.
    ///
    /// # Errors
    /// As [`PageTable::translate`]: those of the first byte.
    #[inline(always)]
    pub fn translate_run(
        &self,
        iova: u64,
        want: u64,
        access: Access,
    ) -> Result<Translation, WalkFault> {
        on_tree!(
            self,
            tree => tree.translate_run(iova, want, access),
            custom => custom.translate(iova, access)
        )
    }

    /// The translation of `iova`, whatever it allows, leaving no trace in the table.
    #[inline(always)]
    pub fn iova_to_phys(&self, iova: u64) -> Option<Translation> {
        on_tree!(self, tree => tree.iova_to_phys(iova))
    }

    /// Switches dirty tracking. Switching it on clears all dirty bits first, even if it was on.
    ///
    /// A walk in flight may have missed the switch: run the barrier before relying on the bits.
    pub fn set_dirty_tracking(&self, on: bool) {
        on_tree!(self, tree => tree.set_dirty_tracking(on));
    }

    /// Whether walks set accessed and dirty bits.
    pub fn dirty_tracking(&self) -> bool {
        on_tree!(self, tree => tree.dirty_tracking())
    }

    /// Reports what was written in `range`, in ascending order, in units of leaves, adjacent ones
    /// merged and clipped to `range`. With `clear` their dirty bits are cleared; run the barrier
    /// then, before the pages are read. A leaf that reaches beyond `range` keeps its bit: its other
    /// part has not been reported.
    ///
    /// `report` runs under the writers' lock and must not call this page table.
    pub fn read_dirty(&self, range: AddrRange, clear: bool, report: &mut dyn FnMut(AddrRange)) {
        on_tree!(self, tree => tree.read_dirty(range, clear, report));
    }

    /// The lowest addresses that are mapped, adjacent ones merged: at most `most` ranges, which `leaves`
    /// leaves make up. If [`mapped_bytes`](Self::mapped_bytes) is more, there are more.
    ///
    /// Takes the writers' lock. A custom format shows none.
    pub fn mapped_ranges(&self, most: usize, leaves: usize) -> Vec<AddrRange> {
        on_tree!(self, tree => tree.mapped_ranges(most, leaves), _custom => Vec::new())
    }

    /// Tables in the tree, the top one included. Those on their way to reuse do not count.
    pub fn table_pages(&self) -> u64 {
        on_tree!(self, tree => tree.tables(), _custom => 0)
    }

    /// Bytes that are mapped. `u64::MAX` stands for the whole space of 2^64.
    pub fn mapped_bytes(&self) -> u64 {
        on_tree!(self, tree => tree.mapped_bytes())
    }

    /// Entries that were written by map, unmap and cut since the beginning. A mapping costs the same
    /// however many devices use the table.
    pub fn pte_writes(&self) -> u64 {
        on_tree!(self, tree => tree.writes())
    }

    /// Address of the top table in *table space*, for [`PageTable::read_table_entry`]. An AMD table
    /// that grows gets a new one.
    pub fn root(&self) -> u64 {
        on_tree!(self, tree => tree.root().0, _custom => 0)
    }

    /// Levels of tables that a walk from the root to a 4 KiB page passes.
    pub fn levels(&self) -> u32 {
        on_tree!(self, tree => tree.root().1, _custom => 0)
    }

    /// The entry in slot `index` of the table at `table`, as it stands in memory. `None` if there is
    /// no such slot or `table` is not the address of one of this page table's tables.
    pub fn read_table_entry(&self, table: u64, index: usize) -> Option<u64> {
        on_tree!(self, tree => tree.read_entry(table, index), _custom => None)
    }
}

impl fmt::Debug for PageTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageTable")
            .field("format", &self.format())
            .field("levels", &self.levels())
            .field("table_pages", &self.table_pages())
            .field("mapped_bytes", &self.mapped_bytes())
            .finish_non_exhaustive()
    }
}
