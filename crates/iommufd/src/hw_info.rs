//! What the IOMMU in front of a device can do.

/// What GET_HW_INFO says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HwInfo {
    /// The capability registers, if it is an Intel VT-d.
    pub vtd: Option<VtdRegisters>,
    /// Whether written pages can be tracked.
    pub dirty_tracking: bool,
    /// PASIDs that programs may choose at this device, as a power of two; 0 if none.
    pub max_pasid_log2: u8,
}

/// Capability registers (Intel VT-d specification, 11.4.2 and 11.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VtdRegisters {
    /// CAP_REG.
    pub cap: u64,
    /// ECAP_REG.
    pub ecap: u64,
}
