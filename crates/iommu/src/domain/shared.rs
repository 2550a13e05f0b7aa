//! What the domains, groups and devices of one machine share.

use std::{fmt, sync::Arc};

use ioasid_core::{
    DomainId,
    grace::{Grace, Slot},
    observe::Watch,
    spa::SpaSpace,
    sync::Mutex,
};

use crate::events::{fault::DmaWatchers, page_request::PendingRequests};

/// Memory, barrier, page requests and observer of one machine. It knows none of its users.
pub(crate) struct Shared {
    pub(crate) space: Arc<SpaSpace>,
    pub(crate) grace: Arc<Grace>,
    pub(crate) pending: PendingRequests,
    pub(crate) watchers: DmaWatchers,
    pub(crate) watch: Arc<Watch>,
    /// The marker of readers that are no DMA.
    reader: Mutex<Slot>,
}

impl Shared {
    /// Of a machine without memory and without readers.
    pub(crate) fn new() -> Arc<Self> {
        let grace = Grace::new();
        Arc::new(Shared {
            space: SpaSpace::new(Arc::clone(&grace)),
            pending: PendingRequests::default(),
            watchers: DmaWatchers::default(),
            watch: Arc::default(),
            reader: Mutex::new(grace.slot()),
            grace,
        })
    }

    /// Runs a short `op` that reads the page table of `domain` as a reader that the barrier waits
    /// for, like a DMA.
    pub(crate) fn as_reader<R>(&self, domain: DomainId, op: impl FnOnce() -> R) -> R {
        let mut slot = self.reader.lock();
        let guard = slot.enter();
        guard.narrow(domain);
        op()
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}
