//! The mock IOMMU in front of a mock device: what the kernel's self-test driver answers.
//!
//! All mock devices stand behind one instance of it. Its page tables are those of [`crate::table`];
//! its nested page tables, virtual IOMMUs and queues keep a few numbers that programs can check.

use std::sync::Arc;

use ioasid_core::{
    Pasid, failpoint,
    memory::{OwnMemory, PAGE_SIZE},
    sync::Mutex,
};
use ioasid_iommu::{Domain, TableFormat};
use ioasid_iommufd::{
    AllocError, Error, HwData, HwOps, HwQueueConfig, HwptFlags, Invalidated, NestedOps, ObjectId,
    PagingConfig, Refusal, Target, TargetKind, UserArray, UserData, UserDataError, Viommu,
    ViommuOps, ViommuRequest,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, transmute};

use crate::{spec, table};

/// The number of the one mock IOMMU; those of real devices are small.
const INSTANCE: u64 = u64::MAX;

/// What stands in front of one mock device.
#[derive(Debug)]
pub(crate) struct MockIommu {
    tracks_dirty: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    caches: [u32; spec::ENTRIES],
    /// The virtual IOMMU that the device is attached through, and its number there.
    vdevice: Option<(Arc<Viommu>, u64)>,
    /// Whether the next attach at [`spec::FAILING_PASID`] fails.
    armed: bool,
}

impl MockIommu {
    pub(crate) fn new(tracks_dirty: bool) -> Arc<Self> {
        Arc::new(MockIommu {
            tracks_dirty,
            state: Mutex::new(State {
                caches: [spec::CACHE_DEFAULT; spec::ENTRIES],
                vdevice: None,
                armed: false,
            }),
        })
    }

    /// What cache `index` of the device holds.
    pub(crate) fn cache(&self, index: u32) -> Option<u32> {
        let index = usize::try_from(index).ok()?;
        self.state.lock().caches.get(index).copied()
    }

    fn clear_cache(&self, index: Option<usize>) {
        let mut state = self.state.lock();
        match index {
            Some(index) => {
                if let Some(cache) = state.caches.get_mut(index) {
                    *cache = 0;
                }
            }
            None => state.caches = [0; spec::ENTRIES],
        }
    }

    /// Tells whoever is virtual IOMMU to the device of an event.
    pub(crate) fn trigger_event(&self) -> Result<(), Error> {
        let vdevice = self.state.lock().vdevice.clone();
        let (viommu, virt_id) = vdevice
            .filter(|(_, virt_id)| *virt_id != 0)
            .ok_or(Refusal::NotFound)?;
        // The event has room for half of the number.
        viommu.report_event(spec::VEVENTQ, (virt_id as u32).as_bytes())
    }
}

impl HwOps for MockIommu {
    fn instance(&self) -> u64 {
        INSTANCE
    }

    fn info(&self) -> HwData {
        HwData::Other {
            kind: spec::HW_INFO,
            bytes: [0, spec::HW_INFO_REGISTER].as_bytes().to_vec(),
        }
    }

    fn supports_dirty(&self) -> bool {
        self.tracks_dirty
    }

    fn enforces_coherency(&self) -> bool {
        false
    }

    fn alloc_paging(
        &self,
        flags: HwptFlags,
        data: Option<&UserData<'_>>,
    ) -> Result<PagingConfig, Error> {
        let known = HwptFlags::NEST_PARENT
            .with(HwptFlags::DIRTY_TRACKING)
            .with(HwptFlags::PASID);
        if !known.contains(flags) {
            return Err(AllocError::FlagsNotSupported(flags.bits()).into());
        }
        let kind = match data {
            Some(data) => HwptData::read(data)?.pagetable_type,
            None => 0,
        };
        let format = match kind {
            0 => &table::DEFAULT,
            spec::PAGETABLE_HUGE => &table::HUGE,
            other => return Err(AllocError::TypeNotSupported(other).into()),
        };
        failpoint::allocation()?;
        Ok(PagingConfig {
            format: TableFormat::Custom(format),
            // A program counts page tables and looks into each.
            shared: false,
        })
    }

    fn alloc_nested(
        &self,
        _parent: &Arc<Domain>,
        flags: HwptFlags,
        data: &UserData<'_>,
    ) -> Result<Arc<dyn NestedOps>, Error> {
        MockNested::alloc(flags, data)
    }

    fn supports_viommu(&self, kind: u32) -> bool {
        kind == spec::SELFTEST
    }

