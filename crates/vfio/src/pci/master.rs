//! `PCI_COMMAND.MASTER` at work: what a function must not do while it is 0, or while the function
//! sleeps (PCI Express base specification, 7.5.1.1.3; PCI bus power management specification, 5.4.1).
//!
//! Memory requests and interrupt messages, which are memory writes too, wait until it is set again: the
//! specification says that none may be issued, and leaves open what becomes of them. The wired interrupt
//! is no request of the function.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use ioasid_core::sync::{Mutex, MutexGuard};
use ioasid_iommu::{Device, Requests, WITHHOLD_PATIENCE};

use super::vectors::Vectors;
use crate::dma::emulated::EmulatedDma;

pub(super) type Listener = Box<dyn Fn() + Send + Sync>;

/// What follows the bit.
#[derive(Default)]
pub(super) struct Followers {
    /// Requests of devices behind the IOMMU that are the function's.
    requests: Vec<(Arc<Device>, Requests)>,
    emulated: Option<EmulatedDma>,
    listeners: Vec<Listener>,
}

/// The bit of one function. Its followers' lock is held over every change of it.
pub(super) struct Master {
    on: AtomicBool,
    followers: Mutex<Followers>,
}

impl Master {
    pub(super) fn new() -> Self {
        Master {
            on: AtomicBool::new(false),
            followers: Mutex::default(),
        }
    }

    pub(super) fn is_on(&self) -> bool {
        self.on.load(Ordering::Acquire)
    }

    /// Requests of `device` follow the bit from now on. Nothing happens if they do already.
    pub(super) fn add_requests(&self, device: &Arc<Device>, of: Requests) {
        let mut followers = self.change();
        let mut known = followers.requests.iter();
        if known.any(|(other, kind)| Arc::ptr_eq(other, device) && *kind == of) {
            return;
        }
        if !self.is_on() {
            set_requests(device, of, false);
        }
        followers.requests.push((Arc::clone(device), of));
    }

    /// Ends that.
    pub(super) fn remove_requests(&self, device: &Arc<Device>, of: Requests) {
        let mut followers = self.change();
        followers
            .requests
            .retain(|(other, kind)| !Arc::ptr_eq(other, device) || *kind != of);
        device.release(of);
    }

    /// What `dma` copies follows the bit from now on.
    pub(super) fn add_copies(&self, dma: &EmulatedDma) {
        let mut followers = self.change();
        dma.set_bus_master(self.is_on());
        followers.emulated = Some(dma.clone());
    }

    /// Calls `listener` after each change from now on.
    pub(super) fn add_listener(&self, listener: Listener) {
        self.change().listeners.push(listener);
    }

    /// Begins a change.
    pub(super) fn change(&self) -> MutexGuard<'_, Followers> {
        self.followers.lock()
    }

    /// Whether the function may issue requests from now on. If not, those that were issued before have
    /// ended when this returns, but for what its client keeps from ending for [`WITHHOLD_PATIENCE`]: a
    /// copy in memory that blocks, an eventfd that does.
    pub(super) fn set(&self, followers: &Followers, vectors: &Vectors, on: bool) {
        if self.is_on() == on {
            return;
        }
        // Engines ask for the bit before they begin anything: it is the last to come and the first to go.
        if on {
            vectors.open();
            followers.set_requests(true);
            self.on.store(true, Ordering::Release);
        } else {
            self.on.store(false, Ordering::Release);
            followers.set_requests(false);
            // What a message reports is in memory.
            vectors.close(WITHHOLD_PATIENCE);
        }
        for listener in &followers.listeners {
            listener();
        }
    }
}

impl Followers {
    fn set_requests(&self, on: bool) {
        for (device, of) in &self.requests {
            set_requests(device, *of, on);
        }
        if let Some(dma) = &self.emulated {
            dma.set_bus_master(on);
        }
    }
}

fn set_requests(device: &Arc<Device>, of: Requests, on: bool) {
    match on {
        true => device.release(of),
        false => {
            // What is left then is blocked by its own client.
            let _ = device.withhold(of);
        }
    }
}

impl fmt::Debug for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Master").field(&self.is_on()).finish()
    }
}
