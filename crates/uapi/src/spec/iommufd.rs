//! `include/uapi/linux/iommufd.h`: the structs, numbers and flags of `/dev/iommu`.
//!
//! Every struct starts with its own size, so that both sides may be older than the other.

use zerocopy::{FromBytes, Immutable, IntoBytes};

/// The `_IO` type of iommufd and VFIO, `';'`.
pub const TYPE: u32 = 0x3b;

/// Number of the first iommufd ioctl (`IOMMUFD_CMD_BASE`).
pub const BASE: u32 = 0x80;

/// `struct iommu_destroy`: IOMMU_DESTROY.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Destroy {
    /// Bytes of this struct.
    pub size: u32,
    /// The object.
    pub id: u32,
}

/// `struct iommu_ioas_alloc`: IOMMU_IOAS_ALLOC.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct IoasAlloc {
    /// Bytes of this struct.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// Out: the IOAS.
    pub out_ioas_id: u32,
}

/// `struct iommu_iova_range`: one element of an array.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct IovaRange {
    /// First IOVA.
    pub start: u64,
    /// Inclusive last IOVA.
    pub last: u64,
}

/// `struct iommu_ioas_iova_ranges`: IOMMU_IOAS_IOVA_RANGES.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct IoasIovaRanges {
    /// Bytes of this struct.
    pub size: u32,
    /// The IOAS.
    pub ioas_id: u32,
    /// In: elements of the array. Out: elements that there are.
    pub num_iovas: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Address of an array of [`IovaRange`].
    pub allowed_iovas: u64,
    /// Out: what mappings must be aligned to.
    pub out_iova_alignment: u64,
}

/// `struct iommu_ioas_allow_iovas`: IOMMU_IOAS_ALLOW_IOVAS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct IoasAllowIovas {
    /// Bytes of this struct.
    pub size: u32,
    /// The IOAS.
    pub ioas_id: u32,
    /// Elements of the array.
    pub num_iovas: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Address of an array of [`IovaRange`].
    pub allowed_iovas: u64,
}

/// `struct iommu_ioas_map`: IOMMU_IOAS_MAP.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct IoasMap {
    /// Bytes of this struct.
    pub size: u32,
    /// [`MAP_FIXED_IOVA`], [`MAP_WRITEABLE`], [`MAP_READABLE`].
    pub flags: u32,
    /// The IOAS.
    pub ioas_id: u32,
    /// Must be 0.
    pub reserved: u32,
    /// Address of the memory.
    pub user_va: u64,
    /// Bytes.
    pub length: u64,
    /// In with FIXED_IOVA, else out: the IOVA.
    pub iova: u64,
}

/// `struct iommu_ioas_map_file`: IOMMU_IOAS_MAP_FILE.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct IoasMapFile {
    /// Bytes of this struct.
    pub size: u32,
    /// As in [`IoasMap`].
    pub flags: u32,
    /// The IOAS.
    pub ioas_id: u32,
    /// The file.
    pub fd: i32,
    /// First byte of the file.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// In with FIXED_IOVA, else out: the IOVA.
    pub iova: u64,
}

/// `struct iommu_ioas_copy`: IOMMU_IOAS_COPY.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct IoasCopy {
    /// Bytes of this struct.
    pub size: u32,
    /// As in [`IoasMap`].
    pub flags: u32,
    /// The IOAS to map in.
    pub dst_ioas_id: u32,
    /// The IOAS that has the pages.
    pub src_ioas_id: u32,
    /// Bytes.
    pub length: u64,
    /// In with FIXED_IOVA, else out: the IOVA in the destination.
    pub dst_iova: u64,
    /// The IOVA in the source.
    pub src_iova: u64,
}

/// `struct iommu_ioas_unmap`: IOMMU_IOAS_UNMAP.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct IoasUnmap {
    /// Bytes of this struct.
    pub size: u32,
    /// The IOAS.
    pub ioas_id: u32,
    /// First IOVA.
    pub iova: u64,
    /// In: bytes. Out: bytes that were unmapped.
    pub length: u64,
}

/// `struct iommu_option`: IOMMU_OPTION.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct Opt {
    /// Bytes of this struct.
    pub size: u32,
    /// [`OPTION_RLIMIT_MODE`] or [`OPTION_HUGE_PAGES`].
    pub option_id: u32,
    /// [`OPTION_OP_SET`] or [`OPTION_OP_GET`].
    pub op: u16,
    /// Must be 0.
    pub reserved: u16,
    /// The object that has the option; 0 for an option of the file.
    pub object_id: u32,
    /// The value.
    pub val64: u64,
}

/// `struct iommu_vfio_ioas`: IOMMU_VFIO_IOAS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct VfioIoas {
    /// Bytes of this struct.
    pub size: u32,
    /// In for SET, out for GET: the IOAS.
    pub ioas_id: u32,
    /// [`VFIO_IOAS_GET`], [`VFIO_IOAS_SET`] or [`VFIO_IOAS_CLEAR`].
    pub op: u16,
    /// Must be 0.
    pub reserved: u16,
}

