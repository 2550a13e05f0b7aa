//! The machine file: TOML that says which devices there are, who drives them and which VM owns
//! what. Unknown keys are refused with the nearest valid one.

use std::{collections::BTreeSet, path::Path, str::FromStr};

use ioasid_core::PciAddress;
use ioasid_iommu::TableFormat;
use ioasid_vfio::mdev::Uuid;
use serde::Deserialize;

use crate::sriov;

/// The machine that `run` and `demo` use without a file, as its text.
pub const DEFAULT_MACHINE: &str = include_str!("default.toml");

/// What is wrong with a machine file or a device string: one sentence, with the place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MachineFileError {
    /// The file could not be read.
    #[error("cannot read machine file {path}: {cause}")]
    Unreadable {
        /// The file's path.
        path: String,
        /// What the system says.
        cause: String,
    },
    /// Not TOML, or a key or value that is not known.
    #[error("{0}")]
    Syntax(String),
    /// Well-formed, but not a machine that can be built.
    #[error("{0}")]
    Invalid(String),
}

fn invalid(text: impl Into<String>) -> MachineFileError {
    MachineFileError::Invalid(text.into())
}

/// A whole machine, as its file says it.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct MachineFile {
    /// The IOMMU in front of every device.
    #[serde(default)]
    pub iommu: IommuSection,
    /// The devices, in the order in which programs find them.
    #[serde(default)]
    pub device: Vec<DeviceSection>,
    /// Mediated devices without a device behind the IOMMU.
    #[serde(default)]
    pub emulated: Vec<EmulatedSection>,
}

/// `[[emulated]]`: a mediated device that is software alone: it has no DMA, no PASID and no domain.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct EmulatedSection {
    /// What it is.
    pub model: EmulatedModel,
    /// Its UUID; without one there is the parent alone, for `mdev create`.
    #[serde(default, deserialize_with = "uuid")]
    pub uuid: Option<Uuid>,
    /// The VM that owns it.
    #[serde(default)]
    pub vm: Option<String>,
    /// Shows it also as a PCI function with this address, bound to vfio-pci.
    #[serde(default, deserialize_with = "pci_address")]
    pub present_as: Option<PciAddress>,
}

/// Emulated devices.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum EmulatedModel {
    /// QEMU's educational device, 1234:11e8.
    Edu,
}

/// `[iommu]`: the IOMMU of the machine.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct IommuSection {
    /// Page-table format of its domains: `vtd-ss` (the default), `x86-64` or `amdv1`.
    #[serde(default, deserialize_with = "table_format")]
    pub format: TableFormat,
    /// Refuse to lock more memory than a program's RLIMIT_MEMLOCK allows, as the kernel does. It is
    /// counted in any case; by default that is all, since the usual limit is 8 MiB.
    #[serde(default)]
    pub enforce_memlock: bool,
}

/// `[[device]]`: one PCI function.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct DeviceSection {
    /// What it is.
    pub model: Model,
    /// The PCI address that programs see; without one the next free of 0000:6a:01.0, 0000:6b:01.0 ...
    #[serde(default, deserialize_with = "pci_address")]
    pub address: Option<PciAddress>,
    /// Engines (threads that move bytes), 1..=[`MAX_ENGINES`].
    #[serde(default = "two")]
    pub engines: usize,
    /// Of a DSA: most bytes that one descriptor moves, a power of two up to 2 MiB, which it is by
    /// default.
    #[serde(default)]
    pub max_transfer: Option<u32>,
    /// Who drives it.
    #[serde(default)]
    pub driver: Driver,
    /// The VM that owns the whole device; only with `driver = "vfio"`.
    #[serde(default)]
    pub vm: Option<String>,
    /// Virtual functions that programs can ask for (SR-IOV), up to 31; only for a DSA with
    /// `driver = "vfio"`. They take the addresses after the device's own.
    #[serde(default)]
    pub vfs: u16,
    /// Number of queues (of an I/OAT: channels) of a device without `[[device.queue]]` sections,
    /// 1..=[`MAX_QUEUES`].
    #[serde(default, alias = "channels")]
    pub queues: Option<usize>,
    /// Its work queues (of an I/OAT: channels), from queue 0.
    #[serde(default, alias = "channel")]
    pub queue: Vec<QueueSection>,
}

