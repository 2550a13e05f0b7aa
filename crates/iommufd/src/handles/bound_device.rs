//! A device, or one default-PASID child of a device, that a program holds.

use std::{fmt, sync::Arc};

use ioasid_core::Pasid;
use ioasid_iommu::Device;

use crate::{
    base::{
        error::{AttachError, Error},
        id::{ObjectId, Use},
    },
    file::{
        attachments::{Change, attachable},
        close::retire_vdevice,
        context::Context,
        object::Object,
    },
    hardware::{attach_point::AttachPoint, device::DeviceObject, hw::HwOps},
};

/// A device, or one default-PASID child of a device, bound to a [`Context`]. Dropping it detaches
/// everything and unbinds, in this order.
pub struct BoundDevice {
    context: Arc<Context>,
    object: Arc<DeviceObject>,
    /// The binding itself uses the object: DESTROY cannot take it away.
    _used: Use,
}

impl BoundDevice {
    /// Binds what `make` makes for its id.
    pub(crate) fn new(
        context: &Arc<Context>,
        make: impl FnOnce(ObjectId) -> Arc<DeviceObject>,
    ) -> Result<Self, Error> {
        let id = context.objects().reserve_open()?;
        let object = make(id.id());
        let used = id.name_used(Object::Device(Arc::clone(&object)), Vec::new());
        Ok(BoundDevice {
            context: Arc::clone(context),
            object,
            _used: used,
        })
    }

    /// The id of the device object.
    pub fn id(&self) -> ObjectId {
        self.object.id()
    }

    /// The file it is bound to.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The device whose DMA it is: for a child, its parent.
    pub fn device(&self) -> &Arc<Device> {
        self.object.device()
    }

    /// The IOMMU in front of the device.
    pub fn ops(&self) -> &Arc<dyn HwOps> {
        self.object.ops()
    }

    /// The PASID of a default-PASID child.
    pub fn default_pasid(&self) -> Option<Pasid> {
        self.object.child()
    }

    /// Attaches to an IOAS or page table, or replaces what was attached; returns the page table.
    ///
    /// # Errors
    /// [`ObjectError::Missing`](crate::ObjectError::Missing), [`Error::Range`],
    /// [`AttachError::NotAttachable`], [`AttachError::Incompatible`],
    /// [`AttachError::GroupElsewhere`],
    /// [`AttachError::NotForPasids`], and those of pinning. What was attached before stays.
    pub fn attach(&self, pt_id: ObjectId) -> Result<ObjectId, Error> {
        self.change(self.itself(), pt_id, Change::AttachOrReplace)
    }

    /// Attaches the device, or a PASID that the program chose, where nothing is attached; returns
    /// the page table. As the kernel counts, PASID 0 is the device itself.
    ///
    /// # Errors
    /// [`AttachError::Attached`], and those of [`BoundDevice::attach`] and
    /// [`BoundDevice::attach_pasid`].
    pub fn attach_first(&self, pt_id: ObjectId, pasid: u32) -> Result<ObjectId, Error> {
        self.change(self.at(pasid)?, pt_id, Change::Attach)
    }

    /// Replaces what the device, or a PASID, is attached to. As the kernel counts, PASID 0 is the
    /// device itself.
    ///
    /// # Errors
    /// [`AttachError::NothingToReplace`], and those of [`BoundDevice::attach_first`]. What was
    /// attached before stays.
    pub fn replace(&self, pt_id: ObjectId, pasid: u32) -> Result<ObjectId, Error> {
        self.change(self.at(pasid)?, pt_id, Change::Replace)
    }

    /// Attaches a PASID that the program chose, or replaces what was attached there: VFIO's attach,
    /// which keeps a number for each PASID. Only page tables made with
    /// [`HwptFlags::PASID`](crate::HwptFlags::PASID) will do, at the device's own attachment (if
    /// any) as well.
    ///
    /// # Errors
    /// [`AttachError::NoPasids`] for a child, [`AttachError::NoSuchPasid`] for 0,
    /// [`AttachError::PasidSpace`] for 2^31 and more, and those of [`BoundDevice::attach`].
    pub fn attach_pasid(&self, pt_id: ObjectId, pasid: u32) -> Result<ObjectId, Error> {
        let at = match self.at(pasid) {
            Ok(at) if at.pasid().is_some() => at,
            Err(error @ AttachError::NoPasids(_)) => return Err(error.into()),
            Ok(_) | Err(_) => {
                if pasid > i32::MAX as u32 {
                    return Err(AttachError::PasidSpace(pasid).into());
                }
                // The page table is looked up before the PASID.
                attachable(self.context.objects(), pt_id)?;
                return Err(self.object.no_such_pasid(pasid).into());
            }
        };
        self.change(at, pt_id, Change::AttachOrReplace)
    }

    /// Detaches; returns when no DMA through the old page table is in flight. Not attached: nothing
    /// to do.
    pub fn detach(&self) {
        self.leave(self.itself());
    }

    /// Detaches a PASID that the program chose; as [`BoundDevice::detach`].
    pub fn detach_pasid(&self, pasid: u32) {
        if let Ok(at) = self.at(pasid)
            && at.pasid().is_some()
        {
            self.leave(at);
        }
    }

    /// The page table that the device is attached to, by itself or at `pasid`.
    pub fn attached(&self, pasid: Option<Pasid>) -> Option<ObjectId> {
        let attachments = self.context.attachments.lock();
        attachments.attached(AttachPoint::at(&self.object, pasid))
    }

    fn itself(&self) -> AttachPoint<'_> {
        AttachPoint::itself(&self.object)
    }

    fn at(&self, pasid: u32) -> Result<AttachPoint<'_>, AttachError> {
        AttachPoint::of(&self.object, pasid)
    }

    fn change(
        &self,
        at: AttachPoint<'_>,
        pt_id: ObjectId,
        change: Change,
    ) -> Result<ObjectId, Error> {
        let mut attachments = self.context.attachments.lock();
        attachments.attach(&self.context.page_tables(), at, pt_id, change)
    }

    fn leave(&self, at: AttachPoint<'_>) {
        let mut attachments = self.context.attachments.lock();
        attachments.detach(&self.context.page_tables(), at);
    }
}

impl Drop for BoundDevice {
    fn drop(&mut self) {
        let mut attachments = self.context.attachments.lock();
        if let Some(virt_id) = self.object.virt_id() {
            retire_vdevice(&self.context, virt_id.vdevice);
        }
        attachments.detach_all(&self.context.page_tables(), &self.object);
        self.context.objects().forget(self.object.id());
        self.object.release_ownership();
        drop(attachments);
        self.context.finish_close();
    }
}

impl fmt::Debug for BoundDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.object, f)
    }
}
