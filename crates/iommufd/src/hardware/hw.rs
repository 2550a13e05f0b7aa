//! What differs between IOMMUs: the questions that the object model asks the IOMMU in front of a
//! bound device, where the kernel asks the IOMMU driver (`struct iommu_ops`, `iommu_domain_ops`,
//! `iommufd_viommu_ops`; include/linux/{iommu,iommufd}.h).
//!
//! A plain software device answers with [`SoftwareIommu`](super::software::SoftwareIommu): its page tables
//! are domains of the machine in the device's format, shared where attributes agree, and what is nested on
//! them. A back end with formats, nested translation or virtual IOMMUs of its own implements [`HwOps`] and
//! binds with
//! [`Context::bind_device_with`](crate::Context::bind_device_with). Nothing of such a back end is
//! known here: types and data of programs pass through as numbers and bytes.
//!
//! Ownership, groups, the rules of PASIDs, the order of checks, object ids and users stay with the
//! object model. Called with the lock of attachments held, unless said otherwise: nothing here may
//! attach, detach, or destroy an object.

use std::{any::Any, fmt::Debug, sync::Arc};

use ioasid_core::Pasid;
use ioasid_iommu::Domain;

use super::{hw_info::HwData, mmap::MmapSpace, viommu::Viommu};
use crate::{
    base::{
        error::{AllocError, Error},
        flags::HwptFlags,
        id::ObjectId,
        user::{UserArray, UserData},
    },
    space::domains::PagingConfig,
};

/// The IOMMU in front of one bound device.
pub trait HwOps: Any + Send + Sync + Debug {
    /// Which IOMMU of the machine it is: virtual IOMMUs do not mix devices of different ones.
    fn instance(&self) -> u64 {
        0
    }

    /// What GET_HW_INFO says of this kind of IOMMU.
    fn info(&self) -> HwData;

    /// Whether written pages can be tracked.
    fn supports_dirty(&self) -> bool;

    /// Whether DMA can be forced to be coherent with the processor's caches.
    fn enforces_coherency(&self) -> bool {
        true
    }

    /// The domain for a page table of an IOAS. `flags` are good by the rules that all IOMMUs share,
    /// without
    /// [`HwptFlags::FAULT_ID_VALID`].
    ///
    /// # Errors
    /// [`AllocError::FlagsNotSupported`], [`AllocError::TypeNotSupported`], [`Error::UserData`].
    fn alloc_paging(
        &self,
        flags: HwptFlags,
        data: Option<&UserData<'_>>,
    ) -> Result<PagingConfig, Error>;

    /// Whether this kind of IOMMU knows of page tables that are nested on others, be it that this one has
    /// none. Without it nothing else of such a request is looked at.
    fn knows_nesting(&self) -> bool {
        true
    }

    /// A page table of the program, nested on `parent`. As for [`HwOps::alloc_paging`].
    ///
    /// # Errors
    /// [`AllocError::TypeNotSupported`] by default: there are none.
    fn alloc_nested(
        &self,
        parent: &Arc<Domain>,
        flags: HwptFlags,
        data: &UserData<'_>,
    ) -> Result<Arc<dyn NestedOps>, Error> {
        let _ = (parent, flags);
        Err(AllocError::TypeNotSupported(data.kind()).into())
    }

    /// Whether there are virtual IOMMUs of the type `kind`.
    fn supports_viommu(&self, kind: u32) -> bool {
        let _ = kind;
        false
    }

    /// A virtual IOMMU of a type that [`HwOps::supports_viommu`] has agreed to, on the page table
    /// `parent`.
    ///
    /// # Errors
    /// [`AllocError::TypeNotSupported`] by default.
    fn init_viommu(&self, request: &ViommuRequest<'_>) -> Result<Arc<dyn ViommuOps>, Error> {
        Err(AllocError::TypeNotSupported(request.kind).into())
    }

    /// The last check before the device, or a PASID of it, is attached to `target`. All or nothing:
    /// what it refuses changes nothing.
    ///
    /// # Errors
    /// Whatever says best why not; nothing is refused by default.
    fn check_attach(&self, pasid: Option<Pasid>, target: &Target) -> Result<(), Error> {
        let _ = (pasid, target);
        Ok(())
    }

    /// The device, or a PASID of it, is attached to `target` now, or to nothing.
    fn attached(&self, pasid: Option<Pasid>, target: Option<&Target>) {
        let _ = (pasid, target);
    }

