//! A device that a program holds.

use std::{fmt, sync::Arc};

use ioasid_core::{
    AddrRange, Pasid,
    inspect::{Inspect, Node},
    sync::Mutex,
};
use ioasid_iommu::{AttachError, Device, DmaOwnership, DmaSource, Domain, FaultSink, ReservedKind};

use crate::{
    attach::{Change, Holder},
    context::Context,
    error::Error,
    hw::HwOps,
    object::ObjectId,
    viommu::Vdevice,
};

/// A device object: a whole device, or one default-PASID child of a device.
pub(crate) struct DeviceObject {
    id: ObjectId,
    device: Arc<Device>,
    child: Option<Pasid>,
    /// The claim on the group of a whole device. A child claims nothing: its parent's driver owns
    /// the device and its PASIDs.
    ownership: Mutex<Option<DmaOwnership>>,
    faults: Arc<dyn FaultSink>,
    /// What stands in front of the device.
    ops: Arc<dyn HwOps>,
    /// Its number on a virtual IOMMU.
    vdevice: Mutex<Option<Arc<Vdevice>>>,
}

impl DeviceObject {
    pub(crate) fn new(
        id: ObjectId,
        device: Arc<Device>,
        child: Option<Pasid>,
        ownership: Option<DmaOwnership>,
        faults: Arc<dyn FaultSink>,
        ops: Arc<dyn HwOps>,
    ) -> Arc<Self> {
        Arc::new(DeviceObject {
            id,
            device,
            child,
            ownership: Mutex::new(ownership),
            faults,
            ops,
            vdevice: Mutex::new(None),
        })
    }

    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    pub(crate) fn device(&self) -> &Arc<Device> {
        &self.device
    }

    pub(crate) fn ops(&self) -> &Arc<dyn HwOps> {
        &self.ops
    }

    pub(crate) fn vdevice(&self) -> Option<Arc<Vdevice>> {
        self.vdevice.lock().clone()
    }

    pub(crate) fn set_vdevice(&self, vdevice: Option<Arc<Vdevice>>) {
        let old = std::mem::replace(&mut *self.vdevice.lock(), vdevice);
        drop(old);
    }

    pub(crate) fn child(&self) -> Option<Pasid> {
        self.child
    }

    /// What its attachments are kept under: its group's, or its own.
    pub(crate) fn holder(&self) -> Holder {
        match self.child {
            Some(_) => Holder::Child(self.id),
            None => Holder::Group(self.device.group().id()),
        }
    }

    /// The PASID of the DMA that an attachment is about. From here on a child is a PASID of its
    /// device like any other.
    pub(crate) fn route(&self, pasid: Option<Pasid>) -> Option<Pasid> {
        self.child.or(pasid)
    }

    /// Whether mappings must stay away from the device's reserved regions: only if the DMA has no
    /// PASID.
    pub(crate) fn reserves(&self, pasid: Option<Pasid>) -> bool {
        self.route(pasid).is_none()
    }

    /// What mappings must stay away from.
    pub(crate) fn reserved(&self, pasid: Option<Pasid>) -> Vec<AddrRange> {
        if !self.reserves(pasid) {
            return Vec::new();
        }
        let regions = self.device.reserved_regions().iter();
        regions
            .filter(|region| region.kind != ReservedKind::DirectRelaxable)
            .map(|region| region.range)
            .collect()
    }

    /// The DMA that an attachment is about.
    fn source(&self, pasid: Option<Pasid>) -> DmaSource {
        DmaSource::new(&self.device, self.route(pasid))
    }

    pub(crate) fn point(&self, pasid: Option<Pasid>, domain: &Arc<Domain>) -> Result<(), Error> {
        Ok(self.source(pasid).attach_group(domain, &self.faults)?)
    }

    pub(crate) fn repoint(&self, pasid: Option<Pasid>, domain: &Arc<Domain>) -> Result<(), Error> {
        Ok(self.source(pasid).replace(domain, &self.faults)?)
    }

    /// Returns after the barrier.
    pub(crate) fn unpoint(&self, pasid: Option<Pasid>) {
        self.source(pasid).detach();
    }

    pub(crate) fn release_ownership(&self) {
        let ownership = self.ownership.lock().take();
        drop(ownership);
    }
}

impl From<AttachError> for Error {
    fn from(error: AttachError) -> Self {
        match error {
            // A device without PASIDs has a limit of 0: any PASID is beyond it.
            AttachError::NoPasidSupport { .. } | AttachError::PasidRange { .. } => {
                Error::NoSuchPasid
            }
            AttachError::Attached { .. }
            | AttachError::DriverInUse { .. }
            | AttachError::Resetting { .. } => Error::DeviceBusy,
            AttachError::NoMemory(_) => Error::NoMemory,
            AttachError::NotSingleton { .. }
            | AttachError::NotAttached { .. }
            | AttachError::Incompatible(_) => Error::Incompatible,
        }
    }
}

impl fmt::Debug for DeviceObject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceObject")
            .field("id", &self.id)
            .field("device", &self.device.address())
            .field("child", &self.child)
            .finish_non_exhaustive()
    }
}

