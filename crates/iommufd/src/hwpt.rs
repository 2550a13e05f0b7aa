//! Page tables as programs name them.

use std::sync::{Arc, OnceLock};

use ioasid_core::inspect::{Inspect, Node};
use ioasid_iommu::Domain;

use crate::{
    domains::IoasDomain, error::Error, fault::FaultHandler, hw::NestedOps, ioas::Ioas,
    object::ObjectId, queue_file::Queue, viommu::Viommu,
};

/// Flags of HWPT_ALLOC, with the kernel's numbers (`enum iommufd_hwpt_alloc_flags`). Unknown bits
/// are kept, and refused where the kernel refuses them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HwptFlags(u32);

impl HwptFlags {
    /// No flag.
    pub const NONE: HwptFlags = HwptFlags(0);
    /// Page tables of guests may be nested on it.
    pub const NEST_PARENT: HwptFlags = HwptFlags(1 << 0);
    /// Dirty tracking can be turned on; devices that cannot track are refused.
    pub const DIRTY_TRACKING: HwptFlags = HwptFlags(1 << 1);
    /// Page requests go to the fault queue of [`HwptAlloc::fault_id`].
    pub const FAULT_ID_VALID: HwptFlags = HwptFlags(1 << 2);
    /// May be attached to PASIDs that the program chooses, and to a device that has such.
    pub const PASID: HwptFlags = HwptFlags(1 << 3);

    /// The flags that a program sent.
    pub const fn from_raw(bits: u32) -> Self {
        HwptFlags(bits)
    }

    /// Whether all of `other` are set.
    pub const fn contains(self, other: HwptFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub const fn with(self, other: HwptFlags) -> Self {
        HwptFlags(self.0 | other.0)
    }

    /// Those of `self` that are not in `other`.
    #[must_use]
    pub const fn without(self, other: HwptFlags) -> Self {
        HwptFlags(self.0 & !other.0)
    }

    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether a bit is set that is none of `known`.
    const fn beyond(self, known: HwptFlags) -> bool {
        self.0 & !known.0 != 0
    }

    /// The checks of a page table on an IOAS, for a device that can track dirty pages or not.
    pub(crate) fn check_paging(self, tracks_dirty: bool) -> Result<(), Error> {
        let known = Self::NEST_PARENT
            .with(Self::DIRTY_TRACKING)
            .with(Self::FAULT_ID_VALID)
            .with(Self::PASID);
        let faults_below_nesting =
            self.contains(Self::FAULT_ID_VALID) && self.contains(Self::NEST_PARENT);
        if self.beyond(known)
            || faults_below_nesting
            || (self.contains(Self::DIRTY_TRACKING) && !tracks_dirty)
        {
            return Err(Error::FlagsNotSupported);
        }
        Ok(())
    }

    /// The checks of a page table nested on another.
    pub(crate) fn check_nested(self) -> Result<(), Error> {
        if self.beyond(Self::FAULT_ID_VALID.with(Self::PASID)) {
            return Err(Error::FlagsNotSupported);
        }
        Ok(())
    }
}

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

/// The mappings of an IOAS as a page table.
#[derive(Debug)]
pub(crate) struct PagingTable {
    ioas: Arc<Ioas>,
    domain: Arc<IoasDomain>,
    automatic: bool,
    coherent: bool,
}

impl PagingTable {
    pub(crate) fn new(
        ioas: Arc<Ioas>,
        domain: Arc<IoasDomain>,
        automatic: bool,
        coherent: bool,
    ) -> Self {
        PagingTable {
            ioas,
            domain,
            automatic,
            coherent,
        }
    }

    pub(crate) fn ioas(&self) -> &Arc<Ioas> {
        &self.ioas
    }

    pub(crate) fn domain(&self) -> &Arc<IoasDomain> {
        &self.domain
    }

