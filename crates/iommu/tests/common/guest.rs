//! A guest: memory in a domain of its own, and first-stage tables in it that are written by hand, entry by
//! entry, as its kernel would.

use std::sync::Arc;

use ioasid_core::{
    Prot,
    memory::{OwnPages, PAGE_SIZE},
};
use ioasid_iommu::{Domain, FirstStage, Iommu};

use super::{domain, pages};

pub const P: u64 = 1 << 0;
pub const RW: u64 = 1 << 1;
pub const US: u64 = 1 << 2;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;
pub const PS: u64 = 1 << 7;
pub const EA: u64 = 1 << 10;

/// Where the guest's memory begins in its physical address space.
pub const BASE: u64 = 0x1_0000_0000;

/// A guest's memory and the free pages of it.
pub struct Guest {
    pub memory: OwnPages,
    pub parent: Arc<Domain>,
    pub len: u64,
    free: u64,
}

impl Guest {
    /// With `len` bytes from [`BASE`] on, mapped page by page and in reverse: neighbours are none in memory.
    pub fn new(iommu: &Arc<Iommu>, len: u64) -> Self {
        let (parent, memory) = (domain(iommu), pages(iommu, len as usize));
        let guest = Guest {
            memory,
            parent,
            len,
            free: BASE,
        };
        for gpa in (BASE..BASE + len).step_by(PAGE_SIZE as usize) {
            let spa = guest.memory.spa() + guest.offset(gpa);
            guest.parent.map(gpa, spa, PAGE_SIZE, Prot::RW).unwrap();
        }
        guest
    }

    /// Where the byte at a guest-physical address lies in the memory.
    pub fn offset(&self, gpa: u64) -> u64 {
        let in_page = gpa % PAGE_SIZE;
        self.len - PAGE_SIZE - (gpa - in_page - BASE) + in_page
    }

    /// A page that nothing uses yet.
    pub fn page(&mut self) -> u64 {
        self.free += PAGE_SIZE;
        assert!(self.free <= BASE + self.len, "the guest is full");
        self.free - PAGE_SIZE
    }

    pub fn read(&self, gpa: u64) -> u64 {
        let mut word = [0; 8];
        self.memory
            .memory()
            .read(self.offset(gpa) as usize, &mut word);
        u64::from_le_bytes(word)
    }

    pub fn write(&self, gpa: u64, word: u64) {
        self.memory
            .memory()
            .write(self.offset(gpa) as usize, &word.to_le_bytes());
    }

    /// The bytes of a guest-physical page.
    pub fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory
            .memory()
            .read(self.offset(gpa) as usize, &mut bytes);
        bytes
    }

    /// A top table without entries.
    pub fn table(&mut self, levels: u32) -> FirstStage {
        FirstStage {
            levels,
            ..FirstStage::new(self.page())
        }
    }

    /// The address of the entry for `iova` at `level` of `table`; tables on the way are made, with every right.
    pub fn entry(&mut self, table: FirstStage, iova: u64, level: u32) -> u64 {
        let mut at = table.root;
        for above in (level + 1..table.levels).rev() {
            let entry = at + 8 * (iova >> (12 + 9 * above) & 511);
            if self.read(entry) & P == 0 {
                let next = self.page();
                self.write(entry, next | P | RW | US);
            }
            at = self.read(entry) & 0x000f_ffff_ffff_f000;
        }
        at + 8 * (iova >> (12 + 9 * level) & 511)
    }

    /// Maps one page of the size of `level` with the rights `bits`; returns where its entry is.
    pub fn map(&mut self, table: FirstStage, iova: u64, gpa: u64, level: u32, bits: u64) -> u64 {
        let entry = self.entry(table, iova, level);
        let page = if level > 0 { PS } else { 0 };
        self.write(entry, gpa | P | page | bits);
        entry
    }
}
