//! What is Intel VT-d's own: its capability registers, a guest's first-stage table as HWPT_ALLOC describes
//! it, and the entries of HWPT_INVALIDATE (include/uapi/linux/iommufd.h;
//! drivers/iommu/intel/{iommu,nested,pasid}.c).
//!
//! | capability | told |
//! | --- | --- |
//! | second-stage translation, 4 levels, 2 MiB and 1 GiB leaves | for devices with second-stage tables |
//! | nested translation, with first stages of 4 and 5 levels, 1 GiB leaves, supervisor requests, extended accessed bits | likewise |
//! | first-stage translation alone, 1 GiB leaves | for devices with first-stage tables |
//! | dirty tracking, PASIDs and their width, page requests | as the device is configured |
//! | device TLBs | yes; whether a device has one is said beside the registers |
//! | virtual command interface, interrupt remapping, pass-through, execute requests | no |

use ioasid_core::AddrRange;
use ioasid_iommu::{Device, FirstStage, Invalidate, TableFormat};

use crate::base::{
    error::{Error, InvalidateError, Mismatch},
    user::{UserArray, UserData},
};

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

/// Bits that are looked at here.
mod bits {
    /// CAP_REG.FS5LP: first stages of 5 levels.
    pub(super) const FIVE_LEVELS: u64 = 1 << 60;
    /// ECAP_REG.SRS: supervisor requests.
    pub(super) const SUPERVISOR_REQUESTS: u64 = 1 << 31;
    /// ECAP_REG.EAFS: extended accessed bits.
    pub(super) const EXTENDED_ACCESSED: u64 = 1 << 34;
}

impl VtdRegisters {
    /// Those of the IOMMU in front of `device`, if that is a VT-d.
    pub fn new(device: &Device) -> Option<Self> {
        let nests = match device.format() {
            TableFormat::X86_64Stage1 => false,
            TableFormat::VtdSecondStage => true,
            _ => return None,
        };
        let nested = |bits| if nests { bits } else { 0 };
        let pasid_bits = u64::from(device.pasid_bits());
        let cap = field(0, 6) // ND: 2^16 domain ids
            | field(8, 1 << 2) // SAGAW: 4 levels, 48 bits
            | field(16, 47) // MGAW: 48 bits
            | field(34, 0b11) // SSLPS: 2 MiB and 1 GiB leaves
            | field(39, 1) // PSI: invalidation of single pages
            | field(48, 18) // MAMV
            | field(54, 1) // DWD: writes are drained
            | field(55, 1) // DRD: reads are drained
            | field(56, 1) // FS1GP: 1 GiB leaves in the first stage
            | nested(bits::FIVE_LEVELS);
        let ecap = field(0, 1) // C: table walks are coherent
            | field(1, 1) // QI: queued invalidation
            | field(2, 1) // DT: device TLBs
            | field(7, 1) // SC: snoop control
            | field(26, nests.into()) // NEST
            | field(29, device.supports_page_requests().into()) // PRS
            | nested(bits::SUPERVISOR_REQUESTS)
            | nested(bits::EXTENDED_ACCESSED)
            | field(35, pasid_bits.saturating_sub(1)) // PSS: PASID width less 1
            | field(40, (pasid_bits > 0).into()) // PASID
            | field(43, 1) // SMTS: scalable mode
            | field(45, device.supports_dirty().into()) // SSADS: accessed and dirty bits
            | field(46, nests.into()) // SSTS: second stage
            | field(47, 1) // FSTS: first stage
            | field(48, 1); // SMPWC: table walks are coherent in scalable mode
        Some(VtdRegisters { cap, ecap })
    }
}

/// Bytes of `struct iommu_hwpt_vtd_s1`, and of `struct iommu_hwpt_vtd_s1_invalidate`.
const LEN: usize = 24;

/// The 64-bit word at byte `at` of a struct.
fn word(bytes: &[u8; LEN], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

/// A guest's first-stage table (`struct iommu_hwpt_vtd_s1`). When it is made, nothing of it is looked at:
/// what the IOMMU cannot do is found out when a device is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StageOne {
    /// `enum iommu_hwpt_vtd_s1_flags`; unknown bits mean nothing.
    flags: u64,
    /// Guest-physical address of the top table.
    root: u64,
    /// Bits of an input address.
    address_width: u32,
}

impl StageOne {
    /// The type of the data (`IOMMU_HWPT_DATA_VTD_S1`).
    pub(crate) const KIND: u32 = 1;

    const SUPERVISOR: u64 = 1 << 0;
    const EXTENDED_ACCESSED: u64 = 1 << 1;
    const WRITE_PROTECT: u64 = 1 << 2;

    const FOUR_LEVELS: u32 = 48;
    const FIVE_LEVELS: u32 = 57;

    /// As a program gives it: exactly 24 bytes.
    pub(crate) fn read(data: &UserData<'_>) -> Result<Self, Error> {
        let bytes = data.read::<LEN>(Self::KIND, LEN)?;
        Ok(StageOne {
            flags: word(&bytes, 0),
            root: word(&bytes, 8),
            // The upper half is reserved, and not looked at.
            address_width: word(&bytes, 16) as u32,
        })
    }

    /// What a walk needs to know.
    pub(crate) fn table(self) -> FirstStage {
        FirstStage {
            root: self.root,
            levels: if self.address_width == Self::FIVE_LEVELS {
                5
            } else {
                4
            },
            supervisor: self.has(Self::SUPERVISOR),
            write_protect: self.has(Self::WRITE_PROTECT),
            extended_accessed: self.has(Self::EXTENDED_ACCESSED),
        }
    }

