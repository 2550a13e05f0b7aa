//! One VFIO device of a VM: attach and detach, regions, interrupts, reset.

use std::{
    fmt,
    io::{self, Read, Write},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_BAR2_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX,
    VFIO_PCI_MSIX_IRQ_INDEX,
};
use vfio_ioctls::{VfioDevice, VfioError};
use vmm_sys_util::eventfd::EventFd;

use crate::{
    error::{Error, Result},
    ioctl,
    vm::Shared,
};

/// A device that is open and bound. Dropping it detaches and closes it.
pub struct Device {
    path: PathBuf,
    vfio: VfioDevice,
    /// After `vfio`: what was mapped stays until the device is closed.
    _shared: Arc<Shared>,
}

impl Device {
    /// VFIO region index of the registers.
    pub const REGISTERS: u32 = VFIO_PCI_BAR0_REGION_INDEX;
    /// VFIO region index of the portals.
    pub const PORTALS: u32 = VFIO_PCI_BAR2_REGION_INDEX;
    /// VFIO region index of config space.
    pub const CONFIG: u32 = VFIO_PCI_CONFIG_REGION_INDEX;

    pub(crate) fn open(path: &Path, shared: Arc<Shared>) -> Result<Device> {
        let vfio =
            VfioDevice::new(path, shared.ops.of_devices(), false).map_err(wrap("opening", path))?;
        Ok(Device {
            path: path.to_owned(),
            vfio,
            _shared: shared,
        })
    }

    /// Its sysfs directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its id in the `/dev/iommu` that it is bound to.
    pub fn id(&self) -> u32 {
        self.vfio.iommufd_dev_id().unwrap_or(0)
    }

    /// Attaches it to an IOAS or HWPT and gives back the id of the page table that it got. If it is
    /// attached already, the new one replaces the old one.
    ///
    /// # Errors
    /// [`Error::System`] with the errno.
    pub fn attach(&self, pt_id: u32) -> Result<u32> {
        ioctl::attach(&self.vfio, pt_id)
    }

    /// Detaches it. When this returns, none of its DMA is in flight.
    ///
    /// # Errors
    /// [`Error::Vfio`].
    pub fn detach(&self) -> Result<()> {
        self.vfio
            .detach_hwpt()
            .map_err(wrap("detaching", &self.path))
    }

    /// `VFIO_DEVICE_RESET`.
    pub fn reset(&self) {
        self.vfio.reset();
    }

    /// Stops the device, takes its state, gives it that state again and lets it go on: what a VMM does
    /// on two hosts.
    ///
    /// # Errors
    /// [`Error::System`] with the errno; ENOTTY if it cannot be migrated.
    pub fn save_and_restore(&self) -> Result<()> {
        use vfio_bindings::bindings::vfio::{
            vfio_device_mig_state_VFIO_DEVICE_STATE_RESUMING as RESUMING,
            vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING as RUNNING,
            vfio_device_mig_state_VFIO_DEVICE_STATE_STOP_COPY as STOP_COPY,
        };
        let with_data = |to| {
            let file = ioctl::migrate(&self.vfio, to)?;
            file.ok_or(Error::Limit("no file for the state of the device"))
        };
        let mut state = Vec::new();
        with_data(STOP_COPY)?
            .read_to_end(&mut state)
            .map_err(Error::system("reading the state of the device"))?;
        with_data(RESUMING)?
            .write_all(&state)
            .map_err(Error::system("writing the state of the device"))?;
        ioctl::migrate(&self.vfio, RUNNING).map(drop)
    }

    /// Size of a region in bytes; 0 if there is no such region.
    pub fn region_size(&self, region: u32) -> u64 {
        self.vfio.get_region_size(region)
    }

