//! The page tables behind an IOAS.
//!
//! A page table object (HWPT) of an IOAS stands on an [`IoasDomain`]. Objects whose attributes
//! agree share one: an automatic page table and one made by hand, for a whole device and for a
//! child, in any order. Only what changes the table itself is such an attribute. That a program may
//! nest on its page table, or attach it to PASIDs, is a property of the object and divides nothing.
//! So one map is one write, one unmap is one barrier, and the table's memory is there once. A
//! domain is made for the first object that needs it and goes with the last.

use std::{fmt, sync::Arc};

use ioasid_core::{AddrRange, DomainId, Prot, memory::PAGE_SIZE, sync::Mutex};
use ioasid_iommu::{Domain, DomainConfig, DomainKind, TableFormat};

use super::dirty::DirtyLedger;
use crate::base::{
    error::{DirtyError, Error},
    flags::HwptFlags,
    id::ObjectId,
};

/// The domain that a page table of an IOAS needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PagingConfig {
    /// Its format.
    pub format: TableFormat,
    /// Whether other page tables of the IOAS with the same attributes may stand on it too.
    pub shared: bool,
}

/// What must agree for two page tables to stand on one domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Attributes {
    format: TableFormat,
    /// The one object that stands on it, if it is not to be shared.
    private: Option<ObjectId>,
    /// Whether the table can track dirty pages. It can wherever the device's IOMMU can, whether the
    /// object asked for it or not: else an object that asks could not share with one that does not,
    /// and writes through the other would be missed.
    dirty: bool,
}

impl Attributes {
    /// What the page table `hwpt` with `flags` needs, where the device's IOMMU wants `paging` and
    /// can track dirty pages or not.
    pub(crate) fn new(
        hwpt: ObjectId,
        paging: &PagingConfig,
        tracks_dirty: bool,
        flags: HwptFlags,
    ) -> Self {
        // Page requests are taken for a whole domain: a page table with a fault queue shares none.
        let shared = paging.shared && !flags.contains(HwptFlags::FAULT_ID_VALID);
        Attributes {
            format: paging.format,
            private: (!shared).then_some(hwpt),
            dirty: if shared {
                tracks_dirty
            } else {
                flags.contains(HwptFlags::DIRTY_TRACKING)
            },
        }
    }

    /// The domain to make.
    pub(crate) fn config(self) -> DomainConfig {
        DomainConfig {
            kind: DomainKind::Unmanaged,
            format: self.format,
            dirty_tracking: self.dirty,
        }
    }
}

/// A domain that holds the mappings of one IOAS.
pub(crate) struct IoasDomain {
    domain: Arc<Domain>,
    attributes: Attributes,
    dirty: Mutex<DirtyLedger>,
}

impl IoasDomain {
    /// `domain`, on which nothing tracks dirty pages yet.
    pub(crate) fn new(domain: Arc<Domain>, attributes: Attributes) -> Arc<Self> {
        domain.set_dirty_tracking(false);
        Arc::new(IoasDomain {
            domain,
            attributes,
            dirty: Mutex::default(),
        })
    }

    /// Starts (with nothing dirty) or stops tracking for one page table object.
    pub(crate) fn track_dirty(&self, hwpt: ObjectId, on: bool) {
        self.dirty.lock().track(&self.domain, hwpt, on);
    }

    /// As [`DirtyLedger::read`].
    pub(crate) fn read_dirty(
        &self,
        hwpt: ObjectId,
        range: AddrRange,
        clear: bool,
        report: &mut dyn FnMut(AddrRange),
    ) -> Result<(), DirtyError> {
        let mut ledger = self.dirty.lock();
        ledger.read(&self.domain, hwpt, range, clear, report)
    }

    pub(crate) fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    pub(crate) fn id(&self) -> DomainId {
        self.domain.id()
    }

    pub(crate) fn map(
        &self,
        iova: u64,
        spa: u64,
        len: u64,
        prot: Prot,
        large_pages: bool,
    ) -> Result<(), Error> {
        if large_pages {
            return Ok(self.domain.map(iova, spa, len, prot)?);
        }
        let step = smallest_leaf(&self.domain).min(PAGE_SIZE);
        for offset in (0..len).step_by(step as usize) {
            self.domain.map(iova + offset, spa + offset, step, prot)?;
        }
        Ok(())
    }

    /// Takes translations away; returns after the barrier.
    pub(crate) fn unmap(&self, ranges: &[AddrRange]) {
        self.domain.unmap_many(ranges);
        self.dirty.lock().forget(ranges);
    }
}

impl fmt::Debug for IoasDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IoasDomain")
            .field("id", &self.id().get())
            .field("attributes", &self.attributes)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Table {
    domain: Arc<IoasDomain>,
    /// Page table objects that stand on it.
    users: usize,
}

/// The domains of one IOAS.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    tables: Vec<Table>,
    /// Those of `tables`, to be had without a lock.
    domains: Arc<[Arc<IoasDomain>]>,
}

impl Tables {
    pub(crate) fn is_empty(&self) -> bool {
        self.tables.is_empty()
    }

    /// The domain with `attributes`, if there is one, with one user more.
    pub(crate) fn use_shared(&mut self, attributes: Attributes) -> Option<Arc<IoasDomain>> {
        let mut tables = self.tables.iter_mut();
        let table = tables.find(|table| table.domain.attributes == attributes)?;
        table.users += 1;
        Some(Arc::clone(&table.domain))
    }

    /// Adds a domain that has one user.
    pub(crate) fn add(&mut self, domain: &Arc<IoasDomain>) {
        self.tables.push(Table {
            domain: Arc::clone(domain),
            users: 1,
        });
        self.changed();
    }

    /// Ends one use; whether that was the last, and the domain is no longer here.
    pub(crate) fn put(&mut self, domain: &Arc<IoasDomain>) -> bool {
        let mut tables = self.tables.iter();
        let Some(index) = tables.position(|table| Arc::ptr_eq(&table.domain, domain)) else {
            return false;
        };
        if self.tables[index].users > 1 {
            self.tables[index].users -= 1;
            return false;
        }
        self.tables.remove(index);
        self.changed();
        true
    }

    fn changed(&mut self) {
        let domains = self.tables.iter().map(|table| Arc::clone(&table.domain));
        self.domains = domains.collect();
    }

    /// The domains as they are now.
    pub(crate) fn domains(&self) -> Arc<[Arc<IoasDomain>]> {
        Arc::clone(&self.domains)
    }

    /// The sizes of leaves that every domain has, as a bitmap; all without a domain.
    pub(crate) fn page_sizes(&self) -> u64 {
        let tables = self.tables.iter();
        tables.fold(!0, |sizes, table| sizes & table.domain.domain.page_sizes())
    }

    /// The largest of the smallest leaves; 1 without a domain.
    pub(crate) fn alignment(&self) -> u64 {
        let smallest = self
            .tables
            .iter()
            .map(|table| smallest_leaf(&table.domain.domain));
        smallest.max().unwrap_or(1)
    }
}

/// The size of the smallest leaf that `domain` has.
pub(crate) fn smallest_leaf(domain: &Domain) -> u64 {
    let sizes = domain.page_sizes();
    sizes & sizes.wrapping_neg()
}
