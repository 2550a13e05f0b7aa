//! What the IOMMU in front of a device can do.

use super::vtd::VtdRegisters;

/// What GET_HW_INFO says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HwInfo {
    /// What is known of this kind of IOMMU only.
    pub data: HwData,
    /// Whether written pages can be tracked.
    pub dirty_tracking: bool,
    /// PASIDs that programs may choose at this device, as a power of two; 0 if none.
    pub max_pasid_log2: u8,
    /// Requests with such a PASID can ask to execute.
    pub pasid_execute: bool,
    /// Requests with such a PASID can be privileged.
    pub pasid_privileged: bool,
    /// Whether the device keeps translations.
    pub ats: bool,
}

/// What GET_HW_INFO says of one kind of IOMMU.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum HwData {
    /// Nothing.
    #[default]
    None,
    /// An Intel VT-d.
    Vtd(VtdRegisters),
    /// An IOMMU of a back end.
    Other {
        /// `enum iommu_hw_info_type`.
        kind: u32,
        /// The struct of that type.
        bytes: Vec<u8>,
    },
}
