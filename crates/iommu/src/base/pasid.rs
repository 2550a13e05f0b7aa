//! The machine's PASIDs, with quotas, and the rule that a PASID in use is not handed out again.
//!
//! A number is *held* by its [`PasidHandle`], *free pending* while the handle is gone but a
//! [`PasidUse`] (a job in flight) is not, and free after that.

use std::{collections::BTreeSet, fmt, sync::Arc};

use ioasid_core::{
    Pasid,
    inspect::{Inspect, Node},
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};

/// Why no PASID was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasidError {
    /// Every number is held or free pending (ENOSPC).
    #[error("none of the PASIDs 1 to {last} is free: release a child of a device first")]
    Exhausted {
        /// The largest PASID of the pool.
        last: u32,
    },
    /// The quota is used up; numbers that are free pending count (ENOSPC).
    #[error("the quota of {limit} PASIDs is used up: release one first")]
    OverQuota {
        /// The quota.
        limit: u32,
    },
}

/// How many PASIDs one owner may have at a time.
#[derive(Debug)]
pub struct PasidQuota {
    limit: u32,
    used: AtomicU32,
}

impl PasidQuota {
    /// Up to `limit` PASIDs.
    pub fn new(limit: u32) -> Arc<Self> {
        Arc::new(PasidQuota {
            limit,
            used: AtomicU32::new(0),
        })
    }

    /// No limit but the number of PASIDs.
    pub fn unlimited() -> Arc<Self> {
        Self::new(Pasid::LIMIT)
    }

    /// PASIDs held or free pending.
    pub fn used(&self) -> u32 {
        self.used.load(Ordering::Acquire)
    }

    fn take(&self) -> bool {
        self.used
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
                (used < self.limit).then_some(used + 1)
            })
            .is_ok()
    }

    fn give_back(&self) {
        self.used.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The PASIDs 1..=last of one machine.
pub struct PasidPool {
    last: u32,
    state: Mutex<PoolState>,
}

#[derive(Default)]
struct PoolState {
    /// Every number above this one was never given.
    high: u32,
    /// Numbers up to `high` that are free.
    free: BTreeSet<u32>,
    held: u32,
    pending: u32,
}

impl PasidPool {
    /// All the PASIDs there can be: 1..=2^20-1.
    pub fn new() -> Arc<Self> {
        Self::with_last(Pasid::LIMIT - 1)
    }

    /// The PASIDs 1..=`last`; `last` is cut to 2^20-1.
    pub fn with_last(last: u32) -> Arc<Self> {
        Arc::new(PasidPool {
            last: last.min(Pasid::LIMIT - 1),
            state: Mutex::default(),
        })
    }

    /// The lowest free PASID, charged to `quota`.
    ///
    /// # Errors
    /// See [`PasidError`].
    pub fn alloc(self: &Arc<Self>, quota: &Arc<PasidQuota>) -> Result<PasidHandle, PasidError> {
        if !quota.take() {
            return Err(PasidError::OverQuota { limit: quota.limit });
        }
        let number = {
            let mut state = self.state.lock();
            let number = match state.free.pop_first() {
                Some(number) => Some(number),
                None if state.high < self.last => {
                    state.high += 1;
                    Some(state.high)
                }
                None => None,
            };
            state.held += u32::from(number.is_some());
            number
        };
        let Some(pasid) = number.and_then(Pasid::new) else {
            quota.give_back();
            return Err(PasidError::Exhausted { last: self.last });
        };
        Ok(PasidHandle {
            number: Arc::new(Number {
                pool: Arc::clone(self),
                quota: Arc::clone(quota),
                pasid,
            }),
        })
    }

    /// PASIDs that have a handle.
    pub fn held(&self) -> u32 {
        self.state.lock().held
    }

    /// PASIDs whose handle is gone while a job still uses them.
    pub fn pending(&self) -> u32 {
        self.state.lock().pending
    }
}

impl fmt::Debug for PasidPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasidPool")
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

impl Inspect for PasidPool {
    fn inspect(&self) -> Node {
        let state = self.state.lock();
        Node::new()
            .with("held", state.held)
            .with("pending", state.pending)
            .with("free", self.last - state.held - state.pending)
    }
}

/// One number that is not free. The last reference gives it back.
struct Number {
    pool: Arc<PasidPool>,
    quota: Arc<PasidQuota>,
    pasid: Pasid,
}

impl Drop for Number {
    fn drop(&mut self) {
        {
            let mut state = self.pool.state.lock();
            state.pending -= 1;
            state.free.insert(self.pasid.get());
        }
        self.quota.give_back();
    }
}

/// A PASID of one owner. Dropping it frees the number once every [`PasidUse`] is gone.
pub struct PasidHandle {
    number: Arc<Number>,
}

impl PasidHandle {
    /// The number.
    pub fn pasid(&self) -> Pasid {
        self.number.pasid
    }

    /// A token for one job in flight: while it lives, the number is not handed out again.
    pub fn use_token(&self) -> PasidUse {
        PasidUse {
            number: Arc::clone(&self.number),
        }
    }
}

impl Drop for PasidHandle {
    fn drop(&mut self) {
        // Free pending from here, even if only for a moment: `Number` goes when the last token does.
        let mut state = self.number.pool.state.lock();
        state.held -= 1;
        state.pending += 1;
    }
}

impl fmt::Debug for PasidHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PasidHandle({})", self.pasid())
    }
}

/// A job in flight that uses a PASID.
#[derive(Clone)]
pub struct PasidUse {
    number: Arc<Number>,
}

impl PasidUse {
    /// The number.
    pub fn pasid(&self) -> Pasid {
        self.number.pasid
    }
}

impl fmt::Debug for PasidUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PasidUse({})", self.pasid())
    }
}
