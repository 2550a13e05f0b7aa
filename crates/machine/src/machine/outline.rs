//! What a machine looks like, in a few lines: for people who want to know what they will get.

use std::fmt;

use super::{device::MachineDevice, running::Machine};
use crate::model::Driver;

/// One device of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outline {
    /// Its PCI address, or its UUID.
    pub name: String,
    /// Its model, or its type if it is a mediated device.
    pub model: String,
    /// The driver that it is bound to; a mediated device has none.
    pub driver: Option<&'static str>,
    /// The node that a program opens; none if the host's own driver has the device.
    pub node: Option<String>,
    /// The VM that owns it.
    pub vm: Option<String>,
    /// The parent of a mediated device.
    pub parent: Option<String>,
    /// What its section asks for, such as its queues; may be empty.
    pub contents: String,
    /// Mediated devices that can still be made of it.
    pub free: u32,
}

impl Machine {
    /// Its devices, mediated ones after their parents.
    pub fn outline(&self) -> Vec<Outline> {
        let mut outline = Vec::new();
        let mut mdevs = self.mdevs(None);
        for device in &self.devices {
            let name = device.address.to_string();
            outline.push(self.outline_of(device));
            let own = mdevs.extract_if(.., |mdev| mdev.parent == name);
            outline.extend(own.map(Outline::of_mdev));
        }
        outline.extend(mdevs.into_iter().map(Outline::of_mdev));
        outline
    }

    fn outline_of(&self, device: &MachineDevice) -> Outline {
        let node = device.vfio.as_ref().filter(|_| self.is_there(device));
        Outline {
            name: device.address.to_string(),
            model: device.section.model.to_owned(),
            driver: Some(device.driver_name()),
            node: node.map(|node| node.name().to_owned()),
            vm: device.section.vm.clone(),
            parent: None,
            contents: device.section.own.contents(),
            free: match device.section.driver {
                Driver::Host => {
                    let types = device.mdev_types().into_iter();
                    types.map(|entry| entry.available_instances).sum()
                }
                Driver::Vfio => 0,
            },
        }
    }
}

impl Outline {
    fn of_mdev(mdev: super::node::MdevInfo) -> Self {
        Outline {
            name: mdev.uuid.to_string(),
            model: mdev.type_name,
            driver: None,
            node: Some(mdev.node.name),
            vm: mdev.vm,
            parent: Some(mdev.parent),
            contents: String::new(),
            free: 0,
        }
    }
}

/// One line, without an end: what it is, and who can have it.
impl fmt::Display for Outline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}: ", self.name, self.model)?;
        match (&self.node, self.driver) {
            (Some(node), _) => write!(f, "/dev/vfio/devices/{node}")?,
            (None, Some(driver)) => {
                write!(
                    f,
                    "not for programs, the host's own driver ({driver}) has it"
                )?;
            }
            (None, None) => f.write_str("gone")?,
        }
        if let Some(vm) = &self.vm {
            write!(f, ", of {vm}")?;
        }
        if let Some(parent) = &self.parent {
            write!(f, ", a part of {parent}")?;
        }
        if !self.contents.is_empty() {
            write!(f, "; {}", self.contents)?;
        }
        match self.free {
            0 => Ok(()),
            free => write!(f, "; {free} free for `mdev create`"),
        }
    }
}
