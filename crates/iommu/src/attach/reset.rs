//! A device that is being reset must not do DMA, and its attachments must not change under it
//! (`pci_dev_reset_iommu_prepare` and `pci_dev_reset_iommu_done` in drivers/iommu/iommu.c).

use std::sync::Arc;

use crate::device::{
    Device,
    group::{Group, OldRoute},
};

/// A reset in progress ([`Device::begin_reset`]). While it lives, the device's DMA is blocked and
/// attaching or replacing in its group fails with [`crate::AttachError::Resetting`]; detaching works.
/// Resets of one device may nest. Dropping the last one puts the attachments into force again.
#[derive(Debug)]
#[must_use = "the reset ends when this is dropped"]
pub struct DeviceReset {
    device: Arc<Device>,
}

impl Device {
    /// Begins a reset: all DMA of the device is blocked, and attaching to it is refused, until what
    /// this returns is dropped; then the attachments are in force again. When it returns, no DMA of
    /// the device is in flight and no page request of it is open.
    pub fn begin_reset(self: &Arc<Self>) -> DeviceReset {
        self.group().begin_reset(self);
        DeviceReset {
            device: Arc::clone(self),
        }
    }
}

impl Drop for DeviceReset {
    fn drop(&mut self) {
        self.device.group().end_reset(&self.device);
    }
}

impl Group {
    /// Blocks the DMA of `device` and waits for what is in flight; attachments stay what they are.
    fn begin_reset(&self, device: &Arc<Device>) {
        let blocked: Vec<_> = {
            let mut state = self.lock();
            *state.resetting.entry(device.id()).or_default() += 1;
            let routes = state.routes.iter();
            routes
                .map(|(pasid, route)| {
                    device.routes().set(*pasid, None);
                    OldRoute::blocked(device, *pasid, &route.domain)
                })
                .collect()
        };
        for route in blocked {
            route.wait(self.shared());
        }
    }

    /// Ends what `begin_reset` began; with the last one, the attachments are in force again.
    fn end_reset(&self, device: &Arc<Device>) {
        let mut state = self.lock();
        if let Some(depth) = state.resetting.get_mut(&device.id()) {
            *depth -= 1;
            if *depth > 0 {
                return;
            }
        }
        state.resetting.remove(&device.id());
        for (pasid, route) in &state.routes {
            if !device.withheld().includes(*pasid) {
                device.routes().set(*pasid, Some(route.attachment(device)));
            }
        }
    }
}
