//! A back end with nested page tables, virtual IOMMUs and hardware queues that keep a few numbers.

use std::sync::{Arc, Mutex};

use ioasid_core::{
    Pasid,
    memory::{OwnMemory, OwnPages},
};
use ioasid_iommu::{Domain, TableFormat};
use ioasid_iommufd::{
    BoundDevice, Error, HwData, HwOps, HwQueueConfig, HwptAlloc, HwptFlags, Invalidated, NestedOps,
    ObjectError, ObjectId, PagingConfig, Refusal, Target, TargetKind, UserArray, UserData,
    UserDataError, Viommu, ViommuAlloc, ViommuOps, ViommuRequest,
};

use crate::{machine::*, program::Program};

/// The type of everything that this back end has.
pub const KIND: u32 = 7;
/// Bytes of a page that a virtual IOMMU lends its owner.
pub const LENT: u64 = PAGE;

/// The IOMMU in front of a device.
#[derive(Debug)]
pub struct Toy {
    pub instance: u64,
    pub refuses: Mutex<Option<Refusal>>,
    pub seen: Mutex<Vec<(Option<u32>, Option<ObjectId>)>>,
    pub virt_id: Mutex<Option<u64>>,
}

impl Toy {
    pub fn new(instance: u64) -> Arc<Self> {
        Arc::new(Toy {
            instance,
            refuses: Mutex::new(None),
            seen: Mutex::default(),
            virt_id: Mutex::new(None),
        })
    }
}

impl HwOps for Toy {
    fn instance(&self) -> u64 {
        self.instance
    }

    fn info(&self) -> HwData {
        HwData::Other {
            kind: KIND,
            bytes: vec![1, 2, 3],
        }
    }

    fn supports_dirty(&self) -> bool {
        true
    }

    fn enforces_coherency(&self) -> bool {
        false
    }

    fn alloc_paging(
        &self,
        flags: HwptFlags,
        data: Option<&UserData<'_>>,
    ) -> Result<PagingConfig, Error> {
        assert!(!flags.contains(HwptFlags::FAULT_ID_VALID), "not a driver's");
        if let Some(data) = data {
            data.read::<8>(KIND, 4)?;
        }
        Ok(PagingConfig {
            format: TableFormat::VtdSecondStage,
            shared: false,
        })
    }

    fn alloc_nested(
        &self,
        _: &Arc<Domain>,
        _: HwptFlags,
        data: &UserData<'_>,
    ) -> Result<Arc<dyn NestedOps>, Error> {
        Ok(Nested::new(data)?)
    }

    fn supports_viommu(&self, kind: u32) -> bool {
        kind == KIND
    }

    fn init_viommu(&self, request: &ViommuRequest<'_>) -> Result<Arc<dyn ViommuOps>, Error> {
        let offset = request.mmap.add(OwnMemory::new(LENT as usize))?;
        if let Some(data) = &request.data {
            data.write(KIND, &offset.to_ne_bytes(), 8)?;
        }
        Ok(Arc::new(ToyViommu))
    }

    fn check_attach(&self, _: Option<Pasid>, target: &Target) -> Result<(), Error> {
        if let Some(refusal) = *self.refuses.lock().unwrap() {
            return Err(refusal.into());
        }
        match &target.kind {
            TargetKind::Nested {
                viommu: Some(_),
                virt_id: None,
                ..
            } => Err(Refusal::NotFound.into()),
            _ => Ok(()),
        }
    }

    fn attached(&self, pasid: Option<Pasid>, target: Option<&Target>) {
        let at = (pasid.map(Pasid::get), target.map(|target| target.hwpt));
        self.seen.lock().unwrap().push(at);
        if let Some(TargetKind::Nested { virt_id, .. }) = target.map(|target| &target.kind) {
            *self.virt_id.lock().unwrap() = *virt_id;
        }
    }

    fn has_user_pasid_table(&self) -> bool {
        true
    }
}

#[derive(Debug)]
pub struct Nested(pub u32);

impl Nested {
    fn new(data: &UserData<'_>) -> Result<Arc<Self>, Error> {
        let word: [u8; 4] = data.read(KIND, 4)?;
        Ok(Arc::new(Nested(u32::from_ne_bytes(word))))
    }
}

