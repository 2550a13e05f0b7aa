//! The commands on an open `/dev/iommu` file: one list, and a file for each family of them.
//!
//! A command looks objects up and lets them do it; what takes more than a lookup is a function of
//! its family, which is given what it needs of the file.

use std::sync::Arc;

use ioasid_core::{AddrRange, Pasid, failpoint, host::Account, memory::PageSource};
use ioasid_iommu::{Device, Domain, FaultSink, OnAnswer};

use crate::{
    base::{
        error::{Error, MapError, ObjectError, OptionError, UnmapError},
        event::EventFile,
        id::ObjectId,
        user::{UserArray, UserData},
    },
    file::{
        close,
        context::Context,
        object::{ForeignObject, Object},
        table::ReservedId,
    },
    handles::{access::Access, bound_device::BoundDevice, mapped::Mapped},
    hardware::{
        fault::PageFault,
        hw::{HwOps, Invalidated, NestedOps},
        hw_info::HwInfo,
        hw_queue::HwQueueAlloc,
        hwpt::HwptAlloc,
        mmap::MmapRequest,
        software::SoftwareIommu,
        viommu::{VeventqAlloc, Viommu, ViommuAlloc},
    },
    space::{
        access::AccessKind,
        dirty::DirtyRequest,
        ioas::{CopyArgs, IovaRanges, MapArgs},
    },
};

#[cfg(doc)]
use crate::{AllocError, AttachError, CutError, DirtyError, MemoryLedger, MmapError, RangeError};

mod device;
mod hw_queue;
mod hwpt;
mod inspect;
mod ioas;
mod process;
mod queues;
mod vfio;
mod viommu;

