//! What flags and values of both ABIs are called, without the prefix that all of a kind share.

use super::Names;
use crate::spec::{container, group, iommufd, vfio};

const fn of(value: u32) -> u64 {
    value as u64
}

/// Nothing is known.
pub const NONE: Names = &[];

/// `enum iommufd_ioas_map_flags`.
pub const IOAS_MAP: Names = &[
    (of(iommufd::MAP_FIXED_IOVA), "FIXED_IOVA"),
    (of(iommufd::MAP_WRITEABLE), "WRITEABLE"),
    (of(iommufd::MAP_READABLE), "READABLE"),
];
/// `enum iommufd_option`.
pub const OPTION: Names = &[
    (of(iommufd::OPTION_RLIMIT_MODE), "RLIMIT_MODE"),
    (of(iommufd::OPTION_HUGE_PAGES), "HUGE_PAGES"),
];
/// `enum iommufd_option_ops`.
pub const OPTION_OP: Names = &[
    (iommufd::OPTION_OP_SET as u64, "SET"),
    (iommufd::OPTION_OP_GET as u64, "GET"),
];
/// `enum iommufd_vfio_ioas_op`.
pub const VFIO_IOAS: Names = &[
    (iommufd::VFIO_IOAS_GET as u64, "GET"),
    (iommufd::VFIO_IOAS_SET as u64, "SET"),
    (iommufd::VFIO_IOAS_CLEAR as u64, "CLEAR"),
];
/// `enum iommufd_hwpt_alloc_flags`.
pub const HWPT_ALLOC: Names = &[
    (1, "NEST_PARENT"),
    (2, "DIRTY_TRACKING"),
    (4, "FAULT_ID_VALID"),
    (8, "PASID"),
];
/// `enum iommu_hwpt_data_type`.
pub const HWPT_DATA: Names = &[
    (0, "NONE"),
    (1, "VTD_S1"),
    (2, "ARM_SMMUV3"),
    (3, "AMD_GUEST"),
];
/// `enum iommufd_hw_info_flags`.
pub const HW_INFO_FLAGS: Names = &[(of(iommufd::HW_INFO_FLAG_INPUT_TYPE), "INPUT_TYPE")];
/// `enum iommu_hw_info_type`.
pub const HW_INFO_TYPE: Names = &[
    (of(iommufd::HW_INFO_TYPE_DEFAULT), "DEFAULT"),
    (of(iommufd::HW_INFO_TYPE_INTEL_VTD), "INTEL_VTD"),
    (2, "ARM_SMMUV3"),
];
/// `enum iommufd_hw_capabilities`.
pub const HW_CAPABILITIES: Names = &[
    (iommufd::HW_CAP_DIRTY_TRACKING, "DIRTY_TRACKING"),
    (iommufd::HW_CAP_PCI_PASID_EXEC, "PCI_PASID_EXEC"),
    (iommufd::HW_CAP_PCI_PASID_PRIV, "PCI_PASID_PRIV"),
    (
        iommufd::HW_CAP_PCI_ATS_NOT_SUPPORTED,
        "PCI_ATS_NOT_SUPPORTED",
    ),
];
/// `enum iommufd_hwpt_set_dirty_tracking_flags`.
pub const DIRTY_TRACKING: Names = &[(of(iommufd::DIRTY_TRACKING_ENABLE), "ENABLE")];
/// `enum iommufd_hwpt_get_dirty_bitmap_flags`.
pub const DIRTY_BITMAP: Names = &[(of(iommufd::DIRTY_BITMAP_NO_CLEAR), "NO_CLEAR")];

