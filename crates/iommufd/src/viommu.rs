//! Virtual IOMMUs: what a guest sees of the IOMMU behind its devices, and the devices as the guest
//! numbers them (drivers/iommu/iommufd/viommu.c).

use std::{collections::BTreeMap, fmt, sync::Arc};

use ioasid_core::{
    failpoint,
    inspect::{Inspect, Node},
    sync::Mutex,
};

use crate::{
    context::Context,
    device::DeviceObject,
    error::Error,
    event::EventFile,
    hw::{HwOps, Invalidated, ViommuOps, ViommuRequest},
    hwpt::Hwpt,
    mmap::MmapSpace,
    object::{Object, ObjectId},
    queue_file::{Queue, QueueFile},
    user::{UserArray, UserData},
    vevent::VeventQueue,
};

/// A virtual IOMMU.
pub struct Viommu {
    id: ObjectId,
    kind: u32,
    /// Which IOMMU of the machine it is a part of.
    instance: u64,
    parent: Arc<Hwpt>,
    ops: Arc<dyn ViommuOps>,
    devices: Mutex<BTreeMap<u64, Arc<Vdevice>>>,
    queues: Mutex<BTreeMap<u32, Arc<VeventQueue>>>,
}

impl Viommu {
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

    pub(crate) fn parent(&self) -> &Arc<Hwpt> {
        &self.parent
    }

    /// The device that the guest calls `virt_id`.
    pub fn device(&self, virt_id: u64) -> Option<Arc<dyn HwOps>> {
        let devices = self.devices.lock();
        let vdevice = devices.get(&virt_id)?;
        Some(Arc::clone(vdevice.device.ops()))
    }

    /// Tells the program of an event of the type `kind`. An event for which there is no room is
    /// told as lost: that is no error.
    ///
    /// # Errors
    /// [`Error::TypeNotSupported`] if the program has no queue for such events.
    pub fn report_event(&self, kind: u32, data: &[u8]) -> Result<(), Error> {
        let queue = self.queues.lock().get(&kind).cloned();
        queue.ok_or(Error::TypeNotSupported)?.report(data);
        Ok(())
    }

    pub(crate) fn forget_queue(&self, queue: ObjectId) {
        self.queues.lock().retain(|_, known| known.id() != queue);
    }
}

