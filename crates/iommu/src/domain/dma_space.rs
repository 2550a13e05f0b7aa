//! The domain that the drivers of a group do their DMA in, and its free addresses.

use std::sync::Arc;

use ioasid_core::{AddrRange, sync::Mutex};
use ioasid_pgtable::TableFormat;

use super::{
    Domain, DomainConfig, DomainKind,
    iova::IovaAllocator,
    registry::{DomainError, DomainRegistry},
};

/// A group's default domain and its addresses.
pub(crate) struct DmaSpace {
    domain: Arc<Domain>,
    iovas: Mutex<IovaAllocator>,
}

impl DmaSpace {
    /// A domain of `format` whose mappings stay away from `reserved`.
    pub(crate) fn new(
        registry: &Arc<DomainRegistry>,
        format: TableFormat,
        reserved: impl IntoIterator<Item = AddrRange>,
    ) -> Result<Arc<Self>, DomainError> {
        let config = DomainConfig::unmanaged(format).with_kind(DomainKind::Dma);
        let domain = registry.alloc(config)?;
        let iovas = IovaAllocator::new(domain.aperture(), reserved);
        Ok(Arc::new(DmaSpace {
            domain,
            iovas: Mutex::new(iovas),
        }))
    }

    pub(crate) fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    /// `len` free addresses at a multiple of `align`; see [`IovaAllocator::alloc`].
    pub(crate) fn alloc(&self, len: u64, align: u64) -> Option<AddrRange> {
        self.iovas.lock().alloc(len, align)
    }

    /// Unmaps `range`, waits for DMA to it and gives its addresses back.
    pub(crate) fn unmap(&self, range: AddrRange) {
        self.domain.unmap(range);
        self.iovas.lock().free(range);
    }
}
