//! The DMA API: what a device's own driver maps its buffers with, on the group's default domain.

use std::{fmt, sync::Arc};

use ioasid_core::{
    AddrRange, Prot,
    memory::{Extent, OwnMemory, OwnPages, PAGE_SIZE, PageSource, PinError},
};
use ioasid_pgtable::MapError;

use crate::{
    attach::ownership::OwnershipError,
    device::Device,
    domain::{Domain, dma_space::DmaSpace},
};

/// A buffer is aligned to its own size, up to this: larger leaves are in no format's common use.
const LARGEST_ALIGNMENT: u64 = 1 << 30;

/// Why a buffer could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaMapError {
    /// The length is 0, or the end lies beyond the largest address (EINVAL).
    #[error("{len} bytes from {offset:#x} of a buffer are nothing that can be mapped")]
    BadLength {
        /// First byte in the buffer.
        offset: u64,
        /// The length that was asked for.
        len: u64,
    },
    /// The pages could not be pinned (as [`PinError`]).
    #[error(transparent)]
    Pin(#[from] PinError),
    /// No run of free addresses is long enough (ENOSPC).
    #[error("no {len} free I/O virtual addresses in a row: unmap a buffer first")]
    NoIova {
        /// Bytes wanted, in whole pages.
        len: u64,
    },
    /// The page table refused (EINVAL).
    #[error(transparent)]
    Map(#[from] MapError),
}

/// A driver's use of the DMA API of its device. While one lives, no user can own the group.
pub struct DmaApi {
    device: Arc<Device>,
    space: Arc<DmaSpace>,
}

impl Device {
    /// Claims the device for its own driver, which then does its DMA through the DMA API. The
    /// group's default domain becomes the primary domain.
    ///
    /// # Errors
    /// [`OwnershipError::Owned`] or [`OwnershipError::Attached`] if a user owns the group or has
    /// attached a domain to it, and those of making the default domain.
    pub fn use_dma_api(self: &Arc<Self>) -> Result<DmaApi, OwnershipError> {
        Ok(DmaApi {
            device: Arc::clone(self),
            space: self.group().begin_dma_api()?,
        })
    }
}

impl DmaApi {
    /// The device.
    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The default domain. It can be attached at a PASID of the same device as well, so that DMA with
    /// the PASID reaches the same addresses.
    pub fn domain(&self) -> &Arc<Domain> {
        self.space.domain()
    }

    /// Maps `len` bytes from `offset` of `source` at addresses of the allocator's choice
    /// (`dma_map_*`).
    ///
    /// # Errors
    /// See [`DmaMapError`].
    pub fn map(
        &self,
        source: &dyn PageSource,
        offset: u64,
        len: u64,
        prot: Prot,
    ) -> Result<DmaMapping, DmaMapError> {
        let in_page = offset & (PAGE_SIZE - 1);
        let first = offset - in_page;
        let covered = in_page
            .checked_add(len)
            .and_then(|end| end.checked_next_multiple_of(PAGE_SIZE))
            .filter(|_| len > 0)
            .ok_or(DmaMapError::BadLength { offset, len })?;
        let extents = source.pin(first, covered, prot)?;
        let range = covered
            .checked_next_power_of_two()
            .and_then(|align| self.space.alloc(covered, align.min(LARGEST_ALIGNMENT)))
            .ok_or(DmaMapError::NoIova { len: covered })?;
        // From here on dropping the mapping undoes what was done.
        let mapping = DmaMapping {
            space: Arc::clone(&self.space),
            range,
            iova: range.start() + in_page,
            len,
            extents,
        };
        let mut iova = range.start();
        for extent in &mapping.extents {
            self.space
                .domain()
                .map(iova, extent.spa, extent.len, prot)?;
            iova += extent.len;
        }
        Ok(mapping)
    }

    /// Zeroed memory that the driver and the device both read and write (`dma_alloc_coherent`).
    ///
    /// # Errors
    /// See [`DmaMapError`].
    pub fn alloc_coherent(&self, len: usize) -> Result<CoherentBuffer, DmaMapError> {
        if len == 0 {
            return Err(DmaMapError::BadLength { offset: 0, len: 0 });
        }
        let pages = OwnPages::new(&self.device.shared().space, len)?;
        let mapping = self.map(&pages, 0, pages.size(), Prot::RW)?;
        Ok(CoherentBuffer { mapping, pages })
    }
}

impl Drop for DmaApi {
    fn drop(&mut self) {
        self.device.group().end_dma_api();
    }
}

impl fmt::Debug for DmaApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaApi")
            .field("device", &self.device.address())
            .finish_non_exhaustive()
    }
}

/// A buffer that the device can reach. Dropping it unmaps it; when that returns, no DMA to it is in
/// flight. Not to be dropped under a guard.
#[must_use = "the buffer is unmapped when this is dropped"]
pub struct DmaMapping {
    space: Arc<DmaSpace>,
    range: AddrRange,
    iova: u64,
    len: u64,
    extents: Vec<Extent>,
}

impl DmaMapping {
    /// The address of the first byte, as the device sees it.
    pub fn iova(&self) -> u64 {
        self.iova
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)] // Never empty.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Unmaps the buffer: what dropping it does, by name.
    pub fn unmap(self) {}
}

impl Drop for DmaMapping {
    fn drop(&mut self) {
        self.space.unmap(self.range);
    }
}

impl fmt::Debug for DmaMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaMapping")
            .field("iova", &format_args!("{:#x}", self.iova))
            .field("len", &self.len)
            .field("extents", &self.extents.len())
            .finish_non_exhaustive()
    }
}

/// Memory of the driver's own that the device can reach.
#[derive(Debug)]
pub struct CoherentBuffer {
    // The mapping goes first: the memory stays until no DMA can reach it.
    mapping: DmaMapping,
    pages: OwnPages,
}

impl CoherentBuffer {
    /// The address, as the device sees it.
    pub fn iova(&self) -> u64 {
        self.mapping.iova()
    }

    /// The memory, as the driver sees it.
    pub fn memory(&self) -> &Arc<OwnMemory> {
        self.pages.memory()
    }

    /// The pages, to be mapped elsewhere as well.
    pub fn pages(&self) -> &OwnPages {
        &self.pages
    }
}
