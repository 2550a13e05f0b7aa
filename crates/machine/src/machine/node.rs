//! What programs and virtual machines can open, as plain data.

use std::sync::Arc;

use ioasid_vfio::{VfioDevice, mdev::Uuid};

use crate::sysfs::VfioName;

/// Character device major number of the VFIO device nodes: in Linux a dynamic one, here the first
/// that Linux would give (`CHRDEV_MAJOR_DYN_EXT_START`, include/linux/fs.h).
const VFIO_MAJOR: u32 = 511;

/// A device node below `/dev/vfio/devices`.
#[derive(Clone, Debug)]
pub struct VfioNode {
    /// File name, `vfio0`.
    pub name: String,
    /// Character device number.
    pub major: u32,
    /// Character device number.
    pub minor: u32,
    /// What an open opens.
    pub device: Arc<VfioDevice>,
}

impl VfioNode {
    pub(super) fn new(device: &Arc<VfioDevice>) -> Self {
        let (name, minor) = (device.name().to_owned(), device.index());
        VfioNode {
            name,
            major: VFIO_MAJOR,
            minor,
            device: Arc::clone(device),
        }
    }

    pub(super) fn sysfs_name(&self) -> VfioName {
        VfioName {
            name: self.name.clone(),
            major: self.major,
            minor: self.minor,
        }
    }
}

/// A mediated device, for lists.
#[derive(Clone, Debug)]
pub struct MdevInfo {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its parent's name.
    pub parent: String,
    /// Its type.
    pub type_name: String,
    /// The VM that owns it.
    pub vm: Option<String>,
    /// Its node.
    pub node: VfioNode,
}

/// A device that can be handed to a VM as a whole.
#[derive(Clone, Debug)]
pub struct ExportedDevice {
    /// What it is called: its PCI address, or its UUID.
    pub name: String,
    /// The VM that owns it.
    pub vm: Option<String>,
    /// What an open opens.
    pub device: Arc<VfioDevice>,
}
