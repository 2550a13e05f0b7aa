//! A device that a program holds, and what it is attached to.

use std::{fmt, sync::Arc};

use ioasid_core::Pasid;
use ioasid_iommu::Device;

use crate::{context::Context, error::Error, object::ObjectId};

/// A device, or one default-PASID child of a device, bound to a [`Context`]. Dropping it detaches
/// everything and unbinds, in this order.
pub struct BoundDevice {
    context: Arc<Context>,
    id: ObjectId,
}

impl BoundDevice {
    /// The id of the device object.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// The file it is bound to.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The device whose DMA it is: for a child, its parent.
    pub fn device(&self) -> &Arc<Device> {
        todo!()
    }

    /// The PASID of a default-PASID child.
    pub fn default_pasid(&self) -> Option<Pasid> {
        todo!()
    }

    /// Attaches to an IOAS or page table, or replaces what was attached; returns the page table.
    ///
    /// # Errors
    /// [`Error::NoObject`], [`Error::NotAttachable`], [`Error::AddressInUse`], ...; what was
    /// attached before stays.
    pub fn attach(&self, pt_id: ObjectId) -> Result<ObjectId, Error> {
        let _ = pt_id;
        todo!()
    }

    /// Attaches a PASID that the program chose, or replaces what was attached there.
    ///
    /// # Errors
    /// [`Error::PasidSpace`] for 2^31 and more; [`Error::NoPasids`] for a child; the others as for
    /// [`BoundDevice::attach`].
    pub fn attach_pasid(&self, pt_id: ObjectId, pasid: u32) -> Result<ObjectId, Error> {
        let _ = (pt_id, pasid);
        todo!()
    }

    /// Detaches; returns when no DMA through the old page table is in flight. Not attached: nothing
    /// to do.
    pub fn detach(&self) {
        todo!()
    }

    /// Detaches a PASID that the program chose; as [`BoundDevice::detach`].
    pub fn detach_pasid(&self, pasid: u32) {
        let _ = pasid;
        todo!()
    }
}

impl fmt::Debug for BoundDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoundDevice").field("id", &self.id).finish_non_exhaustive()
    }
}
