//! What a machine adds to a program's `/sys`: its PCI functions, mdevs, IOMMU groups and VFIO class
//! devices, laid out as Linux does (Documentation/ABI/testing/sysfs-bus-pci, -bus-vfio-mdev,
//! -class-iommu, -devices-vfio-dev).
//!
//! Entries are plain data: whoever builds a file tree from them needs no other knowledge.

use std::fmt::Write as _;

use ioasid_core::PciAddress;
use serde::{Deserialize, Serialize};

/// Character device major number of the nodes of VFIO groups: in Linux a dynamic one.
pub const VFIO_GROUP_MAJOR: u32 = 510;

/// What of IOVA space an IOMMU keeps for interrupts (arch/x86/include/asm/msidef.h).
const MSI_WINDOW: &str = "0x00000000fee00000 0x00000000feefffff msi\n";

/// One entry below `/sys`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysfsEntry {
    /// Path relative to `/sys`, without `.` and `..`, for example
    /// `devices/pci0000:6a/0000:6a:01.0/vendor`. Missing parents are made.
    pub path: String,
    /// What it is.
    pub kind: SysfsKind,
}

/// The kind of a [`SysfsEntry`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SysfsKind {
    /// A directory. One that the host has too is merged with the host's.
    Dir,
    /// A file with these bytes.
    File(Vec<u8>),
    /// A symbolic link with this target, a relative one.
    Link(String),
}

/// A `/dev/vfio/devices` node as sysfs names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VfioName {
    /// `vfio0` and so on.
    pub name: String,
    /// Character device number.
    pub major: u32,
    /// Character device number.
    pub minor: u32,
}

/// A PCI function as sysfs shows it.
#[derive(Clone, Debug)]
pub struct PciFunction {
    /// Its address.
    pub address: PciAddress,
    /// The configuration space, at least the 64 bytes of the header.
    pub config: Vec<u8>,
    /// Sizes in bytes of BAR 0-5; 0 where there is none.
    pub bars: [u64; 6],
    /// Name of the bound driver.
    pub driver: &'static str,
    /// IOMMU group number.
    pub group: u32,
    /// Its VFIO node, if vfio-pci drives it.
    pub vfio: Option<VfioName>,
}

/// The SR-IOV of a physical function as sysfs shows it.
#[derive(Clone, Debug, Default)]
pub struct Sriov {
    /// Virtual functions that there can be.
    pub total: u16,
    /// Routing ids from the physical function to the first virtual one.
    pub offset: u16,
    /// Routing ids from one virtual function to the next.
    pub stride: u16,
    /// Device id of the virtual functions.
    pub device: u16,
    /// Those that there are.
    pub virtual_functions: Vec<PciAddress>,
}

/// A mediated device as sysfs shows it.
#[derive(Clone, Debug)]
pub struct MdevFunction {
    /// Its UUID, lower case.
    pub uuid: String,
    /// The parent's name: the address of a PCI function, or that of a device without a bus.
    pub parent: String,
    /// Its type's full name, `dsa-1dwq`.
    pub type_name: String,
    /// IOMMU group number of its own.
    pub group: u32,
    /// Its VFIO node.
    pub vfio: VfioName,
}

/// A type that a parent offers.
#[derive(Clone, Debug)]
pub struct MdevTypeEntry {
    /// The parent's name: the address of a PCI function, or that of a device without a bus.
    pub parent: String,
    /// Full name, `dsa-1dwq`.
    pub type_name: String,
    /// For people.
    pub description: String,
    /// How many more can be created.
    pub available_instances: u32,
}

/// Collects entries.
#[derive(Debug, Default)]
pub struct SysfsBuilder {
    entries: Vec<SysfsEntry>,
}

impl SysfsBuilder {
    /// The entries that are there without any device.
    pub fn new() -> Self {
        let mut sysfs = SysfsBuilder::default();
        for dir in [
            "bus/pci/devices",
            "bus/pci/drivers/vfio-pci",
            "bus/mdev/devices",
            "bus/mdev/drivers/vfio_mdev",
            "class/vfio",
            "class/vfio-dev",
            "class/mdev_bus",
            "kernel/iommu_groups",
            "module/vfio",
            "module/vfio_pci",
            "module/iommufd",
        ] {
            sysfs.dir(dir);
        }
        for (name, value) in [
            ("allow_unsafe_interrupts", "N\n"),
            ("disable_hugepages", "N\n"),
            ("dma_entry_limit", "65535\n"),
        ] {
            sysfs.file(format!("module/vfio_iommu_type1/parameters/{name}"), value);
        }
        sysfs
    }

    fn push(&mut self, path: impl Into<String>, kind: SysfsKind) {
        self.entries.push(SysfsEntry {
            path: path.into(),
            kind,
        });
    }

