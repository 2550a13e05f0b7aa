//! Commands on address spaces (drivers/iommu/iommufd/ioas.c).

use std::sync::{Arc, Weak};

use ioasid_core::{
    AddrRange,
    failpoint::{self, OutOfMemory},
    host::Account,
    inject::Point,
    memory::PageSource,
};

use crate::{
    base::{
        error::{Error, MapError, UnmapError},
        id::ObjectId,
    },
    file::{context::Context, object::Object, table::Objects},
    space::{
        area::Part,
        ioas::{CopyArgs, Ioas, MapArgs},
        pages::Pages,
    },
};

/// A new address space.
pub(super) fn alloc(objects: &Arc<Objects>) -> Result<ObjectId, Error> {
    let id = objects.reserve_open()?;
    let ioas = Ioas::new(id.id());
    Ok(id.name(Object::Ioas(ioas), Vec::new()))
}

/// Maps pages of a program, with neither permission if so asked for.
pub(super) fn map(
    context: &Context,
    account: Account,
    ioas: ObjectId,
    source: Arc<dyn PageSource>,
    args: MapArgs,
) -> Result<u64, Error> {
    let ioas = context.objects().ioas(ioas)?;
    failpoint::allocation()?;
    if context.iommu().injections().at(Point::Map).is_some() {
        return Err(OutOfMemory.into());
    }
    let pages = Pages::new(source, args.prot.write, context.payer(account));
    if pages.source().is_device() {
        let (objects, shown) = (Arc::downgrade(context.objects()), Arc::downgrade(&pages));
        pages
            .source()
            .on_revoke(Box::new(move || revoke(&objects, &shown)));
    }
    let part = Part {
        pages,
        offset: args.offset,
        len: args.len,
    };
    ioas.map([part], args.iova, args.prot)
}

/// The exporter has taken pages back: when this returns, no device reaches them any more. They do
/// not come back.
fn revoke(objects: &Weak<Objects>, pages: &Weak<Pages>) {
    let (Some(objects), Some(pages)) = (objects.upgrade(), pages.upgrade()) else {
        return;
    };
    pages.revoke();
    for object in objects.all() {
        if let Object::Ioas(ioas) = object {
            ioas.revoke(&pages);
        }
    }
}

/// Maps pages that are mapped elsewhere already.
pub(super) fn copy(objects: &Objects, args: CopyArgs) -> Result<u64, Error> {
    if !(args.prot.read || args.prot.write) {
        return Err(MapError::NoPermission.into());
    }
    let parts = objects.ioas(args.src)?.parts(args.src_iova, args.len)?;
    objects.ioas(args.dst)?.map(parts, args.dst_iova, args.prot)
}

/// Unmaps the areas in a range, of which there must be some.
pub(super) fn unmap(objects: &Objects, ioas: ObjectId, iova: u64, len: u64) -> Result<u64, Error> {
    let ioas = objects.ioas(ioas)?;
    if len == 0 {
        return Err(UnmapError::Empty.into());
    }
    let range = AddrRange::from_len(iova, len);
    let range = range.ok_or(UnmapError::Overflow { start: iova, len })?;
    match ioas.unmap(range)? {
        0 => Err(UnmapError::NotMapped { range }.into()),
        bytes => Ok(bytes),
    }
}
