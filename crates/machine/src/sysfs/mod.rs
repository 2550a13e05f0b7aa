//! What a machine adds to a program's `/sys`: its PCI functions, mdevs, IOMMUs, IOMMU groups and VFIO
//! class devices, named, laid out and with the modes as Linux has them (drivers/pci/pci-sysfs.c,
//! drivers/base/core.c, and Documentation/ABI/testing/sysfs-bus-pci, -bus-vfio-mdev, -class-iommu,
//! -devices-vfio-dev).
//!
//! Entries are plain data: whoever builds a file tree from them needs no other knowledge. What of Linux's
//! is left out is in the list of facts that the tests compare with (`tests/sysfs/`).

mod classes;
pub(crate) mod cpus;
mod hex;
mod iommu;
mod mdev;
mod pci;

use ioasid_core::PciAddress;
use serde::{Deserialize, Serialize};

pub(crate) use iommu::{Unit, group_path};
pub use mdev::{MdevFunction, MdevTypeEntry};
pub use pci::{PciFunction, Sriov};

/// Character device major number of the nodes of VFIO groups: in Linux a dynamic one.
pub const VFIO_GROUP_MAJOR: u32 = 510;

/// Device number of `/dev/iommu`: a misc device with a dynamic minor.
pub const IOMMU_DEVICE: (u32, u32) = (10, 126);

/// Device number of `/dev/vfio/vfio` (`VFIO_MINOR`, include/linux/miscdevice.h).
pub const CONTAINER_DEVICE: (u32, u32) = (10, 196);

/// An attribute that can be read.
const READ: u16 = 0o444;
/// An attribute that can be read, and written by root.
const READ_WRITE: u16 = 0o644;
/// An attribute that root can write.
const WRITE: u16 = 0o200;

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
    /// A file.
    File(SysfsFile),
    /// A symbolic link with this target, a relative one.
    Link(String),
}

/// A file of sysfs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SysfsFile {
    /// What is in it.
    #[serde(with = "hex")]
    pub bytes: Vec<u8>,
    /// Permissions, for example `0o444`.
    pub mode: u16,
    /// Its size in bytes, if that is more than there are bytes: zeros follow them.
    #[serde(default)]
    pub size: u64,
}

impl SysfsFile {
    /// A file that can be read.
    pub fn read_only(text: impl Into<Vec<u8>>) -> Self {
        SysfsFile {
            bytes: text.into(),
            mode: READ,
            size: 0,
        }
    }

    /// A file that can be read, and written by its owner.
    pub fn writable(text: impl Into<Vec<u8>>) -> Self {
        SysfsFile {
            mode: READ_WRITE,
            ..SysfsFile::read_only(text)
        }
    }
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
            "class/iommu",
            "class/vfio",
            "class/vfio-dev",
            "class/mdev_bus",
            "kernel/iommu_groups",
            "module/vfio",
            "module/iommufd",
        ] {
            sysfs.dir(dir);
        }
        for (name, mode, value) in [
            (
                "vfio_iommu_type1/parameters/allow_unsafe_interrupts",
                READ_WRITE,
                "N",
            ),
            (
                "vfio_iommu_type1/parameters/disable_hugepages",
                READ_WRITE,
                "N",
            ),
            (
                "vfio_iommu_type1/parameters/dma_entry_limit",
                READ_WRITE,
                "65535",
            ),
            ("vfio_pci/parameters/disable_denylist", READ, "N"),
            // A function that nobody has opened stays in D0.
            ("vfio_pci/parameters/disable_idle_d3", READ_WRITE, "Y"),
            ("vfio_pci/parameters/enable_sriov", READ_WRITE, "Y"),
            ("vfio_pci/parameters/nointxmask", READ_WRITE, "N"),
        ] {
            sysfs.attribute(format!("module/{name}"), mode, format!("{value}\n"));
        }
        sysfs.misc("iommu", IOMMU_DEVICE, "iommu", "0660");
        sysfs.misc("vfio", CONTAINER_DEVICE, "vfio/vfio", "0666");
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

    /// A file with these permissions.
    fn attribute(&mut self, path: impl Into<String>, mode: u16, text: impl Into<Vec<u8>>) {
        let file = SysfsFile {
            bytes: text.into(),
            mode,
            size: 0,
        };
        self.push(path, SysfsKind::File(file));
    }

    /// A file that can be read.
    fn file(&mut self, path: impl Into<String>, text: impl Into<Vec<u8>>) {
        self.attribute(path, READ, text);
    }

    /// A link at `path` to `target`, both relative to `/sys`: up to the directory that both are in, and down
    /// again (`kernfs_get_target_path`, fs/kernfs/symlink.c).
    fn link(&mut self, path: impl Into<String>, target: &str) {
        let path = path.into();
        let from: Vec<&str> = path.split('/').collect();
        let to: Vec<&str> = target.split('/').collect();
        let (from, to_parent) = (&from[..from.len() - 1], &to[..to.len() - 1]);
        let pairs = from.iter().zip(to_parent);
        let common = pairs.take_while(|(ours, theirs)| ours == theirs).count();
        let up = "../".repeat(from.len() - common);
        let down = to.get(common..).unwrap_or_default().join("/");
        self.push(path, SysfsKind::Link(format!("{up}{down}")));
    }

    /// `power/` of a device (drivers/base/power/sysfs.c).
    fn power(&mut self, device: &str, control: &str, status: &str) {
        let path = format!("{device}/power");
        self.attribute(
            format!("{path}/control"),
            READ_WRITE,
            format!("{control}\n"),
        );
        self.file(format!("{path}/runtime_status"), format!("{status}\n"));
        self.file(format!("{path}/runtime_suspended_time"), "0\n");
    }

    /// All entries, each path once.
    pub fn finish(mut self) -> Vec<SysfsEntry> {
        let mut seen = std::collections::HashSet::new();
        self.entries.retain(|entry| seen.insert(entry.path.clone()));
        self.entries
    }
}

pub(crate) fn pci_path(address: PciAddress) -> String {
    format!("{}/{address}", bus_path(address))
}

/// The root bus that the function at `address` is on.
fn bus_path(address: PciAddress) -> String {
    format!("devices/pci{}", bus_name(address))
}

pub(crate) fn pci_bus_path(address: PciAddress) -> String {
    format!("{}/pci_bus/{}", bus_path(address), bus_name(address))
}

fn bus_name(address: PciAddress) -> String {
    format!("{:04x}:{:02x}", address.segment, address.bus())
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
    fn a_link_goes_up_no_further_than_it_has_to() {
        let mut sysfs = SysfsBuilder::default();
        sysfs.link("a/b/link", "a/b/c");
        sysfs.link("a/b/c/device", "a/b");
        sysfs.link("a/b/link2", "x");
        let entries = sysfs.finish();
        for (path, target) in [
            ("a/b/link", "c"),
            ("a/b/c/device", "../../b"),
            ("a/b/link2", "../../x"),
        ] {
            assert_eq!(find(&entries, path), &SysfsKind::Link(target.into()));
        }
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
