//! The page tables behind an IOAS.
//!
//! A page table object (HWPT) of an IOAS stands on an [`IoasDomain`]. Objects whose attributes
//! agree share one: an automatic page table and one made by hand, for a whole device and for a
//! child, in any order. Only what changes the table itself is such an attribute. That a program may
//! nest on its page table, or attach it to PASIDs, is a property of the object and divides nothing.
//! So one map is one write, one unmap is one barrier, and the table's memory is there once. A domain
//! is made for the first object that needs it and goes with the last.

use std::{fmt, sync::Arc};

use ioasid_core::{AddrRange, DomainId, Prot, failpoint, memory::PAGE_SIZE, sync::Mutex};
use ioasid_iommu::{Domain, DomainConfig, DomainKind, MapError, TableFormat};

use crate::{
    dirty::DirtyLedger,
    error::Error,
    hw::PagingConfig,
    hwpt::HwptFlags,
    ioas::{Ioas, fill},
    iova::Owner,
    object::ObjectId,
};

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
    /// What the page table `hwpt` with `flags` needs, where the device's IOMMU wants `paging` and can
    /// track dirty pages or not.
    pub(crate) fn new(
        hwpt: ObjectId,
        paging: &PagingConfig,
        tracks_dirty: bool,
        flags: HwptFlags,
    ) -> Self {
        // Page requests are taken for a whole domain: who wants them has one for himself.
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
    pub(crate) dirty: Mutex<DirtyLedger>,
}

impl IoasDomain {
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

impl From<MapError> for Error {
    fn from(error: MapError) -> Self {
        match error {
            MapError::Exists { .. } => Error::Mapped,
            MapError::Empty { .. } | MapError::Unaligned { .. } => Error::Misaligned {
                alignment: PAGE_SIZE,
            },
            MapError::NoPermission { .. } => Error::NoPermission,
            MapError::NoMemory(_) => Error::NoMemory,
            MapError::OutOfRange { .. }
            | MapError::OutputOutOfRange { .. }
            | MapError::NoPageTable => Error::OutsideTable,
        }
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
pub(crate) struct Tables(Vec<Table>);

impl Tables {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn domains(&self) -> Vec<Arc<IoasDomain>> {
        self.0
            .iter()
            .map(|table| Arc::clone(&table.domain))
            .collect()
    }

    /// The sizes of leaves that every domain has, as a bitmap; all without a domain.
    pub(crate) fn page_sizes(&self) -> u64 {
        let tables = self.0.iter();
        tables.fold(!0, |sizes, table| sizes & table.domain.domain.page_sizes())
    }

    /// The largest of the smallest leaves; 1 without a domain.
    pub(crate) fn alignment(&self) -> u64 {
        let smallest = self
            .0
            .iter()
            .map(|table| smallest_leaf(&table.domain.domain));
        smallest.max().unwrap_or(1)
    }
}

fn smallest_leaf(domain: &Domain) -> u64 {
    let sizes = domain.page_sizes();
    sizes & sizes.wrapping_neg()
}

/// What `domain` cannot translate.
fn outside(domain: &Domain) -> Vec<AddrRange> {
    let aperture = domain.aperture();
    let below = aperture.start().checked_sub(1);
    let above = aperture.last().checked_add(1);
    let below = below.and_then(|last| AddrRange::new(0, last));
    let above = above.and_then(|start| AddrRange::new(start, u64::MAX));
    below.into_iter().chain(above).collect()
}

impl Ioas {
    /// The domain for a page table with `attributes`: the one that is there, or what `make` makes,
    /// with every mapping written to it. [`Ioas::put_domain`] ends the use.
    pub(crate) fn domain(
        &self,
        attributes: Attributes,
        make: impl FnOnce(DomainConfig) -> Result<Arc<Domain>, Error>,
    ) -> Result<Arc<IoasDomain>, Error> {
        let _change = self.change.lock();
        {
            let mut state = self.state.lock();
            let mut tables = state.tables.0.iter_mut();
            if let Some(table) = tables.find(|table| table.domain.attributes == attributes) {
                table.users += 1;
                return Ok(Arc::clone(&table.domain));
            }
        }
        failpoint::allocation()?;
        let domain = make(attributes.config())?;
        // Nobody has asked to track yet.
        domain.set_dirty_tracking(false);
        let domain = Arc::new(IoasDomain {
            domain,
            attributes,
            dirty: Mutex::default(),
        });
        self.add_domain(&domain)?;
        Ok(domain)
    }

    /// Writes every mapping to a new domain; all or nothing.
    fn add_domain(&self, domain: &Arc<IoasDomain>) -> Result<(), Error> {
        let owner = Owner::Domain(domain.id());
        let leaf = smallest_leaf(&domain.domain);
        if leaf > PAGE_SIZE {
            return Err(Error::Incompatible);
        }
        let (large_pages, mut areas) = {
            let mut state = self.state.lock();
            if leaf > state.alignment() && !state.is_aligned(leaf) {
                return Err(Error::AddressInUse);
            }
            state.space.reserve(owner, outside(&domain.domain))?;
            let areas = state.space.areas();
            let areas: Vec<_> = areas.map(|(range, area)| (range, area.clone())).collect();
            (state.large_pages(), areas)
        };
        for (range, area) in &mut areas {
            if let Err(error) = fill(std::slice::from_ref(domain), *range, area, large_pages) {
                self.state.lock().space.unreserve(owner);
                // Nobody is attached: the domain takes what was written with it, before the pins.
                return Err(error);
            }
        }
        let mut state = self.state.lock();
        for (range, area) in areas {
            if let Some(kept) = state.space.area_mut(range.start()) {
                kept.run = area.run;
            }
        }
        state.tables.0.push(Table {
            domain: Arc::clone(domain),
            users: 1,
        });
        Ok(())
    }

    /// Ends one use of a domain. With the last use the domain goes, and with the last domain the
    /// pins of all areas.
    pub(crate) fn put_domain(&self, domain: &Arc<IoasDomain>) {
        let _change = self.change.lock();
        let mut unpinned = Vec::new();
        {
            let mut state = self.state.lock();
            let mut tables = state.tables.0.iter();
            let Some(index) = tables.position(|table| Arc::ptr_eq(&table.domain, domain)) else {
                return;
            };
            let table = &mut state.tables.0[index];
            table.users -= 1;
            if table.users > 0 {
                return;
            }
            state.tables.0.remove(index);
            state.space.unreserve(Owner::Domain(domain.id()));
            if state.tables.is_empty() {
                unpinned.extend(state.space.areas_mut().filter_map(|area| area.run.take()));
            }
        }
        if !unpinned.is_empty() {
            domain.domain.unmap(AddrRange::ALL);
        }
        drop(unpinned);
    }
}