    /// Whether an IOMMU with these registers walks such a table (intel_pasid_setup_nested).
    pub(crate) fn check(self, registers: VtdRegisters) -> Result<(), Mismatch> {
        let VtdRegisters { cap, ecap } = registers;
        match self.address_width {
            Self::FOUR_LEVELS => {}
            Self::FIVE_LEVELS if cap & bits::FIVE_LEVELS != 0 => {}
            width => return Err(Mismatch::AddressWidth(width)),
        }
        if self.has(Self::SUPERVISOR) && ecap & bits::SUPERVISOR_REQUESTS == 0 {
            return Err(Mismatch::SupervisorRequests);
        }
        if self.has(Self::EXTENDED_ACCESSED) && ecap & bits::EXTENDED_ACCESSED == 0 {
            return Err(Mismatch::ExtendedAccessed);
        }
        Ok(())
    }

    const fn has(self, flag: u64) -> bool {
        self.flags & flag != 0
    }
}

/// An entry of HWPT_INVALIDATE (`struct iommu_hwpt_vtd_s1_invalidate`) that is sound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Invalidation {
    /// The input addresses: at least those that were asked for.
    pub(crate) range: AddrRange,
    /// What of the table has changed there.
    pub(crate) what: Invalidate,
}

impl Invalidation {
    /// The type of the entries (`IOMMU_HWPT_INVALIDATE_DATA_VTD_S1`).
    pub(crate) const KIND: u32 = 0;

    const LEAF: u32 = 1 << 0;
    const PAGE: u64 = 4096;

    /// Entry `index`, in the order of intel_nested_cache_invalidate_user: exactly 24 bytes (EINVAL) that can
    /// be read (EFAULT), no unknown flag or reserved bit (EOPNOTSUPP), whole pages (EINVAL).
    pub(crate) fn read(entries: &UserArray<'_>, index: u32) -> Result<Self, Error> {
        let bytes = entries.read::<LEN>(Self::KIND, index, LEN)?;
        let (address, pages, last) = (word(&bytes, 0), word(&bytes, 8), word(&bytes, 16));
        let (flags, reserved) = (last as u32, (last >> 32) as u32);
        if flags & !Self::LEAF != 0 || reserved != 0 {
            return Err(InvalidateError::NotSupported {
                index,
                flags,
                reserved,
            }
            .into());
        }
        if !address.is_multiple_of(Self::PAGE) || (pages == u64::MAX && address != 0) {
            return Err(InvalidateError::BadRange {
                index,
                address,
                pages,
            }
            .into());
        }
        let len = pages.checked_mul(Self::PAGE);
        let range = len.and_then(|len| AddrRange::from_len(address, len));
        Ok(Invalidation {
            // No page, or more than there are: better all than too little.
            range: range.unwrap_or(AddrRange::ALL),
            what: if flags & Self::LEAF != 0 {
                Invalidate::Leaves
            } else {
                Invalidate::Tables
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: VtdRegisters = VtdRegisters {
        cap: bits::FIVE_LEVELS,
        ecap: bits::SUPERVISOR_REQUESTS | bits::EXTENDED_ACCESSED,
    };

    fn stage_one(flags: u64, address_width: u32) -> StageOne {
        StageOne {
            flags,
            root: 0x1000,
            address_width,
        }
    }

    #[test]
    fn a_table_is_walked_by_an_iommu_that_can() {
        let nothing = VtdRegisters { cap: 0, ecap: 0 };
        let without = |cap: u64, ecap: u64| VtdRegisters {
            cap: ALL.cap & !cap,
            ecap: ALL.ecap & !ecap,
        };
        for (flags, width, registers, expected) in [
            (0, 48, nothing, Ok(())),
            (StageOne::WRITE_PROTECT, 48, nothing, Ok(())),
            (!0, 57, ALL, Ok(())),
            (!0, 39, ALL, Err(Mismatch::AddressWidth(39))),
            (!0, 0, nothing, Err(Mismatch::AddressWidth(0))),
            (
                !0,
                57,
                without(bits::FIVE_LEVELS, !0),
                Err(Mismatch::AddressWidth(57)),
            ),
            (
                !0,
                57,
                without(0, bits::SUPERVISOR_REQUESTS),
                Err(Mismatch::SupervisorRequests),
            ),
            (!0, 48, nothing, Err(Mismatch::SupervisorRequests)),
            (
                !StageOne::SUPERVISOR,
                48,
                nothing,
                Err(Mismatch::ExtendedAccessed),
            ),
            (
                !0,
                57,
                without(0, bits::EXTENDED_ACCESSED),
                Err(Mismatch::ExtendedAccessed),
            ),
        ] {
            let checked = stage_one(flags, width).check(registers);
            assert_eq!(checked, expected, "{flags:#x} {width} {registers:?}");
        }
    }

    #[test]
    fn the_flags_are_those_of_the_header() {
        let table = |flags, width| stage_one(flags, width).table();
        assert_eq!(table(0, 48), FirstStage::new(0x1000));
        assert!(table(1, 48).supervisor && table(2, 48).extended_accessed);
        assert!(table(4, 48).write_protect);
        assert_eq!((table(!7, 48).levels, table(!7, 57).levels), (4, 5));
        let none = table(!7, 48);
        assert!(!none.supervisor && !none.extended_accessed && !none.write_protect);
    }
}
