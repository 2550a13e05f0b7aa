//! One open `/dev/iommu` file.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use ioasid_core::{
    AddrRange, Pasid, failpoint,
    host::Account,
    inspect::{Inspect, Node, Value},
    memory::PageSource,
    sync::{Mutex, MutexGuard},
};
use ioasid_iommu::{Device, FaultSink, Iommu, OwnerId, OwnershipError};

use crate::{
    attach::Attachments,
    device::{BoundDevice, DeviceObject},
    dirty::DirtyRequest,
    error::Error,
    hw::{HwOps, SoftwareIommu},
    hw_info::HwInfo,
    hwpt::Hwpt,
    ioas::{CopyArgs, Ioas, IovaRanges, MapArgs, Part},
    ledger::{Charge, Limits, MemoryLedger},
    mmap::MmapOffsets,
    object::{Object, ObjectId, Table},
    pages::Pages,
};

/// One open `/dev/iommu` file: an object table and the commands on it.
///
/// Every command may be called from any thread. The checks of a command come in the kernel's order,
/// but for those that need only the ioctl struct: whoever decodes the struct makes them first.
#[derive(Debug)]
pub struct Context {
    this: Weak<Context>,
    iommu: Arc<Iommu>,
    ledger: Arc<MemoryLedger>,
    owner: OwnerId,
    pub(crate) closed: AtomicBool,
    /// Files of events and mapped pages.
    pub(crate) open_files: AtomicUsize,
    mmap_offsets: MmapOffsets,
    /// Held for lookups and bookkeeping only; inside every other lock.
    pub(crate) objects: Mutex<Table>,
    /// Held through a whole attach, detach or destroy; outside every other lock.
    pub(crate) attachments: Mutex<Attachments>,
    pub(crate) options: Mutex<Options>,
}

#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Locked memory is counted per process, not per user.
    rlimit_per_process: bool,
    /// The IOAS that VFIO container commands work on.
    pub(crate) vfio_ioas: Option<ObjectId>,
}

impl Context {
    /// A file without objects, whose locked memory counts in a ledger of its own.
    pub fn new(iommu: &Arc<Iommu>) -> Arc<Self> {
        Context::with_ledger(iommu, &MemoryLedger::new(Limits::Counted))
    }

    /// A file without objects, whose locked memory counts in `ledger`.
    pub fn with_ledger(iommu: &Arc<Iommu>, ledger: &Arc<MemoryLedger>) -> Arc<Self> {
        Arc::new_cyclic(|this| Context {
            this: Weak::clone(this),
            iommu: Arc::clone(iommu),
            ledger: Arc::clone(ledger),
            owner: OwnerId::new(),
            closed: AtomicBool::new(false),
            open_files: AtomicUsize::new(0),
            mmap_offsets: MmapOffsets::default(),
            objects: Mutex::default(),
            attachments: Mutex::default(),
            options: Mutex::default(),
        })
    }

    /// The machine's IOMMU.
    pub fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    /// Who has locked how much memory.
    pub fn ledger(&self) -> &Arc<MemoryLedger> {
        &self.ledger
    }

