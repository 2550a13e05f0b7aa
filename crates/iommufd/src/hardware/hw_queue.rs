//! Hardware queues of a virtual IOMMU: rings in the memory of a guest that hardware reads by
//! physical address (drivers/iommu/iommufd/viommu.c).
//!
//! An access object of the file's own pins the ring and locks its area, so that no UNMAP takes the
//! memory away below the hardware.

use std::{fmt, sync::Arc};

use ioasid_core::sync::Mutex;

use super::{hw::HwQueueConfig, viommu::Viommu};
use crate::{
    base::id::{ObjectId, Use},
    space::{access::PinnedPages, ioas::AttachedAccess},
};

/// What HW_QUEUE_ALLOC is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HwQueueAlloc {
    /// The virtual IOMMU.
    pub viommu: ObjectId,
    /// `enum iommu_hw_queue_type`, not 0.
    pub kind: u32,
    /// Which of the queues of that type.
    pub index: u32,
    /// Where the ring is in the address space below the guest's.
    pub iova: u64,
    /// Bytes of the ring.
    pub len: u64,
}

/// The memory of a queue, in the order in which it is given back: the pins, the access object that
/// made them, the use of the IOAS.
pub(crate) struct Ring {
    pub(crate) _pinned: PinnedPages,
    pub(crate) _attached: AttachedAccess,
    pub(crate) _ioas: Use,
}

/// A hardware queue.
pub(crate) struct HwQueue {
    config: HwQueueConfig,
    viommu: Arc<Viommu>,
    /// The access object that pins the ring.
    access: ObjectId,
    ring: Mutex<Option<Ring>>,
}

impl HwQueue {
    /// A queue that the back end has started in `ring`.
    pub(crate) fn new(
        config: HwQueueConfig,
        viommu: Arc<Viommu>,
        access: ObjectId,
        ring: Ring,
    ) -> Arc<Self> {
        Arc::new(HwQueue {
            config,
            viommu,
            access,
            ring: Mutex::new(Some(ring)),
        })
    }

    /// The access object that pins its ring, and goes with it.
    pub(crate) fn access(&self) -> ObjectId {
        self.access
    }

    /// The hardware stops, and the ring is the guest's again; the caller has the object out of the
    /// table.
    pub(crate) fn release(&self) {
        self.viommu.ops().end_hw_queue(&self.config);
        let ring = self.ring.lock().take();
        drop(ring);
    }
}

impl fmt::Debug for HwQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HwQueue")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}
