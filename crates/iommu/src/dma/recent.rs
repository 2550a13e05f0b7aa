//! Where the last addresses of a port led to: its next guard need not walk and look up again.
//!
//! What is kept holds for one domain in one state. Whoever takes a translation away, or has to see the next
//! access in the table, counts a change of the domain ([`AddressSpace::changes`]) before the barrier
//! looks for guards, and a guard looks at the count when its marker is published. So if it still finds
//! the old count, the barrier finds the guard: it is one that was under way.

use std::{cell::Cell, sync::Arc};

use ioasid_core::{
    DomainId, Pasid,
    spa::{KeptPlaces, SpaSpace},
};

use super::tlb::PortTlb;
use crate::domain::space::AddressSpace;

/// What a guard may use of earlier ones.
pub(crate) enum Keeps<'a> {
    /// Nothing: it may block, and translates anew afterwards.
    Nothing,
    /// What the device keeps by its own right.
    Tlb(&'a PortTlb),
    /// What the port keeps of an IOMMU's translations.
    Recent(&'a Recent),
}

/// What one port keeps.
pub(crate) struct Recent {
    /// The domain, whether interrupt windows are left out, and the domain's changes.
    holds_for: Cell<Option<(DomainId, Option<Pasid>, u64)>>,
    places: KeptPlaces,
}

impl Recent {
    pub(crate) fn new(space: &Arc<SpaSpace>) -> Self {
        Recent {
            holds_for: Cell::new(None),
            places: KeptPlaces::new(space),
        }
    }

    /// What still holds for a guard that is published and reads `space` through `pasid`.
    #[inline]
    pub(crate) fn catch_up(&self, space: &AddressSpace, pasid: Option<Pasid>) -> &KeptPlaces {
        let now = Some((space.id, pasid, space.all_changes()));
        if self.holds_for.replace(now) != now {
            self.places.forget();
        }
        &self.places
    }
}