impl NestedOps for Nested {
    /// Entries are words; 9 is a bad one.
    fn invalidate(&self, entries: &UserArray<'_>) -> Invalidated {
        if entries.kind() != KIND {
            let error = UserDataError::WrongType {
                kind: entries.kind(),
                wanted: KIND,
            };
            return Invalidated::stopped(0, error.into());
        }
        for index in 0..entries.len() {
            match entries.entry::<4>(index, 4).map(u32::from_ne_bytes) {
                Ok(9) => return Invalidated::stopped(index, Refusal::Invalid.into()),
                Ok(_) => {}
                Err(error) => return Invalidated::stopped(index, error),
            }
        }
        Invalidated {
            done: entries.len(),
            result: Ok(()),
        }
    }
}

#[derive(Debug)]
pub struct ToyViommu;

impl ViommuOps for ToyViommu {
    fn alloc_nested(&self, _: HwptFlags, data: &UserData<'_>) -> Result<Arc<dyn NestedOps>, Error> {
        Ok(Nested::new(data)?)
    }

    /// Entries are virtual ids.
    fn invalidate(&self, viommu: &Viommu, entries: &UserArray<'_>) -> Invalidated {
        for index in 0..entries.len() {
            match entries.entry::<8>(index, 8).map(u64::from_ne_bytes) {
                Ok(virt_id) if viommu.device(virt_id).is_some() => {}
                _ => return Invalidated::stopped(index, Refusal::Io.into()),
            }
        }
        Invalidated {
            done: entries.len(),
            result: Ok(()),
        }
    }

    fn supports_hw_queue(&self, kind: u32) -> bool {
        kind == KIND
    }

    /// Index n is the id of the queue that it needs; 0 needs none.
    fn init_hw_queue(&self, queue: &HwQueueConfig) -> Result<Option<ObjectId>, Error> {
        assert_ne!(queue.spa, 0);
        Ok((queue.index != 0).then(|| ObjectId::from_raw(queue.index)))
    }
}

/// A machine with one device behind the back end, an IOAS, and a page table to nest on.
pub struct Setup {
    pub m: Machine,
    pub toy: Arc<Toy>,
    pub device: BoundDevice,
    pub ioas: ObjectId,
    pub parent: ObjectId,
    pub program: Program,
}

pub fn setup() -> Setup {
    let m = machine();
    let toy = Toy::new(0);
    let device = m.device(1);
    let device = m
        .context
        .bind_device_with(&device, sink(), toy.clone())
        .unwrap();
    let ioas = m.ioas();
    let args = HwptAlloc::new(device.id(), ioas).with_flags(HwptFlags::NEST_PARENT);
    let parent = m.context.hwpt_alloc(args).unwrap();
    Setup {
        m,
        toy,
        device,
        ioas,
        parent,
        program: Program::new(0x1_0000),
    }
}

impl Setup {
    /// `len` bytes of the program's data of the back end's type.
    pub fn data(&self, len: u32) -> UserData<'_> {
        UserData::new(&self.program, KIND, 0x100, len)
    }

    pub fn nested(&self, parent: ObjectId, flags: HwptFlags) -> Result<ObjectId, Error> {
        let args = HwptAlloc::new(self.device.id(), parent).with_flags(flags);
        let context = &self.m.context;
        context.hwpt_alloc_with(args, Some(&self.data(4)))
    }

    pub fn viommu(&self) -> ObjectId {
        let args = self.viommu_args();
        self.m.context.viommu_alloc(args).unwrap()
    }

    pub fn viommu_args(&self) -> ViommuAlloc<'_> {
        ViommuAlloc {
            kind: KIND,
            device: self.device.id(),
            hwpt: self.parent,
            data: self.data(0),
        }
    }

    /// A page table for page requests, and the file of its fault queue.
    pub fn map(&self, iova: u64, len: u64) -> OwnPages {
        self.m.map(self.ioas, iova, len)
    }
}

/// Whether an id names nothing.
pub fn is_unknown(s: &Setup, id: ObjectId) -> bool {
    s.m.context.destroy(id) == Err(ObjectError::Missing(id).into())
}
