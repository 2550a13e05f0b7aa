//! `include/uapi/linux/vfio.h`: the structs and numbers of a VFIO container with a type 1 IOMMU.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `VFIO_GET_API_VERSION`.
pub const GET_API_VERSION: u32 = 0x3b64;
/// `VFIO_CHECK_EXTENSION`.
pub const CHECK_EXTENSION: u32 = 0x3b65;
/// `VFIO_SET_IOMMU`.
pub const SET_IOMMU: u32 = 0x3b66;
/// `VFIO_IOMMU_GET_INFO`.
pub const IOMMU_GET_INFO: u32 = 0x3b70;
/// `VFIO_IOMMU_MAP_DMA`.
pub const IOMMU_MAP_DMA: u32 = 0x3b71;
/// `VFIO_IOMMU_UNMAP_DMA`.
pub const IOMMU_UNMAP_DMA: u32 = 0x3b72;

/// `VFIO_IOMMU_DIRTY_PAGES`.
pub const IOMMU_DIRTY_PAGES: u32 = 0x3b75;

/// What GET_API_VERSION says (`VFIO_API_VERSION`).
pub const API_VERSION: u64 = 0;

/// The type 1 IOMMU, and whether there is one (`VFIO_TYPE1_IOMMU`).
pub const TYPE1_IOMMU: u64 = 1;
/// Its second version, which unmaps whole mappings only (`VFIO_TYPE1v2_IOMMU`).
pub const TYPE1V2_IOMMU: u64 = 3;
/// Whether DMA is coherent with the processor's caches in any case (`VFIO_DMA_CC_IOMMU`).
pub const DMA_CC_IOMMU: u64 = 4;
/// Whether everything can be unmapped at once (`VFIO_UNMAP_ALL`).
pub const UNMAP_ALL: u64 = 9;

/// Whether mappings can get other addresses of the program's (`VFIO_UPDATE_VADDR`).
pub const UPDATE_VADDR: u64 = 10;

/// `struct vfio_iommu_type1_dma_map`: VFIO_IOMMU_MAP_DMA.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct DmaMap {
    /// Bytes of this struct.
    pub argsz: u32,
    /// [`MAP_READ`], [`MAP_WRITE`].
    pub flags: u32,
    /// Address of the memory.
    pub vaddr: u64,
    /// The IOVA.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
}

/// Devices may read (`VFIO_DMA_MAP_FLAG_READ`).
pub const MAP_READ: u32 = 1 << 0;
/// Devices may write (`VFIO_DMA_MAP_FLAG_WRITE`).
pub const MAP_WRITE: u32 = 1 << 1;

/// A mapping that is there gets another address of the program's (`VFIO_DMA_MAP_FLAG_VADDR`).
pub const MAP_VADDR: u32 = 1 << 2;

/// `struct vfio_iommu_type1_dma_unmap`, without the bitmap: VFIO_IOMMU_UNMAP_DMA.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct DmaUnmap {
    /// Bytes of this struct.
    pub argsz: u32,
    /// [`UNMAP_DIRTY`], [`UNMAP_FLAG_ALL`], [`UNMAP_VADDR`].
    pub flags: u32,
    /// First IOVA.
    pub iova: u64,
    /// In: bytes. Out: bytes that were unmapped.
    pub size: u64,
}

/// Which pages were written is asked for: a [`Bitmap`] follows
/// (`VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP`).
pub const UNMAP_DIRTY: u32 = 1 << 0;
/// Nothing is unmapped, the addresses in the program become invalid
/// (`VFIO_DMA_UNMAP_FLAG_VADDR`).
pub const UNMAP_VADDR: u32 = 1 << 2;
/// Everything; the address and size are 0 (`VFIO_DMA_UNMAP_FLAG_ALL`).
pub const UNMAP_FLAG_ALL: u32 = 1 << 1;

/// `struct vfio_bitmap`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Bitmap {
    /// Bytes of memory per bit.
    pub pgsize: u64,
    /// Bytes of the bitmap.
    pub size: u64,
    /// Its address.
    pub data: u64,
}

