//! Attributes of sysfs that programs write.

use std::time::Duration;

use ioasid_core::PciAddress;
use ioasid_vfio::{AttributeError, mdev::Uuid};

use super::{functions::Shown, live::Source, running::Machine};
use crate::sysfs;

/// An attribute that can be written.
#[derive(Clone, Debug)]
enum Attribute {
    /// Of a PCI function.
    Function(OfFunction, PciAddress, Source),
    /// `type` of an IOMMU group, with a default domain or without.
    GroupType(bool),
    /// `create` of an mdev type of a parent.
    Create(String, String),
    /// `remove` of a mediated device.
    Remove(Uuid),
}

#[derive(Clone, Copy, Debug)]
enum OfFunction {
    VirtualFunctions,
    Autoprobe,
    VectorsOfVirtualFunction,
    Reset,
    ResetMethod,
    DriverOverride,
    /// Keeps a flag, under its name.
    Flag(&'static str),
    PowerControl,
    Enable,
    NumaNode,
    Rescan,
}

impl Machine {
    /// The attributes that a program of `vm` can write (all, for `None`): paths below `/sys`.
    pub fn writable_attributes(&self, vm: Option<&str>) -> Vec<String> {
        let attributes = self.attributes(vm).into_iter().map(|(path, _)| path);
        let live = self.live_files(vm).into_iter();
        let places = live.filter(|file| file.has_places() && self.may_write(vm, file.is_host()));
        attributes
            .chain(places.map(|file| file.path().to_owned()))
            .collect()
    }

    /// Writes `data` to the attribute at `path` below `/sys`, for a program of `vm`. One that has places is
    /// written by [`LiveFile::write_at`](crate::LiveFile::write_at).
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
            Attribute::Function(what, address, source) => {
                self.write_of_function(what, address, &source, data)?;
            }
            Attribute::GroupType(translated) => write_group_type(translated, data)?,
            Attribute::Create(parent, type_name) => {
                self.mdevs.create(&parent, &type_name, data, vm)?;
            }
            Attribute::Remove(uuid) => {
                if number(data)? != 0 {
                    self.mdevs.remove(uuid, Duration::ZERO)?;
                }
            }
        }
        self.has_changed();
        Ok(())
    }

    fn write_of_function(
        &self,
        what: OfFunction,
        address: PciAddress,
        source: &Source,
        data: &[u8],
    ) -> Result<(), AttributeError> {
        match what {
            OfFunction::VirtualFunctions => {
                let count = number(data)?;
                let count = u16::try_from(count).map_err(|_| AttributeError::Invalid)?;
                self.set_virtual_functions(address, count)?;
            }
            // Virtual functions have their driver from the start.
            OfFunction::Autoprobe => is_built(flag(data)?)?,
            OfFunction::VectorsOfVirtualFunction => {
                return Err(match signed(data)? {
                    ..0 => AttributeError::Invalid,
                    0.. => AttributeError::NotBuilt,
                });
            }
            OfFunction::Reset => {
                if number(data)? != 1 {
                    return Err(AttributeError::Invalid);
                }
                match source {
                    Source::Node(node) => node.reset_by_host(),
                    Source::Host(_) => return Err(AttributeError::NotBuilt),
                }
            }
            OfFunction::ResetMethod => match line(data) {
                b"flr" | b"default" => {}
                b"" => return Err(AttributeError::NotBuilt),
                _ => return Err(AttributeError::Invalid),
            },
            OfFunction::DriverOverride => {
                // One page, as the kernel's limit is.
                if data.len() >= 4095 {
                    return Err(AttributeError::Invalid);
                }
                let name = data.split(|byte| *byte == b'\n').next().unwrap_or_default();
                let name = std::str::from_utf8(name).map_err(|_| AttributeError::Invalid)?;
                let name = Some(name.to_owned()).filter(|name| !name.is_empty());
                self.keep(address, "driver_override", name);
            }
            OfFunction::Flag(name) => {
                let value = u8::from(number(data)? != 0);
                self.keep(address, name, Some(value.to_string()));
            }
            // The function stays in D0 with either.
            OfFunction::PowerControl => match line(data) {
                b"auto" => self.keep(address, "power/control", Some("auto".to_owned())),
                b"on" => self.keep(address, "power/control", Some("on".to_owned())),
                _ => return Err(AttributeError::Invalid),
            },
            // A driver has it.
            OfFunction::Enable => {
                number(data)?;
                return Err(AttributeError::Busy);
            }
            OfFunction::NumaNode => is_built(signed(data)? == -1)?,
            // Everything is known already.
            OfFunction::Rescan => drop(number(data)?),
        }
        Ok(())
    }

    /// Whether a program of `vm` may write attributes of a function that it sees: not of the host's, which
    /// it sees for the sake of a child.
    fn may_write(&self, vm: Option<&str>, is_host: bool) -> bool {
        vm.is_none() || !is_host
    }

    fn attributes(&self, vm: Option<&str>) -> Vec<(String, Attribute)> {
        let mut attributes = Vec::new();
        for shown in self.functions(vm) {
            let is_host = matches!(shown.source, Source::Host(_));
            if self.may_write(vm, is_host) {
                of_function(&shown, &mut attributes);
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
            let group = sysfs::group_path(mdev.node.device.group_number());
            attributes.push((format!("{group}/type"), Attribute::GroupType(false)));
        }
        attributes
    }
}