/// `[[device.queue]]` or `[[device.channel]]`: one work queue of a DSA, one channel of an I/OAT.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct QueueSection {
    /// Who uses it.
    pub owner: Owner,
    /// The mdev that takes it at start; an mdev queue without one waits for `mdev create`.
    #[serde(default, deserialize_with = "uuid")]
    pub uuid: Option<Uuid>,
    /// The VM that owns the mdev.
    #[serde(default)]
    pub vm: Option<String>,
    /// Shows the mdev also as a PCI function with this address, bound to vfio-pci: for programs that
    /// know devices by their PCI address only.
    #[serde(default, deserialize_with = "pci_address")]
    pub present_as: Option<PciAddress>,
    /// Descriptors that the queue holds, 1..=[`MAX_QUEUE_SIZE`]. A channel holds none.
    #[serde(default = "default_queue_size")]
    pub size: u32,
}

/// Device models.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Model {
    /// Intel DSA, 8086:0b25.
    Dsa,
    /// Intel I/OAT, 8086:2021.
    Ioat,
}

/// Who drives a device.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// Our own parent driver, through the DMA API.
    Host,
    /// vfio-pci: offered whole to programs.
    #[default]
    Vfio,
}

/// Who uses a queue of a device that the host drives.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The parent's own driver.
    Host,
    /// A mediated device.
    Mdev,
}

/// Most engines of one device.
pub const MAX_ENGINES: usize = 8;
/// Most queues of one device.
pub const MAX_QUEUES: usize = 8;
/// Most descriptors in one queue.
pub const MAX_QUEUE_SIZE: u32 = 128;
/// Queues of a whole device whose file names no number.
const DEFAULT_QUEUES: usize = 4;

fn two() -> usize {
    2
}

fn default_queue_size() -> u32 {
    32
}

fn pci_address<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<PciAddress>, D::Error> {
    parsed(d)
}

fn uuid<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Uuid>, D::Error> {
    parsed(d)
}

fn table_format<'de, D: serde::Deserializer<'de>>(d: D) -> Result<TableFormat, D::Error> {
    parsed(d).map(Option::unwrap_or_default)
}

fn parsed<'de, D, T>(deserializer: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: FromStr<Err: std::fmt::Display>,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map(Some).map_err(serde::de::Error::custom)
}

