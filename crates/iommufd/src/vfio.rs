//! The IOAS of a VFIO container, and what its commands need beyond those of `/dev/iommu`
//! (drivers/iommu/iommufd/vfio_compat.c).

use std::sync::Arc;

use ioasid_core::{
    AddrRange,
    host::Account,
    memory::{PAGE_SIZE, PageSource},
};

use crate::{
    context::Context,
    error::Error,
    ioas::MapArgs,
    object::{Object, ObjectId},
};

impl Context {
    /// VFIO_IOAS: the IOAS that VFIO container commands work on.
    ///
    /// # Errors
    /// [`Error::NoVfioIoas`].
    pub fn vfio_ioas(&self) -> Result<ObjectId, Error> {
        self.options.lock().vfio_ioas.ok_or(Error::NoVfioIoas)
    }

    /// What [`Context::vfio_ioas`] says; if that is none, a new IOAS, which it says from now on
    /// (`iommufd_vfio_compat_ioas_create`).
    ///
    /// # Errors
    /// [`Error::NoIds`], [`Error::Closed`].
    pub fn vfio_ioas_or_new(&self) -> Result<ObjectId, Error> {
        if let Ok(ioas) = self.vfio_ioas() {
            return Ok(ioas);
        }
        let ioas = self.ioas_alloc()?;
        let mut options = self.options.lock();
        let set = *options.vfio_ioas.get_or_insert(ioas);
        drop(options);
        if set != ioas {
            let _ = self.destroy(ioas);
        }
        Ok(set)
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

    pub(crate) fn forget_vfio_ioas(&self, ioas: ObjectId) {
        let mut options = self.options.lock();
        if options.vfio_ioas == Some(ioas) {
            options.vfio_ioas = None;
        }
    }

    /// Maps at a fixed address, as [`Context::ioas_map_for`]; with neither permission if so asked for.
    ///
    /// # Errors
    /// Those of [`Context::ioas_map_for`], but for [`Error::NoPermission`].
    pub fn vfio_map(
        &self,
        account: Account,
        ioas: ObjectId,
        pages: Arc<dyn PageSource>,
        args: MapArgs,
    ) -> Result<u64, Error> {
        let ioas = self.ioas(ioas)?;
        let part = self.part(account, pages, args)?;
        ioas.map(&[part], args.iova, args.prot)
    }

    /// Unmaps the areas in a range: how many bytes, and whether that was all. No area there is no
    /// error.
    ///
    /// # Errors
    /// [`Error::NoObject`]; and as the second result [`Error::Empty`], [`Error::Overflow`],
    /// [`Error::NotMapped`] if an area lies across an edge, [`Error::AreaLocked`],
    /// [`Error::StillHeld`].
    pub fn vfio_unmap(
        &self,
        ioas: ObjectId,
        iova: u64,
        len: u64,
    ) -> Result<(u64, Result<(), Error>), Error> {
        let ioas = self.ioas(ioas)?;
        if len == 0 {
            return Ok((0, Err(Error::Empty)));
        }
        Ok(match AddrRange::from_len(iova, len) {
            Some(range) => ioas.unmap_counting(range),
            None => (0, Err(Error::Overflow)),
        })
    }

    /// Unmaps everything; as [`Context::vfio_unmap`].
    ///
    /// # Errors
    /// [`Error::NoObject`].
    pub fn vfio_unmap_all(&self, ioas: ObjectId) -> Result<(u64, Result<(), Error>), Error> {
        Ok(self.ioas(ioas)?.unmap_counting(AddrRange::ALL))
    }

    /// Cuts a mapping in two after the address `last`, if it has that one and the next.
    ///
    /// # Errors
    /// [`Error::NoObject`], [`Error::Changing`], [`Error::CannotCut`], [`Error::Misaligned`],
    /// [`Error::TooLate`].
    pub fn ioas_cut_after(&self, ioas: ObjectId, last: u64) -> Result<(), Error> {
        self.ioas(ioas)?.cut_after(last)
    }

    /// The sizes of pages that every page table of an IOAS has, as a bitmap, of those that a program
    /// can map.
    ///
    /// # Errors
    /// [`Error::NoObject`].
    pub fn ioas_page_sizes(&self, ioas: ObjectId) -> Result<u64, Error> {
        let ioas = self.ioas(ioas)?;
        let state = ioas.state.lock();
        let mut sizes = state.tables.page_sizes();
        if sizes & (PAGE_SIZE - 1) != 0 {
            sizes = sizes & !(PAGE_SIZE - 1) | PAGE_SIZE;
        }
        Ok(sizes.max(state.alignment()))
    }

    /// Whether DMA through every page table of an IOAS is coherent with the processor's caches
    /// whatever the devices ask for.
    ///
    /// # Errors
    /// [`Error::NoObject`].
    pub fn ioas_is_coherent(&self, ioas: ObjectId) -> Result<bool, Error> {
        let ioas = self.ioas(ioas)?;
        let objects = self.objects.lock().objects();
        let mut tables = objects.iter().filter_map(|object| match object {
            Object::Hwpt(hwpt) => hwpt.paging(),
            _ => None,
        });
        Ok(tables.all(|table| table.ioas().id() != ioas.id() || table.is_coherent()))
    }
}
