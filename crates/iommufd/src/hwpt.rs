//! Page tables as programs name them.

use std::sync::Arc;

use ioasid_core::inspect::{Inspect, Node};

use crate::{domains::IoasDomain, error::Error, ioas::Ioas, object::ObjectId};

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
    /// What it is built on: an IOAS, or the page table to nest on.
    pub parent: ObjectId,
    /// How.
    pub flags: HwptFlags,
    /// The fault queue, looked at only with [`HwptFlags::FAULT_ID_VALID`].
    pub fault_id: u32,
    /// Whether data for a nested page table comes with it.
    pub has_data: bool,
}

impl HwptAlloc {
    /// A page table on the IOAS `parent` for `device`, without flags.
    pub const fn new(device: ObjectId, parent: ObjectId) -> Self {
        HwptAlloc {
            device,
            parent,
            flags: HwptFlags::NONE,
            fault_id: 0,
            has_data: false,
        }
    }

    /// The same with `flags`.
    #[must_use]
    pub const fn with_flags(self, flags: HwptFlags) -> Self {
        HwptAlloc { flags, ..self }
    }
}

/// A page table object of an IOAS.
#[derive(Debug)]
pub(crate) struct Hwpt {
    id: ObjectId,
    ioas: Arc<Ioas>,
    domain: Arc<IoasDomain>,
    flags: HwptFlags,
    automatic: bool,
}

impl Hwpt {
    pub(crate) fn new(
        id: ObjectId,
        ioas: Arc<Ioas>,
        domain: Arc<IoasDomain>,
        flags: HwptFlags,
        automatic: bool,
    ) -> Arc<Self> {
        Arc::new(Hwpt {
            id,
            ioas,
            domain,
            flags,
            automatic,
        })
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    pub(crate) fn ioas(&self) -> &Arc<Ioas> {
        &self.ioas
    }

    pub(crate) fn domain(&self) -> &Arc<IoasDomain> {
        &self.domain
    }

    pub(crate) fn flags(&self) -> HwptFlags {
        self.flags
    }

    /// Made by attaching to the IOAS, and gone with the last attachment.
    pub(crate) fn is_automatic(&self) -> bool {
        self.automatic
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
        if self.flags.contains(HwptFlags::DIRTY_TRACKING) {
            self.domain.track(self.id, false);
        }
        self.ioas.put_domain(&self.domain);
    }
}

impl Inspect for Hwpt {
    fn inspect(&self) -> Node {
        Node::new()
            .with("id", self.id.get())
            .with("ioas", self.ioas.id().get())
            .with("domain", self.domain.id().get())
            .with("automatic", self.automatic)
            .with(
                "dirty_tracking",
                self.flags.contains(HwptFlags::DIRTY_TRACKING),
            )
            .with("pasid", self.flags.contains(HwptFlags::PASID))
            .with("nest_parent", self.flags.contains(HwptFlags::NEST_PARENT))
    }
}
