//! One open `/dev/iommu` file.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use ioasid_core::{
    AddrRange, Pasid,
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
    hw_info::HwInfo,
    hwpt::{Hwpt, HwptAlloc, HwptFlags},
    ioas::{CopyArgs, Ioas, IovaRanges, MapArgs, Part},
    ledger::{Charge, Limits, MemoryLedger},
    object::{Object, ObjectId, Table},
    pages::Pages,
};

/// One open `/dev/iommu` file: an object table and the commands on it.
///
/// Every command may be called from any thread. The checks of a command come in the kernel's order,
/// but for those that need only the ioctl struct: whoever decodes the struct makes them first.
#[derive(Debug)]
pub struct Context {
    iommu: Arc<Iommu>,
    ledger: Arc<MemoryLedger>,
    owner: OwnerId,
    closed: AtomicBool,
    /// Held for lookups and bookkeeping only; inside every other lock.
    pub(crate) objects: Mutex<Table>,
    /// Held through a whole attach, detach or destroy; outside every other lock.
    pub(crate) attachments: Mutex<Attachments>,
    options: Mutex<Options>,
}

#[derive(Debug, Default)]
struct Options {
    /// Locked memory is counted per process, not per user.
    rlimit_per_process: bool,
    /// The IOAS that VFIO container commands work on.
    vfio_ioas: Option<ObjectId>,
}

impl Context {
    /// A file without objects, whose locked memory counts in a ledger of its own.
    pub fn new(iommu: &Arc<Iommu>) -> Arc<Self> {
        Context::with_ledger(iommu, &MemoryLedger::new(Limits::Counted))
    }

