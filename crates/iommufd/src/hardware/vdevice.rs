//! Devices as a guest numbers them on a virtual IOMMU (drivers/iommu/iommufd/viommu.c).

use std::{fmt, sync::Arc};

use super::{
    device::{DeviceObject, VirtId},
    viommu::Viommu,
};
use crate::base::id::ObjectId;

/// A device as a guest numbers it.
pub(crate) struct Vdevice {
    id: ObjectId,
    virt_id: u64,
    viommu: Arc<Viommu>,
    device: Arc<DeviceObject>,
}

impl Vdevice {
    /// `device` is `virt_id` on `viommu` until [`Vdevice::release`].
    pub(crate) fn new(
        id: ObjectId,
        virt_id: u64,
        viommu: Arc<Viommu>,
        device: Arc<DeviceObject>,
    ) -> Arc<Self> {
        device.set_virt_id(Some(VirtId {
            vdevice: id,
            viommu: viommu.id(),
            number: virt_id,
        }));
        Arc::new(Vdevice {
            id,
            virt_id,
            viommu,
            device,
        })
    }

    /// Takes the number away; the caller has the object out of the table.
    pub(crate) fn release(&self) {
        self.viommu.devices.lock().remove(&self.virt_id);
        self.device.set_virt_id(None);
    }
}

impl fmt::Debug for Vdevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vdevice")
            .field("id", &self.id)
            .field("virt_id", &self.virt_id)
            .field("viommu", &self.viommu.id())
            .finish_non_exhaustive()
    }
}
