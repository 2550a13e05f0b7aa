//! The windows of 1 GiB that one client has in the system physical address space.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use ioasid_core::{
    memory::{Backing, PinError},
    spa::{SpaRange, SpaSpace},
};

/// What one client has of the system physical address space, and how much it may have.
#[derive(Debug)]
pub(crate) struct Windows {
    space: Arc<SpaSpace>,
    used: Arc<AtomicUsize>,
    limit: usize,
}

/// The right to one window, given back on drop: with the backing, after the grace period.
#[derive(Debug)]
pub(crate) struct WindowPermit(Arc<AtomicUsize>);

impl Drop for WindowPermit {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Windows {
    /// At most `limit` windows in `space`.
    pub(crate) fn new(space: Arc<SpaSpace>, limit: usize) -> Arc<Self> {
        Arc::new(Windows {
            space,
            used: Arc::default(),
            limit,
        })
    }

    pub(crate) fn space(&self) -> &Arc<SpaSpace> {
        &self.space
    }

    /// Windows in use.
    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Windows that the client may use.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// The right to one more window.
    ///
    /// # Errors
    /// [`PinError::NoMemory`] over the limit.
    pub(crate) fn permit(&self) -> Result<WindowPermit, PinError> {
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < self.limit).then_some(used + 1)
            })
            .map(|_| WindowPermit(Arc::clone(&self.used)))
            .map_err(|_full| PinError::NoMemory)
    }

    /// Gives `backing`, which has its permits, a range whose start is `phase` modulo 1 GiB.
    ///
    /// # Errors
    /// [`PinError::NoMemory`] if the space is full, or the backing has no bytes.
    pub(crate) fn register(
        &self,
        backing: Arc<dyn Backing>,
        phase: u64,
    ) -> Result<Arc<SpaRange>, PinError> {
        Ok(Arc::new(self.space.register(backing, phase)?))
    }
}
