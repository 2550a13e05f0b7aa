//! Recoverable faults: a device asks for a page and waits for the answer with no guard held.
//!
//! A request belongs to the route and the domain that it missed in. When that ends (detach,
//! replace, removal of the handler), it is answered [`PageResponse::Invalid`], so no engine waits
//! for an answer that never comes.

use std::{collections::BTreeMap, fmt, sync::Arc};

use ioasid_core::{Access, DomainId, Pasid, PciAddress, lock_order::OrderedMutex};

use super::fault::FaultReason;
use crate::base::{locks, source_id::SourceId};

/// The number of one page request; never used twice in a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageRequestId(u64);

impl PageRequestId {
    /// The number, for a cookie.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The request that a peer names: it may be answered already, or never have been made.
    pub const fn from_raw(value: u64) -> Self {
        PageRequestId(value)
    }
}

/// One page that a device asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// What to answer.
    pub id: PageRequestId,
    /// The asking device.
    pub device: PciAddress,
    /// The PASID of the access.
    pub pasid: Option<Pasid>,
    /// I/O virtual address of the access, rounded down to 4 KiB.
    pub iova: u64,
    /// What the device wants to do.
    pub access: Access,
    /// The page request group (PCI Express base specification, 10.4.1). Every request is a group of
    /// its own here: `last` is implied.
    pub group: u16,
}

impl PageRequest {
    /// The group index of a request: 9 bits (PCI Express base specification, 10.4.1).
    pub(crate) const fn group_of(id: PageRequestId) -> u16 {
        (id.get() & 0x1ff) as u16
    }
}

/// The answer to a page request (PCI Express base specification, 10.4.2.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PageResponse {
    /// The page is there: try again.
    Success,
    /// The page will not be there: the access faults.
    Invalid,
    /// The handler failed: the access faults, and further requests make no sense.
    Failure,
}

/// Can add translations to a domain.
///
/// Called by the engine that missed, with no guard and no lock held. Must not block; the answer may
/// come from within the call, or later from any thread, through `Iommu::page_response`.
pub trait PageRequestHandler: Send + Sync + fmt::Debug {
    /// Takes one request.
    fn request(&self, request: PageRequest);
}

/// Runs once, with the answer, on the thread that answers. Must not block.
pub type OnAnswer = Box<dyn FnOnce(PageResponse) + Send>;

/// Why a page request could not be made: the access is a plain fault then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageRequestError {
    /// The device makes no page requests.
    #[error("{device} makes no page requests")]
    Unsupported {
        /// The device.
        device: PciAddress,
    },
    /// Nothing is attached.
    #[error("nothing is attached to {at}, so nothing answers its page requests")]
    NotAttached {
        /// The source of the access.
        at: SourceId,
    },
    /// The domain has no handler.
    #[error("domain {domain} has no handler for page requests")]
    NoHandler {
        /// The domain.
        domain: DomainId,
    },
    /// A page will not help against this fault.
    #[error("a page request does not help against this fault: {reason}")]
    NotRecoverable {
        /// Why the access was refused.
        reason: FaultReason,
    },
    /// The device has [`PAGE_REQUEST_LIMIT`] requests outstanding.
    #[error("{device} has {PAGE_REQUEST_LIMIT} page requests outstanding, which is the limit")]
    TooMany {
        /// The device.
        device: PciAddress,
    },
}

/// No such request, or it has been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no page request {} is outstanding", id.get())]
pub struct UnknownPageRequest {
    /// The request.
    pub id: PageRequestId,
}

/// Outstanding page requests of one device.
pub const PAGE_REQUEST_LIMIT: usize = 512;

struct Pending {
    source: SourceId,
    domain: DomainId,
    on_answer: OnAnswer,
}

/// The requests of one machine that wait for an answer.
pub(crate) struct PendingRequests(OrderedMutex<PendingState>);

#[derive(Default)]
struct PendingState {
    last: u64,
    requests: BTreeMap<PageRequestId, Pending>,
}

impl Default for PendingRequests {
    fn default() -> Self {
        let state = PendingState::default();
        PendingRequests(OrderedMutex::new(&locks::PENDING_REQUESTS, state))
    }
}

impl PendingRequests {
    /// Enters a request of `source`. The caller holds the locks that keep the route and the handler
    /// in place, so that a change of either afterwards finds the request.
    pub(crate) fn insert(
        &self,
        source: SourceId,
        domain: DomainId,
        on_answer: OnAnswer,
    ) -> Result<PageRequestId, PageRequestError> {
        locks::GROUP.assert_held();
        locks::HANDLER.assert_held();
        let mut state = self.0.lock();
        let device = source.device;
        let outstanding = state.requests.values();
        let own = outstanding.filter(|pending| pending.source.device == device);
        if own.count() >= PAGE_REQUEST_LIMIT {
            return Err(PageRequestError::TooMany { device });
        }
        state.last += 1;
        let id = PageRequestId(state.last);
        let pending = Pending {
            source,
            domain,
            on_answer,
        };
        state.requests.insert(id, pending);
        Ok(id)
    }

    /// Answers one request. The callback runs without a lock.
    pub(crate) fn answer(
        &self,
        id: PageRequestId,
        response: PageResponse,
    ) -> Result<(), UnknownPageRequest> {
        let pending = self.0.lock().requests.remove(&id);
        let pending = pending.ok_or(UnknownPageRequest { id })?;
        (pending.on_answer)(response);
        Ok(())
    }

    /// Answers every request of `source` that missed in `domain`: invalid.
    pub(crate) fn flush_source(&self, source: SourceId, domain: DomainId) {
        self.flush(|pending| pending.source == source && pending.domain == domain);
    }

    /// Answers every request that missed in `domain`: invalid.
    pub(crate) fn flush_domain(&self, domain: DomainId) {
        self.flush(|pending| pending.domain == domain);
    }

    fn flush(&self, which: impl Fn(&Pending) -> bool) {
        let flushed: Vec<Pending> = {
            let mut state = self.0.lock();
            let ids: Vec<_> = state
                .requests
                .iter()
                .filter(|(_, request)| which(request))
                .map(|(id, _)| *id)
                .collect();
            ids.iter()
                .filter_map(|id| state.requests.remove(id))
                .collect()
        };
        for request in flushed {
            (request.on_answer)(PageResponse::Invalid);
        }
    }

    /// Requests that wait for an answer.
    pub(crate) fn len(&self) -> usize {
        self.0.lock().requests.len()
    }
}

impl fmt::Debug for PendingRequests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PendingRequests")
            .field("pending", &self.len())
            .finish()
    }
}

/// The shared reference under which a domain keeps its handler.
pub(crate) type Handler = Option<Arc<dyn PageRequestHandler>>;
