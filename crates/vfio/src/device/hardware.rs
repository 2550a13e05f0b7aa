//! The model of a device, and how it reaches memory.

use std::sync::Arc;

use ioasid_core::{Pasid, sync::Mutex};
use ioasid_iommu::{Device, Requests};

use crate::{
    model::{DeviceModel, Passthrough},
    pci::Function,
};

/// A model with its way to memory.
#[derive(Debug)]
pub(crate) struct Hardware {
    model: Arc<dyn DeviceModel>,
    passthrough: Passthrough,
    /// Where a child's DMA comes from, as long as it is bound.
    child: Mutex<Option<(Arc<Device>, Pasid)>>,
}

impl Hardware {
    pub(crate) fn new(model: Arc<dyn DeviceModel>, passthrough: Passthrough) -> Arc<Self> {
        match &passthrough {
            Passthrough::Whole(device) => model.function().issues(device, Requests::All),
            Passthrough::Emulated(dma) => model.function().issues_copies(dma),
            // Its PASID comes when it is bound.
            Passthrough::Child(_) => {}
        }
        Arc::new(Hardware {
            model,
            passthrough,
            child: Mutex::default(),
        })
    }

    pub(crate) fn model(&self) -> &Arc<dyn DeviceModel> {
        &self.model
    }

    pub(crate) fn function(&self) -> &Function {
        self.model.function()
    }

    pub(crate) fn passthrough(&self) -> &Passthrough {
        &self.passthrough
    }

    /// Resets the model, with the gate held exclusively. A whole device's DMA is blocked meanwhile, and
    /// nothing can be attached to it. It ends in D0 (`vfio_pci_ioctl_reset`).
    pub(crate) fn reset(&self) {
        let _blocked = match &self.passthrough {
            Passthrough::Whole(device) => Some(device.begin_reset()),
            _ => None,
        };
        self.model.reset();
        self.function().end_reset();
    }

    /// The device behind the IOMMU that issues the requests, and which of its requests they are. None
    /// for a child that is not bound, and for an emulated device.
    pub(crate) fn requester(&self) -> Option<(Arc<Device>, Requests)> {
        match &self.passthrough {
            Passthrough::Whole(device) => Some((Arc::clone(device), Requests::All)),
            Passthrough::Child(_) => {
                let child = self.child.lock().clone()?;
                Some((child.0, Requests::Of(child.1)))
            }
            Passthrough::Emulated(_) => None,
        }
    }

    /// A child is bound: its requests have this PASID of `device` from now on.
    pub(super) fn begin_child(&self, device: &Arc<Device>, pasid: Pasid) {
        *self.child.lock() = Some((Arc::clone(device), pasid));
        self.function().issues(device, Requests::Of(pasid));
    }

    /// The child is detached: nothing has the PASID any more.
    pub(super) fn end_child(&self) {
        let child = self.child.lock().take();
        if let Some((device, pasid)) = child {
            self.function().issues_no_more(&device, Requests::Of(pasid));
        }
    }
}