/// `struct iommu_hwpt_alloc`: IOMMU_HWPT_ALLOC.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct HwptAlloc {
    /// Bytes of this struct.
    pub size: u32,
    /// `enum iommufd_hwpt_alloc_flags`.
    pub flags: u32,
    /// The device.
    pub dev_id: u32,
    /// The IOAS, page table or vIOMMU to build on.
    pub pt_id: u32,
    /// Out: the page table.
    pub out_hwpt_id: u32,
    /// Must be 0.
    pub reserved: u32,
    /// `enum iommu_hwpt_data_type`; [`HWPT_DATA_NONE`] on an IOAS.
    pub data_type: u32,
    /// Bytes of the data.
    pub data_len: u32,
    /// Address of the data.
    pub data_uptr: u64,
    /// The fault queue, with FAULT_ID_VALID.
    pub fault_id: u32,
    /// Padding.
    pub reserved2: u32,
}

/// `struct iommu_hw_info`: IOMMU_GET_HW_INFO.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct HwInfo {
    /// Bytes of this struct.
    pub size: u32,
    /// [`HW_INFO_FLAG_INPUT_TYPE`].
    pub flags: u32,
    /// The device.
    pub dev_id: u32,
    /// In: bytes of the buffer. Out: bytes that there are.
    pub data_len: u32,
    /// Address of the buffer.
    pub data_uptr: u64,
    /// In with INPUT_TYPE: the type that is wanted. Out: the type of the data.
    pub data_type: u32,
    /// Out: PASIDs that can be chosen, as a power of two.
    pub out_max_pasid_log2: u8,
    /// Must be 0.
    pub reserved: [u8; 3],
    /// Out: `enum iommufd_hw_capabilities`.
    pub out_capabilities: u64,
}

/// `struct iommu_hw_info_vtd`: the data of type [`HW_INFO_TYPE_INTEL_VTD`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct HwInfoVtd {
    /// Errata: none.
    pub flags: u32,
    /// 0.
    pub reserved: u32,
    /// CAP_REG.
    pub cap_reg: u64,
    /// ECAP_REG.
    pub ecap_reg: u64,
}

/// `struct iommu_hwpt_set_dirty_tracking`: IOMMU_HWPT_SET_DIRTY_TRACKING.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct HwptSetDirtyTracking {
    /// Bytes of this struct.
    pub size: u32,
    /// [`DIRTY_TRACKING_ENABLE`].
    pub flags: u32,
    /// The page table.
    pub hwpt_id: u32,
    /// Padding.
    pub reserved: u32,
}

/// `struct iommu_hwpt_get_dirty_bitmap`: IOMMU_HWPT_GET_DIRTY_BITMAP.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct HwptGetDirtyBitmap {
    /// Bytes of this struct.
    pub size: u32,
    /// The page table.
    pub hwpt_id: u32,
    /// [`DIRTY_BITMAP_NO_CLEAR`].
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
    /// First IOVA.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes per bit.
    pub page_size: u64,
    /// Address of the bitmap: bit n of it is page n from `iova`.
    pub data: u64,
}

/// `struct iommu_hwpt_invalidate`: IOMMU_HWPT_INVALIDATE.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct HwptInvalidate {
    /// Bytes of this struct.
    pub size: u32,
    /// The nested page table, or the virtual IOMMU.
    pub hwpt_id: u32,
    /// Address of the array.
    pub data_uptr: u64,
    /// Type of its entries.
    pub data_type: u32,
    /// Bytes of an entry.
    pub entry_len: u32,
    /// In: entries. Out: entries that were done.
    pub entry_num: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// `struct iommu_fault_alloc`: IOMMU_FAULT_QUEUE_ALLOC.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct FaultAlloc {
    /// Bytes of this struct.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// Out: the fault queue.
    pub out_fault_id: u32,
    /// Out: the descriptor to read and answer it with.
    pub out_fault_fd: u32,
}

/// `struct iommu_viommu_alloc`: IOMMU_VIOMMU_ALLOC.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct ViommuAlloc {
    /// Bytes of this struct.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// `enum iommu_viommu_type`; not [`VIOMMU_TYPE_DEFAULT`].
    pub kind: u32,
    /// The device whose IOMMU it is a part of.
    pub dev_id: u32,
    /// The page table to nest on.
    pub hwpt_id: u32,
    /// Out: the virtual IOMMU.
    pub out_viommu_id: u32,
    /// Bytes of the data.
    pub data_len: u32,
    /// Padding.
    pub reserved: u32,
    /// Address of the data.
    pub data_uptr: u64,
}

/// `struct iommu_vdevice_alloc`: IOMMU_VDEVICE_ALLOC.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct VdeviceAlloc {
    /// Bytes of this struct.
    pub size: u32,
    /// The virtual IOMMU.
    pub viommu_id: u32,
    /// The device.
    pub dev_id: u32,
    /// Out: the virtual device.
    pub out_vdevice_id: u32,
    /// What the guest calls the device.
    pub virt_id: u64,
}