/// The attributes of one function, and of its group and bus.
fn of_function(shown: &Shown, attributes: &mut Vec<(String, Attribute)>) {
    let function = &shown.function;
    let path = sysfs::pci_path(function.address);
    let mut add = |path: String, what| {
        let of = Attribute::Function(what, function.address, shown.source.clone());
        attributes.push((path, of));
    };
    for (name, what, is_there) in [
        (
            "broken_parity_status",
            OfFunction::Flag("broken_parity_status"),
            true,
        ),
        ("d3cold_allowed", OfFunction::Flag("d3cold_allowed"), true),
        ("driver_override", OfFunction::DriverOverride, true),
        ("enable", OfFunction::Enable, true),
        ("numa_node", OfFunction::NumaNode, true),
        ("power/control", OfFunction::PowerControl, true),
        ("rescan", OfFunction::Rescan, !function.is_virtual),
        ("reset", OfFunction::Reset, function.has_reset),
        ("reset_method", OfFunction::ResetMethod, function.has_reset),
        (
            "sriov_drivers_autoprobe",
            OfFunction::Autoprobe,
            function.sriov.is_some(),
        ),
        (
            "sriov_numvfs",
            OfFunction::VirtualFunctions,
            function.sriov.is_some(),
        ),
        (
            "sriov_vf_msix_count",
            OfFunction::VectorsOfVirtualFunction,
            function.is_virtual,
        ),
    ] {
        if is_there {
            add(format!("{path}/{name}"), what);
        }
    }
    let bus = sysfs::pci_bus_path(function.address);
    add(format!("{bus}/rescan"), OfFunction::Rescan);
    let group = sysfs::group_path(function.group);
    let group_type = Attribute::GroupType(!function.is_mediated);
    attributes.push((format!("{group}/type"), group_type));
}

/// `iommu_group_store_type`, drivers/iommu/iommu.c. One without an IOMMU has no type.
fn write_group_type(translated: bool, data: &[u8]) -> Result<(), AttributeError> {
    match line(data) {
        b"DMA-FQ" if translated => Ok(()),
        b"identity" | b"DMA" | b"auto" if translated => Err(AttributeError::NotBuilt),
        _ => Err(AttributeError::Invalid),
    }
}

fn is_built(built: bool) -> Result<(), AttributeError> {
    built.then_some(()).ok_or(AttributeError::NotBuilt)
}

/// Without the one newline that may stand behind (`sysfs_streq`).
fn line(data: &[u8]) -> &[u8] {
    data.strip_suffix(b"\n").unwrap_or(data)
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
    u64::from_str_radix(digits, radix).map_err(|_| AttributeError::Invalid)
}

/// A number as `kstrtoint` takes it.
fn signed(data: &[u8]) -> Result<i32, AttributeError> {
    let (negative, digits) = match data.strip_prefix(b"-") {
        Some(digits) if !digits.starts_with(b"+") => (true, digits),
        _ => (false, data),
    };
    let value = i64::try_from(number(digits)?).map_err(|_| AttributeError::Invalid)?;
    let value = if negative { -value } else { value };
    i32::try_from(value).map_err(|_| AttributeError::Invalid)
}

/// Yes or no, as `kstrtobool` takes them.
fn flag(data: &[u8]) -> Result<bool, AttributeError> {
    match data {
        [b'y' | b'Y' | b't' | b'T' | b'1', ..] | [b'o' | b'O', b'n' | b'N', ..] => Ok(true),
        [b'n' | b'N' | b'f' | b'F' | b'0', ..] | [b'o' | b'O', b'f' | b'F', ..] => Ok(false),
        _ => Err(AttributeError::Invalid),
    }
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
        assert_eq!(large, Err(AttributeError::Invalid));
        assert_eq!(signed(b"-1\n"), Ok(-1));
        assert_eq!(signed(b"0x10"), Ok(16));
        for bad in ["--1", "-", "2147483648", "-+1"] {
            assert_eq!(
                signed(bad.as_bytes()),
                Err(AttributeError::Invalid),
                "{bad}"
            );
        }
        assert_eq!((flag(b"on"), flag(b"0\n")), (Ok(true), Ok(false)));
        assert_eq!(flag(b"x"), Err(AttributeError::Invalid));
    }
}