    fn dir(&mut self, path: impl Into<String>) {
        self.push(path, SysfsKind::Dir);
    }

    fn file(&mut self, path: impl Into<String>, text: impl Into<Vec<u8>>) {
        self.push(path, SysfsKind::File(text.into()));
    }

    /// A link at `path` to `target`, both relative to `/sys`.
    fn link(&mut self, path: impl Into<String>, target: &str) {
        let path = path.into();
        let up = "../".repeat(path.matches('/').count());
        self.push(path, SysfsKind::Link(format!("{up}{target}")));
    }

    fn iommu_group(&mut self, device_path: &str, name: &str, group: u32, reserved: &str) {
        let group_path = format!("kernel/iommu_groups/{group}");
        self.file(format!("{group_path}/type"), "DMA-FQ\n");
        self.file(format!("{group_path}/reserved_regions"), reserved);
        self.link(format!("{group_path}/devices/{name}"), device_path);
        self.link(format!("{device_path}/iommu_group"), &group_path);
    }

    /// The class device of a group, whose node is `/dev/vfio/GROUP`.
    fn vfio_group(&mut self, group: u32) {
        let path = format!("devices/virtual/vfio/{group}");
        self.file(
            format!("{path}/dev"),
            format!("{VFIO_GROUP_MAJOR}:{group}\n"),
        );
        self.file(
            format!("{path}/uevent"),
            format!("MAJOR={VFIO_GROUP_MAJOR}\nMINOR={group}\nDEVNAME=vfio/{group}\n"),
        );
        self.link(format!("{path}/subsystem"), "class/vfio");
        self.link(format!("class/vfio/{group}"), &path);
    }

    fn vfio_dev(&mut self, device_path: &str, vfio: &VfioName) {
        let VfioName { name, major, minor } = vfio;
        let path = format!("{device_path}/vfio-dev/{name}");
        self.file(format!("{path}/dev"), format!("{major}:{minor}\n"));
        self.file(
            format!("{path}/uevent"),
            format!("MAJOR={major}\nMINOR={minor}\nDEVNAME=vfio/devices/{name}\n"),
        );
        self.link(format!("{path}/device"), device_path);
        self.link(format!("{path}/subsystem"), "class/vfio-dev");
        self.link(format!("class/vfio-dev/{name}"), &path);
    }

    /// Adds a PCI function.
    pub fn pci(&mut self, function: &PciFunction) {
        let address = function.address;
        let path = pci_path(address);
        let byte = |offset: usize| u32::from(function.config.get(offset).copied().unwrap_or(0));
        let word = |offset: usize| byte(offset) | byte(offset + 1) << 8;
        let class = byte(9) | byte(10) << 8 | byte(11) << 16;
        let (vendor, device, sub_vendor, sub_device) = (word(0), word(2), word(0x2c), word(0x2e));
        let modalias = format!(
            "pci:v{vendor:08X}d{device:08X}sv{sub_vendor:08X}sd{sub_device:08X}\
             bc{:02X}sc{:02X}i{:02X}",
            byte(11),
            byte(10),
            byte(9)
        );
        for (name, text) in [
            ("vendor", format!("{vendor:#06x}\n")),
            ("device", format!("{device:#06x}\n")),
            ("subsystem_vendor", format!("{sub_vendor:#06x}\n")),
            ("subsystem_device", format!("{sub_device:#06x}\n")),
            ("class", format!("{class:#08x}\n")),
            ("revision", format!("{:#04x}\n", byte(8))),
            ("irq", "0\n".to_owned()),
            ("msi_bus", "1\n".to_owned()),
            ("broken_parity_status", "0\n".to_owned()),
            ("d3cold_allowed", "1\n".to_owned()),
            ("power_state", "D0\n".to_owned()),
            ("dma_mask_bits", "64\n".to_owned()),
            ("consistent_dma_mask_bits", "64\n".to_owned()),
            ("ari_enabled", "0\n".to_owned()),
            ("local_cpus", "1\n".to_owned()),
            ("reset", String::new()),
            ("reset_method", "flr\n".to_owned()),
            ("enable", "1\n".to_owned()),
            ("numa_node", "-1\n".to_owned()),
            ("local_cpulist", "0\n".to_owned()),
            ("driver_override", "(null)\n".to_owned()),
            ("modalias", format!("{modalias}\n")),
            (
                "uevent",
                format!(
                    "DRIVER={}\nPCI_CLASS={class:X}\nPCI_ID={vendor:04X}:{device:04X}\n\
                     PCI_SUBSYS_ID={sub_vendor:04X}:{sub_device:04X}\nPCI_SLOT_NAME={address}\n\
                     MODALIAS={modalias}\n",
                    function.driver
                ),
            ),
            ("resource", resource_text(function)),
        ] {
            self.file(format!("{path}/{name}"), text);
        }
        self.file(format!("{path}/config"), function.config.clone());
        let name = address.to_string();
        self.link(format!("{path}/subsystem"), "bus/pci");
        self.link(format!("bus/pci/devices/{name}"), &path);
        let driver = format!("bus/pci/drivers/{}", function.driver);
        self.link(format!("{driver}/{name}"), &path);
        self.link(format!("{path}/driver"), &driver);
        let module = format!("module/{}", function.driver.replace('-', "_"));
        self.dir(format!("{module}/drivers"));
        self.link(format!("{driver}/module"), &module);
        let name = format!("pci:{}", function.driver);
        self.link(format!("{module}/drivers/{name}"), &driver);
        self.iommu_group(&path, &name, function.group, MSI_WINDOW);
        if let Some(vfio) = &function.vfio {
            self.vfio_group(function.group);
            self.vfio_dev(&path, vfio);
        }
    }