    /// Whether a page request at a PASID that is not attached belongs to what the device itself is
    /// attached to, if that is nested: the program owns the table of PASIDs.
    fn has_user_pasid_table(&self) -> bool {
        false
    }
}

/// How far an invalidation came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidated {
    /// Entries that were done: the program learns it in any case.
    pub done: u32,
    /// Why it stopped there.
    pub result: Result<(), Error>,
}

impl Invalidated {
    /// Stopped by `error` after `done` entries.
    pub const fn stopped(done: u32, error: Error) -> Self {
        Invalidated {
            done,
            result: Err(error),
        }
    }
}

/// A page table that belongs to the program.
pub trait NestedOps: Any + Send + Sync + Debug {
    /// The domain that devices are attached to: nested on that of the parent. Without one, as by default,
    /// the machine walks no such table, and its DMA is blocked: it is the back end's own business.
    fn domain(&self) -> Option<&Arc<Domain>> {
        None
    }

    /// HWPT_INVALIDATE: forgets cached translations. Called without a lock.
    fn invalidate(&self, entries: &UserArray<'_>) -> Invalidated {
        Invalidated::stopped(0, AllocError::TypeNotSupported(entries.kind()).into())
    }
}

/// What a virtual IOMMU is made of.
#[derive(Debug)]
pub struct ViommuRequest<'a> {
    /// `enum iommu_viommu_type`.
    pub kind: u32,
    /// The page table that guests' page tables are nested on.
    pub parent: &'a Arc<Domain>,
    /// What came with it.
    pub data: Option<UserData<'a>>,
    /// Where memory for the program to map can be put.
    pub mmap: &'a MmapSpace<'a>,
}

/// A virtual IOMMU.
pub trait ViommuOps: Any + Send + Sync + Debug {
    /// A page table of the guest.
    ///
    /// # Errors
    /// [`AllocError::TypeNotSupported`] by default; as for [`HwOps::alloc_nested`].
    fn alloc_nested(
        &self,
        flags: HwptFlags,
        data: &UserData<'_>,
    ) -> Result<Arc<dyn NestedOps>, Error> {
        let _ = flags;
        Err(AllocError::TypeNotSupported(data.kind()).into())
    }

    /// HWPT_INVALIDATE: forgets what `viommu` and its devices cache. Called without a lock.
    fn invalidate(&self, viommu: &Viommu, entries: &UserArray<'_>) -> Invalidated {
        let _ = viommu;
        Invalidated::stopped(0, AllocError::TypeNotSupported(entries.kind()).into())
    }

    /// Whether there are hardware queues of the type `kind`.
    fn supports_hw_queue(&self, kind: u32) -> bool {
        let _ = kind;
        false
    }

    /// Starts a queue in memory of the guest, which stays where it is as long as the queue lives.
    /// Returns the queue that must outlive it, if any.
    ///
    /// # Errors
    /// Whatever says best why not.
    fn init_hw_queue(&self, queue: &HwQueueConfig) -> Result<Option<ObjectId>, Error> {
        Err(AllocError::TypeNotSupported(queue.kind).into())
    }

    /// Ends a queue that [`ViommuOps::init_hw_queue`] started.
    fn end_hw_queue(&self, queue: &HwQueueConfig) {
        let _ = queue;
    }
}

/// A hardware queue of a virtual IOMMU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HwQueueConfig {
    /// Its object.
    pub id: ObjectId,
    /// `enum iommu_hw_queue_type`.
    pub kind: u32,
    /// Which of the queues of that type.
    pub index: u32,
    /// Where it is in the address space below the guest's.
    pub iova: u64,
    /// Bytes.
    pub len: u64,
    /// Its system physical address: its pages have neighbouring ones.
    pub spa: u64,
}

/// What a device is attached to.
#[derive(Clone, Debug)]
pub struct Target {
    /// The page table object.
    pub hwpt: ObjectId,
    /// What it was made with.
    pub flags: HwptFlags,
    /// What it is.
    pub kind: TargetKind,
}

/// What kind of page table a [`Target`] is.
#[derive(Clone, Debug)]
pub enum TargetKind {
    /// The mappings of an IOAS.
    Paging(Arc<Domain>),
    /// A page table of the program.
    Nested {
        /// The back end's part.
        nested: Arc<dyn NestedOps>,
        /// The virtual IOMMU it was made on, if on one.
        viommu: Option<Arc<Viommu>>,
        /// The device's number on that virtual IOMMU, if it has one there.
        virt_id: Option<u64>,
    },
}
