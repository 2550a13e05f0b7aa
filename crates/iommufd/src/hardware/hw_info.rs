//! What the IOMMU in front of a device can do.
//!
//! | capability | advertised |
//! | --- | --- |
//! | first-stage or second-stage translation, 4 levels, 2 MiB and 1 GiB leaves | as the device's
//! page tables are | | dirty tracking, PASIDs and their features, page requests | as the device is
//! configured | | ATS | of a device that keeps translations | | device TLBs | yes | | nested
//! translation, virtual command interface, interrupt remapping, pass-through | no |

use ioasid_iommu::{Device, TableFormat};

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

/// Capability registers (Intel VT-d specification, 11.4.2 and 11.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VtdRegisters {
    /// CAP_REG.
    pub cap: u64,
    /// ECAP_REG.
    pub ecap: u64,
}

/// A field of a capability register.
const fn field(low: u32, value: u64) -> u64 {
    value << low
}

impl VtdRegisters {
    /// Those of the IOMMU in front of `device`, if that is a VT-d.
    pub fn new(device: &Device) -> Option<Self> {
        let first_stage = match device.format() {
            TableFormat::X86_64Stage1 => true,
            TableFormat::VtdSecondStage => false,
            _ => return None,
        };
        let pasid_bits = u64::from(device.pasid_bits());
        let cap = field(0, 6) // ND: 2^16 domain ids
            | field(8, 1 << 2) // SAGAW: 4 levels, 48 bits
            | field(16, 47) // MGAW: 48 bits
            | field(34, 0b11) // SSLPS: 2 MiB and 1 GiB leaves
            | field(39, 1) // PSI: invalidation of single pages
            | field(48, 18) // MAMV
            | field(54, 1) // DWD: writes are drained
            | field(55, 1) // DRD: reads are drained
            | field(56, first_stage.into()); // FS1GP: 1 GiB leaves in the first stage
        let ecap = field(0, 1) // C: table walks are coherent
            | field(1, 1) // QI: queued invalidation
            | field(2, 1) // DT: device TLBs
            | field(7, 1) // SC: snoop control
            | field(29, device.supports_page_requests().into()) // PRS
            | field(35, pasid_bits.saturating_sub(1)) // PSS: PASID width less 1
            | field(40, (pasid_bits > 0).into()) // PASID
            | field(43, 1) // SMTS: scalable mode
            | field(45, device.supports_dirty().into()) // SSADS: accessed and dirty bits
            | field(46, (!first_stage).into()) // SSTS: second stage
            | field(47, first_stage.into()) // FSTS: first stage
            | field(48, 1); // SMPWC: table walks are coherent in scalable mode
        Some(VtdRegisters { cap, ecap })
    }
}
