//! A device that is being reset must not do DMA, and its attachments must not change under it
//! (`pci_dev_reset_iommu_prepare` and `pci_dev_reset_iommu_done` in drivers/iommu/iommu.c).

use std::sync::Arc;

use crate::device::Device;

/// A reset in progress ([`Device::begin_reset`]). While it lives, the device's DMA is blocked and
/// attaching or replacing in its group fails with [`crate::AttachError::Resetting`];
/// detaching works.
/// Resets of one device may nest. Dropping the last one puts the attachments into force again.
#[derive(Debug)]
#[must_use = "the reset ends when this is dropped"]
pub struct DeviceReset {
    device: Arc<Device>,
}

impl DeviceReset {
    pub(crate) fn new(device: &Arc<Device>) -> Self {
        device.group().begin_reset(device);
        DeviceReset {
            device: Arc::clone(device),
        }
    }
}

impl Drop for DeviceReset {
    fn drop(&mut self) {
        self.device.group().end_reset(&self.device);
    }
}
