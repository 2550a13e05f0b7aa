//! Where the last addresses of a port led to: its next guard need not walk and look up again.
//!
//! What is kept holds for one domain in one state. Whoever takes a translation away, or has to see the next
//! access in the table, counts a change of the domain ([`AddressSpace::changes`]) before the barrier
//! looks for guards, and a guard looks at the count when its marker is published. So if it still finds
//! the old count, the barrier finds the guard: it is one that was under way.

use std::{
    cell::{Cell, OnceCell},
    sync::Arc,
};

use ioasid_core::{
    DomainId, Pasid,
    spa::{KeptPlaces, SpaSpace},
};

use super::{tlb::PortTlb, walks::Walks};
use crate::domain::space::{AddressSpace, Translator};

/// What a guard may use of earlier ones.
pub(crate) enum Keeps<'a> {
    /// Nothing: it may block, and translates anew afterwards.
    Nothing,
    /// What the device keeps by its own right, and of walks what an IOMMU does.
    Tlb(&'a PortTlb, &'a Recent),
    /// What the port keeps of an IOMMU's translations.
    Recent(&'a Recent),
}

/// What the places of a port hold for.
#[derive(Clone, Copy, PartialEq, Eq)]
struct HoldsFor {
    domain: DomainId,
    changes: u64,
    /// Without one, interrupt windows are left out.
    pasid: Option<Pasid>,
    supervisor: bool,
}

/// What one port keeps.
pub(crate) struct Recent {
    holds_for: Cell<Option<HoldsFor>>,
    places: KeptPlaces,
    /// Made for the first guard of a nested domain.
    walks: OnceCell<Box<Walks>>,
}

impl Recent {
    pub(crate) fn new(space: &Arc<SpaSpace>) -> Self {
        Recent {
            holds_for: Cell::new(None),
            places: KeptPlaces::new(space),
            walks: OnceCell::new(),
        }
    }

    /// What still holds for a guard that is published and reads `space` with such requests.
    #[inline]
    pub(crate) fn catch_up(
        &self,
        space: &AddressSpace,
        (pasid, supervisor): (Option<Pasid>, bool),
    ) -> &KeptPlaces {
        let now = Some(HoldsFor {
            domain: space.id,
            changes: space.all_changes(),
            pasid,
            supervisor,
        });
        if self.holds_for.replace(now) != now {
            self.places.forget();
        }
        &self.places
    }

    /// What is kept of walks in the tables of `memory`, for a guard that reads a nested domain.
    #[inline]
    pub(super) fn walks_in(&self, space: &AddressSpace, memory: &Arc<SpaSpace>) -> Option<&Walks> {
        match &space.translator {
            Translator::Nested(_) => Some(self.walks.get_or_init(|| Walks::new(memory))),
            _ => None,
        }
    }
}
