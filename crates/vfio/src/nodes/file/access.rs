//! Accesses to the registers of an open device file: reads and writes, mappings, and DMA of other
//! devices.

use std::time::Duration;

use super::DeviceFile;
use crate::{
    base::error::Result,
    device::{
        MapRange, MapRequest,
        registers::{self, Registers},
    },
};

/// How long DMA to a BAR waits for a device that does not answer.
const COMPLETION_TIMEOUT: Duration = Duration::from_secs(1);

impl DeviceFile {
    fn registers(&self) -> &Registers {
        self.core().registers()
    }

    /// Reads at the file offset `offset` (a region's offset plus one inside it); returns the number
    /// of bytes, which is less than asked for at the end of a BAR.
    ///
    /// # Errors
    /// `BindError::NotBound`, `RegionError`.
    pub fn read(&self, offset: u64, data: &mut [u8]) -> Result<usize> {
        let registers = self.registers();
        let _shared = registers.gate().shared();
        self.expect_bound()?;
        registers.power().wake();
        Ok(registers.read(offset, data)?)
    }

    /// Writes at the file offset `offset`; as [`DeviceFile::read`].
    ///
    /// # Errors
    /// As [`DeviceFile::read`].
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<usize> {
        let gate = self.core().gate();
        let write = || {
            self.expect_bound()?;
            self.wake();
            Ok(self.core().write(offset, data)?)
        };
        if registers::is_register(offset) {
            let _shared = gate.shared();
            write()
        } else {
            let _exclusive = gate.exclusive();
            write()
        }
    }

    /// Looks at an access as a whole, before any part of it is made: one to configuration space that
    /// passes its end is refused (`vfio_pci_config_rw_single`), while one to a BAR is cut short.
    ///
    /// # Errors
    /// `BindError::NotBound`, `RegionError::BeyondConfig`.
    pub fn check_access(&self, offset: u64, len: u64) -> Result<()> {
        self.expect_bound()?;
        Ok(self.registers().check_access(offset, len)?)
    }

    /// Whether a range of the file may be mapped, and what it is. The page of an MSI-X table may.
    ///
    /// # Errors
    /// `BindError::NotBound`; `RegionError::NotMappable` for a region without the flag MMAP, a range past
    /// its page-rounded end; `RegionError::PrivateMapping`.
    pub fn mmap_check(&self, request: MapRequest) -> Result<MapRange> {
        self.expect_bound()?;
        Ok(self.registers().map_range(request)?)
    }

    /// One load of a program from a mapping, at the file offset `offset`: 1, 2, 4, 8, 16, 32 or 64
    /// bytes reach the model in as few naturally aligned accesses of at most 8 bytes as there can be.
    ///
    /// Bytes past the end of a BAR that is smaller than its page read as ones.
    ///
    /// # Errors
    /// `BindError::NotBound` once the file is closed, `RegionError::MemoryDisabled` while the memory
    /// of the device does not answer, `RegionError::Asleep` while the program lets it sleep,
    /// `RegionError::NotMapped` outside of what can be mapped: SIGBUS. Nothing has been read then.
    pub fn mapped_read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        let _shared = self.core().gate().shared();
        self.expect_bound()?;
        Ok(self.registers().load(offset, data)?)
    }

    /// As [`DeviceFile::mapped_read`], by DMA of a device. Nobody answers while the device is being
    /// reset or waits for DMA to end, its own perhaps; then the DMA is given up after a second, as by the
    /// completion timeout of PCI Express.
    ///
    /// # Errors
    /// As [`DeviceFile::mapped_read`]; `RegionError::NoAnswer`.
    pub fn dma_read(&self, offset: u64, data: &mut [u8]) -> Result<()> {
        let _shared = self.core().gate().shared_within(COMPLETION_TIMEOUT)?;
        self.expect_bound()?;
        Ok(self.registers().load(offset, data)?)
    }

    /// One store of a program to a mapping, likewise. 64 aligned bytes on a BAR with wide stores
    /// (`MOVDIR64B`) reach the model as one.
    ///
    /// # Errors
    /// As [`DeviceFile::mapped_read`].
    pub fn mapped_write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let _shared = self.core().gate().shared();
        self.expect_bound()?;
        Ok(self.registers().store(offset, data)?)
    }

    /// As [`DeviceFile::mapped_write`], by DMA of a device, as for [`DeviceFile::dma_read`].
    ///
    /// # Errors
    /// As [`DeviceFile::dma_read`].
    pub fn dma_write(&self, offset: u64, data: &[u8]) -> Result<()> {
        let _shared = self.core().gate().shared_within(COMPLETION_TIMEOUT)?;
        self.expect_bound()?;
        Ok(self.registers().store(offset, data)?)
    }

    /// One deferrable store of a program to a mapping (`ENQCMD`, `ENQCMDS`); whether the device took
    /// it. Otherwise the program has to try again.
    ///
    /// # Errors
    /// As [`DeviceFile::mapped_read`].
    pub fn mapped_enqueue(&self, offset: u64, data: &[u8; 64]) -> Result<bool> {
        let _shared = self.core().gate().shared();
        self.expect_bound()?;
        Ok(self.registers().enqueue(offset, data)?)
    }
}
