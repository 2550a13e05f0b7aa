//! Page tables as programs name them: of an IOAS, or nested on another.

use std::sync::{Arc, OnceLock};

use ioasid_core::inspect::{Inspect, Node};
use ioasid_iommu::Domain;

use super::{fault::FaultHandler, hw::NestedOps, paging::PagingTable, viommu::Viommu};
use crate::{
    base::{error::DirtyError, flags::HwptFlags, id::ObjectId, queue::Queue},
    space::ioas::Ioas,
};

/// What HWPT_ALLOC is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HwptAlloc {
    /// The device whose IOMMU the page table is for.
    pub device: ObjectId,
    /// What it is built on: an IOAS, or the page table or virtual IOMMU to nest on.
    pub parent: ObjectId,
    /// How.
    pub flags: HwptFlags,
    /// The fault queue, looked at only with [`HwptFlags::FAULT_ID_VALID`].
    pub fault_id: u32,
}

impl HwptAlloc {
    /// A page table on the IOAS `parent` for `device`, without flags.
    pub const fn new(device: ObjectId, parent: ObjectId) -> Self {
        HwptAlloc {
            device,
            parent,
            flags: HwptFlags::NONE,
            fault_id: 0,
        }
    }

    /// The same with `flags`.
    #[must_use]
    pub const fn with_flags(self, flags: HwptFlags) -> Self {
        HwptAlloc { flags, ..self }
    }
}

/// A page table of the program's.
#[derive(Debug)]
pub(crate) struct NestedTable {
    parent: Arc<PagingTable>,
    viommu: Option<Arc<Viommu>>,
    ops: Arc<dyn NestedOps>,
    target: Arc<Domain>,
}

impl NestedTable {
    pub(crate) fn new(
        parent: Arc<PagingTable>,
        viommu: Option<Arc<Viommu>>,
        ops: Arc<dyn NestedOps>,
        target: Arc<Domain>,
    ) -> Self {
        NestedTable {
            parent,
            viommu,
            ops,
            target,
        }
    }

    pub(crate) fn ops(&self) -> &Arc<dyn NestedOps> {
        &self.ops
    }

    pub(crate) fn viommu(&self) -> Option<&Arc<Viommu>> {
        self.viommu.as_ref()
    }
}

/// What a page table object is.
#[derive(Debug)]
pub(crate) enum Kind {
    Paging(Arc<PagingTable>),
    Nested(NestedTable),
}

/// A page table object.
#[derive(Debug)]
pub(crate) struct Hwpt {
    id: ObjectId,
    flags: HwptFlags,
    /// The IOMMU that it was made for.
    instance: u64,
    kind: Kind,
    /// Takes page requests, if a fault queue was given.
    faults: OnceLock<Arc<FaultHandler>>,
}

impl Hwpt {
    pub(crate) fn new(id: ObjectId, flags: HwptFlags, instance: u64, kind: Kind) -> Arc<Self> {
        Arc::new(Hwpt {
            id,
            flags,
            instance,
            kind,
            faults: OnceLock::new(),
        })
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    pub(crate) fn flags(&self) -> HwptFlags {
        self.flags
    }

    pub(crate) fn instance(&self) -> u64 {
        self.instance
    }

    pub(crate) fn paging(&self) -> Option<&Arc<PagingTable>> {
        match &self.kind {
            Kind::Paging(paging) => Some(paging),
            Kind::Nested(_) => None,
        }
    }

    pub(crate) fn nested(&self) -> Option<&NestedTable> {
        match &self.kind {
            Kind::Paging(_) => None,
            Kind::Nested(nested) => Some(nested),
        }
    }

    /// The page table, if others may be nested on it.
    pub(crate) fn nest_parent(&self) -> Option<&Arc<PagingTable>> {
        self.paging().filter(|paging| paging.is_nest_parent())
    }

    /// The IOAS that the device's accesses end in.
    pub(crate) fn ioas(&self) -> &Arc<Ioas> {
        match &self.kind {
            Kind::Paging(paging) => paging.ioas(),
            Kind::Nested(nested) => nested.parent.ioas(),
        }
    }

    /// The domain that devices are attached to.
    pub(crate) fn target(&self) -> &Arc<Domain> {
        match &self.kind {
            Kind::Paging(paging) => paging.domain().domain(),
            Kind::Nested(nested) => &nested.target,
        }
    }

    /// Made by attaching to the IOAS, and gone with the last attachment.
    pub(crate) fn is_automatic(&self) -> bool {
        self.paging().is_some_and(|paging| paging.is_automatic())
    }

    pub(crate) fn faults(&self) -> Option<&Arc<FaultHandler>> {
        self.faults.get()
    }

    /// Sends page requests to `handler`: once, before anything is attached.
    pub(crate) fn send_faults(&self, handler: Arc<FaultHandler>) {
        self.target()
            .set_page_request_handler(Some(handler.clone()));
        // A second handler cannot be: only the command that makes the object sets one.
        let _ = self.faults.set(handler);
    }

    /// Whether devices are attached only if their IOMMU can track dirty pages. A nested domain ends in its
    /// parent's, whose pages are tracked.
    pub(crate) fn needs_dirty_tracking(&self) -> bool {
        let flags = match &self.kind {
            Kind::Nested(nested) if nested.ops.domain().is_some() => nested.parent.flags(),
            Kind::Nested(_) | Kind::Paging(_) => self.flags,
        };
        flags.contains(HwptFlags::DIRTY_TRACKING)
    }

    pub(crate) fn needs_dirty(&self) -> Result<(), DirtyError> {
        if self.flags.contains(HwptFlags::DIRTY_TRACKING) {
            Ok(())
        } else {
            Err(DirtyError::NotSupported(self.id))
        }
    }

    /// The object is gone from the table: so is its part of the domain.
    pub(crate) fn release(&self) {
        if self.faults().is_some() {
            self.target().set_page_request_handler(None);
        }
        if let Kind::Paging(paging) = &self.kind {
            paging.release();
        }
    }
}

impl Inspect for Hwpt {
    fn inspect(&self) -> Node {
        let faults = self.faults();
        Node::new()
            .with("id", self.id.get())
            .with("ioas", self.ioas().id().get())
            .with("domain", self.target().id().get())
            .with("automatic", self.is_automatic())
            .with("nested", self.nested().is_some())
            .with(
                "parent",
                self.nested().map(|nested| nested.parent.id().get()),
            )
            .with(
                "dirty_tracking",
                self.flags.contains(HwptFlags::DIRTY_TRACKING),
            )
            .with("pasid", self.flags.contains(HwptFlags::PASID))
            .with("nest_parent", self.flags.contains(HwptFlags::NEST_PARENT))
            .with(
                "fault_queue",
                faults.map(|handler| handler.queue().id().get()),
            )
    }
}
