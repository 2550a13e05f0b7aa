//! Who has a queue for itself.

use std::sync::Arc;

use crate::device::DsaDevice;

/// A queue that one owner has for itself. Dropping it stops the queue: it is aborted, disabled and
/// free when that returns.
#[derive(Debug)]
pub struct QueueClaim {
    pub(crate) device: Arc<DsaDevice>,
    pub(crate) index: usize,
}

impl QueueClaim {
    /// The device.
    pub fn device(&self) -> &Arc<DsaDevice> {
        &self.device
    }

    /// The queue's index.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The queue as a set.
    pub(crate) const fn set(&self) -> u64 {
        1 << self.index
    }
}

impl Drop for QueueClaim {
    fn drop(&mut self) {
        let shared = &self.device.shared;
        shared.stop_queues(self.set());
        shared.change(|state| state.queues[self.index].claim = None);
    }
}
