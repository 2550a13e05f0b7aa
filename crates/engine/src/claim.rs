//! A unit of a device (a queue, a channel) that one owner has for itself.

use std::{fmt, sync::Arc};

use ioasid_core::sync::Mutex;

/// A device whose units can be claimed.
pub trait Claimable: Send + Sync + fmt::Debug {
    /// The uses of a unit. They exclude each other.
    type Owner: Copy + fmt::Debug;

    /// Calls `op` with the place where the owner of `unit` is kept, if there is such a unit.
    fn with_owner<R>(
        &self,
        unit: usize,
        op: impl FnOnce(&mut Option<Self::Owner>) -> R,
    ) -> Option<R>;

    /// Stops `unit` and frees it. When this returns, no job of it is under way and no interrupt of
    /// it is about to be raised.
    fn release(&self, unit: usize);
}

/// Why a unit cannot be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClaimError<O: fmt::Debug> {
    /// There is no such unit (EINVAL).
    #[error("there is no unit {0}")]
    NoUnit(usize),
    /// It has an owner (EBUSY).
    #[error("unit {unit} is in use by a {owner:?} owner")]
    Busy {
        /// The unit.
        unit: usize,
        /// What has it.
        owner: O,
    },
}

/// A unit that one owner has for itself. Dropping it stops the unit: nothing of it is under way and
/// it is free when that returns.
#[derive(Debug)]
pub struct Claim<D: Claimable> {
    device: Arc<D>,
    unit: usize,
}

impl<D: Claimable> Claim<D> {
    /// Claims `unit` of `device` for `owner`.
    ///
    /// # Errors
    /// [`ClaimError`].
    pub fn new(
        device: &Arc<D>,
        unit: usize,
        owner: D::Owner,
    ) -> Result<Self, ClaimError<D::Owner>> {
        let claimed = device.with_owner(unit, |place| match *place {
            Some(owner) => Err(ClaimError::Busy { unit, owner }),
            None => {
                *place = Some(owner);
                Ok(())
            }
        });
        claimed.unwrap_or(Err(ClaimError::NoUnit(unit)))?;
        Ok(Claim {
            device: Arc::clone(device),
            unit,
        })
    }

    /// The device.
    pub fn device(&self) -> &Arc<D> {
        &self.device
    }

    /// The unit's index.
    pub fn index(&self) -> usize {
        self.unit
    }
}

impl<D: Claimable> Drop for Claim<D> {
    fn drop(&mut self) {
        self.device.release(self.unit);
    }
}

/// The unit of a child: a device of its own until the child is removed. Keeps the parent alive.
#[derive(Debug)]
pub struct ChildUnit<D: Claimable> {
    parent: Arc<D>,
    unit: usize,
    /// `None` once the child has been removed.
    claim: Mutex<Option<Claim<D>>>,
}

impl<D: Claimable> ChildUnit<D> {
    /// The unit that `claim` is about.
    pub fn new(claim: Claim<D>) -> Self {
        ChildUnit {
            parent: Arc::clone(&claim.device),
            unit: claim.unit,
            claim: Mutex::new(Some(claim)),
        }
    }

    /// The parent.
    pub fn parent(&self) -> &Arc<D> {
        &self.parent
    }

    /// Index of the unit in the parent.
    pub fn index(&self) -> usize {
        self.unit
    }

    /// Calls `op` while the unit is the child's; it cannot be given back meanwhile.
    pub fn if_claimed<R>(&self, op: impl FnOnce(&Claim<D>) -> R) -> Option<R> {
        self.claim.lock().as_ref().map(op)
    }

    /// Gives the unit back: the child has been removed.
    pub fn retire(&self) {
        let claim = self.claim.lock().take();
        drop(claim);
    }
}
