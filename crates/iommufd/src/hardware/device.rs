//! Devices as programs hold them: a whole device, or one default-PASID child of a device.

use std::{fmt, sync::Arc};

use ioasid_core::{
    Pasid,
    inspect::{Inspect, Node},
    sync::Mutex,
};
use ioasid_iommu::{Device, DmaOwnership, FaultSink};

use super::{hw::HwOps, hw_info::HwInfo};
use crate::base::{error::AttachError, id::ObjectId};

/// What attachments are kept under: a group, whose devices stand on one page table, or one
/// default-PASID child, which is a group of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum GroupKey {
    Group(u32),
    Child(ObjectId),
}

/// What a guest calls a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct VirtId {
    /// The object that gives the number.
    pub(crate) vdevice: ObjectId,
    /// The virtual IOMMU on which it has it.
    pub(crate) viommu: ObjectId,
    pub(crate) number: u64,
}

/// A device object: a whole device, or one default-PASID child of a device.
pub(crate) struct DeviceObject {
    id: ObjectId,
    device: Arc<Device>,
    child: Option<Pasid>,
    /// The ownership of the group of a whole device. A child has none: its parent's driver owns the
    /// device and its PASIDs.
    ownership: Mutex<Option<DmaOwnership>>,
    faults: Arc<dyn FaultSink>,
    /// The IOMMU in front of the device.
    ops: Arc<dyn HwOps>,
    /// Its number on a virtual IOMMU.
    virt_id: Mutex<Option<VirtId>>,
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
            virt_id: Mutex::new(None),
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

    /// Its number on a virtual IOMMU.
    pub(crate) fn virt_id(&self) -> Option<VirtId> {
        *self.virt_id.lock()
    }

    pub(crate) fn set_virt_id(&self, virt_id: Option<VirtId>) {
        *self.virt_id.lock() = virt_id;
    }

    pub(crate) fn child(&self) -> Option<Pasid> {
        self.child
    }

    /// What its attachments are kept under: its group's, or its own.
    pub(crate) fn group_key(&self) -> GroupKey {
        match self.child {
            Some(_) => GroupKey::Child(self.id),
            None => GroupKey::Group(self.device.group().id()),
        }
    }

    /// Takes the faults of its attachments.
    pub(crate) fn faults(&self) -> &Arc<dyn FaultSink> {
        &self.faults
    }

    /// The device cannot send `pasid`.
    pub(crate) fn no_such_pasid(&self, pasid: u32) -> AttachError {
        AttachError::NoSuchPasid {
            pasid,
            max_pasids: self.device.max_pasids(),
        }
    }

    /// What GET_HW_INFO says.
    pub(crate) fn hw_info(&self) -> HwInfo {
        // A program cannot choose PASIDs at a child: its one PASID is its parent's secret.
        let choosable = self.child.is_none();
        let (execute, privileged) = self.device.pasid_features();
        let pasids = choosable && self.device.pasid_bits() > 0;
        HwInfo {
            data: self.ops.info(),
            dirty_tracking: self.ops.supports_dirty(),
            max_pasid_log2: if choosable {
                self.device.pasid_bits()
            } else {
                0
            },
            pasid_execute: pasids && execute,
            pasid_privileged: pasids && privileged,
            ats: self.device.has_ats(),
        }
    }

    pub(crate) fn release_ownership(&self) {
        let ownership = self.ownership.lock().take();
        drop(ownership);
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
        Node::new()
            .with("id", self.id.get())
            .with("device", self.device.address().to_string())
            .with("default_pasid", self.child.map(Pasid::get))
    }
}
