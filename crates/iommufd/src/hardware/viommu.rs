//! Virtual IOMMUs: what a guest sees of the IOMMU behind its devices
//! (drivers/iommu/iommufd/viommu.c).

use std::{collections::BTreeMap, fmt, sync::Arc};

use ioasid_core::{
    inspect::{Inspect, Node, Value},
    sync::Mutex,
};

use super::{
    hw::{HwOps, ViommuOps},
    paging::PagingTable,
    vevent::VeventQueue,
};
use crate::base::{
    error::{AllocError, Error},
    id::ObjectId,
    queue::Queue,
    user::UserData,
};

/// A virtual IOMMU.
pub struct Viommu {
    id: ObjectId,
    kind: u32,
    /// Which IOMMU of the machine it is a part of.
    instance: u64,
    parent: Arc<PagingTable>,
    ops: Arc<dyn ViommuOps>,
    /// The devices by the numbers that the guest gives them.
    pub(crate) devices: Mutex<BTreeMap<u64, Arc<dyn HwOps>>>,
    /// Queues of events by type.
    pub(crate) queues: Mutex<BTreeMap<u32, Arc<VeventQueue>>>,
}

impl Viommu {
    /// A virtual IOMMU without devices, on `parent`.
    pub(crate) fn new(
        id: ObjectId,
        kind: u32,
        instance: u64,
        parent: Arc<PagingTable>,
        ops: Arc<dyn ViommuOps>,
    ) -> Arc<Self> {
        Arc::new(Viommu {
            id,
            kind,
            instance,
            parent,
            ops,
            devices: Mutex::default(),
            queues: Mutex::default(),
        })
    }

    /// Its id.
    pub fn id(&self) -> ObjectId {
        self.id
    }

    /// Its type.
    pub fn kind(&self) -> u32 {
        self.kind
    }

    /// The back end's part.
    pub fn ops(&self) -> &Arc<dyn ViommuOps> {
        &self.ops
    }

    pub(crate) fn instance(&self) -> u64 {
        self.instance
    }

    pub(crate) fn parent(&self) -> &Arc<PagingTable> {
        &self.parent
    }

    /// The device that the guest calls `virt_id`.
    pub fn device(&self, virt_id: u64) -> Option<Arc<dyn HwOps>> {
        self.devices.lock().get(&virt_id).cloned()
    }

    /// Reports an event of the type `kind` to the program. An event for which there is no room is
    /// reported as lost: that is no error.
    ///
    /// # Errors
    /// [`AllocError::TypeNotSupported`] if the program has no queue for such events.
    pub fn report_event(&self, kind: u32, data: &[u8]) -> Result<(), Error> {
        let queue = self.queues.lock().get(&kind).cloned();
        let queue = queue.ok_or(AllocError::TypeNotSupported(kind))?;
        queue.report(data);
        Ok(())
    }

    pub(crate) fn forget_queue(&self, queue: ObjectId) {
        self.queues.lock().retain(|_, known| known.id() != queue);
    }
}

impl Inspect for Viommu {
    fn inspect(&self) -> Node {
        let devices = self.devices.lock();
        let numbers: Vec<Value> = devices.keys().map(|id| Value::Hex(*id)).collect();
        Node::new()
            .with("id", self.id.get())
            .with("kind", self.kind)
            .with("hwpt", self.parent.id().get())
            .with("devices", numbers)
    }
}

impl fmt::Debug for Viommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Viommu")
            .field("id", &self.id)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

/// What VIOMMU_ALLOC is asked for.
#[derive(Clone, Copy, Debug)]
pub struct ViommuAlloc<'a> {
    /// `enum iommu_viommu_type`, not 0.
    pub kind: u32,
    /// The device whose IOMMU it is a part of.
    pub device: ObjectId,
    /// The page table that guests' page tables are nested on.
    pub hwpt: ObjectId,
    /// What comes with it.
    pub data: UserData<'a>,
}

/// What VEVENTQ_ALLOC is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VeventqAlloc {
    /// The virtual IOMMU.
    pub viommu: ObjectId,
    /// `enum iommu_veventq_type`, not 0. Any other number is a type: only events decide.
    pub kind: u32,
    /// Events that the queue holds.
    pub depth: u32,
}