    fn init_viommu(&self, request: &ViommuRequest<'_>) -> Result<Arc<dyn ViommuOps>, Error> {
        failpoint::allocation()?;
        let viommu = MockViommu::new(request.parent);
        if let Some(data) = &request.data {
            const LEN: usize = size_of::<ViommuData>();
            let bytes = data.read::<LEN>(spec::SELFTEST, size_of::<u64>())?;
            let mut loopback: ViommuData = transmute!(bytes);
            failpoint::allocation()?;
            let page = OwnMemory::new(2 * PAGE_SIZE as usize);
            page.write(0, loopback.in_data.as_bytes());
            loopback.out_data = loopback.in_data;
            loopback.out_mmap_length = 2 * PAGE_SIZE;
            loopback.out_mmap_offset = request.mmap.add(page)?;
            data.write(spec::SELFTEST, loopback.as_bytes(), size_of::<u64>())?;
        }
        Ok(viommu)
    }

    fn check_attach(&self, pasid: Option<Pasid>, target: &Target) -> Result<(), Error> {
        match pasid {
            None => {
                // A guest's page table needs the number that the guest knows the device by.
                if let TargetKind::Nested {
                    viommu: Some(_),
                    virt_id: None,
                    ..
                } = &target.kind
                {
                    return Err(Refusal::NotFound.into());
                }
                let tracked = target.flags.contains(HwptFlags::DIRTY_TRACKING);
                if tracked && !self.tracks_dirty {
                    return Err(Refusal::Invalid.into());
                }
            }
            Some(pasid) if pasid.get() == spec::FAILING_PASID => {
                let mut state = self.state.lock();
                state.armed = !state.armed;
                if !state.armed {
                    return Err(Refusal::NoMemory.into());
                }
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn attached(&self, pasid: Option<Pasid>, target: Option<&Target>) {
        let mut state = self.state.lock();
        match (pasid, target) {
            (None, target) => {
                state.vdevice = match target.map(|target| &target.kind) {
                    Some(TargetKind::Nested {
                        viommu: Some(viommu),
                        virt_id: Some(virt_id),
                        ..
                    }) => Some((Arc::clone(viommu), *virt_id)),
                    _ => None,
                }
            }
            (Some(pasid), None) if pasid.get() == spec::FAILING_PASID => state.armed = false,
            _ => {}
        }
    }

    fn has_user_pasid_table(&self) -> bool {
        true
    }
}

/// `struct iommu_hwpt_selftest`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct HwptData {
    iotlb: u32,
    pagetable_type: u32,
}

impl HwptData {
    fn read(data: &UserData<'_>) -> Result<Self, Error> {
        if data.kind() != spec::HWPT_DATA {
            return Err(AllocError::TypeNotSupported(data.kind()).into());
        }
        const LEN: usize = size_of::<HwptData>();
        let bytes = data.read::<LEN>(spec::HWPT_DATA, size_of::<u32>())?;
        Ok(transmute!(bytes))
    }
}

/// `struct iommu_hwpt_invalidate_selftest`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct IotlbInvalidate {
    flags: u32,
    iotlb_id: u32,
}

/// `struct iommu_viommu_selftest`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct ViommuData {
    in_data: u32,
    out_data: u32,
    out_mmap_offset: u64,
    out_mmap_length: u64,
}

/// `struct iommu_viommu_invalidate_selftest`.
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
#[repr(C)]
struct CacheInvalidate {
    flags: u32,
    vdev_id: u32,
    cache_id: u32,
}

/// A nested page table: an IOTLB of four entries.
#[derive(Debug)]
pub(crate) struct MockNested {
    iotlb: Mutex<[u32; spec::ENTRIES]>,
}

impl MockNested {
    fn alloc(flags: HwptFlags, data: &UserData<'_>) -> Result<Arc<dyn NestedOps>, Error> {
        if !HwptFlags::PASID.contains(flags) {
            return Err(AllocError::FlagsNotSupported(flags.bits()).into());
        }
        let data = HwptData::read(data)?;
        failpoint::allocation()?;
        Ok(Arc::new(MockNested {
            iotlb: Mutex::new([data.iotlb; spec::ENTRIES]),
        }))
    }

    /// What entry `index` holds.
    pub(crate) fn entry(&self, index: u32) -> Option<u32> {
        let index = usize::try_from(index).ok()?;
        self.iotlb.lock().get(index).copied()
    }
}

/// The entry that an invalidation names; `None` for all of them.
fn entry(flags: u32, id: u32) -> Result<Option<usize>, Error> {
    if flags & !spec::INVALIDATE_ALL != 0 {
        return Err(AllocError::FlagsNotSupported(flags).into());
    }
    let index = usize::try_from(id).ok();
    let index = index.filter(|index| *index < spec::ENTRIES);
    let index = index.ok_or(Refusal::Invalid)?;
    Ok((flags & spec::INVALIDATE_ALL == 0).then_some(index))
}

