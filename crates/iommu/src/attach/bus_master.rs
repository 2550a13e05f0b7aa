//! Requests that a function must not issue: `PCI_COMMAND.MASTER` is 0 (PCI Express base specification,
//! 7.5.1.1.3).
//!
//! The routes that are withheld have empty cells, like those of a device that is being reset, so a
//! guard that is entered while nothing is withheld pays nothing for it. One that finds an empty cell
//! looks, on its slow path, whether the route is withheld, and stops with
//! [`Stop::Withheld`](crate::Stop::Withheld) then: nothing is wrong with the access, it comes too
//! early. Attachments stay what they are and can change meanwhile.
//!
//! The order is that of every change of a route: the cells are emptied, then the guards that may have
//! read them before are waited for.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ioasid_core::DomainId;

use crate::{
    device::{Device, Group},
    events::writes::Requests,
};

/// How long a copy that is blocked in its client's memory is waited for. Guards that run are waited
/// for without a limit: they are bounded by their bytes.
pub const WITHHOLD_PATIENCE: Duration = Duration::from_secs(10);

impl Device {
    /// Withholds requests of this device: its ports reach nothing with them and stop with
    /// [`Stop::Withheld`](crate::Stop::Withheld), until [`Device::release`]. When this returns, none
    /// that was issued before is under way; `false` if one still is, because it has been blocked in
    /// its client's memory for [`WITHHOLD_PATIENCE`].
    ///
    /// Never to be called under a guard, nor with a lock held that a reader needs to finish.
    pub fn withhold(self: &Arc<Self>, requests: Requests) -> bool {
        self.group()
            .withhold(self, requests, Instant::now() + WITHHOLD_PATIENCE)
    }

    /// Lets the device issue them again. Nothing is sent by this: the engine that
    /// was stopped tries again.
    pub fn release(self: &Arc<Self>, requests: Requests) {
        self.group().release(self, requests);
    }
}

impl Group {
    /// Withholds requests of `device` and waits for those that are under way, as far as none of them
    /// is blocked beyond `deadline`: whether none is left. Attachments stay what they are.
    fn withhold(&self, device: &Arc<Device>, requests: Requests, deadline: Instant) -> bool {
        let mut domains: Vec<DomainId> = {
            let state = self.lock();
            let _decided = device.withheld().add(requests);
            let routes = state.routes.iter();
            let own = routes.filter(|(pasid, _)| requests.include(**pasid));
            let now = own.map(|(pasid, route)| {
                device.routes().set(*pasid, None);
                route.domain.marker()
            });
            let draining = state.draining.iter();
            let draining = draining.filter(|old| requests.include(old.pasid));
            now.chain(draining.map(|old| old.domain)).collect()
        };
        domains.sort_unstable();
        domains.dedup();
        let grace = &self.shared().grace;
        let blocked = domains
            .into_iter()
            .filter(|domain| !grace.wait_until(*domain, deadline));
        blocked.count() == 0
    }

    /// Ends that: the attachments are in force again, except for requests that are withheld for another
    /// reason.
    fn release(&self, device: &Arc<Device>, requests: Requests) {
        let state = self.lock();
        let withheld = device.withheld().remove(requests);
        if state.resetting.contains_key(&device.id()) {
            return;
        }
        for (pasid, route) in &state.routes {
            if requests.include(*pasid) && !withheld.iter().any(|other| other.include(*pasid)) {
                device.routes().set(*pasid, Some(route.attachment(device)));
            }
        }
    }
}
