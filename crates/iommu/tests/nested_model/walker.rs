//! A walker of both stages that shares no constant and no function with the crates: first-stage entries after
//! the Intel VT-d specification 9.7, second-stage entries after 9.8, fault numbers after 7.1.3.

use std::collections::{BTreeMap, BTreeSet};

use ioasid_core::Access;
use ioasid_iommu::FirstStage;
use ioasid_pgtable::PageTable;

/// What both stages are made of.
pub(crate) struct Stages<'a> {
    pub(crate) table: FirstStage,
    pub(crate) parent: &'a PageTable,
    /// The guest's memory, and the system physical address of its first byte.
    pub(crate) memory: &'a [u8],
    pub(crate) spa: u64,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked {
    pub(crate) access: Access,
    pub(crate) supervisor: bool,
}

/// Bits that must be set in the entry at `offset` of the memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    pub(crate) offset: u64,
    pub(crate) gpa: u64,
    pub(crate) bits: u64,
}

#[derive(Debug)]
pub(crate) struct Found {
    /// Of the byte, in the memory.
    pub(crate) offset: u64,
    pub(crate) gpa: u64,
    /// Of all entries that were used, from the top down.
    pub(crate) marks: Vec<Mark>,
}

fn bit(word: u64, n: u32) -> bool {
    word >> n & 1 == 1
}

/// Bits `high:low` of `word`, in place.
fn field(word: u64, high: u32, low: u32) -> u64 {
    word << (63 - high) >> (63 - high) >> low << low
}

/// Why the second stage gives nothing.
enum Missed {
    Width,
    Nothing,
    Right,
}

impl Stages<'_> {
    /// Second stage: the place in the memory.
    fn second(&self, gpa: u64, access: Access) -> Result<u64, Missed> {
        if gpa >> 48 != 0 {
            return Err(Missed::Width);
        }
        let (mut at, mut read, mut write) = (self.parent.root(), true, true);
        for level in [4, 3, 2, 1] {
            let low = 3 + 9 * level;
            let index = (gpa >> low & 0x1ff) as usize;
            let entry = self.parent.read_table_entry(at, index).unwrap();
            if !bit(entry, 0) && !bit(entry, 1) {
                return Err(Missed::Nothing);
            }
            (read, write) = (read && bit(entry, 0), write && bit(entry, 1));
            if level == 1 || bit(entry, 7) {
                let spa = field(entry, 51, low) | field(gpa, low - 1, 0);
                let allowed = match access {
                    Access::Read => read,
                    Access::Write => write,
                };
                return match allowed {
                    true => Ok(spa - self.spa),
                    false => Err(Missed::Right),
                };
            }
            at = field(entry, 51, 12);
        }
        unreachable!("a level-1 entry maps a page")
    }

    fn word(&self, offset: u64) -> u64 {
        let at = offset as usize;
        u64::from_le_bytes(self.memory[at..at + 8].try_into().unwrap())
    }

    /// Both stages: where `iova` leads, or the number of the fault.
    pub(crate) fn walk(&self, iova: u64, asked: Asked) -> Result<Found, u8> {
        let top = if self.table.levels == 5 { 56 } else { 47 };
        let above = iova >> top;
        if above != 0 && above != u64::MAX >> top {
            return Err(0x80);
        }
        let (mut table, mut writable, mut user) = (field(self.table.root, 51, 12), true, true);
        let mut used = Vec::new();
        let mut level = self.table.levels;
        let gpa = loop {
            let low = 3 + 9 * level;
            let at = table + 8 * (iova >> low & 0x1ff);
            let offset = self
                .second(at, Access::Read)
                .map_err(|missed| match missed {
                    Missed::Width => 0x74,
                    _ if level == self.table.levels => 0x75,
                    _ => 0x76,
                })?;
            let entry = self.word(offset);
            used.push((at, offset, entry));
            if !bit(entry, 0) {
                return Err(0x71);
            }
            (writable, user) = (writable && bit(entry, 1), user && bit(entry, 2));
            if level == 1 || bit(entry, 7) {
                let reserved = match level {
                    1 => 0,
                    2 => field(entry, 20, 13),
                    3 => field(entry, 29, 13),
                    _ => 1,
                };
                if reserved != 0 {
                    return Err(0x72);
                }
                break field(entry, 51, low) | field(iova, low - 1, 0);
            }
            table = field(entry, 51, 12);
            level -= 1;
        };
        let write = asked.access == Access::Write;
        if asked.supervisor {
            if !self.table.supervisor {
                return Err(0x5d);
            }
            if write && !writable && self.table.write_protect {
                return Err(0x85);
            }
        } else if !user {
            return Err(0x81);
        } else if write && !writable {
            return Err(0x85);
        }
        let marks = self.marks(&used, write);
        for mark in &marks {
            let lacks = self.word(mark.offset) & mark.bits != mark.bits;
            if lacks && self.second(mark.gpa, Access::Write).is_err() {
                return Err(0x77);
            }
        }
        if gpa >> 20 == 0xfee {
            return Err(0x87);
        }
        match self.second(gpa, asked.access) {
            Ok(offset) => Ok(Found { offset, gpa, marks }),
            Err(Missed::Width) => Err(0x84),
            Err(Missed::Nothing) => Err(0x79),
            Err(Missed::Right) if write => Err(0x85),
            Err(Missed::Right) => Err(0x86),
        }
    }

    /// Accessed (bit 5) everywhere, extended accessed (bit 10) if enabled, dirty (bit 6) in what maps the page.
    fn marks(&self, used: &[(u64, u64, u64)], write: bool) -> Vec<Mark> {
        let accessed = match self.table.extended_accessed {
            true => 1 << 5 | 1 << 10,
            false => 1 << 5,
        };
        let last = used.len() - 1;
        let marks = used
            .iter()
            .enumerate()
            .map(|(number, (gpa, offset, _))| Mark {
                gpa: *gpa,
                offset: *offset,
                bits: match number == last && write {
                    true => accessed | 1 << 6,
                    false => accessed,
                },
            });
        marks.collect()
    }

    /// The pages of the memory that serve as tables, and at which levels (0 maps pages of 4 KiB).
    pub(crate) fn tables(&self) -> BTreeMap<u64, BTreeSet<u32>> {
        let mut tables: BTreeMap<u64, BTreeSet<u32>> = BTreeMap::new();
        let mut pages = BTreeSet::from([field(self.table.root, 51, 12)]);
        for level in (0..self.table.levels).rev() {
            let mut next = BTreeSet::new();
            for page in pages {
                let Ok(offset) = self.second(page, Access::Read) else {
                    continue;
                };
                tables.entry(offset / 4096).or_default().insert(level);
                for index in 0..512 {
                    let entry = self.word(offset + 8 * index);
                    if bit(entry, 0) && !bit(entry, 7) {
                        next.insert(field(entry, 51, 12));
                    }
                }
            }
            pages = next;
        }
        tables
    }
}