impl MachineFile {
    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// See [`MachineFileError`]; the text names the file.
    pub fn load(path: &Path) -> Result<Self, MachineFileError> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|cause| MachineFileError::Unreadable {
            path: shown.to_string(),
            cause: cause.to_string(),
        })?;
        text.parse().map_err(|error| match error {
            MachineFileError::Syntax(text) => MachineFileError::Syntax(format!("{shown}: {text}")),
            MachineFileError::Invalid(text) => {
                MachineFileError::Invalid(format!("{shown}: {text}"))
            }
            other => other,
        })
    }

    /// The machine that is used without a file.
    pub fn default_machine() -> Self {
        DEFAULT_MACHINE
            .parse()
            .expect("the built-in machine file is valid")
    }

    /// A machine of the devices that `strings` describe, such as `dsa,queues=4,driver=vfio`.
    ///
    /// # Errors
    /// See [`MachineFileError`].
    pub fn from_device_strings<S: AsRef<str>>(strings: &[S]) -> Result<Self, MachineFileError> {
        let device = strings
            .iter()
            .map(|s| s.as_ref().parse())
            .collect::<Result<_, _>>()?;
        MachineFile {
            iommu: IommuSection::default(),
            device,
            emulated: Vec::new(),
        }
        .checked()
    }

    /// Fills in what was left out and refuses what cannot be built.
    fn checked(mut self) -> Result<Self, MachineFileError> {
        if self.device.is_empty() && self.emulated.is_empty() {
            return Err(invalid(
                "the machine has no device: add a [[device]] section",
            ));
        }
        let mut addresses = BTreeSet::new();
        let mut uuids = BTreeSet::new();
        for section in &self.emulated {
            if section.uuid.is_none() && (section.vm.is_some() || section.present_as.is_some()) {
                return Err(invalid("emulated: vm and present_as need a uuid"));
            }
            if let Some(uuid) = section.uuid
                && !uuids.insert(uuid)
            {
                return Err(invalid(format!("emulated: the uuid {uuid} is used twice")));
            }
            if let Some(address) = section.present_as
                && !addresses.insert(address)
            {
                return Err(invalid(format!("two devices have the address {address}")));
            }
        }
        for device in &self.device {
            let queues = device.queue.iter().filter_map(|queue| queue.present_as);
            for address in device.address.into_iter().chain(queues) {
                if !addresses.insert(address) {
                    return Err(invalid(format!("two devices have the address {address}")));
                }
            }
        }
        let mut free = (0x6a_u16..=0xff).map(|bus| PciAddress {
            segment: 0,
            rid: ioasid_core::Rid(bus << 8 | 1 << 3),
        });
        for device in &mut self.device {
            let address = match device.address {
                Some(address) => address,
                None => free
                    .find(|address| addresses.insert(*address))
                    .ok_or_else(|| invalid("no PCI address is left for another device"))?,
            };
            device.address = Some(address);
            device
                .check()
                .map_err(|text| invalid(format!("device {address}: {text}")))?;
            for index in 0..device.vfs {
                let free = sriov::address_of(address, index)
                    .is_some_and(|address| addresses.insert(address));
                if !free {
                    return Err(invalid(format!(
                        "device {address}: no PCI address is left for virtual function {index}"
                    )));
                }
            }
            for queue in &device.queue {
                if let Some(uuid) = queue.uuid
                    && !uuids.insert(uuid)
                {
                    return Err(invalid(format!(
                        "device {address}: the uuid {uuid} is used twice"
                    )));
                }
            }
        }
        Ok(self)
    }

    /// The names of all VMs in the file.
    pub fn vms(&self) -> BTreeSet<&str> {
        let devices = self.device.iter().filter_map(|device| device.vm.as_deref());
        let queues = self.device.iter().flat_map(|device| &device.queue);
        let emulated = self.emulated.iter();
        devices
            .chain(queues.filter_map(|queue| queue.vm.as_deref()))
            .chain(emulated.filter_map(|section| section.vm.as_deref()))
            .collect()
    }
}

