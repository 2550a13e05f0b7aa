//! A device in an iommufd context: as an IOMMU's device, or as an access object.

use std::sync::Arc;

use ioasid_core::sync::Mutex;
use ioasid_iommu::FaultSink;
use ioasid_iommufd::{BoundDevice, Context, ObjectId};

use super::hardware::Hardware;
use crate::{
    base::error::Result,
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
    /// to an IOAS alone. The id of the page table, or of that IOAS. `pasid` is for a device that takes
    /// PASIDs of its user's choice.
    pub(crate) fn attach(&self, pt_id: ObjectId, pasid: Option<UserPasid>) -> Result<ObjectId> {
        let (device, itself) = match &self.bound {
            BoundTo::Device(device, itself) => (device, itself),
            BoundTo::Emulated(emulated) => {
                emulated.attach(pt_id)?;
                return Ok(pt_id);
            }
        };
        if let Some(UserPasid(pasid @ 1..)) = pasid {
            return Ok(device.attach_pasid(pt_id, pasid)?);
        }
        let way = Itself::attached_by(pasid);
        let mut itself = itself.lock();
        let attached = match (way, *itself) {
            // Each of the two ways replaces what it has attached itself, and finds the other's in use.
            (Itself::Plain, Itself::AsPasid0) => return Ok(device.attach_first(pt_id, 0)?),
            (Itself::AsPasid0, Itself::AsPasid0) => device.replace(pt_id, 0)?,
            (Itself::AsPasid0, _) => device.attach_first(pt_id, 0)?,
            _ => device.attach(pt_id)?,
        };
        *itself = way;
        Ok(attached)
    }

    /// Detaches what was attached in the same way. Nothing is: nothing to do.
    pub(crate) fn detach(&self, pasid: Option<UserPasid>) {
        let (device, itself) = match &self.bound {
            BoundTo::Device(device, itself) => (device, itself),
            BoundTo::Emulated(emulated) => return emulated.detach(),
        };
        if let Some(UserPasid(pasid @ 1..)) = pasid {
            return device.detach_pasid(pasid);
        }
        let mut itself = itself.lock();
        if *itself == Itself::attached_by(pasid) {
            device.detach();
            *itself = Itself::Detached;
        }
    }
}

/// A device takes PASIDs of its user's choice.
/// [`DeviceFile::user_pasids`](crate::DeviceFile::user_pasids) says so, for a whole device: a mediated
/// one has a default PASID, or none.
#[derive(Clone, Copy, Debug)]
pub struct UserPasids(pub(super) ());

impl UserPasids {
    /// The PASID `number`. As the kernel counts, 0 is the device itself; a number that no device can
    /// send is found out by the attach.
    pub const fn pasid(self, number: u32) -> UserPasid {
        UserPasid(number)
    }
}

/// A PASID that the user of a device has chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UserPasid(u32);

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

impl Itself {
    /// The way of an attach without a PASID of 1 or more.
    const fn attached_by(pasid: Option<UserPasid>) -> Self {
        match pasid {
            None => Itself::Plain,
            Some(_) => Itself::AsPasid0,
        }
    }
}
