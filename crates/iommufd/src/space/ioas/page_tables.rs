//! The domains behind an IOAS: made for the first page table object that needs one, shared by those
//! whose attributes agree, and gone with the last.

use std::sync::Arc;

use ioasid_core::{
    AddrRange, failpoint,
    memory::{PAGE_SIZE, PinBatch},
};
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

/// Areas that are pinned at a time when a domain comes: the others are not copied meanwhile.
const BATCH: usize = 256;

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
        let large_pages = {
            let mut state = self.state.lock();
            if leaf > state.alignment() && !state.is_aligned(leaf) {
                return Err(RangeError::MisalignedAreas { alignment: leaf }.into());
            }
            state.space.reserve(owner, outside(domain.domain()))?;
            state.large_pages()
        };
        let (domains, mut batch) = (std::slice::from_ref(domain), PinBatch::new());
        let filled = self.each_batch(|areas| {
            for (range, area) in areas {
                fill(domains, *range, area, large_pages, &mut batch)?;
            }
            Ok(())
        });
        if let Err(error) = filled {
            // Nothing is attached: what was written goes with the domain.
            self.state.lock().space.unreserve(owner);
            self.unpin_unused();
            return Err(error);
        }
        self.state.lock().tables.add(domain);
        Ok(())
    }

    /// Lets `change` have every area, some at a time, and keeps the addresses that it gives to them.
    /// The state is not locked meanwhile. Called with `change` held, so no area comes or goes.
    fn each_batch(
        &self,
        mut change: impl FnMut(&mut [(AddrRange, Area)]) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let mut areas = Vec::with_capacity(BATCH);
        let mut next = Some(0);
        while let Some(from) = next {
            let rest = AddrRange::new(from, u64::MAX);
            let state = self.state.lock();
            let found = rest
                .into_iter()
                .flat_map(|rest| state.space.overlapping(rest));
            areas.extend(found.take(BATCH).map(|(range, area)| (range, area.clone())));
            drop(state);
            let Some((last, _)) = areas.last() else { break };
            next = last.last().checked_add(1);
            change(&mut areas)?;
            let mut state = self.state.lock();
            for (range, area) in areas.drain(..) {
                if let Some(kept) = state.space.area_mut(range.start()) {
                    kept.share_addresses(area);
                }
            }
        }
        Ok(())
    }

    /// Gives up the addresses of all areas if there is no domain.
    fn unpin_unused(&self) {
        let mut state = self.state.lock();
        if state.tables.is_empty() {
            state.space.areas_mut().for_each(|area| drop(area.unpin()));
        }
    }

    /// Ends one use of a domain. With the last use the domain goes, and with the last domain the
    /// pins of all areas.
    pub(crate) fn put_domain(&self, domain: &Arc<IoasDomain>) {
        let _change = self.change.lock();
        let shown = {
            let mut state = self.state.lock();
            if !state.tables.put(domain) {
                return;
            }
            state.space.unreserve(Owner::Domain(domain.id()));
            state.tables.is_empty() && state.space.areas().any(|(_, area)| area.is_pinned())
        };
        if shown {
            domain.domain().unmap(AddrRange::ALL);
            self.unpin_unused();
        }
    }
}
