//! Mediated devices (drivers/vfio/mdev/mdev_sysfs.c).

use super::{READ_WRITE, SysfsBuilder, VfioName, WRITE, mdev_type_path, parent_path};

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

impl SysfsBuilder {
    /// Adds a mediated device.
    pub fn mdev(&mut self, mdev: &MdevFunction) {
        let path = format!("{}/{}", parent_path(&mdev.parent), mdev.uuid);
        let type_path = mdev_type_path(&mdev.parent, &mdev.type_name);
        self.link(format!("{path}/subsystem"), "bus/mdev");
        self.link(format!("{path}/driver"), "bus/mdev/drivers/vfio_mdev");
        self.link(format!("{path}/mdev_type"), &type_path);
        self.attribute(format!("{path}/uevent"), READ_WRITE, "DRIVER=vfio_mdev\n");
        self.attribute(format!("{path}/remove"), WRITE, "");
        self.power(&path, "auto", "unsupported");
        self.link(format!("bus/mdev/devices/{}", mdev.uuid), &path);
        self.link(format!("bus/mdev/drivers/vfio_mdev/{}", mdev.uuid), &path);
        self.link(format!("{type_path}/devices/{}", mdev.uuid), &path);
        self.group_without_iommu(&path, mdev.group);
        self.vfio_group(mdev.group);
        self.vfio_dev(&path, &mdev.vfio);
    }

    /// Adds a type that a parent offers.
    pub fn mdev_type(&mut self, entry: &MdevTypeEntry) {
        let path = mdev_type_path(&entry.parent, &entry.type_name);
        let available = entry.available_instances;
        for (name, text) in [
            ("name", entry.type_name.clone()),
            ("device_api", "vfio-pci".to_owned()),
            ("description", entry.description.clone()),
            ("available_instances", available.to_string()),
        ] {
            self.file(format!("{path}/{name}"), format!("{text}\n"));
        }
        self.dir(format!("{path}/devices"));
        self.attribute(format!("{path}/create"), WRITE, "");
        let parent = parent_path(&entry.parent);
        self.link(format!("class/mdev_bus/{}", entry.parent), &parent);
        if let Some(name) = parent.strip_prefix("devices/virtual/") {
            self.parent_without_bus(&parent, name);
        }
    }

    /// A parent that is on no bus: a device of a class of its own, as those of the kernel's samples
    /// are.
    fn parent_without_bus(&mut self, path: &str, name: &str) {
        let (class, _) = name.split_once('/').unwrap_or((name, name));
        self.attribute(format!("{path}/uevent"), READ_WRITE, "");
        self.power(path, "auto", "unsupported");
        self.link(format!("{path}/subsystem"), &format!("class/{class}"));
        self.link(format!("class/{name}"), path);
    }
}
