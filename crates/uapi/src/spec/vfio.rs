//! `include/uapi/linux/vfio.h`: the device ioctls.
//!
//! Every struct starts with `argsz`, the bytes that the program gave, and may be given longer than
//! it is known here. The numbers carry no size.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `VFIO_TYPE`: the type byte of all VFIO and iommufd ioctls.
pub const TYPE: u32 = b';' as u32;
/// `VFIO_BASE`: the first number.
pub const BASE: u32 = 100;

/// The ioctl with the number `nr` after [`BASE`].
const fn io(nr: u32) -> u32 {
    TYPE << 8 | (BASE + nr)
}

/// `VFIO_DEVICE_GET_INFO`.
pub const DEVICE_GET_INFO: u32 = io(7);
/// `VFIO_DEVICE_GET_REGION_INFO`.
pub const DEVICE_GET_REGION_INFO: u32 = io(8);
/// `VFIO_DEVICE_GET_IRQ_INFO`.
pub const DEVICE_GET_IRQ_INFO: u32 = io(9);
/// `VFIO_DEVICE_SET_IRQS`.
pub const DEVICE_SET_IRQS: u32 = io(10);
/// `VFIO_DEVICE_RESET`.
pub const DEVICE_RESET: u32 = io(11);
/// `VFIO_DEVICE_GET_PCI_HOT_RESET_INFO`.
pub const DEVICE_GET_PCI_HOT_RESET_INFO: u32 = io(12);
/// `VFIO_DEVICE_PCI_HOT_RESET`.
pub const DEVICE_PCI_HOT_RESET: u32 = io(13);
/// `VFIO_DEVICE_QUERY_GFX_PLANE`.
pub const DEVICE_QUERY_GFX_PLANE: u32 = io(14);
/// `VFIO_DEVICE_GET_GFX_DMABUF`.
pub const DEVICE_GET_GFX_DMABUF: u32 = io(15);
/// `VFIO_DEVICE_IOEVENTFD`.
pub const DEVICE_IOEVENTFD: u32 = io(16);
/// `VFIO_DEVICE_FEATURE`.
pub const DEVICE_FEATURE: u32 = io(17);
/// `VFIO_DEVICE_BIND_IOMMUFD`.
pub const DEVICE_BIND_IOMMUFD: u32 = io(18);
/// `VFIO_DEVICE_ATTACH_IOMMUFD_PT`.
pub const DEVICE_ATTACH_IOMMUFD_PT: u32 = io(19);
/// `VFIO_DEVICE_DETACH_IOMMUFD_PT`.
pub const DEVICE_DETACH_IOMMUFD_PT: u32 = io(20);

/// `struct vfio_info_cap_header`: one capability of a chain behind an info struct.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CapHeader {
    /// Which capability.
    pub id: u16,
    /// Its version.
    pub version: u16,
    /// Offset of the next one from the start of the info struct; 0 for the last.
    pub next: u32,
}

/// `struct vfio_device_info`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DeviceInfo {
    /// Bytes given; on return, bytes needed.
    pub argsz: u32,
    /// [`DeviceInfo::RESET`] and so on.
    pub flags: u32,
    /// Number of region indexes.
    pub num_regions: u32,
    /// Number of interrupt indexes.
    pub num_irqs: u32,
    /// Offset of the first capability, or 0.
    pub cap_offset: u32,
    /// Unused.
    pub pad: u32,
}

impl DeviceInfo {
    /// Bytes that must be given.
    pub const MIN: usize = 16;
    /// Flag: the device can be reset.
    pub const RESET: u32 = 1 << 0;
    /// Flag: a PCI device.
    pub const PCI: u32 = 1 << 1;
    /// Flag: has capabilities.
    pub const CAPS: u32 = 1 << 7;
    /// Capability: atomic operations that the device completes ([`AtomicCompletion`]).
    pub const CAP_ATOMIC_COMPLETION: u16 = 5;
}

/// `struct vfio_region_info`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RegionInfo {
    /// Bytes given; on return, bytes needed.
    pub argsz: u32,
    /// [`RegionInfo::READ`] and so on.
    pub flags: u32,
    /// The region.
    pub index: u32,
    /// Offset of the first capability, or 0.
    pub cap_offset: u32,
    /// Bytes of the region; 0 if it is absent.
    pub size: u64,
    /// Its offset in the device file.
    pub offset: u64,
}