    /// Reads `data.len()` bytes at `offset` of a region with one `pread`.
    ///
    /// # Errors
    /// [`Error::RegionRead`] if the read failed.
    pub fn read(&self, region: u32, offset: u64, data: &mut [u8]) -> Result<()> {
        // The crate logs a failure and leaves the buffer alone: two different fillings that both
        // survive mean that nothing was read.
        let survives = |data: &mut [u8], filling: u8| {
            data.fill(filling);
            self.vfio.region_read(region, data, offset);
            !data.is_empty() && data.iter().all(|&byte| byte == filling)
        };
        if survives(data, 0xa5) && survives(data, 0x5a) {
            let len = data.len();
            return Err(Error::RegionRead {
                region,
                offset,
                len,
            });
        }
        Ok(())
    }

    /// Writes `data` at `offset` of a region with one `pwrite`. The crate logs a failure and tells
    /// nobody; [`Device::try_write`] tells.
    pub fn write(&self, region: u32, offset: u64, data: &[u8]) {
        self.vfio.region_write(region, data, offset);
    }

    /// As [`Device::write`], without a check of the region's size, and with the errno: what a
    /// program does that does not ask first.
    ///
    /// # Errors
    /// What `pwrite` said.
    pub fn try_write(&self, region: u32, offset: u64, data: &[u8]) -> io::Result<usize> {
        let at = self.vfio.get_region_offset(region) + offset;
        ioctl::as_file(&self.vfio).write_at(data, at)
    }

    /// As [`Device::read`], without a check of the region's size, and with the errno.
    ///
    /// # Errors
    /// What `pread` said.
    pub fn try_read(&self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<usize> {
        let at = self.vfio.get_region_offset(region) + offset;
        ioctl::as_file(&self.vfio).read_at(data, at)
    }

    /// A 32-bit register of BAR 0.
    ///
    /// # Errors
    /// [`Error::RegionRead`].
    pub fn read32(&self, offset: u64) -> Result<u32> {
        let mut bytes = [0; 4];
        self.read(Device::REGISTERS, offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// A 64-bit register of BAR 0.
    ///
    /// # Errors
    /// [`Error::RegionRead`].
    pub fn read64(&self, offset: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.read(Device::REGISTERS, offset, &mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    /// Writes a 32-bit register of BAR 0.
    pub fn write32(&self, offset: u64, value: u32) {
        self.write(Device::REGISTERS, offset, &value.to_le_bytes());
    }

    /// Writes a 64-bit register of BAR 0.
    pub fn write64(&self, offset: u64, value: u64) {
        self.write(Device::REGISTERS, offset, &value.to_le_bytes());
    }

    /// Number of MSI-X vectors.
    pub fn vectors(&self) -> u32 {
        let info = self.vfio.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX);
        info.map_or(0, |info| info.count)
    }

    /// Gives the first `events.len()` MSI-X vectors an eventfd each.
    ///
    /// # Errors
    /// [`Error::Vfio`].
    pub fn enable_vectors(&self, events: &[EventFd]) -> Result<()> {
        self.vfio
            .enable_irq(VFIO_PCI_MSIX_IRQ_INDEX, events.iter().collect())
            .map_err(wrap("enabling the interrupts of", &self.path))
    }

    /// Disables all MSI-X vectors.
    ///
    /// # Errors
    /// [`Error::Vfio`].
    pub fn disable_vectors(&self) -> Result<()> {
        self.vfio
            .disable_irq(VFIO_PCI_MSIX_IRQ_INDEX)
            .map_err(wrap("disabling the interrupts of", &self.path))
    }

    /// The published crate's device, for what this one does not wrap.
    pub fn vfio(&self) -> &VfioDevice {
        &self.vfio
    }
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device")
            .field("path", &self.path)
            .field("id", &self.id())
            .finish_non_exhaustive()
    }
}

fn wrap(doing: &'static str, path: &Path) -> impl FnOnce(VfioError) -> Error + use<> {
    let path = path.to_owned();
    move |error| Error::Vfio { doing, path, error }
}