/// Nothing is done of entries that are not of this IOMMU.
fn wrong_type(entries: &UserArray<'_>) -> Invalidated {
    let error = UserDataError::WrongType {
        kind: entries.kind(),
        wanted: spec::SELFTEST,
    };
    Invalidated::stopped(0, error.into())
}

impl NestedOps for MockNested {
    fn invalidate(&self, entries: &UserArray<'_>) -> Invalidated {
        if entries.kind() != spec::SELFTEST {
            return wrong_type(entries);
        }
        for index in 0..entries.len() {
            let one = || {
                const LEN: usize = size_of::<IotlbInvalidate>();
                // This one takes no longer entries, not even with zeros.
                if entries.entry_len() != LEN {
                    return Err(UserDataError::Length {
                        len: entries.entry_len(),
                        min: LEN,
                        max: LEN,
                    }
                    .into());
                }
                let bytes = entries.entry::<LEN>(index, LEN)?;
                let request: IotlbInvalidate = transmute!(bytes);
                // The number of an entry has no meaning beside "all".
                let all = request.flags & spec::INVALIDATE_ALL != 0;
                entry(request.flags, if all { 0 } else { request.iotlb_id })
            };
            match one() {
                Ok(Some(entry)) => {
                    if let Some(entry) = self.iotlb.lock().get_mut(entry) {
                        *entry = 0;
                    }
                }
                Ok(None) => *self.iotlb.lock() = [0; spec::ENTRIES],
                Err(error) => return Invalidated::stopped(index, error),
            }
        }
        Invalidated {
            done: entries.len(),
            result: Ok(()),
        }
    }
}

/// A virtual IOMMU with two hardware queues.
#[derive(Debug)]
struct MockViommu {
    parent: Arc<Domain>,
    queues: Mutex<[Option<ObjectId>; spec::HW_QUEUES as usize]>,
}

impl MockViommu {
    fn new(parent: &Arc<Domain>) -> Arc<Self> {
        Arc::new(MockViommu {
            parent: Arc::clone(parent),
            queues: Mutex::default(),
        })
    }
}

impl ViommuOps for MockViommu {
    fn alloc_nested(
        &self,
        flags: HwptFlags,
        data: &UserData<'_>,
    ) -> Result<Arc<dyn NestedOps>, Error> {
        MockNested::alloc(flags, data)
    }

    /// All entries are read before the first is carried out.
    fn invalidate(&self, viommu: &Viommu, entries: &UserArray<'_>) -> Invalidated {
        const LEN: usize = size_of::<CacheInvalidate>();
        if entries.kind() != spec::SELFTEST {
            return wrong_type(entries);
        }
        let read = |index| {
            let bytes = entries.entry::<LEN>(index, 1)?;
            Ok(transmute!(bytes))
        };
        let requests: Result<Vec<CacheInvalidate>, Error> = (0..entries.len()).map(read).collect();
        let requests = match requests {
            Ok(requests) => requests,
            Err(error) => return Invalidated::stopped(0, error),
        };
        for (done, request) in (0..).zip(requests) {
            let one = || {
                let entry = entry(request.flags, request.cache_id)?;
                let device = viommu.device(request.vdev_id.into());
                let device = device.ok_or(Refusal::Invalid)?;
                let device: &dyn std::any::Any = &*device;
                let mock = device.downcast_ref::<MockIommu>();
                mock.ok_or(Refusal::Invalid)?.clear_cache(entry);
                Ok(())
            };
            if let Err(error) = one() {
                return Invalidated::stopped(done, error);
            }
        }
        Invalidated {
            done: entries.len(),
            result: Ok(()),
        }
    }

    fn supports_hw_queue(&self, kind: u32) -> bool {
        kind == spec::SELFTEST
    }

    /// Queue 1 needs queue 0.
    fn init_hw_queue(&self, queue: &HwQueueConfig) -> Result<Option<ObjectId>, Error> {
        let mut queues = self.queues.lock();
        let index = usize::try_from(queue.index).ok();
        let index = index.filter(|index| *index < queues.len());
        let index = index.ok_or(Refusal::Invalid)?;
        if queues[index].is_some() {
            return Err(Refusal::Exists.into());
        }
        let needs = match index.checked_sub(1) {
            Some(before) => Some(queues[before].ok_or(Refusal::Io)?),
            None => None,
        };
        let found = self.parent.iova_to_phys(queue.iova);
        if found.is_none_or(|found| found.spa != queue.spa) {
            return Err(Refusal::Fault.into());
        }
        queues[index] = Some(queue.id);
        Ok(needs)
    }

    fn end_hw_queue(&self, queue: &HwQueueConfig) {
        let mut queues = self.queues.lock();
        if let Some(place) = queues.iter_mut().find(|place| **place == Some(queue.id)) {
            *place = None;
        }
    }
}