/// Extensions of a container, its types of IOMMU among them.
pub const EXTENSION: Names = &[
    (container::TYPE1_IOMMU, "TYPE1_IOMMU"),
    (2, "SPAPR_TCE_IOMMU"),
    (container::TYPE1V2_IOMMU, "TYPE1v2_IOMMU"),
    (container::DMA_CC_IOMMU, "DMA_CC_IOMMU"),
    (5, "EEH"),
    (6, "TYPE1_NESTING_IOMMU"),
    (7, "SPAPR_TCE_v2_IOMMU"),
    (8, "NOIOMMU_IOMMU"),
    (container::UNMAP_ALL, "UNMAP_ALL"),
    (container::UPDATE_VADDR, "UPDATE_VADDR"),
];
/// Types of IOMMU that a container here can have.
pub const IOMMU_TYPE: Names = &[
    (container::TYPE1_IOMMU, "TYPE1_IOMMU"),
    (container::TYPE1V2_IOMMU, "TYPE1v2_IOMMU"),
];
/// `VFIO_DMA_MAP_FLAG_...`.
pub const DMA_MAP: Names = &[
    (of(container::MAP_READ), "READ"),
    (of(container::MAP_WRITE), "WRITE"),
    (of(container::MAP_VADDR), "VADDR"),
];
/// The same, on an iommufd in place of a container.
pub const COMPAT_DMA_MAP: Names = &[
    (of(container::MAP_READ), "READ"),
    (of(container::MAP_WRITE), "WRITE"),
];
/// `VFIO_DMA_UNMAP_FLAG_...`.
pub const DMA_UNMAP: Names = &[
    (of(container::UNMAP_DIRTY), "GET_DIRTY_BITMAP"),
    (of(container::UNMAP_FLAG_ALL), "ALL"),
    (of(container::UNMAP_VADDR), "VADDR"),
];
/// The same, on an iommufd in place of a container.
pub const COMPAT_DMA_UNMAP: Names = &[(of(container::UNMAP_FLAG_ALL), "ALL")];
/// `VFIO_IOMMU_DIRTY_PAGES_FLAG_...`.
pub const DIRTY_PAGES: Names = &[
    (of(container::DIRTY_START), "START"),
    (of(container::DIRTY_STOP), "STOP"),
    (of(container::DIRTY_GET), "GET_BITMAP"),
];
/// `VFIO_IOMMU_INFO_...`.
pub const IOMMU_INFO: Names = &[
    (of(container::INFO_PGSIZES), "PGSIZES"),
    (of(container::INFO_CAPS), "CAPS"),
];
/// `VFIO_GROUP_FLAGS_...`.
pub const GROUP: Names = &[
    (of(group::GroupStatus::VIABLE), "VIABLE"),
    (of(group::GroupStatus::CONTAINER_SET), "CONTAINER_SET"),
];
/// `VFIO_DEVICE_FLAGS_...`.
pub const DEVICE: Names = &[
    (of(vfio::DeviceInfo::RESET), "RESET"),
    (of(vfio::DeviceInfo::PCI), "PCI"),
    (of(vfio::DeviceInfo::CAPS), "CAPS"),
];
/// `VFIO_REGION_INFO_FLAG_...`.
pub const REGION: Names = &[
    (of(vfio::RegionInfo::READ), "READ"),
    (of(vfio::RegionInfo::WRITE), "WRITE"),
    (of(vfio::RegionInfo::MMAP), "MMAP"),
    (of(vfio::RegionInfo::CAPS), "CAPS"),
];
/// Regions of a PCI device.
pub const REGION_INDEX: Names = &[
    (0, "BAR0"),
    (1, "BAR1"),
    (2, "BAR2"),
    (3, "BAR3"),
    (4, "BAR4"),
    (5, "BAR5"),
    (6, "ROM"),
    (7, "CONFIG"),
    (8, "VGA"),
];
/// Interrupts of a PCI device.
pub const IRQ_INDEX: Names = &[(0, "INTX"), (1, "MSI"), (2, "MSIX"), (3, "ERR"), (4, "REQ")];
/// `VFIO_IRQ_INFO_...`.
pub const IRQ: Names = &[
    (of(vfio::IrqInfo::EVENTFD), "EVENTFD"),
    (of(vfio::IrqInfo::MASKABLE), "MASKABLE"),
    (of(vfio::IrqInfo::AUTOMASKED), "AUTOMASKED"),
    (of(vfio::IrqInfo::NORESIZE), "NORESIZE"),
];
/// `VFIO_IRQ_SET_DATA_...` and `VFIO_IRQ_SET_ACTION_...`.
pub const IRQ_SET: Names = &[
    (of(vfio::IrqSet::DATA_NONE), "DATA_NONE"),
    (of(vfio::IrqSet::DATA_BOOL), "DATA_BOOL"),
    (of(vfio::IrqSet::DATA_EVENTFD), "DATA_EVENTFD"),
    (of(vfio::IrqSet::ACTION_MASK), "ACTION_MASK"),
    (of(vfio::IrqSet::ACTION_UNMASK), "ACTION_UNMASK"),
    (of(vfio::IrqSet::ACTION_TRIGGER), "ACTION_TRIGGER"),
];
/// The data of SET_IRQS.
pub const IRQ_DATA: Names = &[
    (of(vfio::IrqSet::DATA_NONE), "DATA_NONE"),
    (of(vfio::IrqSet::DATA_BOOL), "DATA_BOOL"),
    (of(vfio::IrqSet::DATA_EVENTFD), "DATA_EVENTFD"),
];
/// The action of SET_IRQS.
pub const IRQ_ACTION: Names = &[
    (of(vfio::IrqSet::ACTION_MASK), "ACTION_MASK"),
    (of(vfio::IrqSet::ACTION_UNMASK), "ACTION_UNMASK"),
    (of(vfio::IrqSet::ACTION_TRIGGER), "ACTION_TRIGGER"),
];
/// Bytes of a store by an eventfd.
pub const STORE_BYTES: Names = &[
    (1, "8 bits"),
    (2, "16 bits"),
    (4, "32 bits"),
    (8, "64 bits"),
];
/// `VFIO_DEVICE_FEATURE_...`: what is wished.
pub const FEATURE_WISH: Names = &[
    (of(vfio::Feature::GET), "GET"),
    (of(vfio::Feature::SET), "SET"),
    (of(vfio::Feature::PROBE), "PROBE"),
];
/// Of those, the ones of which one is carried out.
pub const FEATURE_WAY: Names = &[
    (of(vfio::Feature::GET), "GET"),
    (of(vfio::Feature::SET), "SET"),
];
/// `VFIO_DEVICE_FEATURE_...`: which feature.
pub const FEATURE: Names = &[
    (of(vfio::Feature::VF_TOKEN), "PCI_VF_TOKEN"),
    (of(vfio::Feature::MIGRATION), "MIGRATION"),
    (of(vfio::Feature::MIG_DEVICE_STATE), "MIG_DEVICE_STATE"),
    (of(vfio::Feature::LOW_POWER_ENTRY), "LOW_POWER_ENTRY"),
    (
        of(vfio::Feature::LOW_POWER_ENTRY_WITH_WAKEUP),
        "LOW_POWER_ENTRY_WITH_WAKEUP",
    ),
    (of(vfio::Feature::LOW_POWER_EXIT), "LOW_POWER_EXIT"),
    (of(vfio::Feature::DMA_LOGGING_START), "DMA_LOGGING_START"),
    (of(vfio::Feature::DMA_LOGGING_STOP), "DMA_LOGGING_STOP"),
    (of(vfio::Feature::DMA_LOGGING_REPORT), "DMA_LOGGING_REPORT"),
    (of(vfio::Feature::MIG_DATA_SIZE), "MIG_DATA_SIZE"),
    (10, "BUS_MASTER"),
    (of(vfio::Feature::DMA_BUF), "DMA_BUF"),
    (of(vfio::Feature::MIG_PRECOPY_INFO_V2), "MIG_PRECOPY_INFOv2"),
];
/// `enum vfio_device_mig_state`.
pub const MIGRATION_STATE: Names = &[
    (0, "ERROR"),
    (1, "STOP"),
    (2, "RUNNING"),
    (3, "STOP_COPY"),
    (4, "RESUMING"),
    (5, "RUNNING_P2P"),
    (6, "PRE_COPY"),
    (7, "PRE_COPY_P2P"),
];
/// `VFIO_DEVICE_BIND_...`.
pub const BIND: Names = &[(of(vfio::BindIommufd::TOKEN), "TOKEN")];
/// `VFIO_DEVICE_ATTACH_PASID` and its counterpart.
pub const PASID: Names = &[(of(vfio::AttachIommufdPt::PASID), "PASID")];