impl Inspect for Viommu {
    fn inspect(&self) -> Node {
        let devices = self.devices.lock();
        let numbers: Vec<String> = devices
            .keys()
            .map(|virt_id| format!("{virt_id:#x}"))
            .collect();
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

/// A device as a guest numbers it.
pub(crate) struct Vdevice {
    id: ObjectId,
    virt_id: u64,
    viommu: Arc<Viommu>,
    device: Arc<DeviceObject>,
}

impl Vdevice {
    pub(crate) fn id(&self) -> ObjectId {
        self.id
    }

    pub(crate) fn virt_id(&self) -> u64 {
        self.virt_id
    }

    pub(crate) fn viommu(&self) -> &Arc<Viommu> {
        &self.viommu
    }

    /// Takes the number away; the caller has the object out of the table.
    pub(crate) fn release(&self) {
        self.viommu.devices.lock().remove(&self.virt_id);
        self.device.set_vdevice(None);
    }
}

impl fmt::Debug for Vdevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vdevice")
            .field("id", &self.id)
            .field("virt_id", &self.virt_id)
            .field("viommu", &self.viommu.id)
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

impl Context {
    /// The virtual IOMMU `id`.
    ///
    /// # Errors
    /// [`Error::NoObject`].
    pub fn viommu(&self, id: ObjectId) -> Result<Arc<Viommu>, Error> {
        match self.objects.lock().object(id) {
            Some(Object::Viommu(viommu)) => Ok(viommu),
            _ => Err(Error::NoObject(id)),
        }
    }

    /// VIOMMU_ALLOC.
    ///
    /// # Errors
    /// In the kernel's order: [`Error::NoObject`] for the device, [`Error::TypeNotSupported`],
    /// [`Error::NoObject`] for the page table, [`Error::NotAParent`], [`Error::NoIds`], and those of
    /// the back end.
    pub fn viommu_alloc(&self, args: ViommuAlloc<'_>) -> Result<ObjectId, Error> {
        let _attachments = self.attachments.lock();
        let device = self.device(args.device)?;
        if !device.ops().supports_viommu(args.kind) {
            return Err(Error::TypeNotSupported);
        }
        let parent = self.hwpt(args.hwpt)?;
        let Some(table) = parent.nest_parent() else {
            return Err(Error::NotAParent(args.hwpt));
        };
        let id = self.open_objects()?.reserve()?;
        let made = device.ops().init_viommu(&ViommuRequest {
            kind: args.kind,
            parent: table.domain().domain(),
            data: Some(args.data).filter(|data| !data.is_empty()),
            mmap: &MmapSpace {
                offsets: self.mmap_offsets(),
                owner: id,
            },
        });
        let mut objects = self.objects.lock();
        let ops = match made {
            Ok(ops) => ops,
            Err(error) => {
                self.mmap_offsets().remove(id);
                objects.forget(id);
                return Err(error);
            }
        };
        objects.hold(parent.id());
        let viommu = Viommu {
            id,
            kind: args.kind,
            instance: device.ops().instance(),
            parent,
            ops,
            devices: Mutex::default(),
            queues: Mutex::default(),
        };
        objects.install(id, Object::Viommu(Arc::new(viommu)));
        Ok(id)
    }

    /// VDEVICE_ALLOC: a device is `virt_id` on a virtual IOMMU from now on. Goes with the device: its
    /// id is not used again then.
    ///
    /// # Errors
    /// In the kernel's order: [`Error::NoObject`] for the virtual IOMMU and for the device,
    /// [`Error::OtherIommu`], [`Error::Exists`] if the device has a number, [`Error::NoIds`],
    /// [`Error::Exists`] if the number is taken.
    pub fn vdevice_alloc(
        &self,
        viommu: ObjectId,
        device: ObjectId,
        virt_id: u64,
    ) -> Result<ObjectId, Error> {
        let _attachments = self.attachments.lock();
        let viommu = self.viommu(viommu)?;
        let device = self.device(device)?;
        if device.ops().instance() != viommu.instance {
            return Err(Error::OtherIommu);
        }
        if device.vdevice().is_some() {
            return Err(Error::Exists);
        }
        let mut objects = self.objects.lock();
        let id = objects.reserve()?;
        let mut devices = viommu.devices.lock();
        let entry = match devices.contains_key(&virt_id) {
            true => Err(Error::Exists),
            false => failpoint::allocation().map_err(Error::from),
        };
        if let Err(error) = entry {
            objects.forget(id);
            return Err(error);
        }
        let vdevice = Arc::new(Vdevice {
            id,
            virt_id,
            viommu: Arc::clone(&viommu),
            device: Arc::clone(&device),
        });
        devices.insert(virt_id, Arc::clone(&vdevice));
        device.set_vdevice(Some(Arc::clone(&vdevice)));
        objects.install(id, Object::Vdevice(vdevice));
        objects.hold(viommu.id);
        Ok(id)
    }

    /// VEVENTQ_ALLOC: a queue of events and the file to read it with. The queue cannot be destroyed
    /// while the file is open.
    ///
    /// # Errors
    /// In the kernel's order: [`Error::BadDepth`], [`Error::NoObject`], [`Error::Exists`] if there is
    /// a queue of this type, [`Error::NoIds`].
    pub fn veventq_alloc(
        self: &Arc<Self>,
        args: VeventqAlloc,
    ) -> Result<(ObjectId, Arc<dyn EventFile>), Error> {
        if !(1..=VeventQueue::MAX_DEPTH).contains(&args.depth) {
            return Err(Error::BadDepth);
        }
        let _attachments = self.attachments.lock();
        let viommu = self.viommu(args.viommu)?;
        let mut objects = self.open_objects()?;
        let mut queues = viommu.queues.lock();
        if queues.contains_key(&args.kind) {
            return Err(Error::Exists);
        }
        let id = objects.reserve()?;
        let queue = VeventQueue::new(id, viommu.id, args.depth);
        queues.insert(args.kind, Arc::clone(&queue));
        objects.install(id, Object::VeventQueue(Arc::clone(&queue)));
        objects.hold(viommu.id);
        objects.hold(id);
        Ok((id, QueueFile::new(self, queue)))
    }

    /// HWPT_INVALIDATE: forgets cached translations of a nested page table, or what a virtual IOMMU
    /// caches. The number of entries that were done counts in any case.
    pub fn hwpt_invalidate(&self, id: ObjectId, entries: &UserArray<'_>) -> Invalidated {
        let object = self.objects.lock().object(id);
        match object {
            None => Invalidated::stopped(0, Error::NoObject(id)),
            Some(Object::Hwpt(hwpt)) => match hwpt.nested() {
                Some(nested) => nested.ops().invalidate(entries),
                None => Invalidated::stopped(0, Error::NothingCached),
            },
            Some(Object::Viommu(viommu)) => viommu.ops.invalidate(&viommu, entries),
            Some(_) => Invalidated::stopped(0, Error::NothingCached),
        }
    }
}