impl RegionInfo {
    /// Bytes that must be given: all.
    pub const MIN: usize = 32;
    /// Flag: can be read.
    pub const READ: u32 = 1 << 0;
    /// Flag: can be written.
    pub const WRITE: u32 = 1 << 1;
    /// Flag: can be mapped.
    pub const MMAP: u32 = 1 << 2;
    /// Flag: has capabilities.
    pub const CAPS: u32 = 1 << 3;
    /// Capability: the page of the MSI-X table can be mapped too.
    pub const CAP_MSIX_MAPPABLE: u16 = 3;
}

/// `struct vfio_irq_info`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct IrqInfo {
    /// Bytes given.
    pub argsz: u32,
    /// [`IrqInfo::EVENTFD`] and so on.
    pub flags: u32,
    /// The interrupt index.
    pub index: u32,
    /// Vectors of the index.
    pub count: u32,
}

impl IrqInfo {
    /// Bytes that must be given: all.
    pub const MIN: usize = 16;
    /// Flag: signals by eventfd.
    pub const EVENTFD: u32 = 1 << 0;
    /// Flag: can be masked.
    pub const MASKABLE: u32 = 1 << 1;
    /// Flag: masks itself when it fires.
    pub const AUTOMASKED: u32 = 1 << 2;
    /// Flag: the set of vectors is fixed while one is enabled.
    pub const NORESIZE: u32 = 1 << 3;
}

/// `struct vfio_irq_set`, without the data that follows it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct IrqSet {
    /// Bytes given, with the data.
    pub argsz: u32,
    /// One of the data types and one of the actions.
    pub flags: u32,
    /// The interrupt index.
    pub index: u32,
    /// First vector.
    pub start: u32,
    /// Number of vectors.
    pub count: u32,
}

impl IrqSet {
    /// Bytes that must be given.
    pub const MIN: usize = 20;
    /// Data: none.
    pub const DATA_NONE: u32 = 1 << 0;
    /// Data: one byte for each vector.
    pub const DATA_BOOL: u32 = 1 << 1;
    /// Data: one eventfd (`s32`) for each vector.
    pub const DATA_EVENTFD: u32 = 1 << 2;
    /// All data types.
    pub const DATA_MASK: u32 = 0x7;
    /// Action: mask.
    pub const ACTION_MASK: u32 = 1 << 3;
    /// Action: unmask.
    pub const ACTION_UNMASK: u32 = 1 << 4;
    /// Action: trigger.
    pub const ACTION_TRIGGER: u32 = 1 << 5;
    /// All actions.
    pub const ACTIONS: u32 = 0x38;
}

/// `struct vfio_pci_hot_reset_info` and `struct vfio_pci_hot_reset`, without their arrays.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct HotReset {
    /// Bytes given, with the array.
    pub argsz: u32,
    /// 0 when asking for a reset.
    pub flags: u32,
    /// Elements of the array.
    pub count: u32,
}

impl HotReset {
    /// Bytes that must be given.
    pub const MIN: usize = 12;
}

/// `struct vfio_device_feature`, without the data of the feature.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Feature {
    /// Bytes given, with the data.
    pub argsz: u32,
    /// The feature's number in the low 16 bits; [`Feature::GET`] and so on.
    pub flags: u32,
}

impl Feature {
    /// Bytes that must be given.
    pub const MIN: usize = 8;
    /// The bits of the feature's number.
    pub const NUMBER: u32 = 0xffff;
    /// Number: the token of a physical function, 16 bytes.
    pub const VF_TOKEN: u32 = 0;
    /// Number: migration.
    pub const MIGRATION: u32 = 1;
    /// Number: the state of a migration.
    pub const MIG_DEVICE_STATE: u32 = 2;
    /// Number: let the device sleep.
    pub const LOW_POWER_ENTRY: u32 = 3;
    /// Number: let the device sleep until it is used ([`LowPowerWakeup`]).
    pub const LOW_POWER_ENTRY_WITH_WAKEUP: u32 = 4;
    /// Number: do not let the device sleep.
    pub const LOW_POWER_EXIT: u32 = 5;
    /// Number: log what the device writes ([`DmaLoggingControl`]).
    pub const DMA_LOGGING_START: u32 = 6;
    /// Number: do not log it any more.
    pub const DMA_LOGGING_STOP: u32 = 7;
    /// Number: what is in that log ([`DmaLoggingReport`]).
    pub const DMA_LOGGING_REPORT: u32 = 8;
    /// Number: bytes of the state that is saved.
    pub const MIG_DATA_SIZE: u32 = 9;
    /// Number: memory of the device as a dma-buf.
    pub const DMA_BUF: u32 = 11;
    /// Number: the second form of an answer during migration.
    pub const MIG_PRECOPY_INFO_V2: u32 = 12;
    /// Flag: get.
    pub const GET: u32 = 1 << 16;
    /// Flag: set.
    pub const SET: u32 = 1 << 17;
    /// Flag: only ask whether getting or setting is supported.
    pub const PROBE: u32 = 1 << 18;
}

