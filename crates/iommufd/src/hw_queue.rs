//! Hardware queues of a virtual IOMMU: rings in the memory of a guest that hardware reads by physical
//! address (drivers/iommu/iommufd/viommu.c).
//!
//! An access object of the file's own pins the ring and locks its area, so that no UNMAP takes the
//! memory away below the hardware.

use std::{fmt, ops::Deref, sync::Arc};

use ioasid_core::memory::PAGE_SIZE;

use crate::{
    access::{Access, AccessKind, PinnedPages},
    context::Context,
    error::Error,
    hw::HwQueueConfig,
    object::{Object, ObjectId},
    viommu::Viommu,
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

/// A hardware queue. The pins go before the access object that made them.
pub(crate) struct HwQueue {
    config: HwQueueConfig,
    viommu: Arc<Viommu>,
    /// The queue that it needs.
    needs: Option<ObjectId>,
    _pinned: PinnedPages,
    _access: Access,
}

impl HwQueue {
    pub(crate) fn viommu(&self) -> &Arc<Viommu> {
        &self.viommu
    }

    /// The queue that it needs.
    pub(crate) fn needs(&self) -> Option<ObjectId> {
        self.needs
    }

    /// The hardware lets go of the ring; the caller has the object out of the table.
    pub(crate) fn release(&self) {
        self.viommu.ops().end_hw_queue(&self.config);
    }
}

impl fmt::Debug for HwQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HwQueue")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Context {
    /// HW_QUEUE_ALLOC: starts a queue in memory of the guest. Its area cannot be unmapped from then
    /// on. An access object of its own takes the next id.
    ///
    /// # Errors
    /// In the kernel's order: [`Error::Empty`], [`Error::Overflow`], [`Error::NoObject`],
    /// [`Error::TypeNotSupported`], [`Error::NoIds`], [`Error::OutsideTable`] for a ring that ends
    /// inside the last page, [`Error::AddressInUse`] if mappings are not aligned to pages, those of
    /// [`Access::pin`], [`Error::NotContiguous`], and those of the back end.
    pub fn hw_queue_alloc(self: &Arc<Self>, args: HwQueueAlloc) -> Result<ObjectId, Error> {
        if args.len == 0 {
            return Err(Error::Empty);
        }
        args.iova.checked_add(args.len - 1).ok_or(Error::Overflow)?;
        // Used from here on, so that it is still there when the queue is.
        let viommu = Used::new(self, args.viommu)?;
        let ops = viommu.ops();
        if !ops.supports_hw_queue(args.kind) {
            return Err(Error::TypeNotSupported);
        }
        let id = self.reserve_id()?;
        let offset = args.iova % PAGE_SIZE;
        let bytes = args.len.checked_add(offset);
        let bytes = bytes.and_then(|bytes| bytes.checked_next_multiple_of(PAGE_SIZE));
        let bytes = bytes.ok_or(Error::OutsideTable)?;
        let access = self.create_access(AccessKind::Locks)?;
        access.attach(viommu.parent().ioas().id())?;
        let pinned = access.pin(args.iova - offset, bytes, false)?;
        let pieces = pinned.pieces();
        let [(spa, _)] = pieces.as_slice() else {
            return Err(Error::NotContiguous);
        };
        let config = HwQueueConfig {
            id: id.id(),
            kind: args.kind,
            index: args.index,
            iova: args.iova,
            len: args.len,
            spa: spa + offset,
        };
        let needs = ops.init_hw_queue(&config)?;
        if let Some(needs) = needs {
            self.objects.lock().hold(needs);
        }
        let queue = Arc::new(HwQueue {
            config,
            viommu: viommu.keep(),
            needs,
            _pinned: pinned,
            _access: access,
        });
        Ok(id.name(Object::HwQueue(queue)))
    }
}

/// A use of a virtual IOMMU while a queue is being made.
struct Used<'a> {
    context: &'a Context,
    viommu: Arc<Viommu>,
    kept: bool,
}

impl<'a> Used<'a> {
    fn new(context: &'a Context, id: ObjectId) -> Result<Self, Error> {
        let mut objects = context.objects.lock();
        let Some(Object::Viommu(viommu)) = objects.object(id) else {
            return Err(Error::NoObject(id));
        };
        objects.hold(id);
        Ok(Used {
            context,
            viommu,
            kept: false,
        })
    }

    /// The use goes on, as the queue's.
    fn keep(mut self) -> Arc<Viommu> {
        self.kept = true;
        Arc::clone(&self.viommu)
    }
}

impl Deref for Used<'_> {
    type Target = Viommu;

    fn deref(&self) -> &Viommu {
        &self.viommu
    }
}

impl Drop for Used<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.context.objects.lock().put(self.viommu.id());
        }
    }
}
