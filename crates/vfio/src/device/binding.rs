//! A device in an iommufd context: as an IOMMU's device, or as an access object.

use std::sync::Arc;

use ioasid_core::sync::Mutex;
use ioasid_iommu::FaultSink;
use ioasid_iommufd::{BoundDevice, Context, ObjectId};

use super::hardware::Hardware;
use crate::{
    base::error::{AttachError, Result},
    dma::emulated::BoundEmulated,
    model::{DefaultPasid, Passthrough},
};

/// A device that is bound to a context. Dropping it detaches it, and then frees the PASID of a child.
#[derive(Debug)]
pub(crate) struct Binding {
    // Fields are dropped in this order: a PASID is freed when nothing has it any more.
    bound: BoundTo,
    _pasid: Option<PasidLease>,
}

/// The default PASID of a child, from bind to the end of that.
#[derive(Debug)]
struct PasidLease {
    hardware: Arc<Hardware>,
    child: Arc<dyn DefaultPasid>,
}

impl Drop for PasidLease {
    fn drop(&mut self) {
        self.hardware.end_child();
        self.child.unbind();
    }
}

impl Binding {
    /// Binds to `context`. A whole device claims the DMA ownership of its group; a child gets its
    /// default PASID and claims nothing.
    ///
    /// # Errors
    /// What binding to the context says; for a child the
    /// [`BindError`](crate::error::BindError) when no PASID is left.
    pub(crate) fn new(
        hardware: &Arc<Hardware>,
        context: &Arc<Context>,
        faults: Arc<dyn FaultSink>,
    ) -> Result<Self> {
        let (bound, pasid) = match hardware.passthrough() {
            Passthrough::Whole(device) => {
                let bound = context.bind_device(device, faults)?;
                (BoundTo::Device(bound, Mutex::default()), None)
            }
            Passthrough::Child(child) => {
                let (device, pasid) = child.bind()?;
                let lease = PasidLease {
                    hardware: Arc::clone(hardware),
                    child: Arc::clone(child),
                };
                let bound = context.bind_pasid(&device, pasid, faults)?;
                hardware.begin_child(&device, pasid);
                (BoundTo::Device(bound, Mutex::default()), Some(lease))
            }
            Passthrough::Emulated(dma) => (BoundTo::Emulated(dma.bind(context)?), None),
        };
        Ok(Binding {
            bound,
            _pasid: pasid,
        })
    }

    /// The id of the object that stands for it.
    pub(crate) fn id(&self) -> ObjectId {
        match &self.bound {
            BoundTo::Device(device, _) => device.id(),
            BoundTo::Emulated(emulated) => emulated.id(),
        }
    }

    /// Attaches to the IOAS or page table `pt_id`, or to another one than before; an emulated device
    /// to an IOAS alone. The id of the page table, or of that IOAS.
    pub(crate) fn attach(&self, pt_id: ObjectId) -> Result<ObjectId> {
        match &self.bound {
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
        match &self.bound {
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
        match &self.bound {
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
            BoundTo::Emulated(_) => Err(AttachError::NoUserPasids.into()),
        }
    }

    pub(crate) fn detach_pasid(&self, pasid: u32) {
        match &self.bound {
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

/// What is bound. Dropping it detaches it.
#[derive(Debug)]
enum BoundTo {
    /// Its DMA goes through an IOMMU.
    Device(BoundDevice, Mutex<Itself>),
    /// It is software that copies.
    Emulated(BoundEmulated),
}

/// How a device, not one of its PASIDs, came to be attached. PASID 0 is the device itself, but VFIO keeps
/// a record of each of the two ways and undoes only what went by the same
/// (`vfio_iommufd_physical_pasid_attach_ioas` in drivers/vfio/iommufd.c).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Itself {
    /// It did not.
    #[default]
    Detached,
    /// Without a PASID.
    Plain,
    /// As PASID 0.
    AsPasid0,
}