    /// The object table, while the file is open.
    pub(crate) fn open_objects(&self) -> Result<MutexGuard<'_, Table>, Error> {
        let objects = self.objects.lock();
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        Ok(objects)
    }

    pub(crate) fn ioas(&self, id: ObjectId) -> Result<Arc<Ioas>, Error> {
        match self.objects.lock().object(id) {
            Some(Object::Ioas(ioas)) => Ok(ioas),
            _ => Err(Error::NoObject(id)),
        }
    }

    /// A page table of an IOAS.
    pub(crate) fn hwpt(&self, id: ObjectId) -> Result<Arc<Hwpt>, Error> {
        match self.objects.lock().object(id) {
            Some(Object::Hwpt(hwpt)) if hwpt.paging().is_some() => Ok(hwpt),
            _ => Err(Error::NoObject(id)),
        }
    }

    pub(crate) fn mmap_offsets(&self) -> &MmapOffsets {
        &self.mmap_offsets
    }

    pub(crate) fn device(&self, id: ObjectId) -> Result<Arc<DeviceObject>, Error> {
        match self.objects.lock().object(id) {
            Some(Object::Device(device)) => Ok(device),
            _ => Err(Error::NoObject(id)),
        }
    }

    /// Binds a whole device: this file owns the DMA of the device's group from now on, and
    /// everything is blocked until it attaches. Faults of its attachments go to `faults`.
    ///
    /// # Errors
    /// [`Error::NotOwner`] if a driver uses the device or another file owns it,
    /// [`Error::DeviceBusy`], [`Error::NoIds`], [`Error::Closed`].
    pub fn bind_device(
        self: &Arc<Self>,
        device: &Arc<Device>,
        faults: Arc<dyn FaultSink>,
    ) -> Result<BoundDevice, Error> {
        self.bind_device_with(device, faults, SoftwareIommu::new(device))
    }

    /// [`Context::bind_device`] for a device behind an IOMMU of a back end.
    ///
    /// # Errors
    /// Those of [`Context::bind_device`].
    pub fn bind_device_with(
        self: &Arc<Self>,
        device: &Arc<Device>,
        faults: Arc<dyn FaultSink>,
        ops: Arc<dyn HwOps>,
    ) -> Result<BoundDevice, Error> {
        let ownership = device.group().claim_dma_owner(self.owner);
        let ownership = ownership.map_err(|error| match error {
            OwnershipError::OtherOwner { .. } | OwnershipError::DriverInUse { .. } => {
                Error::NotOwner
            }
            OwnershipError::NoMemory(_) => Error::NoMemory,
            OwnershipError::Attached { .. }
            | OwnershipError::Owned { .. }
            | OwnershipError::NoDevice { .. }
            | OwnershipError::NoDomain(_) => Error::DeviceBusy,
        })?;
        self.bind(|id| {
            DeviceObject::new(id, Arc::clone(device), None, Some(ownership), faults, ops)
        })
    }

    /// Binds a default-PASID child of a device: DMA tagged with `pasid` is this file's. Claims no
    /// ownership, since the parent's driver has the device and its PASIDs, and gave this one away.
    ///
    /// # Errors
    /// [`Error::NoSuchPasid`] if the device cannot send `pasid`, [`Error::NoIds`],
    /// [`Error::Closed`].
    pub fn bind_pasid(
        self: &Arc<Self>,
        device: &Arc<Device>,
        pasid: Pasid,
        faults: Arc<dyn FaultSink>,
    ) -> Result<BoundDevice, Error> {
        if pasid.get() >= device.max_pasids() {
            return Err(Error::NoSuchPasid);
        }
        let ops = SoftwareIommu::new(device);
        self.bind(|id| DeviceObject::new(id, Arc::clone(device), Some(pasid), None, faults, ops))
    }

    fn bind(
        self: &Arc<Self>,
        make: impl FnOnce(ObjectId) -> Arc<DeviceObject>,
    ) -> Result<BoundDevice, Error> {
        let mut objects = self.open_objects()?;
        let id = objects.reserve()?;
        let object = make(id);
        objects.install(id, Object::Device(Arc::clone(&object)));
        // The binding itself uses the object: DESTROY cannot take it away.
        objects.hold(id);
        Ok(BoundDevice::new(Arc::clone(self), object))
    }

    /// IOAS_ALLOC: an empty address space.
    ///
    /// # Errors
    /// [`Error::NoIds`], [`Error::Closed`].
    pub fn ioas_alloc(&self) -> Result<ObjectId, Error> {
        let mut objects = self.open_objects()?;
        let id = objects.reserve()?;
        objects.install(id, Object::Ioas(Ioas::new(id)));
        Ok(id)
    }

    /// IOAS_IOVA_RANGES: what is not reserved.
    ///
    /// # Errors
    /// [`Error::NoObject`].
    pub fn ioas_iova_ranges(&self, ioas: ObjectId) -> Result<IovaRanges, Error> {
        Ok(self.ioas(ioas)?.iova_ranges())
    }

    /// Whether there is such an IOAS, for commands that look before they read their arrays.
    ///
    /// # Errors
    /// [`Error::NoObject`].
    pub fn ioas_exists(&self, ioas: ObjectId) -> Result<(), Error> {
        self.ioas(ioas).map(drop)
    }

    /// IOAS_ALLOW_IOVAS: ranges that no later attach may reserve, and where mappings without an
    /// address of their own go. Replaces the ranges of before; none lifts the promise.
    ///
    /// # Errors
    /// [`Error::NoObject`], [`Error::BadRanges`], [`Error::AddressInUse`].
    pub fn ioas_allow_iovas(&self, ioas: ObjectId, ranges: &[AddrRange]) -> Result<(), Error> {
        self.ioas(ioas)?.allow_iovas(ranges)
    }

    /// IOAS_MAP and IOAS_MAP_FILE: maps pages in every domain of the IOAS, now and later. Returns
    /// the IOVA.
    ///
    /// # Errors
    /// In the kernel's order: [`Error::NoPermission`], [`Error::NoObject`], [`Error::Empty`],
    /// [`Error::Misaligned`], [`Error::Overflow`], [`Error::Reserved`], [`Error::Mapped`],
    /// [`Error::NoSpace`], [`Error::Pin`].
    pub fn ioas_map(
        &self,
        ioas: ObjectId,
        pages: Arc<dyn PageSource>,
        args: MapArgs,
    ) -> Result<u64, Error> {
        self.ioas_map_for(Account::default(), ioas, pages, args)
    }

    /// [`Context::ioas_map`], where `account` pays for the memory that is locked.
    ///
    /// # Errors
    /// Those of [`Context::ioas_map`].
    pub fn ioas_map_for(
        &self,
        account: Account,
        ioas: ObjectId,
        pages: Arc<dyn PageSource>,
        args: MapArgs,
    ) -> Result<u64, Error> {
        if !(args.prot.read || args.prot.write) {
            return Err(Error::NoPermission);
        }
        let ioas = self.ioas(ioas)?;
        let part = self.part(account, pages, args)?;
        ioas.map(&[part], args.iova, args.prot)
    }

    /// Pages of a program, to become an area.
    pub(crate) fn part(
        &self,
        account: Account,
        pages: Arc<dyn PageSource>,
        args: MapArgs,
    ) -> Result<Part, Error> {
        failpoint::allocation()?;
        let charge = Charge::new(account, self.rlimit_per_process());
        let pages = Pages::new(pages, args.prot.write, &self.ledger, charge);
        if pages.source().is_device() {
            let (context, shown) = (Weak::clone(&self.this), Arc::downgrade(&pages));
            pages.source().on_revoke(Box::new(move || {
                if let (Some(context), Some(pages)) = (context.upgrade(), shown.upgrade()) {
                    context.revoke(&pages);
                }
            }));
        }
        Ok(Part {
            pages,
            offset: args.offset,
            len: args.len,
        })
    }

    /// The exporter has taken pages back: when this returns, no device reaches them any more. They do
    /// not come back.
    fn revoke(&self, pages: &Arc<Pages>) {
        pages.revoke();
        for object in self.objects.lock().objects() {
            if let Object::Ioas(ioas) = object {
                ioas.revoke(pages);
            }
        }
    }

    /// IOAS_COPY: maps pages that are mapped in another place already. They are pinned once.
    /// Returns the IOVA.
    ///
    /// # Errors
    /// Those of [`Context::ioas_map`], and [`Error::NotMapped`] if the source has a hole,
    /// [`Error::ReadOnlyPages`] if it was mapped read-only and `prot` is not.
    pub fn ioas_copy(&self, args: CopyArgs) -> Result<u64, Error> {
        if !(args.prot.read || args.prot.write) {
            return Err(Error::NoPermission);
        }
        let parts = self.ioas(args.src)?.parts(args.src_iova, args.len)?;
        self.ioas(args.dst)?.map(&parts, args.dst_iova, args.prot)
    }

    /// IOAS_UNMAP: unmaps every area in the range; when it returns, no DMA through them is in
    /// flight. Returns the bytes unmapped.
    ///
    /// # Errors
    /// [`Error::NoObject`], [`Error::Empty`], [`Error::Overflow`], and [`Error::NotMapped`] if
    /// nothing is mapped there or an area lies across an edge, [`Error::AreaLocked`],
    /// [`Error::StillHeld`] (areas before that one are gone then).
    pub fn ioas_unmap(&self, ioas: ObjectId, iova: u64, len: u64) -> Result<u64, Error> {
        let ioas = self.ioas(ioas)?;
        if len == 0 {
            return Err(Error::Empty);
        }
        let range = AddrRange::from_len(iova, len).ok_or(Error::Overflow)?;
        match ioas.unmap(range)? {
            0 => Err(Error::NotMapped),
            bytes => Ok(bytes),
        }
    }

    /// IOAS_UNMAP of 0..=2^64-1: as [`Context::ioas_unmap`], and an empty IOAS is no error.
    ///
    /// # Errors
    /// [`Error::NoObject`], [`Error::AreaLocked`], [`Error::StillHeld`].
    pub fn ioas_unmap_all(&self, ioas: ObjectId) -> Result<u64, Error> {
        self.ioas(ioas)?.unmap_all()
    }

    /// As [`MemoryLedger::pins`].
    pub fn pins_of(&self, page: AddrRange) -> usize {
        self.ledger.pins(page)
    }

    /// What stands in front of a bound device.
    ///
    /// # Errors
    /// [`Error::NoObject`].
    pub fn device_ops(&self, device: ObjectId) -> Result<Arc<dyn HwOps>, Error> {
        Ok(Arc::clone(self.device(device)?.ops()))
    }

    /// GET_HW_INFO: what the IOMMU in front of a device can do.
    ///
    /// # Errors
    /// [`Error::NoObject`].
    pub fn hw_info(&self, device: ObjectId) -> Result<HwInfo, Error> {
        let device = self.device(device)?;
        failpoint::allocation()?;
        Ok(HwInfo::new(&device))
    }

    /// HWPT_SET_DIRTY_TRACKING: starts (with nothing dirty) or stops.
    ///
    /// # Errors
    /// [`Error::NoObject`], [`Error::NoDirtyTracking`].
    pub fn hwpt_set_dirty_tracking(&self, hwpt: ObjectId, on: bool) -> Result<(), Error> {
        let hwpt = self.hwpt(hwpt)?;
        hwpt.needs_dirty()?;
        if let Some(paging) = hwpt.paging() {
            paging.domain().track(hwpt.id(), on);
        }
        Ok(())
    }

    /// HWPT_GET_DIRTY_BITMAP: reports what was written by any device through the domain, and clears
    /// it unless asked not to. When a clearing call returns, no DMA that wrote those pages is in
    /// flight; what is written later is reported later. Ranges may be reported twice.
    ///
    /// # Errors
    /// [`Error::NoObject`], [`Error::Overflow`], [`Error::NoDirtyTracking`],
    /// [`Error::NoDirtyBits`].
    pub fn hwpt_get_dirty(
        &self,
        request: DirtyRequest,
        report: &mut dyn FnMut(AddrRange),
    ) -> Result<(), Error> {
        self.hwpt(request.hwpt)?.get_dirty(request, report)
    }

    /// OPTION RLIMIT_MODE: whether locked memory is counted per process instead of per user.
    pub fn rlimit_per_process(&self) -> bool {
        self.options.lock().rlimit_per_process
    }

    /// Sets what [`Context::rlimit_per_process`] says.
    ///
    /// # Errors
    /// [`Error::HasObjects`] once there is any object.
    pub fn set_rlimit_per_process(&self, on: bool) -> Result<(), Error> {
        let objects = self.objects.lock();
        if !objects.is_empty() {
            return Err(Error::HasObjects);
        }
        self.options.lock().rlimit_per_process = on;
        Ok(())
    }

    /// OPTION HUGE_PAGES: whether leaves larger than a page are used.
    ///
    /// # Errors
    /// [`Error::NoObject`].
    pub fn ioas_huge_pages(&self, ioas: ObjectId) -> Result<bool, Error> {
        Ok(self.ioas(ioas)?.large_pages())
    }

    /// Sets what [`Context::ioas_huge_pages`] says.
    ///
    /// # Errors
    /// [`Error::NoObject`]; for turning them off [`Error::TooLate`] once mappings are in a page
    /// table, [`Error::AddressInUse`] if a mapping is not aligned to pages.
    pub fn set_ioas_huge_pages(&self, ioas: ObjectId, on: bool) -> Result<(), Error> {
        self.ioas(ioas)?.set_large_pages(on)
    }
}

impl Inspect for Context {
    fn inspect(&self) -> Node {
        let objects = self.objects.lock().objects();
        let list = |pick: &dyn Fn(&Object) -> Option<Node>| {
            Value::List(objects.iter().filter_map(pick).map(Value::Node).collect())
        };
        Node::new()
            .with(
                "ioas",
                list(&|object| match object {
                    Object::Ioas(ioas) => Some(ioas.inspect()),
                    _ => None,
                }),
            )
            .with(
                "hwpts",
                list(&|object| match object {
                    Object::Hwpt(hwpt) => Some(hwpt.inspect()),
                    _ => None,
                }),
            )
            .with(
                "devices",
                list(&|object| match object {
                    Object::Device(device) => Some(device.inspect()),
                    _ => None,
                }),
            )
            .with(
                "fault_queues",
                list(&|object| match object {
                    Object::FaultQueue(queue) => Some(queue.inspect()),
                    _ => None,
                }),
            )
            .with(
                "viommus",
                list(&|object| match object {
                    Object::Viommu(viommu) => Some(viommu.inspect()),
                    _ => None,
                }),
            )
    }
}
