//! Requests that a device must not issue at present; `crate::attach::bus_master` says when and why.

use ioasid_core::{
    Pasid,
    grace::Loaded,
    lock_order::{OrderedGuard, OrderedMutex},
    sync::atomic::{AtomicBool, Ordering},
};

use super::route_table::{Attachment, RouteTable};
use crate::{base::locks, events::writes::Requests};

/// What a device must not issue at present. Changes under the lock of its group.
#[derive(Debug)]
pub(crate) struct Withheld {
    list: OrderedMutex<Vec<Requests>>,
    /// That a request was withheld has been told, and none has been let go since.
    told: AtomicBool,
}

impl Default for Withheld {
    fn default() -> Self {
        Withheld {
            list: OrderedMutex::new(&locks::WITHHELD, Vec::new()),
            told: AtomicBool::new(false),
        }
    }
}

impl Withheld {
    /// Whether requests with `pasid` are among it. The caller holds the lock of the group.
    pub(crate) fn includes(&self, pasid: Option<Pasid>) -> bool {
        locks::GROUP.assert_held();
        self.list
            .lock()
            .iter()
            .any(|requests| requests.include(pasid))
    }

    /// Withholds `requests`. While what this returns lives, no guard decides what an empty cell means.
    pub(crate) fn add(&self, requests: Requests) -> OrderedGuard<'_, Vec<Requests>> {
        let mut list = self.list.lock();
        if !list.contains(&requests) {
            list.push(requests);
        }
        list
    }

    /// Withholds `requests` no more; otherwise as [`Withheld::add`].
    pub(crate) fn remove(&self, requests: Requests) -> OrderedGuard<'_, Vec<Requests>> {
        let mut list = self.list.lock();
        list.retain(|other| *other != requests);
        self.told.store(false, Ordering::Relaxed);
        list
    }

    /// A request has been withheld: whether it is the first since some were let go.
    pub(crate) fn is_news(&self) -> bool {
        !self.told.swap(true, Ordering::Relaxed)
    }

    /// For a guard that has found an empty cell: whether its route is withheld. Otherwise the cell is
    /// looked at once more, since it may have been filled in the meantime.
    pub(crate) fn explain<'a>(
        &self,
        routes: &'a RouteTable,
        pasid: Option<Pasid>,
        loaded: &mut Loaded<'a, Attachment>,
    ) -> bool {
        let list = self.list.lock();
        if list.iter().any(|requests| requests.include(pasid)) {
            return true;
        }
        loaded.again();
        routes.find(pasid, loaded);
        false
    }
}
