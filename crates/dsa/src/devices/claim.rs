//! Claims of queues.

use ioasid_engine::{Claim, ClaimError, Claimable};

use crate::{
    config::{Error, QueueType},
    devices::device::DsaDevice,
    queues::commands,
};

/// A queue that one owner has for itself. Dropping it stops the queue: it is aborted, disabled and
/// free when that returns.
pub type QueueClaim = Claim<DsaDevice>;

impl Claimable for DsaDevice {
    type Owner = QueueType;

    fn with_owner<R>(
        &self,
        queue: usize,
        op: impl FnOnce(&mut Option<QueueType>) -> R,
    ) -> Option<R> {
        let mut state = self.pool.lock();
        state
            .queues
            .get_mut(queue)
            .map(|queue| op(&mut queue.claim))
    }

    fn release(&self, queue: usize) {
        commands::stop(&self.pool, 1 << queue);
        self.pool.change(|state| {
            if let Some(queue) = state.queues.get_mut(queue) {
                queue.claim = None;
            }
        });
    }
}

impl From<ClaimError<QueueType>> for Error {
    fn from(error: ClaimError<QueueType>) -> Self {
        match error {
            ClaimError::NoUnit(queue) => Error::NoQueue(queue),
            ClaimError::Busy { unit: index, owner } => Error::QueueBusy { index, owner },
        }
    }
}