    /// A file without objects, whose locked memory counts in `ledger`.
    pub fn with_ledger(iommu: &Arc<Iommu>, ledger: &Arc<MemoryLedger>) -> Arc<Self> {
        Arc::new(Context {
            iommu: Arc::clone(iommu),
            ledger: Arc::clone(ledger),
            owner: OwnerId::new(),
            closed: AtomicBool::new(false),
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

    fn hwpt(&self, id: ObjectId) -> Result<Arc<Hwpt>, Error> {
        match self.objects.lock().object(id) {
            Some(Object::Hwpt(hwpt)) => Ok(hwpt),
            _ => Err(Error::NoObject(id)),
        }
    }

    fn device(&self, id: ObjectId) -> Result<Arc<DeviceObject>, Error> {
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
        let ownership = device.group().claim_dma_owner(self.owner);
        let ownership = ownership.map_err(|error| match error {
            OwnershipError::Permission => Error::NotOwner,
            _ => Error::DeviceBusy,
        })?;
        self.bind(|id| DeviceObject::new(id, Arc::clone(device), None, Some(ownership), faults))
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
        self.bind(|id| DeviceObject::new(id, Arc::clone(device), Some(pasid), None, faults))
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
        let charge = Charge::new(account, self.rlimit_per_process());
        let part = Part {
            pages: Pages::new(pages, args.prot.write, &self.ledger, charge),
            offset: args.offset,
            len: args.len,
        };
        ioas.map(&[part], args.iova, args.prot)
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

    /// HWPT_ALLOC: a page table of an IOAS for a device, to be attached by its own id. It shares its
    /// domain with the other page tables of the IOAS whose attributes agree.
    ///
    /// # Errors
    /// [`Error::NoObject`] for the device, [`Error::NotAParent`], [`Error::FlagsNotSupported`],
    /// [`Error::NoObject`] for the fault queue, [`Error::AddressInUse`], [`Error::Pin`],
    /// [`Error::NotBuilt`] for nested page tables.
    pub fn hwpt_alloc(&self, args: HwptAlloc) -> Result<ObjectId, Error> {
        let _attachments = self.attachments.lock();
        let device = self.device(args.device)?;
        let parent = self.objects.lock().object(args.parent);
        match parent {
            Some(Object::Ioas(ioas)) => {
                args.flags.check_paging(device.device().supports_dirty())?;
                if args.has_data {
                    return Err(Error::FlagsNotSupported);
                }
                let hwpt = self.make_hwpt(&ioas, &device, args.flags, false)?;
                if args.flags.contains(HwptFlags::FAULT_ID_VALID) {
                    // No command makes fault queues yet, so no id is one.
                    self.discard(&hwpt);
                    return Err(Error::NoObject(ObjectId::from_raw(args.fault_id)));
                }
                Ok(hwpt.id())
            }
            Some(Object::Hwpt(hwpt)) => {
                args.flags.check_nested()?;
                if !args.has_data {
                    return Err(Error::FlagsNotSupported);
                }
                if hwpt.is_automatic() || !hwpt.flags().contains(HwptFlags::NEST_PARENT) {
                    return Err(Error::NotAParent(args.parent));
                }
                Err(Error::NotBuilt("nested translation"))
            }
            _ => Err(Error::NotAParent(args.parent)),
        }
    }

    /// GET_HW_INFO: what the IOMMU in front of a device can do.
    ///
    /// # Errors
    /// [`Error::NoObject`].
    pub fn hw_info(&self, device: ObjectId) -> Result<HwInfo, Error> {
        Ok(HwInfo::new(&*self.device(device)?))
    }

    /// HWPT_SET_DIRTY_TRACKING: starts (with nothing dirty) or stops.
    ///
    /// # Errors
    /// [`Error::NoObject`], [`Error::NoDirtyTracking`].
    pub fn hwpt_set_dirty_tracking(&self, hwpt: ObjectId, on: bool) -> Result<(), Error> {
        let hwpt = self.hwpt(hwpt)?;
        hwpt.needs_dirty()?;
        hwpt.domain().track(hwpt.id(), on);
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

    /// DESTROY: takes an object away that nothing uses. Cannot fail otherwise.
    ///
    /// # Errors
    /// [`Error::NoObject`], [`Error::InUse`].
    pub fn destroy(&self, id: ObjectId) -> Result<(), Error> {
        // Dropped without a lock: what a back end made may hold devices.
        let removed;
        let _attachments = self.attachments.lock();
        removed = self.objects.lock().remove(id)?;
        self.take_apart(&removed);
        Ok(())
    }

    /// Ends what an object held; the object is out of the table.
    fn take_apart(&self, object: &Object) {
        match object {
            Object::Ioas(ioas) => {
                let mut options = self.options.lock();
                if options.vfio_ioas == Some(ioas.id()) {
                    options.vfio_ioas = None;
                }
                drop(options);
                // Nothing is attached that could hold pages.
                let _ = ioas.unmap_all();
            }
            Object::Hwpt(hwpt) => {
                self.objects.lock().put(hwpt.ioas().id());
                hwpt.release();
            }
            Object::Device(_) | Object::Access(_) | Object::Foreign(_) => {}
        }
    }

    /// The last descriptor of the file is gone: every object goes, page tables before address
    /// spaces. Devices that are still bound keep the file; then this happens when the last of them
    /// is dropped.
    pub fn close(&self) {
        {
            let _objects = self.objects.lock();
            self.closed.store(true, Ordering::Release);
        }
        self.finish_close();
    }

    pub(crate) fn finish_close(&self) {
        let foreign = {
            let mut table = self.objects.lock();
            if !self.closed.load(Ordering::Acquire) || table.objects().iter().any(keeps_file) {
                return;
            }
            table.take_foreign()
        };
        drop(foreign);
        let _attachments = self.attachments.lock();
        let objects = {
            let mut table = self.objects.lock();
            let objects = table.objects();
            let bound = objects
                .iter()
                .any(|object| matches!(object, Object::Device(_)));
            if bound || !self.closed.load(Ordering::Acquire) {
                return;
            }
            *table = Table::default();
            objects
        };
        let (tables, spaces): (Vec<_>, Vec<_>) = objects
            .iter()
            .partition(|object| matches!(object, Object::Hwpt(_)));
        for object in tables.into_iter().chain(spaces) {
            self.take_apart(object);
        }
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

    /// VFIO_IOAS: the IOAS that VFIO container commands work on.
    ///
    /// # Errors
    /// [`Error::NoVfioIoas`].
    pub fn vfio_ioas(&self) -> Result<ObjectId, Error> {
        self.options.lock().vfio_ioas.ok_or(Error::NoVfioIoas)
    }

    /// Sets or clears what [`Context::vfio_ioas`] says.
    ///
    /// # Errors
    /// [`Error::NoObject`].
    pub fn set_vfio_ioas(&self, ioas: Option<ObjectId>) -> Result<(), Error> {
        if let Some(id) = ioas {
            self.ioas(id)?;
        }
        self.options.lock().vfio_ioas = ioas;
        Ok(())
    }

    /// IOAS_CHANGE_PROCESS: mappings belong to the calling process from now on. Nothing moves: only
    /// pages of files can change hands, and those belong to no process.
    ///
    /// # Errors
    /// [`Error::NotFileBacked`] if any mapping of any IOAS comes from a process.
    pub fn change_process(&self) -> Result<(), Error> {
        let objects = self.objects.lock().objects();
        let mut spaces = objects.iter().filter_map(|object| match object {
            Object::Ioas(ioas) => Some(ioas),
            _ => None,
        });
        if spaces.all(|ioas| ioas.is_file_backed()) {
            Ok(())
        } else {
            Err(Error::NotFileBacked)
        }
    }
}

/// Whether whoever uses `object` keeps the objects of a file whose last descriptor is gone. Devices
/// do as well, but those of a back end's objects go with them.
fn keeps_file(object: &Object) -> bool {
    matches!(object, Object::Access(access) if access.keeps_file())
}

impl Drop for Context {
    fn drop(&mut self) {
        // The order matters: domains go before the pages they point at.
        self.close();
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
    }
}
