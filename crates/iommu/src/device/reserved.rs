//! I/O virtual addresses that mappings stay away from.

use ioasid_core::AddrRange;

/// Why a range of I/O virtual addresses is not for mappings (`enum iommu_resv_type`,
/// include/linux/iommu.h).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReservedKind {
    /// Must be mapped one to one at all times.
    Direct,
    /// Mapped one to one only while the firmware's driver needs it: ignored for assignment.
    DirectRelaxable,
    /// Must not be used.
    Reserved,
    /// Writes are interrupt messages, in hardware.
    Msi,
    /// Where software maps the interrupt doorbell.
    SoftwareMsi,
}

/// A range of I/O virtual addresses that mappings stay away from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ReservedRegion {
    /// The addresses.
    pub range: AddrRange,
    /// Why.
    pub kind: ReservedKind,
}

impl ReservedRegion {
    /// The interrupt window of x86: 0xfee0_0000..=0xfeef_ffff (Intel VT-d specification, 3.14).
    pub fn msi_window() -> Self {
        ReservedRegion {
            range: AddrRange::new(0xfee0_0000, 0xfeef_ffff).expect("start before last"),
            kind: ReservedKind::Msi,
        }
    }
}
