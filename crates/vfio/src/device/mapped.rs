//! Mappings of BARs: what may be mapped, and the accesses that a mapping traps
//! (`vfio_pci_core_mmap` and its fault handlers, `drivers/vfio/pci/vfio_pci_core.c`).
//!
//! Nothing here maps memory: every access to a mapping arrives as a call, one for each access of the
//! processor. An access that fails is what a program sees as SIGBUS.

use std::time::Duration;

use super::{DeviceFile, VfioDevice};
use crate::{
    error::{Error, Result},
    region::RegionIndex,
};

/// Bytes of a page.
const PAGE: u64 = 4096;

/// How long DMA to a BAR waits for a device that does not answer.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(1);

/// What a program asks to map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// File offset of the first byte, a multiple of the page size.
    pub offset: u64,
    /// Bytes; a part of a page counts as a page.
    pub len: u64,
    /// `MAP_SHARED` (or `MAP_SHARED_VALIDATE`).
    pub shared: bool,
    /// The file is open for writing. A shared mapping of one that is not is none for the kernel.
    pub writable: bool,
}

/// A part of a BAR that may be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRange {
    /// The BAR.
    pub bar: u8,
    /// Offset of the first byte in the BAR, a multiple of the page size.
    pub offset: u64,
    /// Bytes, whole pages. The last page may reach beyond a BAR that is smaller than it.
    pub len: u64,
}

impl DeviceFile {
    /// Whether a range of the file may be mapped, and what it is. The page of an MSI-X table may.
    ///
    /// # Errors
    /// [`Error::NotBound`]; [`Error::NotMappable`] for a region without the flag MMAP, a range past
    /// its page-rounded end, a private mapping, or a file that is open for reading alone.
    pub fn mmap_check(&self, request: MapRequest) -> Result<MapRange> {
        self.expect_bound()?;
        if !request.shared || !request.writable || !request.offset.is_multiple_of(PAGE) {
            return Err(Error::NotMappable);
        }
        let (region, offset) = RegionIndex::at(request.offset).map_err(|_| Error::NotMappable)?;
        let RegionIndex::Bar(bar) = region else {
            return Err(Error::NotMappable);
        };
        let info = self.device.region_info(bar.into())?;
        let pages = |bytes: u64| bytes.checked_next_multiple_of(PAGE);
        let len = pages(request.len).ok_or(Error::NotMappable)?;
        let end = offset.checked_add(len).ok_or(Error::NotMappable)?;
        if !info.mmap || pages(info.size).is_none_or(|size| end > size) {
            return Err(Error::NotMappable);
        }
        Ok(MapRange { bar, offset, len })
    }

    /// One load of a program from a mapping, at the file offset `offset`: 1, 2, 4, 8, 16, 32 or 64
    /// bytes reach the model in as few naturally aligned accesses of at most 8 bytes as there can be.
    ///
    /// Bytes past the end of a BAR that is smaller than its page read as ones.
    ///
    /// # Errors
    /// [`Error::NotBound`] once the file is closed, [`Error::MemoryDisabled`] while the memory of the
    /// device does not answer or the program lets it sleep, [`Error::BeyondRegion`] outside of what can be mapped: SIGBUS. Nothing
    /// has been read then.
    pub fn mapped_read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        let _shared = self.device.shared();
        self.load(offset, data)
    }

    /// As [`DeviceFile::mapped_read`], by DMA of a device. Nobody answers while the device is being
    /// reset or waits for DMA to end, its own perhaps; then the DMA is given up after a second, as by the
    /// completion timeout of PCI Express.
    ///
    /// # Errors
    /// As [`DeviceFile::mapped_read`]; [`Error::MemoryDisabled`] if nobody answers.
    pub fn dma_read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        let _shared = self.device.shared_within(COMPLETION_TIMEOUT)?;
        self.load(offset, data)
    }

    fn load(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        self.expect_bound()?;
        let (bar, offset, inside) = self.device.mapped(offset, data.len())?;
        let (registers, tail) = data.split_at_mut_checked(inside).unwrap_or_default();
        tail.fill(0xff);
        self.device.load(bar, offset, registers)
    }

    /// One store of a program to a mapping, likewise. 64 aligned bytes on a BAR with wide stores
    /// (`MOVDIR64B`) reach the model as one.
    ///
    /// # Errors
    /// As [`DeviceFile::mapped_read`].
    pub fn mapped_write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let _shared = self.device.shared();
        self.store(offset, data)
    }

    /// As [`DeviceFile::mapped_write`], by DMA of a device, as for [`DeviceFile::dma_read`].
    ///
    /// # Errors
    /// As [`DeviceFile::dma_read`].
    pub fn dma_write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let _shared = self.device.shared_within(COMPLETION_TIMEOUT)?;
        self.store(offset, data)
    }

    fn store(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.expect_bound()?;
        let (bar, offset, inside) = self.device.mapped(offset, data.len())?;
        self.device
            .store(bar, offset, data.get(..inside).unwrap_or_default())
    }

    /// One deferrable store of a program to a mapping (`ENQCMD`, `ENQCMDS`); whether the device took
    /// it. Otherwise the program is told to try again.
    ///
    /// # Errors
    /// As [`DeviceFile::mapped_read`].
    pub fn mapped_enqueue(&self, offset: u64, data: &[u8; 64]) -> Result<bool> {
        let _shared = self.device.shared();
        self.expect_bound()?;
        let (bar, offset, inside) = self.device.mapped(offset, data.len())?;
        let model = &self.device.model;
        let aligned = offset.is_multiple_of(64) && inside == data.len();
        Ok(aligned && !self.device.is_msix(bar, offset) && model.enqueue(bar, offset, data))
    }
}

impl VfioDevice {
    /// The BAR at a file offset, the offset in it, and how many of `len` bytes lie in it. Its memory
    /// answers.
    fn mapped(&self, offset: u64, len: usize) -> Result<(u8, u64, usize)> {
        let (RegionIndex::Bar(bar), offset) = RegionIndex::at(offset)? else {
            return Err(Error::BeyondRegion);
        };
        let info = self.region_info(bar.into())?;
        let end = offset.checked_add(len as u64).ok_or(Error::BeyondRegion)?;
        if !info.mmap || end > info.size.next_multiple_of(PAGE) {
            return Err(Error::BeyondRegion);
        }
        if self.may_sleep() {
            return Err(Error::MemoryDisabled);
        }
        self.expect_memory()?;
        let inside = info.size.saturating_sub(offset);
        Ok((bar, offset, len.min(usize::try_from(inside).unwrap_or(len))))
    }
}
