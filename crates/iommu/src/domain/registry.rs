//! The domains of one machine: their numbers, and which of them live.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Weak},
};

use ioasid_core::{
    DomainId,
    failpoint::{self, OutOfMemory},
    lock_order::OrderedMutex,
    sync::atomic::{AtomicU32, Ordering},
};

use ioasid_pgtable::FirstStage;

use super::{Domain, DomainConfig, DomainKind, shared::Shared};
use crate::base::locks;

/// Why there is no new domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// The machine has used up its 2^32-2 domain numbers (ENOSPC).
    #[error("all 2^32-2 domain numbers have been used: restart the machine")]
    Exhausted,
    /// No memory for the domain or its first table (ENOMEM).
    #[error("no memory for a domain")]
    NoMemory(#[from] OutOfMemory),
}

/// Makes domains, numbers them from 1 on and never uses a number twice.
pub(crate) struct DomainRegistry {
    shared: Arc<Shared>,
    last: AtomicU32,
    live: OrderedMutex<BTreeMap<DomainId, (DomainKind, Weak<Domain>)>>,
}

impl DomainRegistry {
    pub(crate) fn new(shared: Arc<Shared>) -> Arc<Self> {
        Arc::new(DomainRegistry {
            shared,
            last: AtomicU32::new(0),
            live: OrderedMutex::new(&locks::LIVE_DOMAINS, BTreeMap::new()),
        })
    }

    /// A domain that nothing is attached to.
    pub(crate) fn alloc(
        self: &Arc<Self>,
        config: DomainConfig,
    ) -> Result<Arc<Domain>, DomainError> {
        self.enter(|id| Domain::new(Arc::clone(&self.shared), Arc::clone(self), id, config))
    }

    /// A domain nested on `parent`, that nothing is attached to.
    pub(super) fn alloc_nested(
        self: &Arc<Self>,
        parent: &Arc<Domain>,
        table: FirstStage,
    ) -> Result<Arc<Domain>, DomainError> {
        self.enter(|id| Domain::nested_on(parent, Arc::clone(self), id, table))
    }

    /// Numbers a new domain and enters it.
    fn enter(&self, make: impl FnOnce(DomainId) -> Domain) -> Result<Arc<Domain>, DomainError> {
        failpoint::allocation()?;
        let id = self.number().ok_or(DomainError::Exhausted)?;
        let domain = Arc::new(make(id));
        let entry = (domain.kind(), Arc::downgrade(&domain));
        self.live.lock().insert(id, entry);
        Ok(domain)
    }

    fn number(&self) -> Option<DomainId> {
        let unused = |last: u32| last.checked_add(1).filter(|id| *id != DomainId::RESERVED);
        let last = self
            .last
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, unused)
            .ok()?;
        DomainId::new(last + 1)
    }

    /// Takes a domain out that is being dropped.
    pub(super) fn remove(&self, id: DomainId) {
        self.live.lock().remove(&id);
    }

    /// The live domains, by number.
    pub(crate) fn domains(&self) -> Vec<Arc<Domain>> {
        let live = self.live.lock();
        // The lock is released before what is collected can be dropped: `Domain` takes it then.
        live.values()
            .filter_map(|(_, domain)| domain.upgrade())
            .collect()
    }

    /// How many live domains have a page table.
    pub(crate) fn paging_domains(&self) -> usize {
        let live = self.live.lock();
        live.values().filter(|(kind, _)| kind.is_paging()).count()
    }
}

impl fmt::Debug for DomainRegistry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DomainRegistry")
    }
}
