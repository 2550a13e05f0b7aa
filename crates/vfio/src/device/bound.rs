//! What a device is bound to a context as: an IOMMU's device, or an access object.

use std::sync::Arc;

use ioasid_iommu::{FaultSink, Requests};
use ioasid_iommufd::{BoundDevice, Context, ObjectId};

use super::VfioDevice;
use crate::{
    emulated::BoundEmulated,
    error::{Error, Result},
    model::Passthrough,
};

/// A device that is bound to a context. Dropping it detaches it.
#[derive(Debug)]
pub(crate) enum BoundTo {
    /// It has an IOMMU in front.
    Device(BoundDevice),
    /// It is software that copies.
    Emulated(BoundEmulated),
}

impl BoundTo {
    /// The id of the object that stands for it.
    pub(crate) fn id(&self) -> ObjectId {
        match self {
            BoundTo::Device(device) => device.id(),
            BoundTo::Emulated(emulated) => emulated.id(),
        }
    }

    /// Attaches to the IOAS or page table `pt_id`, or to another one than before; an emulated device
    /// to an IOAS alone. The id of the page table, or of that IOAS.
    pub(crate) fn attach(&self, pt_id: ObjectId) -> Result<ObjectId> {
        match self {
            BoundTo::Device(device) => Ok(device.attach(pt_id)?),
            BoundTo::Emulated(emulated) => {
                emulated.attach(pt_id)?;
                Ok(pt_id)
            }
        }
    }

    pub(crate) fn detach(&self) {
        match self {
            BoundTo::Device(device) => device.detach(),
            BoundTo::Emulated(emulated) => emulated.detach(),
        }
    }

    /// Attaches a PASID of the user's choice.
    pub(crate) fn attach_pasid(&self, pt_id: ObjectId, pasid: u32) -> Result<ObjectId> {
        match self {
            BoundTo::Device(device) => Ok(device.attach_pasid(pt_id, pasid)?),
            BoundTo::Emulated(_) => Err(Error::NoUserPasid),
        }
    }

    pub(crate) fn detach_pasid(&self, pasid: u32) {
        if let BoundTo::Device(device) = self {
            device.detach_pasid(pasid);
        }
    }
}

impl VfioDevice {
    pub(crate) fn bind(&self, context: &Arc<Context>) -> Result<BoundTo> {
        let faults = Arc::clone(&self.faults) as Arc<dyn FaultSink>;
        match &self.passthrough {
            Passthrough::Whole(device) => Ok(BoundTo::Device(context.bind_device(device, faults)?)),
            Passthrough::Child(child) => {
                let (device, pasid) = child.bind()?;
                let bound = context.bind_pasid(&device, pasid, faults);
                let bound = bound.inspect_err(|_| child.unbind())?;
                self.logging.set_child(&device, pasid);
                let function = self.model.function();
                function.issues(&device, Requests::Of(pasid));
                Ok(BoundTo::Device(bound))
            }
            Passthrough::Emulated(dma) => Ok(BoundTo::Emulated(dma.bind(context)?)),
        }
    }

    /// Frees the PASID of a child that was bound and is detached.
    pub(super) fn free_pasid(&self) {
        if let Passthrough::Child(child) = &self.passthrough {
            if let Some((device, pasid)) = self.logging.take_child() {
                let function = self.model.function();
                function.issues_no_more(&device, Requests::Of(pasid));
            }
            child.unbind();
        }
    }
}
