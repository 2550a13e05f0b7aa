//! The type 1 IOMMU backend: which mappings there are, over an IOAS
//! (`drivers/vfio/vfio_iommu_type1.c`).
//!
//! Each mapping is one area of the IOAS, and is unmapped whole. Ranges are (start, inclusive last).

use std::{collections::BTreeMap, sync::Arc};

use ioasid_core::{AddrRange, Prot, host::Account, memory::PageSource};
use ioasid_iommufd::{Context, MapArgs, ObjectId};

use super::Version;
use crate::base::error::{Error, MapError, Result};

/// Mappings of a container, at most (the default of `dma_entry_limit`).
const MAPPINGS: u32 = u16::MAX as u32;

/// Pages that one dirty bitmap has, at most (`DIRTY_BITMAP_PAGES_MAX`).
const BITMAP_PAGES: u64 = i32::MAX as u64;

/// What VFIO_IOMMU_MAP_DMA is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapRequest {
    /// First IOVA.
    pub iova: u64,
    /// Address in the program.
    pub vaddr: u64,
    /// Bytes.
    pub size: u64,
    /// What devices may do.
    pub prot: Prot,
    /// The mapping is there already, without an address in the program: it is to get this one.
    pub update: bool,
}

/// What VFIO_IOMMU_UNMAP_DMA is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnmapRequest {
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// Everything; the range is 0.
    pub all: bool,
    /// Nothing is unmapped, but the addresses in the program are invalid until they are updated.
    pub vaddr: bool,
    /// Which of it is dirty is asked for, with this number of bytes for each bit.
    pub dirty: Option<u64>,
}

/// Which dirty pages are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirtyRange {
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// Bytes per bit.
    pub page_size: u64,
}

/// One mapping.
#[derive(Clone, Copy, Debug)]
struct Mapping {
    /// The inclusive last IOVA.
    last: u64,
    /// Its address in the program is invalid.
    invalid: bool,
}

/// The backend. Its address space goes with it: nothing may be attached then.
pub(super) struct Type1 {
    context: Arc<Context>,
    ioas: ObjectId,
    version: Version,
    /// By first IOVA.
    maps: BTreeMap<u64, Mapping>,
    invalid: usize,
    tracking: bool,
}

/// The smallest of the page sizes in a bitmap.
pub(super) fn smallest(sizes: u64) -> u64 {
    1 << (sizes.trailing_zeros() % u64::BITS)
}

impl Type1 {
    pub(super) fn new(context: &Arc<Context>, version: Version) -> Result<Self> {
        Ok(Type1 {
            ioas: context.ioas_alloc()?,
            context: Arc::clone(context),
            version,
            maps: BTreeMap::new(),
            invalid: 0,
            tracking: false,
        })
    }

    pub(super) fn ioas(&self) -> ObjectId {
        self.ioas
    }

    pub(super) fn version(&self) -> Version {
        self.version
    }

    pub(super) fn is_coherent(&self) -> bool {
        self.context.ioas_is_coherent(self.ioas).unwrap_or(false)
    }

    pub(super) fn page_sizes(&self) -> Result<u64> {
        Ok(self.context.ioas_page_sizes(self.ioas)?)
    }

    pub(super) fn mappings_left(&self) -> u32 {
        MAPPINGS.saturating_sub(u32::try_from(self.maps.len()).unwrap_or(u32::MAX))
    }

    pub(super) fn iova_ranges(&self) -> Result<Vec<AddrRange>> {
        Ok(self.context.ioas_iova_ranges(self.ioas)?.ranges)
    }

    /// Mappings whose address in the program is invalid.
    pub(super) fn invalid_addresses(&self) -> usize {
        self.invalid
    }

    fn page_size(&self) -> Result<u64> {
        Ok(smallest(self.page_sizes()?))
    }

    /// The last mapping that starts at or before `iova`, if it has it.
    fn at(&self, iova: u64) -> Option<(u64, Mapping)> {
        let (start, mapping) = self.maps.range(..=iova).next_back()?;
        (mapping.last >= iova).then_some((*start, *mapping))
    }

    /// The first mapping that has something of the range.
    fn overlapping(&self, range: AddrRange) -> Option<(u64, Mapping)> {
        let inside = || {
            let (start, mapping) = self.maps.range(range.start()..=range.last()).next()?;
            Some((*start, *mapping))
        };
        self.at(range.start()).or_else(inside)
    }

