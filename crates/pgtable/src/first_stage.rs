//! First-stage tables that somebody else owns: a guest's page tables, in memory that it writes at any
//! time, walked entry by entry.
//!
//! This module knows the entries and the rules, and no memory. Whoever walks reads the entry at
//! [`Step::entry_address`] however it can, gives it to [`Step::take`], and has the next step, a page or a
//! fault. Nothing of it trusts the table: a walk ends after as many steps as there are levels, wherever the
//! entries lead.
//!
//! Intel VT-d specification, 3.6 (first-stage translation) and 9.7 (first-stage paging entries); Intel SDM
//! volume 3, 4.5 (4-level and 5-level paging). Accessed and dirty bits: [`Marks`].

use ioasid_core::Access;

use crate::spec::{ADDRESS, ENTRIES, PAGE_SHIFT, entry_shift};

/// Bits of a paging entry.
mod bits {
    pub(super) const PRESENT: u64 = 1 << 0;
    pub(super) const WRITABLE: u64 = 1 << 1;
    pub(super) const USER: u64 = 1 << 2;
    pub(super) const ACCESSED: u64 = 1 << 5;
    pub(super) const DIRTY: u64 = 1 << 6;
    pub(super) const PAGE: u64 = 1 << 7;
    pub(super) const EXTENDED_ACCESSED: u64 = 1 << 10;
}

/// Highest level whose entries can map a page (1 GiB).
const TOP_PAGE_LEVEL: u32 = 2;

/// A guest's first-stage table: what an entry of a table of PASIDs says about it (Intel VT-d specification,
/// 9.6, scalable-mode PASID table entry).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FirstStage {
    /// Guest-physical address of the top table; the low 12 bits do not count.
    pub root: u64,
    /// Levels of tables: 4 for addresses of 48 bits, 5 for 57. Any other number is taken for the nearer of
    /// the two.
    pub levels: u32,
    /// SRE: supervisor requests are allowed.
    pub supervisor: bool,
    /// WPE: read-only pages are read-only for supervisor requests too. No meaning without `supervisor`.
    pub write_protect: bool,
    /// EAFE: walks set the extended accessed bit of each entry that they use.
    pub extended_accessed: bool,
}

impl FirstStage {
    /// The table with 4 levels at `root`, without options.
    pub const fn new(root: u64) -> Self {
        FirstStage {
            root,
            levels: 4,
            supervisor: false,
            write_protect: false,
            extended_accessed: false,
        }
    }

    /// Bits of an input address: 48 or 57.
    pub const fn address_bits(&self) -> u32 {
        entry_shift(self.depth())
    }

    const fn depth(&self) -> u32 {
        if self.levels >= 5 { 5 } else { 4 }
    }

    /// The first step of a walk for `iova`.
    ///
    /// # Errors
    /// [`FirstStageFault::NotCanonical`] if the bits above the topmost translated one differ from it.
    #[inline]
    pub const fn begin(&self, iova: u64) -> Result<Step, FirstStageFault> {
        let above = u64::BITS - self.address_bits();
        let extended = (((iova << above) as i64) >> above) as u64;
        if extended != iova {
            return Err(FirstStageFault::NotCanonical);
        }
        Ok(Step {
            table: self.root & ADDRESS,
            level: self.depth() - 1,
            rights: bits::WRITABLE | bits::USER,
        })
    }

    /// Whether the page allows the request, with the rights of all entries on the way combined.
    ///
    /// # Errors
    /// [`FirstStageFault::SupervisorRequest`], [`FirstStageFault::User`], [`FirstStageFault::Write`], in
    /// this order.
    #[inline]
    pub const fn check(&self, page: Page, request: Request) -> Result<(), FirstStageFault> {
        let write = matches!(request.access, Access::Write);
        if request.supervisor {
            if !self.supervisor {
                return Err(FirstStageFault::SupervisorRequest);
            }
            if write && self.write_protect && !page.writable {
                return Err(FirstStageFault::Write);
            }
            return Ok(());
        }
        if !page.user {
            return Err(FirstStageFault::User);
        }
        if write && !page.writable {
            return Err(FirstStageFault::Write);
        }
        Ok(())
    }

