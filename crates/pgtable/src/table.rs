//! The front of the crate.

use ioasid_core::{Access, AddrRange, Prot};

use crate::{MapError, TableConfig, TableFormat, WalkFault};

/// A page table. See the crate documentation.
#[derive(Debug)]
pub struct PageTable {
    format: TableFormat,
}

/// What a walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The system physical address.
    pub spa: u64,
    /// Bytes from there to the end of the leaf; at least 1.
    pub len: u64,
    /// What the mapping allows.
    pub prot: Prot,
}

/// What an unmap took out of the tree.
#[derive(Debug)]
#[must_use]
pub struct Unmapped {
    /// Bytes that were mapped.
    pub bytes: u64,
    /// Tables that are not in the tree any more; see [`PageTable::recycle`].
    pub freed: FreedTables,
}

/// Tables on their way from the tree to the free list.
#[derive(Debug)]
#[must_use = "give them back with `PageTable::recycle` after the barrier"]
pub struct FreedTables(());

#[allow(missing_docs, unused_variables)]
impl PageTable {
    pub fn new(config: TableConfig) -> Self {
        PageTable {
            format: config.format,
        }
    }
    pub fn format(&self) -> TableFormat {
        self.format
    }
    pub fn aperture(&self) -> AddrRange {
        todo!()
    }
    pub fn page_sizes(&self) -> u64 {
        todo!()
    }
    pub fn levels(&self) -> u32 {
        todo!()
    }
    pub fn map(&self, iova: u64, spa: u64, len: u64, prot: Prot) -> Result<(), MapError> {
        todo!()
    }
    pub fn unmap(&self, range: AddrRange) -> Unmapped {
        todo!()
    }
    pub fn recycle(&self, freed: FreedTables) {
        todo!()
    }
    pub fn cut(&self, iova: u64) -> Result<(), MapError> {
        todo!()
    }
    pub fn translate(&self, iova: u64, access: Access) -> Result<Translation, WalkFault> {
        todo!()
    }
    pub fn iova_to_phys(&self, iova: u64) -> Option<Translation> {
        todo!()
    }
    pub fn set_dirty_tracking(&self, on: bool) {
        todo!()
    }
    pub fn dirty_tracking(&self) -> bool {
        todo!()
    }
    pub fn read_dirty(&self, range: AddrRange, clear: bool, report: &mut dyn FnMut(AddrRange)) {
        todo!()
    }
    pub fn table_pages(&self) -> u64 {
        todo!()
    }
    pub fn mapped_bytes(&self) -> u64 {
        todo!()
    }
    pub fn pte_writes(&self) -> u64 {
        todo!()
    }
    pub fn root(&self) -> u64 {
        todo!()
    }
    pub fn read_table_entry(&self, table: u64, index: usize) -> Option<u64> {
        todo!()
    }
}
