//! The domains behind an IOAS: made for the first page table object that needs one, shared by those
//! whose attributes agree, and gone with the last.

use std::sync::Arc;

use ioasid_core::{AddrRange, failpoint, memory::PAGE_SIZE};
use ioasid_iommu::{Domain, DomainConfig};

use super::Ioas;
use crate::{
    base::error::{AttachError, Error, Mismatch, RangeError, ReservedBy},
    space::{
        area::{Area, fill},
        domains::{Attributes, IoasDomain, smallest_leaf},
        iova::{Owner, ReservedRange},
    },
};

/// What `domain` cannot translate.
fn outside(domain: &Domain) -> Vec<ReservedRange> {
    let aperture = domain.aperture();
    let below = aperture.start().checked_sub(1);
    let above = aperture.last().checked_add(1);
    let below = below.and_then(|last| AddrRange::new(0, last));
    let above = above.and_then(|start| AddrRange::new(start, u64::MAX));
    let by = ReservedBy::Domain(domain.id());
    let ranges = below.into_iter().chain(above);
    ranges.map(|range| ReservedRange { range, by }).collect()
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
        if let Some(domain) = self.state.lock().tables.use_shared(attributes) {
            return Ok(domain);
        }
        failpoint::allocation()?;
        let domain = IoasDomain::new(make(attributes.config())?, attributes);
        self.add_domain(&domain)?;
        Ok(domain)
    }

    /// Writes every mapping to a new domain; all or nothing.
    fn add_domain(&self, domain: &Arc<IoasDomain>) -> Result<(), Error> {
        let owner = Owner::Domain(domain.id());
        let leaf = smallest_leaf(domain.domain());
        if leaf > PAGE_SIZE {
            return Err(AttachError::from(Mismatch::LeafSize).into());
        }
        let (large_pages, mut areas) = {
            let mut state = self.state.lock();
            if leaf > state.alignment() && !state.is_aligned(leaf) {
                return Err(RangeError::MisalignedAreas { alignment: leaf }.into());
            }
            state.space.reserve(owner, outside(domain.domain()))?;
            let areas = state.space.areas();
            let areas: Vec<_> = areas.map(|(range, area)| (range, area.clone())).collect();
            (state.large_pages(), areas)
        };
        for (range, area) in &mut areas {
            if let Err(error) = fill(std::slice::from_ref(domain), *range, area, large_pages) {
                self.state.lock().space.unreserve(owner);
                // Nothing is attached: what was written goes with the domain, before the pins.
                return Err(error);
            }
        }
        let mut state = self.state.lock();
        for (range, area) in areas {
            if let Some(kept) = state.space.area_mut(range.start()) {
                kept.share_addresses(area);
            }
        }
        state.tables.add(domain);
        Ok(())
    }

    /// Ends one use of a domain. With the last use the domain goes, and with the last domain the
    /// pins of all areas.
    pub(crate) fn put_domain(&self, domain: &Arc<IoasDomain>) {
        let _change = self.change.lock();
        let mut unpinned = Vec::new();
        {
            let mut state = self.state.lock();
            if !state.tables.put(domain) {
                return;
            }
            state.space.unreserve(Owner::Domain(domain.id()));
            if state.tables.is_empty() {
                unpinned.extend(state.space.areas_mut().filter_map(Area::unpin));
            }
        }
        if !unpinned.is_empty() {
            domain.domain().unmap(AddrRange::ALL);
        }
        drop(unpinned);
    }
}