    pub(super) fn map<E: From<Error>>(
        &mut self,
        account: Account,
        request: &MapRequest,
        pages: impl FnOnce() -> std::result::Result<Arc<dyn PageSource>, E>,
    ) -> std::result::Result<(), E> {
        let page_size = self.page_size()?;
        let range = Self::map_range(request, page_size).map_err(Error::from)?;
        let found = self.overlapping(range);
        if request.update {
            return Ok(self.update(range, found).map_err(Error::from)?);
        }
        if let Some((other, _)) = found {
            return Err(Error::from(MapError::Exists { range, other }).into());
        }
        if self.mappings_left() == 0 {
            let limit = MAPPINGS;
            return Err(Error::from(MapError::TooMany { limit }).into());
        }
        let args = MapArgs::fixed(request.iova, request.size, request.prot);
        let mapped = self.context.vfio_map(account, self.ioas, pages()?, args);
        mapped.map_err(Error::from)?;
        let pages = request.size / page_size;
        if self.tracking && pages > BITMAP_PAGES {
            self.take_down(range)?;
            return Err(Error::from(too_large_for_bitmap(pages)).into());
        }
        let mapping = Mapping {
            last: range.last(),
            invalid: false,
        };
        self.maps.insert(request.iova, mapping);
        Ok(())
    }

    /// The range of a mapping that is asked for.
    fn map_range(request: &MapRequest, page_size: u64) -> Result<AddrRange, MapError> {
        let MapRequest {
            iova, vaddr, size, ..
        } = *request;
        if size == 0 {
            return Err(MapError::Empty { iova });
        }
        let range = range_of(iova, size)?;
        range_of(vaddr, size)?;
        if (request.prot.read || request.prot.write) == request.update {
            return Err(MapError::Permissions);
        }
        if (size | iova | vaddr) & (page_size - 1) != 0 {
            return Err(MapError::Misaligned {
                iova,
                size,
                page_size,
            });
        }
        Ok(range)
    }

    /// Gives a mapping a new address in the program. The pages stay those that it had.
    fn update(&mut self, range: AddrRange, found: Option<(u64, Mapping)>) -> Result<(), MapError> {
        let (start, found) = found.ok_or(MapError::NotFound { range })?;
        if !found.invalid || start != range.start() || found.last != range.last() {
            return Err(MapError::NotInvalid { range });
        }
        if let Some(mapping) = self.maps.get_mut(&start) {
            mapping.invalid = false;
            self.invalid -= 1;
        }
        Ok(())
    }

    /// The range that an unmap is about.
    fn unmap_range(&self, request: &UnmapRequest, page_size: u64) -> Result<AddrRange, MapError> {
        let UnmapRequest { iova, size, .. } = *request;
        let misaligned = MapError::Misaligned {
            iova,
            size,
            page_size,
        };
        let unaligned = |value: u64| value & (page_size - 1) != 0;
        if unaligned(iova) {
            return Err(misaligned);
        }
        let range = if request.all {
            if iova != 0 || size != 0 {
                return Err(MapError::RangeWithAll);
            }
            AddrRange::ALL
        } else {
            if size == 0 {
                return Err(MapError::Empty { iova });
            }
            if unaligned(size) {
                return Err(misaligned);
            }
            range_of(iova, size)?
        };
        if let Some(given) = request.dirty {
            self.expect_tracking(given, page_size)?;
        }
        if self.version == Version::V2 && !request.all {
            self.expect_whole(range)?;
        }
        Ok(range)
    }

    /// Dirty pages are tracked, and `given` bytes for each bit are those of a page.
    fn expect_tracking(&self, given: u64, page_size: u64) -> Result<(), MapError> {
        if !self.tracking {
            return Err(MapError::NotTracking);
        }
        match given == page_size {
            true => Ok(()),
            false => Err(MapError::BitmapUnit { given, page_size }),
        }
    }

    /// No mapping lies across an edge of the range.
    fn expect_whole(&self, range: AddrRange) -> Result<(), MapError> {
        let cut_before = |(start, _)| start != range.start();
        let cut_after = |(_, mapping): (u64, Mapping)| mapping.last != range.last();
        if self.at(range.start()).is_some_and(cut_before)
            || self.at(range.last()).is_some_and(cut_after)
        {
            return Err(MapError::Cuts { range });
        }
        Ok(())
    }

    pub(super) fn unmap<E: From<Error>>(
        &mut self,
        request: &UnmapRequest,
        mut dirty: impl FnMut(AddrRange) -> std::result::Result<(), E>,
    ) -> std::result::Result<u64, E> {
        let page_size = self.page_size()?;
        let range = self.unmap_range(request, page_size).map_err(Error::from)?;
        // A mapping that starts before the range, which only version 1 gets to, ends the search.
        let cut = self.at(range.start());
        if cut.is_some_and(|(start, _)| start < range.start()) {
            return Ok(0);
        }
        let found: Vec<AddrRange> = self
            .maps
            .range(range.start()..=range.last())
            .filter_map(|(start, mapping)| AddrRange::new(*start, mapping.last))
            .collect();
        if request.vaddr {
            return Ok(self.invalidate(&found).map_err(Error::from)?);
        }
        let mut reported = Ok(());
        let mut last = None;
        for mapping in &found {
            if request.dirty.is_some() {
                reported = dirty(*mapping);
                if reported.is_err() {
                    break;
                }
            }
            last = Some(mapping.last());
        }
        let mut bytes = 0;
        if let (Some(first), Some(last)) = (found.first(), last) {
            // In order, so the one ends behind the other.
            if let Some(range) = AddrRange::new(first.start(), last) {
                bytes = self.take_down(range)?;
            }
        }
        reported.map(|()| bytes)
    }