/// `struct iommu_veventq_alloc`: IOMMU_VEVENTQ_ALLOC.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct VeventqAlloc {
    /// Bytes of this struct.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// The virtual IOMMU.
    pub viommu_id: u32,
    /// `enum iommu_veventq_type`; not [`VEVENTQ_TYPE_DEFAULT`].
    pub kind: u32,
    /// Events that it holds.
    pub veventq_depth: u32,
    /// Out: the queue.
    pub out_veventq_id: u32,
    /// Out: the descriptor to read it with.
    pub out_veventq_fd: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// `struct iommu_hw_queue_alloc`: IOMMU_HW_QUEUE_ALLOC.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct HwQueueAlloc {
    /// Bytes of this struct.
    pub size: u32,
    /// Must be 0.
    pub flags: u32,
    /// The virtual IOMMU.
    pub viommu_id: u32,
    /// `enum iommu_hw_queue_type`; not [`HW_QUEUE_TYPE_DEFAULT`].
    pub kind: u32,
    /// Which of the queues of that type.
    pub index: u32,
    /// Out: the queue.
    pub out_hw_queue_id: u32,
    /// Where the ring is in the address space below the guest's.
    pub nesting_parent_iova: u64,
    /// Bytes of the ring.
    pub length: u64,
}

/// `struct iommu_ioas_change_process`: IOMMU_IOAS_CHANGE_PROCESS.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct IoasChangeProcess {
    /// Bytes of this struct.
    pub size: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// Map at the given IOVA (`IOMMU_IOAS_MAP_FIXED_IOVA`).
pub const MAP_FIXED_IOVA: u32 = 1 << 0;
/// Devices may write (`IOMMU_IOAS_MAP_WRITEABLE`).
pub const MAP_WRITEABLE: u32 = 1 << 1;
/// Devices may read (`IOMMU_IOAS_MAP_READABLE`).
pub const MAP_READABLE: u32 = 1 << 2;

/// How locked memory is counted (`IOMMU_OPTION_RLIMIT_MODE`).
pub const OPTION_RLIMIT_MODE: u32 = 0;
/// Whether large leaves are used (`IOMMU_OPTION_HUGE_PAGES`).
pub const OPTION_HUGE_PAGES: u32 = 1;
/// Sets an option.
pub const OPTION_OP_SET: u16 = 0;
/// Reads an option.
pub const OPTION_OP_GET: u16 = 1;

/// Reads the IOAS of VFIO commands.
pub const VFIO_IOAS_GET: u16 = 0;
/// Sets it.
pub const VFIO_IOAS_SET: u16 = 1;
/// Clears it.
pub const VFIO_IOAS_CLEAR: u16 = 2;

/// No type of virtual IOMMU (`IOMMU_VIOMMU_TYPE_DEFAULT`).
pub const VIOMMU_TYPE_DEFAULT: u32 = 0;
/// No type of events (`IOMMU_VEVENTQ_TYPE_DEFAULT`).
pub const VEVENTQ_TYPE_DEFAULT: u32 = 0;
/// No type of hardware queue (`IOMMU_HW_QUEUE_TYPE_DEFAULT`).
pub const HW_QUEUE_TYPE_DEFAULT: u32 = 0;

/// No data (`IOMMU_HWPT_DATA_NONE`).
pub const HWPT_DATA_NONE: u32 = 0;

/// `data_type` is an input (`IOMMU_HW_INFO_FLAG_INPUT_TYPE`).
pub const HW_INFO_FLAG_INPUT_TYPE: u32 = 1 << 0;
/// No data, or whatever there is (`IOMMU_HW_INFO_TYPE_NONE`, `_DEFAULT`).
pub const HW_INFO_TYPE_DEFAULT: u32 = 0;
/// Intel VT-d.
pub const HW_INFO_TYPE_INTEL_VTD: u32 = 1;
/// Dirty tracking is supported (`IOMMU_HW_CAP_DIRTY_TRACKING`).
pub const HW_CAP_DIRTY_TRACKING: u64 = 1 << 0;
/// Requests with a PASID can ask to execute (`IOMMU_HW_CAP_PCI_PASID_EXEC`).
pub const HW_CAP_PCI_PASID_EXEC: u64 = 1 << 1;
/// Requests with a PASID can be privileged (`IOMMU_HW_CAP_PCI_PASID_PRIV`).
pub const HW_CAP_PCI_PASID_PRIV: u64 = 1 << 2;
/// The device has no usable ATS (`IOMMU_HW_CAP_PCI_ATS_NOT_SUPPORTED`).
pub const HW_CAP_PCI_ATS_NOT_SUPPORTED: u64 = 1 << 3;

/// Turns tracking on (`IOMMU_HWPT_DIRTY_TRACKING_ENABLE`).
pub const DIRTY_TRACKING_ENABLE: u32 = 1 << 0;
/// Leaves the bits as they are (`IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR`).
pub const DIRTY_BITMAP_NO_CLEAR: u32 = 1 << 0;
