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

use ioasid_core::{
    DomainId, Pasid,
    grace::Held,
    sync::{Mutex, MutexGuard},
};

use crate::{
    device::{Attachment, Device},
    group::Group,
    writes::Requests,
};

/// How long a copy is waited for that is blocked in its client's memory. Guards that run are waited
/// for without a limit: they are bounded by their bytes.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// What a device must not issue at present. Changes under the lock of its group.
#[derive(Debug, Default)]
pub(crate) struct Withheld {
    list: Mutex<Vec<Requests>>,
}

impl Withheld {
    /// Whether requests with `pasid` are among it. The caller holds the lock of the group.
    pub(crate) fn includes(&self, pasid: Option<Pasid>) -> bool {
        self.list.lock().iter().any(|of| of.include(pasid))
    }

    /// Withholds `of`. While what this returns lives, no guard decides what an empty cell means.
    pub(crate) fn add(&self, of: Requests) -> MutexGuard<'_, Vec<Requests>> {
        let mut list = self.list.lock();
        if !list.contains(&of) {
            list.push(of);
        }
        list
    }

    /// Withholds `of` no more; otherwise as [`Withheld::add`].
    pub(crate) fn remove(&self, of: Requests) -> MutexGuard<'_, Vec<Requests>> {
        let mut list = self.list.lock();
        list.retain(|other| *other != of);
        list
    }

    /// For a guard that has found an empty cell: whether its route is withheld. Otherwise the cell is
    /// looked at once more, since it may have been filled in the meantime.
    pub(crate) fn explain<'a>(
        &self,
        device: &'a Device,
        pasid: Option<Pasid>,
        held: &mut Held<'a, Attachment>,
    ) -> bool {
        let list = self.list.lock();
        if list.iter().any(|of| of.include(pasid)) {
            return true;
        }
        held.again();
        device.routes().find(pasid, held);
        false
    }
}

impl Device {
    /// Withholds requests of this device: its ports reach nothing with them and stop with
    /// [`Stop::Withheld`](crate::Stop::Withheld), until [`Device::release`]. When this returns, none
    /// that was issued before is under way; `false` if one still is, because it has been blocked in
    /// its client's memory for [`PATIENCE`].
    ///
    /// Never to be called under a guard, nor with a lock held that a reader needs to finish.
    pub fn withhold(self: &Arc<Self>, of: Requests) -> bool {
        self.group().withhold(self, of, Instant::now() + PATIENCE)
    }

    /// Lets the device issue them again. What was withheld is not sent by this: whoever was stopped
    /// tries again.
    pub fn release(self: &Arc<Self>, of: Requests) {
        self.group().release(self, of);
    }
}

impl Group {
    /// Withholds requests of `device` and waits for those that are under way, as far as none of them
    /// is blocked beyond `deadline`: whether none is left. Attachments stay what they are.
    fn withhold(&self, device: &Arc<Device>, of: Requests, deadline: Instant) -> bool {
        let mut domains: Vec<DomainId> = {
            let state = self.state.lock();
            let _decided = device.withheld().add(of);
            let routes = state.routes.iter();
            let own = routes.filter(|(pasid, _)| of.include(**pasid));
            let now = own.map(|(pasid, entry)| {
                device.routes().set(*pasid, None);
                entry.domain.id()
            });
            let leaving = state.leaving.iter();
            let leaving = leaving.filter(|left| of.include(left.pasid));
            now.chain(leaving.map(|left| left.domain)).collect()
        };
        domains.sort_unstable();
        domains.dedup();
        let grace = &self.shared.grace;
        let left = domains
            .into_iter()
            .filter(|domain| !grace.wait_until(*domain, deadline));
        left.count() == 0
    }

    /// Ends that: the attachments are in force again, but for what is withheld for another reason.
    fn release(&self, device: &Arc<Device>, of: Requests) {
        let state = self.state.lock();
        let withheld = device.withheld().remove(of);
        if state.resetting.contains_key(&device.id()) {
            return;
        }
        for (pasid, entry) in &state.routes {
            if of.include(*pasid) && !withheld.iter().any(|other| other.include(*pasid)) {
                device.routes().set(*pasid, Some(entry.attachment(device)));
            }
        }
    }
}
