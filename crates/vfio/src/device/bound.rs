//! What a device is bound to a context as: an IOMMU's device, or an access object.

use std::sync::Arc;

use ioasid_core::sync::Mutex;
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
    Device(BoundDevice, Mutex<Itself>),
    /// It is software that copies.
    Emulated(BoundEmulated),
}

/// How a device, not one of its PASIDs, came to be attached. PASID 0 is the device itself, but VFIO keeps
/// a record of each of the two ways and undoes only what went by the same
/// (`vfio_iommufd_physical_pasid_attach_ioas` in drivers/vfio/iommufd.c).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Itself {
    /// It did not.
    #[default]
    Detached,
    /// Without a PASID.
    Plain,
    /// As PASID 0.
    AsPasid0,
}

impl BoundTo {
    pub(crate) fn device(device: BoundDevice) -> Self {
        BoundTo::Device(device, Mutex::default())
    }

    /// The id of the object that stands for it.
    pub(crate) fn id(&self) -> ObjectId {
        match self {
            BoundTo::Device(device, _) => device.id(),
            BoundTo::Emulated(emulated) => emulated.id(),
        }
    }

    /// Attaches to the IOAS or page table `pt_id`, or to another one than before; an emulated device
    /// to an IOAS alone. The id of the page table, or of that IOAS.
    pub(crate) fn attach(&self, pt_id: ObjectId) -> Result<ObjectId> {
        match self {
            BoundTo::Device(device, itself) => {
                let mut itself = itself.lock();
                if *itself == Itself::AsPasid0 {
                    // In its own way.
                    return Ok(device.attach_first(pt_id, 0)?);
                }
                let attached = device.attach(pt_id)?;
                *itself = Itself::Plain;
                Ok(attached)
            }
            BoundTo::Emulated(emulated) => {
                emulated.attach(pt_id)?;
                Ok(pt_id)
            }
        }
    }

    pub(crate) fn detach(&self) {
        match self {
            BoundTo::Device(device, itself) => {
                let mut itself = itself.lock();
                if *itself == Itself::Plain {
                    device.detach();
                    *itself = Itself::Detached;
                }
            }
            BoundTo::Emulated(emulated) => emulated.detach(),
        }
    }

    /// Attaches a PASID of the user's choice.
    pub(crate) fn attach_pasid(&self, pt_id: ObjectId, pasid: u32) -> Result<ObjectId> {
        match self {
            BoundTo::Device(device, itself) if pasid == 0 => {
                let mut itself = itself.lock();
                if *itself == Itself::AsPasid0 {
                    return Ok(device.replace(pt_id, 0)?);
                }
                let attached = device.attach_first(pt_id, 0)?;
                *itself = Itself::AsPasid0;
                Ok(attached)
            }
            BoundTo::Device(device, _) => Ok(device.attach_pasid(pt_id, pasid)?),
            BoundTo::Emulated(_) => Err(Error::NoUserPasid),
        }
    }

    pub(crate) fn detach_pasid(&self, pasid: u32) {
        match self {
            BoundTo::Device(device, itself) if pasid == 0 => {
                let mut itself = itself.lock();
                if *itself == Itself::AsPasid0 {
                    device.detach();
                    *itself = Itself::Detached;
                }
            }
            BoundTo::Device(device, _) => device.detach_pasid(pasid),
            BoundTo::Emulated(_) => {}
        }
    }
}

impl VfioDevice {
    pub(crate) fn bind(&self, context: &Arc<Context>) -> Result<BoundTo> {
        let faults = Arc::clone(&self.faults) as Arc<dyn FaultSink>;
        match &self.passthrough {
            Passthrough::Whole(device) => Ok(BoundTo::device(context.bind_device(device, faults)?)),
            Passthrough::Child(child) => {
                let (device, pasid) = child.bind()?;
                let bound = context.bind_pasid(&device, pasid, faults);
                let bound = bound.inspect_err(|_| child.unbind())?;
                self.logging.set_child(&device, pasid);
                let function = self.model.function();
                function.issues(&device, Requests::Of(pasid));
                Ok(BoundTo::device(bound))
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
