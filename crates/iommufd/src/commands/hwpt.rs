//! Commands on page tables (drivers/iommu/iommufd/hw_pagetable.c).

use std::sync::Arc;

use ioasid_core::AddrRange;
use ioasid_iommu::Domain;

use crate::{
    base::{
        error::{DirtyError, Error, ObjectError},
        id::ObjectId,
        user::UserArray,
    },
    file::{object::Object, table::Objects},
    hardware::hw::{Invalidated, NestedOps},
    space::dirty::DirtyRequest,
};

/// Starts (with nothing dirty) or stops tracking.
pub(super) fn set_dirty_tracking(objects: &Objects, id: ObjectId, on: bool) -> Result<(), Error> {
    let hwpt = objects.hwpt(id)?;
    hwpt.needs_dirty()?;
    if let Some(paging) = hwpt.paging() {
        paging.domain().track_dirty(id, on);
    }
    Ok(())
}

/// Reports the dirty parts of a range of the IOAS, and clears them unless asked not to. After a
/// clearing call the pages may be read: no DMA that wrote them is in flight.
pub(super) fn get_dirty(
    objects: &Objects,
    request: DirtyRequest,
    report: &mut dyn FnMut(AddrRange),
) -> Result<(), Error> {
    let hwpt = objects.hwpt(request.hwpt)?;
    let range = hwpt.ioas().check_dirty(request)?;
    hwpt.needs_dirty()?;
    hwpt.ioas().covered(range)?;
    let clear = !request.no_clear;
    let paging = hwpt.paging();
    let paging = paging.ok_or(DirtyError::NotSupported(hwpt.id()))?;
    paging
        .domain()
        .read_dirty(hwpt.id(), range, clear, report)?;
    Ok(())
}

/// Forgets cached translations of a nested page table, or what a virtual IOMMU caches.
pub(super) fn invalidate(objects: &Objects, id: ObjectId, entries: &UserArray<'_>) -> Invalidated {
    let nothing_cached = ObjectError::NothingCached(id).into();
    match objects.object(id) {
        Err(error) => Invalidated::stopped(0, error),
        Ok(Object::Hwpt(hwpt)) => match hwpt.nested() {
            Some(nested) => nested.ops().invalidate(entries),
            None => Invalidated::stopped(0, nothing_cached),
        },
        Ok(Object::Viommu(viommu)) => viommu.ops().invalidate(&viommu, entries),
        Ok(_) => Invalidated::stopped(0, nothing_cached),
    }
}

/// The domain behind a page table of an IOAS.
pub(super) fn domain(objects: &Objects, id: ObjectId) -> Result<Arc<Domain>, Error> {
    let hwpt = objects.hwpt(id)?;
    let table = hwpt.paging().ok_or(ObjectError::Missing(id))?;
    Ok(Arc::clone(table.domain().domain()))
}

/// The back end's part of a nested page table.
pub(super) fn nested(objects: &Objects, id: ObjectId) -> Result<Arc<dyn NestedOps>, Error> {
    match objects.object(id)? {
        Object::Hwpt(hwpt) => {
            let nested = hwpt.nested().ok_or(ObjectError::Missing(id))?;
            Ok(Arc::clone(nested.ops()))
        }
        _ => Err(ObjectError::Missing(id).into()),
    }
}
