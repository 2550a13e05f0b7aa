//! Page tables that hold the mappings of an IOAS.

use std::sync::Arc;

use crate::{
    base::{flags::HwptFlags, id::ObjectId},
    space::{domains::IoasDomain, ioas::Ioas},
};

/// The mappings of an IOAS as a page table.
#[derive(Debug)]
pub(crate) struct PagingTable {
    id: ObjectId,
    flags: HwptFlags,
    ioas: Arc<Ioas>,
    domain: Arc<IoasDomain>,
    automatic: bool,
    coherent: bool,
}

impl PagingTable {
    /// A page table on a use of `domain`, which [`PagingTable::release`] ends.
    pub(crate) fn new(
        id: ObjectId,
        flags: HwptFlags,
        ioas: Arc<Ioas>,
        domain: Arc<IoasDomain>,
        automatic: bool,
        coherent: bool,
    ) -> Arc<Self> {
        Arc::new(PagingTable {
            id,
            flags,
            ioas,
            domain,
            automatic,
            coherent,
        })
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    /// What it was made with.
    pub(crate) fn flags(&self) -> HwptFlags {
        self.flags
    }

    pub(crate) fn ioas(&self) -> &Arc<Ioas> {
        &self.ioas
    }

    pub(crate) fn domain(&self) -> &Arc<IoasDomain> {
        &self.domain
    }

    /// Made by attaching to the IOAS, and gone with the last attachment.
    pub(crate) fn is_automatic(&self) -> bool {
        self.automatic
    }

    /// Whether DMA through it is coherent with the processor's caches whatever the device asks for.
    pub(crate) fn is_coherent(&self) -> bool {
        self.coherent
    }

    /// Whether other page tables may be nested on it.
    pub(crate) fn is_nest_parent(&self) -> bool {
        !self.automatic && self.flags.contains(HwptFlags::NEST_PARENT)
    }

    /// Ends its part of the domain.
    pub(crate) fn release(&self) {
        if self.flags.contains(HwptFlags::DIRTY_TRACKING) {
            self.domain.track_dirty(self.id, false);
        }
        self.ioas.put_domain(&self.domain);
    }
}
