//! A back end that has one type of everything, and keeps nothing.

use std::sync::Arc;

use ioasid_core::memory::OwnMemory;
use ioasid_iommu::{Domain, TableFormat};
use ioasid_iommufd::{
    Error, HwData, HwOps, HwQueueConfig, HwptFlags, Invalidated, NestedOps, ObjectId, PagingConfig,
    Refusal, UserArray, UserData, UserDataError, Viommu, ViommuOps, ViommuRequest,
};

/// The type.
pub(crate) const KIND: u32 = 7;
/// Bytes of page table data.
pub(crate) const DATA_LEN: u32 = 4;

#[derive(Debug)]
pub(crate) struct Toy;

#[derive(Debug)]
struct Nested;

#[derive(Debug)]
struct ToyViommu;

/// Entries are words; anything but 0 is refused.
fn invalidate(entries: &UserArray<'_>) -> Invalidated {
    if entries.kind() != KIND {
        let error = UserDataError::WrongType {
            kind: entries.kind(),
            wanted: KIND,
        };
        return Invalidated::stopped(0, error.into());
    }
    for index in 0..entries.len() {
        match entries.entry::<4>(index, 4) {
            Ok([0, 0, 0, 0]) => {}
            Ok(_) => return Invalidated::stopped(index, Refusal::Io.into()),
            Err(error) => return Invalidated::stopped(index, error),
        }
    }
    Invalidated {
        done: entries.len(),
        result: Ok(()),
    }
}

fn nested(data: &UserData<'_>) -> Result<Arc<dyn NestedOps>, Error> {
    data.read::<8>(KIND, DATA_LEN as usize)?;
    Ok(Arc::new(Nested))
}

impl HwOps for Toy {
    fn instance(&self) -> u64 {
        1
    }

    fn info(&self) -> HwData {
        HwData::Other {
            kind: KIND,
            bytes: vec![1, 2, 3, 4],
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
        _: HwptFlags,
        data: Option<&UserData<'_>>,
    ) -> Result<PagingConfig, Error> {
        if let Some(data) = data {
            data.read::<8>(KIND, DATA_LEN as usize)?;
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
        nested(data)
    }

    fn supports_viommu(&self, kind: u32) -> bool {
        kind == KIND
    }

    fn init_viommu(&self, request: &ViommuRequest<'_>) -> Result<Arc<dyn ViommuOps>, Error> {
        let offset = request.mmap.add(OwnMemory::new(4096))?;
        if let Some(data) = &request.data {
            data.write(KIND, &offset.to_ne_bytes(), 8)?;
        }
        Ok(Arc::new(ToyViommu))
    }

    fn has_user_pasid_table(&self) -> bool {
        true
    }
}

impl NestedOps for Nested {
    fn invalidate(&self, entries: &UserArray<'_>) -> Invalidated {
        invalidate(entries)
    }
}

impl ViommuOps for ToyViommu {
    fn alloc_nested(&self, _: HwptFlags, data: &UserData<'_>) -> Result<Arc<dyn NestedOps>, Error> {
        nested(data)
    }

    fn invalidate(&self, _: &Viommu, entries: &UserArray<'_>) -> Invalidated {
        invalidate(entries)
    }

    fn supports_hw_queue(&self, kind: u32) -> bool {
        kind == KIND
    }

    fn init_hw_queue(&self, _: &HwQueueConfig) -> Result<Option<ObjectId>, Error> {
        Ok(None)
    }
}