    /// Adds what a physical function of SR-IOV has: `total` virtual ones at most, and those that there
    /// are.
    pub fn physical_function(&mut self, address: PciAddress, sriov: &Sriov) {
        let path = pci_path(address);
        for (name, text) in [
            ("sriov_totalvfs", sriov.total.to_string()),
            ("sriov_numvfs", sriov.virtual_functions.len().to_string()),
            ("sriov_offset", sriov.offset.to_string()),
            ("sriov_stride", sriov.stride.to_string()),
            ("sriov_vf_device", format!("{:x}", sriov.device)),
            ("sriov_drivers_autoprobe", "1".to_owned()),
        ] {
            self.file(format!("{path}/{name}"), format!("{text}\n"));
        }
        for (index, virtual_function) in sriov.virtual_functions.iter().enumerate() {
            let its = pci_path(*virtual_function);
            self.link(format!("{path}/virtfn{index}"), &its);
            self.link(format!("{its}/physfn"), &path);
        }
    }

    /// The configuration space that a file shows, where it differs from what the other files are made
    /// of. Comes before [`SysfsBuilder::pci`].
    pub fn config(&mut self, address: PciAddress, config: &[u8]) {
        self.file(format!("{}/config", pci_path(address)), config);
    }

    /// `driver_override`, where somebody has set it. Comes before [`SysfsBuilder::pci`].
    pub fn driver_override(&mut self, address: PciAddress, driver: &str) {
        let path = format!("{}/driver_override", pci_path(address));
        self.file(path, format!("{driver}\n"));
    }

    /// Adds a mediated device.
    pub fn mdev(&mut self, mdev: &MdevFunction) {
        let path = format!("{}/{}", parent_path(&mdev.parent), mdev.uuid);
        let type_path = mdev_type_path(&mdev.parent, &mdev.type_name);
        self.link(format!("{path}/subsystem"), "bus/mdev");
        self.link(format!("{path}/driver"), "bus/mdev/drivers/vfio_mdev");
        self.link(format!("{path}/mdev_type"), &type_path);
        self.file(format!("{path}/uevent"), "DRIVER=vfio_mdev\n");
        self.file(format!("{path}/remove"), "");
        self.link(format!("bus/mdev/devices/{}", mdev.uuid), &path);
        self.link(format!("bus/mdev/drivers/vfio_mdev/{}", mdev.uuid), &path);
        self.link(format!("{type_path}/devices/{}", mdev.uuid), &path);
        // DMA with a PASID has nothing of IOVA space taken away.
        self.iommu_group(&path, &mdev.uuid, mdev.group, "");
        self.vfio_group(mdev.group);
        self.vfio_dev(&path, &mdev.vfio);
    }

    /// Adds a type that a parent offers.
    pub fn mdev_type(&mut self, entry: &MdevTypeEntry) {
        let path = mdev_type_path(&entry.parent, &entry.type_name);
        self.file(format!("{path}/name"), format!("{}\n", entry.type_name));
        self.file(format!("{path}/device_api"), "vfio-pci\n");
        self.file(
            format!("{path}/description"),
            format!("{}\n", entry.description),
        );
        self.file(
            format!("{path}/available_instances"),
            format!("{}\n", entry.available_instances),
        );
        self.dir(format!("{path}/devices"));
        self.file(format!("{path}/create"), "");
        self.link(
            format!("class/mdev_bus/{}", entry.parent),
            &parent_path(&entry.parent),
        );
    }

    /// All entries, each path once.
    pub fn finish(mut self) -> Vec<SysfsEntry> {
        let mut seen = std::collections::HashSet::new();
        self.entries.retain(|entry| seen.insert(entry.path.clone()));
        self.entries
    }
}

pub(crate) fn pci_path(address: PciAddress) -> String {
    format!(
        "devices/pci{:04x}:{:02x}/{address}",
        address.segment,
        address.bus()
    )
}

