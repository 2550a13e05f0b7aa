//! In whose name descriptors run: one enabling of a queue, or one client of a shared one.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use ioasid_core::Pasid;
use ioasid_iommu::PasidUse;

use crate::{exec::Terms, function::endpoint::Endpoint};

/// What descriptors may do and in whose name. A dedicated queue has one for each time that it is
/// enabled; a shared queue has one for each PASID besides. Every accepted descriptor holds one, and
/// with it the PASID.
#[derive(Debug)]
pub(crate) struct Session {
    /// Where errors and interrupts go.
    pub(crate) endpoint: Arc<Endpoint>,
    /// Queue index as that owner counts.
    pub(crate) index: u8,
    pub(crate) pasid: Option<Pasid>,
    pub(crate) pasid_use: Option<PasidUse>,
    pub(crate) terms: Terms,
    aborted: AtomicBool,
}

impl Session {
    pub(crate) fn new(
        endpoint: Arc<Endpoint>,
        index: u8,
        pasid: Option<Pasid>,
        pasid_use: Option<PasidUse>,
        terms: Terms,
    ) -> Arc<Self> {
        Arc::new(Session {
            endpoint,
            index,
            pasid,
            pasid_use,
            terms,
            aborted: AtomicBool::new(false),
        })
    }

    /// The same rights for descriptors that come after an abort.
    pub(crate) fn renewed(&self) -> Arc<Self> {
        self.in_name_of(self.pasid)
    }

    /// The same rights in the address space of another PASID.
    pub(crate) fn in_name_of(&self, pasid: Option<Pasid>) -> Arc<Self> {
        Session::new(
            Arc::clone(&self.endpoint),
            self.index,
            pasid,
            self.pasid_use.clone(),
            self.terms,
        )
    }

    /// Lets descriptors under way end as soon as they can, without a record.
    pub(crate) fn abort(&self) {
        self.aborted.store(true, Ordering::Release);
    }

    /// Whether descriptors under way should end as soon as they can, without a record.
    pub(crate) fn aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }
}