impl DeviceSection {
    fn check(&mut self) -> Result<(), String> {
        if self.vfs > sriov::MAX_VIRTUAL {
            return Err(format!(
                "vfs must be 0 to {}, not {}",
                sriov::MAX_VIRTUAL,
                self.vfs
            ));
        }
        if self.vfs > 0 && (self.driver != Driver::Vfio || self.model != Model::Dsa) {
            return Err("vfs is for a dsa with driver = \"vfio\"".to_owned());
        }
        if let Some(bytes) = self.max_transfer
            && (self.model != Model::Dsa
                || !bytes.is_power_of_two()
                || !(4096..=2 << 20).contains(&bytes))
        {
            return Err(format!(
                "max_transfer is for a dsa, a power of two from 4096 to 2097152, not {bytes}"
            ));
        }
        if !(1..=MAX_ENGINES).contains(&self.engines) {
            return Err(format!(
                "engines must be 1 to {MAX_ENGINES}, not {}",
                self.engines
            ));
        }
        if let Some(queues) = self.queues {
            if !self.queue.is_empty() && queues != self.queue.len() {
                return Err(format!(
                    "queues = {queues}, but there are {} [[device.queue]] sections",
                    self.queue.len()
                ));
            }
            if !(1..=MAX_QUEUES).contains(&queues) {
                return Err(format!("queues must be 1 to {MAX_QUEUES}, not {queues}"));
            }
        }
        if self.queue.len() > MAX_QUEUES {
            return Err(format!(
                "{} queues are more than {MAX_QUEUES}",
                self.queue.len()
            ));
        }
        if self.queue.is_empty() {
            let queue = QueueSection {
                owner: Owner::Host,
                uuid: None,
                vm: None,
                present_as: None,
                size: default_queue_size(),
            };
            self.queue = vec![queue; self.queues.unwrap_or(DEFAULT_QUEUES)];
        }
        self.queues = Some(self.queue.len());
        for (index, queue) in self.queue.iter().enumerate() {
            if self.model == Model::Ioat && queue.size != default_queue_size() {
                return Err(format!(
                    "channel {index} has no size: its descriptors lie in memory"
                ));
            }
            if !(1..=MAX_QUEUE_SIZE).contains(&queue.size) {
                return Err(format!("queue {index}: size must be 1 to {MAX_QUEUE_SIZE}"));
            }
            match (self.driver, queue.owner) {
                (Driver::Vfio, Owner::Mdev) => {
                    return Err(format!(
                        "queue {index} is for an mdev, but the whole device is offered \
                         (driver = \"vfio\"); use driver = \"host\""
                    ));
                }
                (_, Owner::Host) if queue.uuid.is_some() || queue.vm.is_some() => {
                    return Err(format!(
                        "queue {index} belongs to the driver, so it has no uuid and no vm; \
                         use owner = \"mdev\""
                    ));
                }
                (_, Owner::Mdev) if queue.vm.is_some() && queue.uuid.is_none() => {
                    return Err(format!("queue {index} has a vm but no uuid"));
                }
                (..) if queue.present_as.is_some() && queue.uuid.is_none() => {
                    return Err(format!(
                        "queue {index} has present_as but no uuid: there is nothing to present"
                    ));
                }
                _ => {}
            }
        }
        if self.driver == Driver::Host && self.vm.is_some() {
            return Err("vm on a device needs driver = \"vfio\"; give vm to its queues".into());
        }
        Ok(())
    }
}

impl FromStr for MachineFile {
    type Err = MachineFileError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let file: MachineFile = toml::from_str(text).map_err(|error| {
            let line = error
                .span()
                .map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1)
                .map(|line| format!("line {line}: "))
                .unwrap_or_default();
            MachineFileError::Syntax(format!("{line}{}", with_nearest(error.message())))
        })?;
        file.checked()
    }
}

impl FromStr for DeviceSection {
    type Err = MachineFileError;

    /// Reads `MODEL[,KEY=VALUE...]` with the keys of a `[[device]]` section.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = |cause: String| invalid(format!("device `{text}`: {}", with_nearest(&cause)));
        let mut parts = text.split(',');
        let model = parts.next().unwrap_or_default();
        let mut table = toml::Table::new();
        table.insert("model".into(), model.into());
        for part in parts {
            let (key, value) = part
                .split_once('=')
                .ok_or_else(|| bad(format!("`{part}` is not of the form key=value")))?;
            let value = match value.parse::<i64>() {
                Ok(number) => toml::Value::Integer(number),
                Err(_) => toml::Value::String(value.to_owned()),
            };
            if ["queue", "channel"].contains(&key) || table.insert(key.to_owned(), value).is_some()
            {
                return Err(bad(format!(
                    "`{key}` cannot be given here, or is given twice"
                )));
            }
        }
        table
            .try_into()
            .map_err(|error: toml::de::Error| bad(error.message().to_owned()))
    }
}