    /// Whether DMA through it is coherent with the processor's caches whatever the device asks for.
    pub(crate) fn is_coherent(&self) -> bool {
        self.coherent
    }
}

/// A page table of the program's.
#[derive(Debug)]
pub(crate) struct NestedTable {
    parent: Arc<Hwpt>,
    viommu: Option<Arc<Viommu>>,
    ops: Arc<dyn NestedOps>,
    target: Arc<Domain>,
}

impl NestedTable {
    pub(crate) fn new(
        parent: Arc<Hwpt>,
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

    /// The object that it uses: what it was made on.
    pub(crate) fn holds(&self) -> ObjectId {
        match &self.viommu {
            Some(viommu) => viommu.id(),
            None => self.parent.id(),
        }
    }
}

/// What a page table object is.
#[derive(Debug)]
pub(crate) enum Kind {
    Paging(PagingTable),
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
    /// Who takes page requests, if a fault queue was given.
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

    pub(crate) fn paging(&self) -> Option<&PagingTable> {
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
    pub(crate) fn nest_parent(&self) -> Option<&PagingTable> {
        self.paging()
            .filter(|paging| !paging.automatic && self.flags.contains(HwptFlags::NEST_PARENT))
    }

    /// The IOAS that the device's accesses end in.
    pub(crate) fn ioas(&self) -> &Arc<Ioas> {
        match &self.kind {
            Kind::Paging(paging) => &paging.ioas,
            Kind::Nested(nested) => nested.parent.ioas(),
        }
    }

    /// What devices are pointed at.
    pub(crate) fn target(&self) -> &Arc<Domain> {
        match &self.kind {
            Kind::Paging(paging) => paging.domain.domain(),
            Kind::Nested(nested) => &nested.target,
        }
    }

    /// Made by attaching to the IOAS, and gone with the last attachment.
    pub(crate) fn is_automatic(&self) -> bool {
        self.paging().is_some_and(|paging| paging.automatic)
    }

    pub(crate) fn faults(&self) -> Option<&Arc<FaultHandler>> {
        self.faults.get()
    }

    /// Who takes page requests: set once, before anything is attached.
    pub(crate) fn set_faults(&self, handler: Arc<FaultHandler>) {
        // A second handler cannot be: only the command that makes the object sets one.
        let _ = self.faults.set(handler);
    }

    /// The objects that it uses.
    pub(crate) fn holds(&self) -> impl Iterator<Item = ObjectId> {
        let base = match &self.kind {
            Kind::Paging(paging) => paging.ioas.id(),
            Kind::Nested(nested) => nested.holds(),
        };
        let queue = self.faults().map(|handler| handler.queue().id());
        std::iter::once(base).chain(queue)
    }

    pub(crate) fn needs_dirty(&self) -> Result<(), Error> {
        if self.flags.contains(HwptFlags::DIRTY_TRACKING) {
            Ok(())
        } else {
            Err(Error::NoDirtyTracking)
        }
    }

    /// The object is gone from the table: so is its part of the domain.
    pub(crate) fn release(&self) {
        if self.faults().is_some() {
            self.target().set_page_request_handler(None);
        }
        if let Kind::Paging(paging) = &self.kind {
            if self.flags.contains(HwptFlags::DIRTY_TRACKING) {
                paging.domain.track(self.id, false);
            }
            paging.ioas.put_domain(&paging.domain);
        }
    }
}

impl Inspect for Hwpt {
    fn inspect(&self) -> Node {
        let node = Node::new()
            .with("id", self.id.get())
            .with("ioas", self.ioas().id().get())
            .with("domain", self.target().id().get())
            .with("automatic", self.is_automatic())
            .with("nested", self.nested().is_some())
            .with(
                "dirty_tracking",
                self.flags.contains(HwptFlags::DIRTY_TRACKING),
            )
            .with("pasid", self.flags.contains(HwptFlags::PASID))
            .with("nest_parent", self.flags.contains(HwptFlags::NEST_PARENT));
        match self.faults() {
            Some(handler) => node.with("fault_queue", handler.queue().id().get()),
            None => node,
        }
    }
}