    /// Unmaps the mappings in a range that cuts none; returns the bytes.
    fn take_down(&mut self, range: AddrRange) -> Result<u64> {
        let (bytes, result) = if range == AddrRange::ALL {
            self.context.vfio_unmap_all(self.ioas)?
        } else {
            let len = range.len_saturating();
            self.context.vfio_unmap(self.ioas, range.start(), len)?
        };
        // In order of addresses, so an error has left the rest.
        let mut left = bytes;
        while let Some((start, mapping)) = self.overlapping(range) {
            let size = mapping.last.wrapping_sub(start).saturating_add(1);
            if result.is_err() && left < size {
                break;
            }
            left = left.saturating_sub(size);
            self.maps.remove(&start);
            self.invalid -= usize::from(mapping.invalid);
        }
        result.map_err(ioasid_iommufd::Error::from)?;
        Ok(bytes)
    }

    /// Makes the addresses of mappings invalid, of all or of none.
    fn invalidate(&mut self, found: &[AddrRange]) -> Result<u64, MapError> {
        let is_invalid =
            |range: &AddrRange| self.maps.get(&range.start()).is_some_and(|m| m.invalid);
        // As Linux undoes it: those before are valid, as they were.
        if let Some(already) = found.iter().find(|range| is_invalid(range)) {
            let iova = already.start();
            return Err(MapError::AlreadyInvalid { iova });
        }
        let mut bytes = 0u64;
        for range in found {
            if let Some(mapping) = self.maps.get_mut(&range.start()) {
                mapping.invalid = true;
                self.invalid += 1;
                bytes = bytes.saturating_add(range.len_saturating());
            }
        }
        Ok(bytes)
    }

    pub(super) fn set_tracking(&mut self, on: bool) -> Result<()> {
        if self.version == Version::V1 {
            return Err(MapError::NoDirtyPages.into());
        }
        if on && !self.tracking {
            let page_size = self.page_size()?;
            let pages = |(start, mapping): (&u64, &Mapping)| {
                mapping.last.wrapping_sub(*start) / page_size + 1
            };
            let mut pages = self.maps.iter().map(pages);
            if let Some(pages) = pages.find(|pages| *pages > BITMAP_PAGES) {
                return Err(too_large_for_bitmap(pages).into());
            }
        }
        self.tracking = on;
        Ok(())
    }

    /// The range that dirty pages are asked for.
    fn dirty_range(&self, request: &DirtyRange, unit: u64) -> Result<AddrRange, MapError> {
        if self.version == Version::V1 {
            return Err(MapError::NoDirtyPages);
        }
        let DirtyRange {
            iova,
            size,
            page_size,
        } = *request;
        if size == 0 {
            return Err(MapError::Empty { iova });
        }
        let range = range_of(iova, size)?;
        self.expect_tracking(page_size, unit)?;
        if (iova | size) & (unit - 1) != 0 {
            return Err(MapError::Misaligned {
                iova,
                size,
                page_size: unit,
            });
        }
        self.expect_whole(range)?;
        Ok(range)
    }

    pub(super) fn dirty<E: From<Error>>(
        &self,
        request: &DirtyRange,
        mut dirty: impl FnMut(AddrRange) -> std::result::Result<(), E>,
    ) -> std::result::Result<(), E> {
        let unit = self.page_size()?;
        let range = self.dirty_range(request, unit).map_err(Error::from)?;
        for (start, mapping) in self.maps.range(range.start()..=range.last()) {
            if let Some(mapping) = AddrRange::new(*start, mapping.last) {
                dirty(mapping)?;
            }
        }
        Ok(())
    }
}

/// `size` bytes from `start`; some are asked for.
fn range_of(start: u64, size: u64) -> Result<AddrRange, MapError> {
    AddrRange::from_len(start, size).ok_or(MapError::Overflow { start, size })
}

fn too_large_for_bitmap(pages: u64) -> MapError {
    let limit = BITMAP_PAGES;
    MapError::TooLargeForBitmap { pages, limit }
}

impl Drop for Type1 {
    fn drop(&mut self) {
        // The pages first; the object cannot be in use, since the devices are detached.
        let _ = self.context.ioas_unmap_all(self.ioas);
        let _ = self.context.destroy(self.ioas);
    }
}
