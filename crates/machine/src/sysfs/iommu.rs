//! IOMMUs and their groups (drivers/iommu/iommu.c, iommu-sysfs.c, intel/iommu.c).

use ioasid_iommufd::VtdRegisters;

use super::{READ_WRITE, SysfsBuilder};

/// What of IOVA space an IOMMU keeps for interrupts (arch/x86/include/asm/msidef.h).
const MSI_WINDOW: &str = "0x00000000fee00000 0x00000000feefffff msi\n";

/// Where the registers of the first unit would be, and how far those of the next one.
const REGISTERS: (u64, u64) = (0xfed9_0000, 0x1000);

/// One remapping unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// The number in its name, `dmar0`.
    pub(crate) number: usize,
    /// What it can do.
    pub(crate) registers: VtdRegisters,
}

impl Unit {
    fn path(self) -> String {
        format!("devices/virtual/iommu/dmar{}", self.number)
    }
}

impl SysfsBuilder {
    /// The group of a device that an IOMMU translates for.
    pub(super) fn iommu_group(&mut self, device_path: &str, group: u32) {
        self.group(device_path, group, "DMA-FQ\n", MSI_WINDOW);
    }

    /// The group of a mediated device, which has no IOMMU of its own (`vfio_noiommu_group_alloc`,
    /// drivers/vfio/group.c).
    pub(super) fn group_without_iommu(&mut self, device_path: &str, group: u32) {
        self.group(device_path, group, "unknown\n", "");
        self.file(format!("{}/name", group_path(group)), "vfio-noiommu\n");
    }

    fn group(&mut self, device_path: &str, group: u32, kind: &str, reserved: &str) {
        let path = group_path(group);
        let name = device_path.rsplit('/').next().unwrap_or(device_path);
        self.attribute(format!("{path}/type"), READ_WRITE, kind);
        self.file(format!("{path}/reserved_regions"), reserved);
        self.link(format!("{path}/devices/{name}"), device_path);
        self.link(format!("{device_path}/iommu_group"), &path);
    }

    /// A remapping unit.
    pub(crate) fn iommu(&mut self, unit: Unit) {
        let path = unit.path();
        let VtdRegisters { cap, ecap } = unit.registers;
        let (first, step) = REGISTERS;
        let address = first + step * unit.number as u64;
        // cap_ndoms, drivers/iommu/intel/iommu.h.
        let domains = 1_u64 << (4 + 2 * (cap & 7));
        for (name, text) in [
            ("version", "5:0".to_owned()),
            ("address", format!("{address:x}")),
            ("cap", format!("{cap:x}")),
            ("ecap", format!("{ecap:x}")),
            ("domains_supported", domains.to_string()),
        ] {
            self.file(format!("{path}/intel-iommu/{name}"), format!("{text}\n"));
        }
        self.dir(format!("{path}/devices"));
        self.attribute(format!("{path}/uevent"), READ_WRITE, "");
        self.power(&path, "auto", "unsupported");
        self.link(format!("{path}/subsystem"), "class/iommu");
        self.link(format!("class/iommu/dmar{}", unit.number), &path);
    }

    /// The unit `unit` translates for the device at `device_path`.
    pub(super) fn iommu_link(&mut self, device_path: &str, unit: Unit) {
        let path = unit.path();
        let name = device_path.rsplit('/').next().unwrap_or(device_path);
        self.link(format!("{path}/devices/{name}"), device_path);
        self.link(format!("{device_path}/iommu"), &path);
    }
}

pub(crate) fn group_path(group: u32) -> String {
    format!("kernel/iommu_groups/{group}")
}