    /// What a walk sets in entries.
    pub const fn marks(&self, access: Access) -> Marks {
        let used = match self.extended_accessed {
            true => bits::ACCESSED | bits::EXTENDED_ACCESSED,
            false => bits::ACCESSED,
        };
        Marks {
            table: used,
            page: match access {
                Access::Read => used,
                Access::Write => used | bits::DIRTY,
            },
        }
    }
}

/// What is asked of a first-stage table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// The direction.
    pub access: Access,
    /// Whether it is a supervisor request; others are user requests.
    pub supervisor: bool,
}

/// The bits that a walk sets in the entries it uses, before the first byte moves (Intel VT-d specification,
/// 3.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// In an entry that leads to a table.
    pub table: u64,
    /// In an entry that maps a page.
    pub page: u64,
}

/// A walk that has come to a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Guest-physical address of the table.
    table: u64,
    /// Its level: 0 maps pages of 4 KiB.
    level: u32,
    /// What the entries so far allow, as bits of an entry.
    rights: u64,
}

/// Where an entry leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// To a table of the level below.
    Table(Step),
    /// To a page.
    Page(Page),
}

/// A page that a walk has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Page {
    /// Guest-physical address of the byte that was asked for.
    pub address: u64,
    /// Bytes from there to the end of the page.
    pub len: u64,
    /// All entries on the way allow writes.
    pub writable: bool,
    /// All entries on the way allow user requests.
    pub user: bool,
}

impl Step {
    /// Guest-physical address of the table.
    pub const fn table(&self) -> u64 {
        self.table
    }

    /// The level of the table: 0 maps pages of 4 KiB.
    pub const fn level(&self) -> u32 {
        self.level
    }

    /// Which of the 512 entries of the table decides about `iova`.
    #[inline]
    pub const fn index(&self, iova: u64) -> usize {
        (iova >> entry_shift(self.level)) as usize % ENTRIES
    }

    /// Guest-physical address of the entry that decides about `iova`: a multiple of 8.
    #[inline]
    pub const fn entry_address(&self, iova: u64) -> u64 {
        self.table + 8 * self.index(iova) as u64
    }

    /// Goes on with the entry for `iova`.
    ///
    /// # Errors
    /// [`FirstStageFault::NotPresent`], [`FirstStageFault::Reserved`], in this order.
    #[inline]
    pub const fn take(self, iova: u64, entry: u64) -> Result<Next, FirstStageFault> {
        if entry & bits::PRESENT == 0 {
            return Err(FirstStageFault::NotPresent);
        }
        let rights = self.rights & entry;
        if self.level > 0 && entry & bits::PAGE == 0 {
            return Ok(Next::Table(Step {
                table: entry & ADDRESS,
                level: self.level - 1,
                rights,
            }));
        }
        let size = 1 << entry_shift(self.level);
        // Bit 12 of a large page is PAT, a memory type.
        let below = (size - 1) & ADDRESS & !(1 << PAGE_SHIFT);
        if self.level > TOP_PAGE_LEVEL || (self.level > 0 && entry & below != 0) {
            return Err(FirstStageFault::Reserved);
        }
        let offset = iova & (size - 1);
        Ok(Next::Page(Page {
            address: (entry & ADDRESS & !(size - 1)) | offset,
            len: size - offset,
            writable: rights & bits::WRITABLE != 0,
            user: rights & bits::USER != 0,
        }))
    }
}

/// Why a first-stage table gives no translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FirstStageFault {
    /// The input address is not canonical for the levels of the table.
    #[error("the address is not canonical")]
    NotCanonical,
    /// An entry is not present.
    #[error("an entry of the first stage is not present")]
    NotPresent,
    /// A present entry has a reserved bit set.
    #[error("an entry of the first stage has a reserved bit set")]
    Reserved,
    /// A supervisor request, which the table does not take.
    #[error("supervisor requests are not enabled")]
    SupervisorRequest,
    /// A user request for a supervisor page.
    #[error("the page is for supervisor requests")]
    User,
    /// A write to a page that is read-only for the request.
    #[error("the first stage does not allow writes")]
    Write,
}

#[cfg(all(test, not(ioasid_shuttle)))]
mod tests {
    use super::*;

    const LINK: u64 = 0x27;

    fn table(levels: u32) -> FirstStage {
        FirstStage {
            levels,
            ..FirstStage::new(0x1fff)
        }
    }