/// `struct vfio_device_feature_mig_state`, the data of MIG_DEVICE_STATE.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct MigState {
    /// One of `enum vfio_device_mig_state`.
    pub device_state: u32,
    /// The descriptor for the data of the new state; -1 if it has none. Over vfio-user the data goes by
    /// messages.
    pub data_fd: i32,
}

impl MigState {
    /// Data of MIGRATION: devices can be stopped, and their state copied
    /// (`VFIO_MIGRATION_STOP_COPY`).
    pub const STOP_COPY: u64 = 1 << 0;
}

/// `struct vfio_device_low_power_entry_with_wakeup`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct LowPowerWakeup {
    /// Signalled when the device is used.
    pub wakeup_eventfd: i32,
    /// Unused.
    pub reserved: u32,
}

/// `struct vfio_device_feature_dma_logging_control`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DmaLoggingControl {
    /// Bytes of a page of the log; on return those that it has.
    pub page_size: u64,
    /// Number of [`DmaLoggingRange`].
    pub num_ranges: u32,
    /// Unused.
    pub reserved: u32,
    /// Address of the ranges.
    pub ranges: u64,
}

/// `struct vfio_device_feature_dma_logging_range`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DmaLoggingRange {
    /// First I/O virtual address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
}

/// `struct vfio_device_feature_dma_logging_report`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DmaLoggingReport {
    /// First I/O virtual address.
    pub iova: u64,
    /// Bytes.
    pub length: u64,
    /// Bytes that a bit is for: a power of two from 4096.
    pub page_size: u64,
    /// Address of the bitmap.
    pub bitmap: u64,
}

/// `struct vfio_device_ioeventfd`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Ioeventfd {
    /// Bytes given.
    pub argsz: u32,
    /// Bytes of the store: 1, 2, 4 or 8.
    pub flags: u32,
    /// File offset of the register.
    pub offset: u64,
    /// What is stored.
    pub data: u64,
    /// The eventfd, or -1 to take the store back.
    pub fd: i32,
    /// Unused.
    pub reserved: u32,
}

impl Ioeventfd {
    /// Bytes that must be given.
    pub const MIN: usize = 28;
}

/// `struct vfio_device_info_cap_pci_atomic_comp`, without its header.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct AtomicCompletion {
    /// 1 for operations of 32 bits, 2 for 64, 4 for 128.
    pub flags: u32,
    /// Unused.
    pub reserved: u32,
}

/// `struct vfio_device_bind_iommufd`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct BindIommufd {
    /// Bytes given.
    pub argsz: u32,
    /// [`BindIommufd::TOKEN`].
    pub flags: u32,
    /// The `/dev/iommu` file.
    pub iommufd: i32,
    /// Out: the id of the device object.
    pub out_devid: u32,
    /// Address of a UUID of 16 bytes, with the flag.
    pub token_uuid_ptr: u64,
}

impl BindIommufd {
    /// Bytes that must be given.
    pub const MIN: usize = 16;
    /// Flag: a token comes with it.
    pub const TOKEN: u32 = 1 << 0;
}

/// `struct vfio_device_attach_iommufd_pt`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct AttachIommufdPt {
    /// Bytes given.
    pub argsz: u32,
    /// [`AttachIommufdPt::PASID`].
    pub flags: u32,
    /// An IOAS or a page table; out: the page table.
    pub pt_id: u32,
    /// The PASID, with the flag.
    pub pasid: u32,
}

impl AttachIommufdPt {
    /// Bytes that must be given.
    pub const MIN: usize = 12;
    /// Flag: attach a PASID.
    pub const PASID: u32 = 1 << 0;
}

/// `struct vfio_device_detach_iommufd_pt`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DetachIommufdPt {
    /// Bytes given.
    pub argsz: u32,
    /// [`DetachIommufdPt::PASID`].
    pub flags: u32,
    /// The PASID, with the flag.
    pub pasid: u32,
}

impl DetachIommufdPt {
    /// Bytes that must be given.
    pub const MIN: usize = 8;
    /// Flag: detach a PASID.
    pub const PASID: u32 = 1 << 0;
}
