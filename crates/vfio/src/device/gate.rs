//! What may happen to a device at the same time.

use std::{
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError},
    time::{Duration, Instant},
};

use crate::base::error::RegionError;

/// Held shared for every access to a device, exclusively to reset it, to release it, and to change
/// what answers.
#[derive(Debug, Default)]
pub(crate) struct Gate(RwLock<()>);

impl Gate {
    pub(crate) fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Gate::shared`], for a caller that the owner of the gate may itself wait for.
    ///
    /// # Errors
    /// [`RegionError::NoAnswer`] after `patience`.
    pub(crate) fn shared_within(
        &self,
        patience: Duration,
    ) -> Result<RwLockReadGuard<'_, ()>, RegionError> {
        let start = Instant::now();
        loop {
            match self.0.try_read() {
                Ok(shared) => return Ok(shared),
                Err(TryLockError::Poisoned(shared)) => return Ok(shared.into_inner()),
                Err(TryLockError::WouldBlock) if start.elapsed() >= patience => {
                    return Err(RegionError::NoAnswer { waited: patience });
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    pub(crate) fn exclusive(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
