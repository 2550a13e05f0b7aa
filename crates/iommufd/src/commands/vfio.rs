//! The IOAS of a VFIO container, and what its commands need beyond those of `/dev/iommu`
//! (drivers/iommu/iommufd/vfio_compat.c).

use ioasid_core::{AddrRange, memory::PAGE_SIZE};

use crate::{
    base::{
        error::{Error, UnmapError},
        id::ObjectId,
    },
    file::{close::destroy, context::Context, object::Object, table::Objects},
    space::ioas::Ioas,
};

/// The IOAS of the container; a new one if there is none.
pub(super) fn ioas_or_new(context: &Context) -> Result<ObjectId, Error> {
    if let Ok(ioas) = context.vfio_ioas() {
        return Ok(ioas);
    }
    let ioas = context.ioas_alloc()?;
    let mut options = context.options.lock();
    let set = *options.vfio_ioas.get_or_insert(ioas);
    drop(options);
    if set != ioas {
        let _ = destroy(context, ioas);
    }
    Ok(set)
}

/// Unmaps the areas in a range: how many bytes, and whether that was all.
pub(super) fn unmap(ioas: &Ioas, iova: u64, len: u64) -> (u64, Result<(), UnmapError>) {
    if len == 0 {
        return (0, Err(UnmapError::Empty));
    }
    match AddrRange::from_len(iova, len) {
        Some(range) => ioas.unmap_counting(range),
        None => (0, Err(UnmapError::Overflow { start: iova, len })),
    }
}

/// The sizes of pages that every page table of an IOAS has, of those that a program can map.
pub(super) fn page_sizes(ioas: &Ioas) -> u64 {
    let state = ioas.state.lock();
    let mut sizes = state.tables.page_sizes();
    if sizes & (PAGE_SIZE - 1) != 0 {
        sizes = sizes & !(PAGE_SIZE - 1) | PAGE_SIZE;
    }
    sizes.max(state.alignment())
}

/// Whether DMA through every page table of an IOAS is coherent whatever the devices ask for.
pub(super) fn is_coherent(objects: &Objects, ioas: ObjectId) -> Result<bool, Error> {
    let ioas = objects.ioas(ioas)?;
    let objects = objects.all();
    let mut tables = objects.iter().filter_map(|object| match object {
        Object::Hwpt(hwpt) => hwpt.paging(),
        _ => None,
    });
    Ok(tables.all(|table| table.ioas().id() != ioas.id() || table.is_coherent()))
}