/// Where the parent called `name` is: a PCI function, or a device without a bus.
pub(crate) fn parent_path(name: &str) -> String {
    match name.parse() {
        Ok(address) => pci_path(address),
        Err(_) => format!("devices/virtual/{name}/{name}"),
    }
}

pub(crate) fn mdev_type_path(parent: &str, type_name: &str) -> String {
    format!("{}/mdev_supported_types/{type_name}", parent_path(parent))
}

/// Where firmware would have put the BARs of a function: above 4 GiB, by routing id.
pub(crate) fn bar_base(address: PciAddress) -> u64 {
    0x2000_0000_0000 + (u64::from(address.rid.0) << 28)
}

/// The 17 lines `start end flags` that `pciutils` and user-space drivers read.
fn resource_text(function: &PciFunction) -> String {
    /// `IORESOURCE_MEM | IORESOURCE_PREFETCH | IORESOURCE_SIZEALIGN | IORESOURCE_MEM_64`.
    const MEM64: u64 = 0x0014_220c;
    let mut next = bar_base(function.address);
    let mut text = String::new();
    for line in 0..17 {
        let size = function.bars.get(line).copied().unwrap_or(0);
        let (start, last, flags) = match size {
            0 => (0, 0, 0),
            size => {
                let start = next.next_multiple_of(size);
                next = start + size;
                (start, start + size - 1, MEM64)
            }
        };
        let _ = writeln!(text, "{start:#018x} {last:#018x} {flags:#018x}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vfio(minor: u32) -> VfioName {
        VfioName {
            name: format!("vfio{minor}"),
            major: 511,
            minor,
        }
    }

    fn find<'a>(entries: &'a [SysfsEntry], path: &str) -> &'a SysfsKind {
        let found = entries.iter().find(|entry| entry.path == path);
        &found.unwrap_or_else(|| panic!("no {path}")).kind
    }

    #[test]
    fn a_function_shows_what_clients_read() {
        let mut config = vec![0; 256];
        config[..4].copy_from_slice(&[0x86, 0x80, 0x25, 0x0b]);
        config[11] = 0x08;
        config[10] = 0x80;
        let mut sysfs = SysfsBuilder::new();
        sysfs.pci(&PciFunction {
            address: "0000:6b:01.0".parse().unwrap(),
            config,
            bars: [0x10000, 0, 0x10000, 0, 0, 0],
            driver: "vfio-pci",
            group: 3,
            vfio: Some(vfio(0)),
        });
        let entries = sysfs.finish();
        let base = "devices/pci0000:6b/0000:6b:01.0";
        let text = |name: &str| match find(&entries, &format!("{base}/{name}")) {
            SysfsKind::File(bytes) => String::from_utf8(bytes.clone()).unwrap(),
            other => panic!("{name} is {other:?}"),
        };
        assert_eq!(text("vendor"), "0x8086\n");
        assert_eq!(text("device"), "0x0b25\n");
        assert_eq!(text("class"), "0x088000\n");
        let alias = "pci:v00008086d00000B25sv00000000sd00000000bc08sc80i00\n";
        assert_eq!(text("modalias"), alias);
        let uevent = text("uevent");
        let (_, last) = uevent.split_once("PCI_SLOT_NAME=0000:6b:01.0\n").unwrap();
        assert_eq!(last, format!("MODALIAS={alias}"));
        assert_eq!(text("resource").lines().count(), 17);
        assert_eq!(text("vfio-dev/vfio0/dev"), "511:0\n");
        assert_eq!(
            find(&entries, &format!("{base}/iommu_group")),
            &SysfsKind::Link("../../../kernel/iommu_groups/3".into())
        );
        assert_eq!(
            find(&entries, "bus/pci/devices/0000:6b:01.0"),
            &SysfsKind::Link(format!("../../../{base}"))
        );
    }

    #[test]
    fn an_mdev_is_found_by_uuid_and_says_that_it_is_one() {
        let mut sysfs = SysfsBuilder::new();
        let parent = "0000:6a:01.0".to_owned();
        let uuid = "5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a01";
        sysfs.mdev(&MdevFunction {
            uuid: uuid.into(),
            parent,
            type_name: "dsa-1dwq".into(),
            group: 9,
            vfio: vfio(1),
        });
        let entries = sysfs.finish();
        let base = format!("devices/pci0000:6a/0000:6a:01.0/{uuid}");
        assert_eq!(
            find(&entries, &format!("{base}/subsystem")),
            &SysfsKind::Link("../../../../bus/mdev".into())
        );
        let in_vfio_dev = entries
            .iter()
            .filter(|e| e.path.starts_with(&format!("{base}/vfio-dev/vfio1/")))
            .count();
        assert!(in_vfio_dev >= 3);
    }
}
