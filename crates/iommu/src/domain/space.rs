//! The part of a domain that readers reach.

use std::fmt;

use ioasid_core::{DomainId, sync::atomic::AtomicU64};
use ioasid_pgtable::PageTable;

use crate::base::counters::DmaCounters;

/// How addresses are translated.
#[allow(clippy::large_enum_variant)] // One per domain, never moved; a walk saves a load.
pub(crate) enum Translator {
    Blocked,
    Identity,
    Paging(PageTable),
}

/// The part of a domain that readers reach under a guard. It outlives the [`Domain`](super::Domain) until the last
/// guard on it is gone.
pub(crate) struct AddressSpace {
    pub(crate) id: DomainId,
    pub(crate) translator: Translator,
    /// How often a barrier was about to wait for the readers: what they keep is gone then.
    pub(crate) changes: AtomicU64,
    pub(crate) counters: DmaCounters,
    pub(crate) faults: AtomicU64,
}

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AddressSpace({})", self.id)
    }
}
