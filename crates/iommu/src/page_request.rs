//! Recoverable faults: a device asks for a page and waits for the answer with no guard held.
//!
//! A request belongs to the route and the domain that it missed in. When that ends (detach,
//! replace, removal of the handler), it is answered [`PageResponse::Invalid`], so no engine waits
//! for an answer that nobody can give.

use std::{collections::BTreeMap, fmt, sync::Arc};

use ioasid_core::{Access, DomainId, Pasid, PciAddress, sync::Mutex};

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

/// Whoever can add translations to a domain.
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
#[non_exhaustive]
pub enum PageRequestError {
    /// The device cannot ask, nothing is attached, or its domain has no handler.
    #[error("nobody answers page requests here")]
    NoHandler,
    /// A page will not help against this fault.
    #[error("the fault is not one that a page request can mend")]
    NotRecoverable,
    /// The device has [`PENDING_LIMIT`] requests outstanding.
    #[error("too many page requests are outstanding")]
    TooMany,
}

/// No such request, or it has been answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such page request is pending")]
pub struct UnknownPageRequest;

/// Outstanding page requests of one device.
pub const PENDING_LIMIT: usize = 512;

struct Pending {
    device: PciAddress,
    pasid: Option<Pasid>,
    domain: DomainId,
    on_answer: OnAnswer,
}

/// The requests of one machine that wait for an answer.
#[derive(Default)]
pub(crate) struct PendingRequests(Mutex<PendingState>);

#[derive(Default)]
struct PendingState {
    last: u64,
    requests: BTreeMap<PageRequestId, Pending>,
}

impl PendingRequests {
    /// Enters a request of `device`. The caller holds the locks that keep the route and the handler
    /// in place, so that whoever ends either afterwards finds the request.
    pub(crate) fn insert(
        &self,
        device: PciAddress,
        pasid: Option<Pasid>,
        domain: DomainId,
        on_answer: OnAnswer,
    ) -> Result<PageRequestId, PageRequestError> {
        let mut state = self.0.lock();
        let outstanding = state.requests.values().filter(|r| r.device == device);
        if outstanding.count() >= PENDING_LIMIT {
            return Err(PageRequestError::TooMany);
        }
        state.last += 1;
        let id = PageRequestId(state.last);
        let pending = Pending {
            device,
            pasid,
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
        let pending = pending.ok_or(UnknownPageRequest)?;
        (pending.on_answer)(response);
        Ok(())
    }

    /// Answers every request of this route that missed in `domain`.
    pub(crate) fn flush_route(&self, device: PciAddress, pasid: Option<Pasid>, domain: DomainId) {
        self.flush(|r| r.device == device && r.pasid == pasid && r.domain == domain);
    }

    /// Answers every request that missed in `domain`.
    pub(crate) fn flush_domain(&self, domain: DomainId) {
        self.flush(|r| r.domain == domain);
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