/// Adds "did you mean" to serde's message about an unknown name, when one is near enough.
fn with_nearest(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    let Some((wrong, valid)) = quoted.split_first() else {
        return message.to_owned();
    };
    if !message.starts_with("unknown") {
        return message.to_owned();
    }
    let nearest = valid
        .iter()
        .min_by_key(|name| strsim::damerau_levenshtein(wrong, name));
    match nearest {
        Some(name) if strsim::damerau_levenshtein(wrong, name) <= 1 + wrong.len() / 3 => {
            format!("{message}; did you mean `{name}`?")
        }
        _ => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<MachineFile>().unwrap_err().to_string()
    }

    #[test]
    fn the_default_machine_is_the_scene() {
        let file = MachineFile::default_machine();
        assert_eq!(file.device.len(), 2);
        assert_eq!(file.vms().into_iter().collect::<Vec<_>>(), ["vm1", "vm2"]);
        assert_eq!(file.device[0].driver, Driver::Host);
        assert!(file.device[0].queue.len() >= 3);
        assert_eq!(file.device[1].vm.as_deref(), Some("vm1"));
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_one() {
        let text = error("[[device]]\nmodel = \"dsa\"\nengnies = 2\n");
        assert!(
            text.contains("line 3") && text.contains("did you mean `engines`?"),
            "{text}"
        );
        let text = error("[[device]]\nmodel = \"dsb\"\n");
        assert!(text.contains("did you mean `dsa`?"), "{text}");
    }

    #[test]
    fn what_cannot_be_built_is_refused_with_a_cause() {
        let device = "[[device]]\nmodel = \"dsa\"\n";
        for (text, cause) in [
            (String::new(), "no device"),
            (format!("{device}engines = 0\n"), "engines must be 1"),
            (format!("{device}max_transfer = 4097\n"), "a power of two"),
            (format!("{device}queues = 99\n"), "queues must be 1"),
            (
                format!("{device}address = \"6a:1.0\"\n"),
                "not a PCI address",
            ),
            (
                format!("{device}driver = \"host\"\nvm = \"a\"\n"),
                "needs driver",
            ),
            (
                format!("{device}[[device.queue]]\nowner = \"mdev\"\n"),
                "use driver = \"host\"",
            ),
            (
                format!(
                    "{0}address = \"0000:6a:01.0\"\n{0}address = \"0000:6a:01.0\"\n",
                    device
                ),
                "two devices",
            ),
            (
                format!(
                    "{device}driver = \"host\"\n[[device.queue]]\nowner = \"mdev\"\n\
                     present_as = \"0000:70:00.0\"\n"
                ),
                "present_as but no uuid",
            ),
        ] {
            let found = error(&text);
            assert!(found.contains(cause), "{text:?} gave {found:?}");
        }
    }

    #[test]
    fn the_queues_of_an_ioat_are_channels_by_either_name() {
        let device = "[[device]]\nmodel = \"ioat\"\ndriver = \"host\"\n";
        let with = |key| {
            let section = format!("[[device.{key}]]\nowner = \"mdev\"\n");
            format!("{device}{section}").parse::<MachineFile>().unwrap()
        };
        assert_eq!(with("queue"), with("channel"));
        assert_eq!(with("queue").device[0].model, Model::Ioat);
        let file = MachineFile::from_device_strings(&["ioat,channels=3,driver=vfio"]).unwrap();
        assert_eq!(file.device[0].queue.len(), 3);
        let sized = format!("{device}[[device.channel]]\nowner = \"host\"\nsize = 8\n");
        assert!(error(&sized).contains("channel 0 has no size"));
    }

    #[test]
    fn device_strings_take_the_keys_of_the_file() {
        let file =
            MachineFile::from_device_strings(&["dsa,queues=4,driver=vfio", "dsa,vm=vm1"]).unwrap();
        assert_eq!(file.device[0].queue.len(), 4);
        assert_eq!(file.device[0].address.unwrap().to_string(), "0000:6a:01.0");
        assert_eq!(file.device[1].address.unwrap().to_string(), "0000:6b:01.0");
        for (bad, cause) in [
            ("dsa,queus=4", "did you mean `queues`?"),
            ("dsa,queues", "key=value"),
            ("dsa,queues=1,queues=2", "twice"),
            ("", "unknown variant"),
            ("ioatt", "did you mean `ioat`?"),
            ("ioat,chanels=2", "did you mean `channels`?"),
            ("ioat,channels=9", "queues must be 1"),
            ("dsa,queue=1", "cannot be given"),
        ] {
            let found = MachineFile::from_device_strings(&[bad])
                .unwrap_err()
                .to_string();
            assert!(found.contains(cause), "{bad}: {found}");
        }
    }
}
