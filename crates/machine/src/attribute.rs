//! Attributes of sysfs that programs write.

use std::time::Duration;

use ioasid_core::PciAddress;
use ioasid_vfio::mdev::Uuid;

use crate::{Machine, sysfs};

/// Why a write to an attribute fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AttributeError {
    /// No attribute of the machine's has this path, or it cannot be written (EACCES).
    #[error("no such attribute, or it cannot be written")]
    NotWritable,
    /// What is written is not what the attribute takes (EINVAL).
    #[error("not what the attribute takes")]
    Invalid,
    /// The number is larger than there can be (ERANGE).
    #[error("the number is out of range")]
    OutOfRange,
    /// Something is in use (EBUSY).
    #[error("in use")]
    Busy,
    /// The device is gone (ENODEV).
    #[error("the device is gone")]
    NoDevice,
    /// Out of memory or threads (ENOMEM).
    #[error("out of memory or threads")]
    NoMemory,
    /// What VFIO says.
    #[error(transparent)]
    Vfio(#[from] ioasid_vfio::Error),
}

/// An attribute that can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Attribute {
    /// `sriov_numvfs` of a physical function.
    VirtualFunctions(PciAddress),
    /// `reset` of a whole device.
    Reset(PciAddress),
    /// `driver_override` of a whole device.
    DriverOverride(PciAddress),
    /// `create` of an mdev type of a parent.
    Create(String, String),
    /// `remove` of a mediated device.
    Remove(Uuid),
}

impl Machine {
    /// The attributes that a program of `vm` can write (all, for `None`): paths below `/sys`.
    pub fn writable_attributes(&self, vm: Option<&str>) -> Vec<String> {
        let attributes = self.attributes(vm).into_iter();
        attributes.map(|(path, _)| path).collect()
    }

    /// Writes `data` to the attribute at `path` below `/sys`, for a program of `vm`.
    ///
    /// # Errors
    /// See [`AttributeError`].
    pub fn write_attribute(
        &self,
        vm: Option<&str>,
        path: &str,
        data: &[u8],
    ) -> Result<(), AttributeError> {
        let mut attributes = self.attributes(vm).into_iter();
        let found = attributes.find(|(known, _)| known == path);
        let (_, attribute) = found.ok_or(AttributeError::NotWritable)?;
        match attribute {
            Attribute::VirtualFunctions(address) => {
                let count = number(data)?;
                let count = u16::try_from(count).map_err(|_| AttributeError::OutOfRange)?;
                self.set_virtual_functions(address, count)?;
            }
            Attribute::Reset(address) => {
                if number(data)? != 1 {
                    return Err(AttributeError::Invalid);
                }
                let device = self.whole_device(address);
                device.ok_or(AttributeError::NoDevice)?.reset_by_host();
            }
            Attribute::DriverOverride(address) => {
                let text = std::str::from_utf8(data).map_err(|_| AttributeError::Invalid)?;
                // One page, as the kernel's limit is.
                if text.len() >= 4095 {
                    return Err(AttributeError::Invalid);
                }
                self.set_driver_override(address, text.trim_end_matches('\n'));
            }
            Attribute::Create(parent, type_name) => {
                self.create_mdev_of(&parent, &type_name, data, vm)?;
            }
            Attribute::Remove(uuid) => {
                if number(data)? != 0 {
                    self.remove_mdev_of(uuid, Duration::ZERO)?;
                }
            }
        }
        self.has_changed();
        Ok(())
    }

    fn attributes(&self, vm: Option<&str>) -> Vec<(String, Attribute)> {
        let mut attributes = Vec::new();
        for (address, is_physical) in self.whole_devices(vm) {
            let path = sysfs::pci_path(address);
            let mut add =
                |name: &str, attribute| attributes.push((format!("{path}/{name}"), attribute));
            add("reset", Attribute::Reset(address));
            add("driver_override", Attribute::DriverOverride(address));
            if is_physical {
                add("sriov_numvfs", Attribute::VirtualFunctions(address));
            }
        }
        for (parent, type_name) in self.shown_mdev_types(vm) {
            let path = sysfs::mdev_type_path(&parent, &type_name);
            let create = Attribute::Create(parent, type_name);
            attributes.push((format!("{path}/create"), create));
        }
        for mdev in self.mdevs(vm) {
            let parent = sysfs::parent_path(&mdev.parent);
            let path = format!("{parent}/{}/remove", mdev.uuid);
            attributes.push((path, Attribute::Remove(mdev.uuid)));
        }
        attributes
    }
}

/// A number as `kstrtoul` takes it: decimal, octal with 0 or hexadecimal with 0x in front, and
/// perhaps one newline behind.
fn number(data: &[u8]) -> Result<u64, AttributeError> {
    let text = std::str::from_utf8(data).map_err(|_| AttributeError::Invalid)?;
    let text = text.strip_suffix('\n').unwrap_or(text);
    let text = text.strip_prefix('+').unwrap_or(text);
    let hexadecimal = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let (digits, radix) = match (hexadecimal, text.strip_prefix('0')) {
        (Some(digits), _) => (digits, 16),
        (None, Some(digits)) if !digits.is_empty() => (digits, 8),
        _ => (text, 10),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(AttributeError::Invalid);
    }
    u64::from_str_radix(digits, radix).map_err(|error| match error.kind() {
        std::num::IntErrorKind::PosOverflow => AttributeError::OutOfRange,
        _ => AttributeError::Invalid,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_the_kernel_reads_them() {
        for (text, value) in [
            ("1", 1),
            ("10\n", 10),
            ("0x10", 16),
            ("010", 8),
            ("0", 0),
            ("+3", 3),
        ] {
            assert_eq!(number(text.as_bytes()), Ok(value), "{text:?}");
        }
        for bad in ["", "\n", "x", "1 ", " 1", "1\n\n", "-1", "0x", "++1"] {
            assert_eq!(
                number(bad.as_bytes()),
                Err(AttributeError::Invalid),
                "{bad:?}"
            );
        }
        let large = number(b"99999999999999999999");
        assert_eq!(large, Err(AttributeError::OutOfRange));
    }
}