/// `struct vfio_iommu_type1_dirty_bitmap`, without data: VFIO_IOMMU_DIRTY_PAGES.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct DirtyBitmap {
    /// Bytes of this struct and its data.
    pub argsz: u32,
    /// One of [`DIRTY_START`], [`DIRTY_STOP`] and [`DIRTY_GET`].
    pub flags: u32,
}

/// `VFIO_IOMMU_DIRTY_PAGES_FLAG_START`.
pub const DIRTY_START: u32 = 1 << 0;
/// `VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP`.
pub const DIRTY_STOP: u32 = 1 << 1;
/// A [`DirtyBitmapGet`] follows (`VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP`).
pub const DIRTY_GET: u32 = 1 << 2;

/// `struct vfio_iommu_type1_dirty_bitmap_get`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct DirtyBitmapGet {
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub size: u64,
    /// Where to write.
    pub bitmap: Bitmap,
}

/// `struct vfio_iommu_type1_info`: VFIO_IOMMU_GET_INFO.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Info {
    /// In: bytes that the program has. Out: bytes that all of it needs.
    pub argsz: u32,
    /// Out: [`INFO_PGSIZES`], [`INFO_CAPS`].
    pub flags: u32,
    /// Out: sizes of pages as a bitmap.
    pub iova_pgsizes: u64,
    /// Out: where the first capability is, or 0.
    pub cap_offset: u32,
    /// Padding.
    pub pad: u32,
}

/// Bytes of [`Info`] that every program has.
pub const INFO_MIN: usize = 16;

/// There are page sizes (`VFIO_IOMMU_INFO_PGSIZES`).
pub const INFO_PGSIZES: u32 = 1 << 0;
/// There are capabilities (`VFIO_IOMMU_INFO_CAPS`).
pub const INFO_CAPS: u32 = 1 << 1;

/// `struct vfio_info_cap_header`: the start of a capability.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct CapHeader {
    /// Which.
    pub id: u16,
    /// Of which version.
    pub version: u16,
    /// Where the next one is, from the start of [`Info`], or 0.
    pub next: u32,
}

impl CapHeader {
    /// The last capability of a chain, version 1.
    pub const fn new(id: u16) -> Self {
        CapHeader {
            id,
            version: 1,
            next: 0,
        }
    }
}

/// Offset of [`CapHeader::next`].
pub const CAP_NEXT: usize = 4;

/// The ranges that can be mapped (`VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE`).
pub const CAP_IOVA_RANGE: u16 = 1;
/// What can be known of dirty pages (`VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION`).
pub const CAP_MIGRATION: u16 = 2;
/// How many mappings more there can be (`VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL`).
pub const CAP_DMA_AVAIL: u16 = 3;

/// `struct vfio_iommu_type1_info_cap_migration`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct CapMigration {
    /// Id [`CAP_MIGRATION`].
    pub header: CapHeader,
    /// 0.
    pub flags: u32,
    /// Padding.
    pub pad: u32,
    /// Sizes of pages that a bitmap can have bits for, as a bitmap.
    pub pgsize_bitmap: u64,
    /// Bytes of the largest bitmap.
    pub max_dirty_bitmap_size: u64,
}

/// Bytes of the largest dirty bitmap (`DIRTY_BITMAP_SIZE_MAX`).
pub const MAX_DIRTY_BITMAP: u64 = 1 << 28;

/// `struct vfio_iommu_type1_info_dma_avail`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct CapDmaAvail {
    /// Id [`CAP_DMA_AVAIL`].
    pub header: CapHeader,
    /// Mappings.
    pub avail: u32,
}

/// `struct vfio_iommu_type1_info_cap_iova_range`, before its ranges.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct CapIovaRange {
    /// Id [`CAP_IOVA_RANGE`].
    pub header: CapHeader,
    /// Elements of [`IovaRange`] that follow.
    pub nr_iovas: u32,
    /// 0.
    pub reserved: u32,
}

/// `struct vfio_iova_range`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct IovaRange {
    /// First IOVA.
    pub start: u64,
    /// Inclusive last IOVA.
    pub end: u64,
}