    #[test]
    fn addresses_are_canonical_for_the_levels() {
        for (levels, bits) in [(4, 48), (5, 57)] {
            let table = table(levels);
            assert_eq!(table.address_bits(), bits);
            let half = 1_u64 << (bits - 1);
            for good in [0, half - 1, half.wrapping_neg(), u64::MAX] {
                let step = table.begin(good).unwrap();
                assert_eq!((step.table(), step.level()), (0x1000, levels - 1));
            }
            for bad in [half, half.wrapping_neg() - 1, 1 << 63, 1 << bits] {
                assert_eq!(table.begin(bad), Err(FirstStageFault::NotCanonical));
            }
        }
    }

    #[test]
    fn a_walk_ends_at_a_page_of_each_size_and_at_the_last_level() {
        let iova = 0x7f12_3456_7abc;
        let mut step = table(4).begin(iova).unwrap();
        for (level, shift) in [(3, 39), (2, 30), (1, 21), (0, 12)] {
            assert_eq!(step.level(), level);
            assert_eq!(
                step.entry_address(iova),
                step.table() + 8 * (iova >> shift & 511)
            );
            let large = step.take(iova, 0x1 << 40 | LINK | bits::PAGE);
            match level {
                3 => assert_eq!(large, Err(FirstStageFault::Reserved)),
                0 => {}
                _ => {
                    let Ok(Next::Page(page)) = large else {
                        panic!("a large page")
                    };
                    assert_eq!(page.address, 1 << 40 | iova & ((1 << shift) - 1));
                    assert_eq!(page.len, (1 << shift) - iova % (1 << shift));
                    let ragged = step.take(iova, 1 << (shift - 1) | LINK | bits::PAGE);
                    assert_eq!(ragged, Err(FirstStageFault::Reserved));
                    let typed = step.take(iova, 1 << 40 | 1 << 12 | LINK | bits::PAGE);
                    assert_eq!(typed, large, "PAT is no address");
                }
            }
            match step.take(iova, 0x5000 | LINK).unwrap() {
                Next::Table(next) => step = next,
                Next::Page(page) => {
                    assert_eq!((level, page.address, page.len), (0, 0x5abc, 0x544));
                }
            }
            assert_eq!(step.take(iova, LINK & !1), Err(FirstStageFault::NotPresent));
        }
    }

    #[test]
    fn rights_of_all_entries_are_combined_and_checked_for_both_kinds_of_requests() {
        use FirstStageFault::{SupervisorRequest, User, Write};
        let page = |writable, user| Page {
            address: 0,
            len: 1,
            writable,
            user,
        };
        let check = |supervisor, write_protect, page, of_supervisor, access| {
            let table = FirstStage {
                supervisor,
                write_protect,
                ..FirstStage::new(0)
            };
            let request = Request {
                access,
                supervisor: of_supervisor,
            };
            table.check(page, request)
        };
        let (read, write) = (Access::Read, Access::Write);
        for protect in [false, true] {
            for enabled in [false, true] {
                let user = |page, access| check(enabled, protect, page, false, access);
                assert_eq!(user(page(true, true), write), Ok(()));
                assert_eq!(user(page(false, true), read), Ok(()));
                assert_eq!(user(page(false, true), write), Err(Write));
                assert_eq!(user(page(true, false), read), Err(User));
                assert_eq!(user(page(false, false), write), Err(User));
            }
            let supervisor = |page, access| check(true, protect, page, true, access);
            for user in [false, true] {
                assert_eq!(supervisor(page(false, user), read), Ok(()));
                assert_eq!(supervisor(page(true, user), write), Ok(()));
                let refused = if protect { Err(Write) } else { Ok(()) };
                assert_eq!(supervisor(page(false, user), write), refused);
            }
            let refused = check(false, protect, page(true, true), true, read);
            assert_eq!(refused, Err(SupervisorRequest));
        }
        let mut step = table(5).begin(0).unwrap();
        for _ in 0..4 {
            let Ok(Next::Table(next)) = step.take(0, LINK) else {
                panic!("a table")
            };
            step = next;
        }
        assert_eq!(
            step.take(0, 1),
            Ok(Next::Page(Page {
                address: 0,
                len: 4096,
                writable: false,
                user: false
            }))
        );
    }
}