impl Inspect for DeviceObject {
    fn inspect(&self) -> Node {
        let node = Node::new()
            .with("id", self.id.get())
            .with("device", self.device.address().to_string());
        match self.child {
            Some(pasid) => node.with("default_pasid", pasid.get()),
            None => node,
        }
    }
}

/// A device, or one default-PASID child of a device, bound to a [`Context`]. Dropping it detaches
/// everything and unbinds, in this order.
pub struct BoundDevice {
    context: Arc<Context>,
    object: Arc<DeviceObject>,
}

impl BoundDevice {
    pub(crate) fn new(context: Arc<Context>, object: Arc<DeviceObject>) -> Self {
        BoundDevice { context, object }
    }

    /// The id of the device object.
    pub fn id(&self) -> ObjectId {
        self.object.id
    }

    /// The file it is bound to.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// The device whose DMA it is: for a child, its parent.
    pub fn device(&self) -> &Arc<Device> {
        &self.object.device
    }

    /// What stands in front of the device.
    pub fn ops(&self) -> &Arc<dyn HwOps> {
        &self.object.ops
    }

    /// The PASID of a default-PASID child.
    pub fn default_pasid(&self) -> Option<Pasid> {
        self.object.child
    }

    /// Attaches to an IOAS or page table, or replaces what was attached; returns the page table.
    ///
    /// # Errors
    /// [`Error::NoObject`], [`Error::NotAttachable`], [`Error::AddressInUse`],
    /// [`Error::Incompatible`], [`Error::GroupElsewhere`], [`Error::NotForPasids`], and those of
    /// pinning. What was attached before stays.
    pub fn attach(&self, pt_id: ObjectId) -> Result<ObjectId, Error> {
        self.context
            .attach(&self.object, None, pt_id, Change::AttachOrReplace)
    }

    /// Attaches the device, or a PASID that the program chose, where nothing is attached; returns
    /// the page table. As the kernel counts, PASID 0 is the device itself.
    ///
    /// # Errors
    /// [`Error::DeviceBusy`] if it is attached, and those of [`BoundDevice::attach`] and
    /// [`BoundDevice::attach_pasid`].
    pub fn attach_first(&self, pt_id: ObjectId, pasid: u32) -> Result<ObjectId, Error> {
        let pasid = self.chosen(pasid)?;
        self.context
            .attach(&self.object, pasid, pt_id, Change::Attach)
    }

    /// Replaces what the device, or a PASID, is attached to. As the kernel counts, PASID 0 is the
    /// device itself.
    ///
    /// # Errors
    /// [`Error::NothingToReplace`], and those of [`BoundDevice::attach_first`]. What was attached
    /// before stays.
    pub fn replace(&self, pt_id: ObjectId, pasid: u32) -> Result<ObjectId, Error> {
        let pasid = self.chosen(pasid)?;
        self.context
            .attach(&self.object, pasid, pt_id, Change::Replace)
    }

    fn chosen(&self, pasid: u32) -> Result<Option<Pasid>, Error> {
        match pasid {
            0 => Ok(None),
            _ if self.object.child.is_some() => Err(Error::NoPasids),
            _ => Pasid::new(pasid).map(Some).ok_or(Error::NoSuchPasid),
        }
    }

    /// Attaches a PASID that the program chose, or replaces what was attached there. Only page
    /// tables made with [`HwptFlags::PASID`](crate::HwptFlags::PASID) will do, at the device's own
    /// attachment (if any) as well.
    ///
    /// # Errors
    /// [`Error::NoPasids`] for a child, [`Error::NoSuchPasid`] for 0, [`Error::PasidSpace`] for 2^31 and
    /// more, and those of
    /// [`BoundDevice::attach`].
    pub fn attach_pasid(&self, pt_id: ObjectId, pasid: u32) -> Result<ObjectId, Error> {
        if self.object.child.is_some() {
            return Err(Error::NoPasids);
        }
        if pasid > i32::MAX as u32 {
            return Err(Error::PasidSpace);
        }
        let Some(pasid) = Pasid::new(pasid) else {
            self.context.attachable(pt_id)?;
            return Err(Error::NoSuchPasid);
        };
        self.context
            .attach(&self.object, Some(pasid), pt_id, Change::AttachOrReplace)
    }

    /// Detaches; returns when no DMA through the old page table is in flight. Not attached: nothing
    /// to do.
    pub fn detach(&self) {
        self.context.detach(&self.object, None);
    }

    /// Detaches a PASID that the program chose; as [`BoundDevice::detach`].
    pub fn detach_pasid(&self, pasid: u32) {
        if let Some(pasid) = Pasid::new(pasid) {
            self.context.detach(&self.object, Some(pasid));
        }
    }

    /// The page table that the device is attached to, by itself or at `pasid`.
    pub fn attached(&self, pasid: Option<Pasid>) -> Option<ObjectId> {
        self.context.attached(&self.object, pasid)
    }
}

impl Drop for BoundDevice {
    fn drop(&mut self) {
        self.context.unbind(&self.object);
    }
}

impl fmt::Debug for BoundDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.object, f)
    }
}