impl Context {
    /// Binds a whole device: this file owns the DMA of the device's group from now on, and
    /// everything is blocked until it attaches. Faults of its attachments go to `faults`.
    ///
    /// # Errors
    /// [`AttachError::NotOwner`] if a driver uses the device or another file owns it,
    /// [`AttachError::GroupBusy`], [`ObjectError::NoIds`], [`ObjectError::Closed`].
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
        device::bind_whole(self, device, faults, ops)
    }

    /// Binds a default-PASID child of a device: DMA tagged with `pasid` is this file's. Claims no
    /// ownership, since the parent's driver has the device and its PASIDs, and gave this one away.
    ///
    /// # Errors
    /// [`AttachError::NoSuchPasid`] if the device cannot send `pasid`, [`ObjectError::NoIds`],
    /// [`ObjectError::Closed`].
    pub fn bind_pasid(
        self: &Arc<Self>,
        device: &Arc<Device>,
        pasid: Pasid,
        faults: Arc<dyn FaultSink>,
    ) -> Result<BoundDevice, Error> {
        device::bind_child(self, device, pasid, faults)
    }

    /// The IOMMU in front of a bound device.
    ///
    /// # Errors
    /// [`ObjectError::Missing`].
    pub fn device_ops(&self, device: ObjectId) -> Result<Arc<dyn HwOps>, Error> {
        Ok(Arc::clone(self.objects().device(device)?.ops()))
    }

    /// GET_HW_INFO: what the IOMMU in front of a device can do.
    ///
    /// # Errors
    /// [`ObjectError::Missing`].
    pub fn hw_info(&self, device: ObjectId) -> Result<HwInfo, Error> {
        let device = self.objects().device(device)?;
        failpoint::allocation()?;
        Ok(device.hw_info())
    }

    /// A page request of a device whose DMA is a back end's own: goes to the fault queue of what
    /// the device is attached to, or is answered invalid if there is none.
    ///
    /// # Errors
    /// [`ObjectError::Missing`] if there is no such device.
    pub fn report_page_fault(
        &self,
        device: ObjectId,
        fault: PageFault,
        on_answer: OnAnswer,
    ) -> Result<(), Error> {
        let device = self.objects().device(device)?;
        let attachments = self.attachments.lock();
        attachments.report_page_fault(&device, fault, on_answer);
        Ok(())
    }

    /// IOAS_ALLOC: an empty address space.
    ///
    /// # Errors
    /// [`ObjectError::NoIds`], [`ObjectError::Closed`].
    pub fn ioas_alloc(&self) -> Result<ObjectId, Error> {
        ioas::alloc(self.objects())
    }

    /// IOAS_IOVA_RANGES: what is not reserved.
    ///
    /// # Errors
    /// [`ObjectError::Missing`].
    pub fn ioas_iova_ranges(&self, ioas: ObjectId) -> Result<IovaRanges, Error> {
        Ok(self.objects().ioas(ioas)?.iova_ranges())
    }

    /// Whether there is such an IOAS, for commands that look before they read their arrays.
    ///
    /// # Errors
    /// [`ObjectError::Missing`].
    pub fn ioas_exists(&self, ioas: ObjectId) -> Result<(), Error> {
        self.objects().ioas(ioas).map(drop)
    }

    /// IOAS_ALLOW_IOVAS: ranges that no later attach may reserve, and where mappings without an
    /// address of their own go. Replaces the ranges of before; none lifts the promise.
    ///
    /// # Errors
    /// [`ObjectError::Missing`], [`RangeError::Overlaps`], [`Error::Range`].
    pub fn ioas_allow_iovas(&self, ioas: ObjectId, ranges: &[AddrRange]) -> Result<(), Error> {
        self.objects().ioas(ioas)?.allow_iovas(ranges)
    }

    /// Keeps a range of an IOAS unmapped for good, as hardware may ask for. It may overlap others.
    ///
    /// # Errors
    /// [`ObjectError::Missing`], [`Error::Range`].
    pub fn ioas_reserve(&self, ioas: ObjectId, range: AddrRange) -> Result<(), Error> {
        self.objects().ioas(ioas)?.reserve_permanently(range)
    }

    /// IOAS_MAP and IOAS_MAP_FILE: maps pages in every domain of the IOAS, now and later. Returns
    /// the IOVA.
    ///
    /// # Errors
    /// In the kernel's order: [`MapError::NoPermission`], [`ObjectError::Missing`],
    /// [`MapError::Empty`], [`MapError::Misaligned`], [`MapError::Overflow`],
    /// [`MapError::Reserved`], [`MapError::Exists`], [`MapError::NoSpace`], [`Error::Pin`].
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
            return Err(MapError::NoPermission.into());
        }
        ioas::map(self, account, ioas, pages, args)
    }

    /// IOAS_COPY: maps pages that are mapped in another place already. They are pinned once.
    /// Returns the IOVA.
    ///
    /// # Errors
    /// Those of [`Context::ioas_map`], and [`MapError::SourceHole`] if the source has a hole,
    /// [`MapError::ReadOnlyPages`] if it was mapped read-only and `prot` is not.
    pub fn ioas_copy(&self, args: CopyArgs) -> Result<u64, Error> {
        ioas::copy(self.objects(), args)
    }

    /// IOAS_UNMAP: unmaps every area in the range; when it returns, no DMA through them is in
    /// flight. Returns the bytes unmapped.
    ///
    /// # Errors
    /// [`ObjectError::Missing`], [`UnmapError::Empty`], [`UnmapError::Overflow`], and
    /// [`UnmapError::NotMapped`] if nothing is mapped there or an area lies across an edge,
    /// [`UnmapError::Locked`], [`UnmapError::StillHeld`] (areas before that one are gone then).
    pub fn ioas_unmap(&self, ioas: ObjectId, iova: u64, len: u64) -> Result<u64, Error> {
        ioas::unmap(self.objects(), ioas, iova, len)
    }

    /// IOAS_UNMAP of 0..=2^64-1: as [`Context::ioas_unmap`], and an empty IOAS is no error.
    ///
    /// # Errors
    /// [`ObjectError::Missing`], [`UnmapError::Locked`], [`UnmapError::StillHeld`].
    pub fn ioas_unmap_all(&self, ioas: ObjectId) -> Result<u64, Error> {
        Ok(self.objects().ioas(ioas)?.unmap_all()?)
    }

    /// IOAS_CHANGE_PROCESS: every mapping belongs to the calling process from now on, and counts as
    /// its locked memory. Nothing moves: only pages of files can change hands.
    ///
    /// # Errors
    /// [`MapError::NotFileBacked`] if any mapping of any IOAS comes from a process or a device;
    /// [`Error::Pin`] if the caller may not lock so much. Nothing has changed then.
    pub fn change_process(&self, account: Account) -> Result<(), Error> {
        process::change(self.objects(), self.ledger(), account)
    }

    /// As [`MemoryLedger::pins`].
    pub fn pins_of(&self, page: AddrRange) -> usize {
        self.ledger().pins(page)
    }

    /// OPTION RLIMIT_MODE: whether locked memory is counted per process instead of per user.
    pub fn rlimit_per_process(&self) -> bool {
        self.options.lock().rlimit_per_process
    }

    /// Sets what [`Context::rlimit_per_process`] says.
    ///
    /// # Errors
    /// [`OptionError::HasObjects`] once there is any object.
    pub fn set_rlimit_per_process(&self, on: bool) -> Result<(), Error> {
        let objects = self.objects().lock();
        if !objects.is_empty() {
            return Err(OptionError::HasObjects.into());
        }
        self.options.lock().rlimit_per_process = on;
        Ok(())
    }

    /// OPTION HUGE_PAGES: whether leaves larger than a page are used.
    ///
    /// # Errors
    /// [`ObjectError::Missing`].
    pub fn ioas_huge_pages(&self, ioas: ObjectId) -> Result<bool, Error> {
        Ok(self.objects().ioas(ioas)?.large_pages())
    }

    /// Sets what [`Context::ioas_huge_pages`] says.
    ///
    /// # Errors
    /// [`ObjectError::Missing`]; for turning them off [`OptionError::Mapped`] once mappings are in
    /// a page table, [`Error::Range`] if a mapping is not aligned to pages.
    pub fn set_ioas_huge_pages(&self, ioas: ObjectId, on: bool) -> Result<(), Error> {
        self.objects().ioas(ioas)?.set_large_pages(on)
    }

    /// HWPT_ALLOC without data: a page table for a device, to be attached by its own id. On an IOAS
    /// it shares its domain with the other page tables whose attributes agree.
    ///
    /// # Errors
    /// Those of [`Context::hwpt_alloc_with`].
    pub fn hwpt_alloc(&self, args: HwptAlloc) -> Result<ObjectId, Error> {
        self.hwpt_alloc_with(args, None)
    }

    /// HWPT_ALLOC.
    ///
    /// # Errors
    /// In the kernel's order: [`ObjectError::Missing`] for the device; [`AllocError::NotAParent`]
    /// if there is nothing that can be built on; [`AllocError::FlagsNotSupported`] for the flags,
    /// and for a nested page table without data; [`AllocError::NotAParent`];
    /// [`ObjectError::NoIds`]; those of the back end; [`Error::Range`], [`Error::Pin`];
    /// [`ObjectError::Missing`] for the fault queue.
    pub fn hwpt_alloc_with(
        &self,
        args: HwptAlloc,
        data: Option<&UserData<'_>>,
    ) -> Result<ObjectId, Error> {
        let _attachments = self.attachments.lock();
        self.page_tables().alloc(args, data)
    }

    /// HWPT_INVALIDATE: forgets cached translations of a nested page table, or what a virtual IOMMU
    /// caches. The number of entries that were done counts in any case.
    pub fn hwpt_invalidate(&self, id: ObjectId, entries: &UserArray<'_>) -> Invalidated {
        hwpt::invalidate(self.objects(), id, entries)
    }

    /// HWPT_SET_DIRTY_TRACKING: starts (with nothing dirty) or stops.
    ///
    /// # Errors
    /// [`ObjectError::Missing`], [`DirtyError::NotSupported`].
    pub fn hwpt_set_dirty_tracking(&self, hwpt: ObjectId, on: bool) -> Result<(), Error> {
        hwpt::set_dirty_tracking(self.objects(), hwpt, on)
    }

    /// HWPT_GET_DIRTY_BITMAP: reports what was written by any device through the domain, and clears
    /// it unless asked not to. When a clearing call returns, no DMA that wrote those pages is in
    /// flight; what is written later is reported later. Ranges may be reported twice.
    ///
    /// # Errors
    /// [`ObjectError::Missing`], [`DirtyError::Overflow`], [`DirtyError::NotSupported`],
    /// [`Error::Dirty`].
    pub fn hwpt_get_dirty(
        &self,
        request: DirtyRequest,
        report: &mut dyn FnMut(AddrRange),
    ) -> Result<(), Error> {
        hwpt::get_dirty(self.objects(), request, report)
    }

    /// The domain behind a page table of an IOAS.
    ///
    /// # Errors
    /// [`ObjectError::Missing`], also for a nested page table.
    pub fn hwpt_domain(&self, id: ObjectId) -> Result<Arc<Domain>, Error> {
        hwpt::domain(self.objects(), id)
    }

    /// The back end's part of a nested page table.
    ///
    /// # Errors
    /// [`ObjectError::Missing`], also for a page table of an IOAS.
    pub fn hwpt_nested(&self, id: ObjectId) -> Result<Arc<dyn NestedOps>, Error> {
        hwpt::nested(self.objects(), id)
    }

    /// FAULT_QUEUE_ALLOC: a fault queue and the file to read and answer it with. The queue cannot
    /// be destroyed while the file is open.
    ///
    /// # Errors
    /// [`ObjectError::NoIds`], [`ObjectError::Closed`].
    pub fn fault_queue_alloc(self: &Arc<Self>) -> Result<(ObjectId, Arc<dyn EventFile>), Error> {
        queues::alloc_faults(self)
    }

    /// The virtual IOMMU `id`.
    ///
    /// # Errors
    /// [`ObjectError::Missing`].
    pub fn viommu(&self, id: ObjectId) -> Result<Arc<Viommu>, Error> {
        self.objects().viommu(id)
    }

    /// VIOMMU_ALLOC.
    ///
    /// # Errors
    /// In the kernel's order: [`ObjectError::Missing`] for the device,
    /// [`AllocError::TypeNotSupported`], [`ObjectError::Missing`] for the page table,
    /// [`AllocError::NotAParent`], [`ObjectError::NoIds`], and those of the back end.
    pub fn viommu_alloc(&self, args: ViommuAlloc<'_>) -> Result<ObjectId, Error> {
        viommu::alloc(self, args)
    }

    /// VDEVICE_ALLOC: a device is `virt_id` on a virtual IOMMU from now on. Goes with the device:
    /// its id is not used again then.
    ///
    /// # Errors
    /// In the kernel's order: [`ObjectError::Missing`] for the virtual IOMMU and for the device,
    /// [`AllocError::OtherIommu`], [`AllocError::DeviceHasNumber`] if the device has a number,
    /// [`ObjectError::NoIds`], [`AllocError::NumberTaken`] if the number is taken.
    pub fn vdevice_alloc(
        &self,
        viommu: ObjectId,
        device: ObjectId,
        virt_id: u64,
    ) -> Result<ObjectId, Error> {
        let _attachments = self.attachments.lock();
        viommu::alloc_vdevice(self.objects(), viommu, device, virt_id)
    }

    /// VEVENTQ_ALLOC: a queue of events and the file to read it with. The queue cannot be destroyed
    /// while the file is open.
    ///
    /// # Errors
    /// In the kernel's order: [`AllocError::BadDepth`], [`ObjectError::Missing`],
    /// [`AllocError::QueueExists`] if there is a queue of this type, [`ObjectError::NoIds`].
    pub fn veventq_alloc(
        self: &Arc<Self>,
        args: VeventqAlloc,
    ) -> Result<(ObjectId, Arc<dyn EventFile>), Error> {
        queues::alloc_vevents(self, args)
    }

    /// HW_QUEUE_ALLOC: starts a queue in memory of the guest. Its area cannot be unmapped from then
    /// on. An access object of its own takes the next id.
    ///
    /// # Errors
    /// In the kernel's order: [`AllocError::RingEmpty`], [`AllocError::RingOverflow`],
    /// [`ObjectError::Missing`], [`AllocError::TypeNotSupported`], [`ObjectError::NoIds`],
    /// [`AllocError::RingInLastPage`] for a ring that ends inside the last page, [`Error::Range`]
    /// if mappings are not aligned to pages, those of [`Access::pin`],
    /// [`AllocError::NotContiguous`], and those of the back end.
    pub fn hw_queue_alloc(self: &Arc<Self>, args: HwQueueAlloc) -> Result<ObjectId, Error> {
        hw_queue::alloc(self.objects(), args)
    }

    /// An access object that is attached to nothing. While it lives the file's objects stay, even
    /// after its last descriptor is gone ([`AccessKind::Locks`] apart).
    ///
    /// # Errors
    /// [`ObjectError::NoIds`], [`ObjectError::Closed`].
    pub fn create_access(self: &Arc<Self>, kind: AccessKind) -> Result<Access, Error> {
        Access::new(self, kind)
    }

    /// DESTROY: takes an object away that nothing uses. Cannot fail otherwise.
    ///
    /// # Errors
    /// [`ObjectError::Missing`], [`ObjectError::InUse`].
    pub fn destroy(&self, id: ObjectId) -> Result<(), Error> {
        close::destroy(self, id)
    }

    /// Takes the lowest free id, for an object that is still being made.
    ///
    /// # Errors
    /// [`ObjectError::NoIds`], [`ObjectError::Closed`].
    pub fn reserve_id(self: &Arc<Self>) -> Result<ReservedId, Error> {
        self.objects().reserve_open()
    }

    /// Whether there is such an object, of whatever type.
    ///
    /// # Errors
    /// [`ObjectError::Missing`].
    pub fn object_exists(&self, id: ObjectId) -> Result<(), Error> {
        self.objects().object(id).map(drop)
    }

    /// The back end's object `id`.
    ///
    /// # Errors
    /// [`ObjectError::Missing`].
    pub fn foreign(&self, id: ObjectId) -> Result<Arc<dyn ForeignObject>, Error> {
        match self.objects().object(id)? {
            Object::Foreign(object) => Ok(object),
            _ => Err(ObjectError::Missing(id).into()),
        }
    }

    /// mmap on the file: only what a virtual IOMMU offers, and only the whole of it.
    ///
    /// # Errors
    /// [`Error::Mmap`] if the length is no multiple of a page or the mapping is private,
    /// [`MmapError::Executable`], [`MmapError::NoSuchOffset`].
    pub fn mmap(self: &Arc<Self>, request: MmapRequest) -> Result<Mapped, Error> {
        Mapped::new(self, request)
    }

    /// VFIO_IOAS: the IOAS that VFIO container commands work on.
    ///
    /// # Errors
    /// [`OptionError::NoVfioIoas`].
    pub fn vfio_ioas(&self) -> Result<ObjectId, Error> {
        let ioas = self.options.lock().vfio_ioas;
        Ok(ioas.ok_or(OptionError::NoVfioIoas)?)
    }

    /// What [`Context::vfio_ioas`] says; if that is none, a new IOAS, which it says from now on
    /// (`iommufd_vfio_compat_ioas_create`).
    ///
    /// # Errors
    /// [`ObjectError::NoIds`], [`ObjectError::Closed`].
    pub fn vfio_ioas_or_new(&self) -> Result<ObjectId, Error> {
        vfio::ioas_or_new(self)
    }

    /// Sets or clears what [`Context::vfio_ioas`] says.
    ///
    /// # Errors
    /// [`ObjectError::Missing`].
    pub fn set_vfio_ioas(&self, ioas: Option<ObjectId>) -> Result<(), Error> {
        if let Some(id) = ioas {
            self.objects().ioas(id)?;
        }
        self.options.lock().vfio_ioas = ioas;
        Ok(())
    }

    /// Maps at a fixed address, as [`Context::ioas_map_for`]; with neither permission if so asked
    /// for.
    ///
    /// # Errors
    /// Those of [`Context::ioas_map_for`], but for [`MapError::NoPermission`].
    pub fn vfio_map(
        &self,
        account: Account,
        ioas: ObjectId,
        pages: Arc<dyn PageSource>,
        args: MapArgs,
    ) -> Result<u64, Error> {
        ioas::map(self, account, ioas, pages, args)
    }

    /// Unmaps the areas in a range: how many bytes, and whether that was all. No area there is no
    /// error.
    ///
    /// # Errors
    /// [`ObjectError::Missing`]; and as the second result [`UnmapError::Empty`],
    /// [`UnmapError::Overflow`], [`UnmapError::Cuts`] if an area lies across an edge,
    /// [`UnmapError::Locked`], [`UnmapError::StillHeld`].
    pub fn vfio_unmap(
        &self,
        ioas: ObjectId,
        iova: u64,
        len: u64,
    ) -> Result<(u64, Result<(), UnmapError>), Error> {
        let ioas = self.objects().ioas(ioas)?;
        Ok(vfio::unmap(&ioas, iova, len))
    }

    /// Unmaps everything; as [`Context::vfio_unmap`].
    ///
    /// # Errors
    /// [`ObjectError::Missing`].
    pub fn vfio_unmap_all(&self, ioas: ObjectId) -> Result<(u64, Result<(), UnmapError>), Error> {
        Ok(self.objects().ioas(ioas)?.unmap_counting(AddrRange::ALL))
    }

    /// Cuts a mapping in two after the address `last`, if it has that one and the next.
    ///
    /// # Errors
    /// [`ObjectError::Missing`], [`CutError::Changing`], [`CutError::DevicePages`],
    /// [`CutError::Misaligned`], [`CutError::InUse`].
    pub fn ioas_cut_after(&self, ioas: ObjectId, last: u64) -> Result<(), Error> {
        self.objects().ioas(ioas)?.cut_after(last)
    }

    /// The sizes of pages that every page table of an IOAS has, as a bitmap, of those that a
    /// program can map.
    ///
    /// # Errors
    /// [`ObjectError::Missing`].
    pub fn ioas_page_sizes(&self, ioas: ObjectId) -> Result<u64, Error> {
        let ioas = self.objects().ioas(ioas)?;
        Ok(vfio::page_sizes(&ioas))
    }

    /// Whether DMA through every page table of an IOAS is coherent with the processor's caches
    /// whatever the devices ask for.
    ///
    /// # Errors
    /// [`ObjectError::Missing`].
    pub fn ioas_is_coherent(&self, ioas: ObjectId) -> Result<bool, Error> {
        vfio::is_coherent(self.objects(), ioas)
    }
}
