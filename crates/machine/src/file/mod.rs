//! The machine file: TOML that says which devices there are, what drives them and which VM owns
//! what. Unknown keys are refused with the nearest valid one.
//!
//! What every section has is here; the keys of each model are its own ([`crate::model::Model`]).

use std::{collections::BTreeSet, path::Path, str::FromStr, sync::Arc};

use ioasid_core::PciAddress;
use ioasid_iommu::TableFormat;
use ioasid_vfio::mdev::Uuid;
use serde::Deserialize;

use crate::{
    model::{self, Driver, Key, Models, names},
    models,
};

mod check;
mod error;
pub mod inject;
#[cfg(test)]
mod tests;
mod text;

use inject::InjectSection;

pub use error::{
    DeviceError, DeviceStringError, Fault, LoadError, MachineFileError, Place, SyntaxError,
};

/// The keys of a `[[device]]` section of every model.
pub const DEVICE_KEYS: &[Key] = &[
    Key {
        name: "address",
        values: "a PCI address",
        default: "next free",
        meaning: "where programs see it",
    },
    Key {
        name: "driver",
        values: "vfio or host",
        default: "vfio",
        meaning: "vfio: programs have it; host: the host's own driver",
    },
    Key {
        name: "vm",
        values: "a name",
        default: "none",
        meaning: "the VM that owns it",
    },
];

/// The machine that `run` and `demo` use without a file, as its text.
pub const DEFAULT_MACHINE: &str = include_str!("../default.toml");

/// A whole machine, as its file says it.
#[derive(Clone, Debug)]
pub struct MachineFile {
    /// The IOMMU in front of every device.
    pub iommu: IommuSection,
    /// The devices, in the order in which programs find them.
    pub device: Vec<DeviceSection>,
    /// Mediated devices without a device behind the IOMMU.
    pub emulated: Vec<EmulatedSection>,
    /// Failures that a test asks for.
    pub inject: Vec<InjectSection>,
}

/// `[iommu]`: the IOMMU of the machine.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct IommuSection {
    /// Page-table format of its domains, by its name; `vtd-ss` by default.
    #[serde(default, deserialize_with = "format")]
    pub format: TableFormat,
    /// Refuse to lock more memory than a program's RLIMIT_MEMLOCK allows, as the kernel does. It is
    /// counted in any case; by default that is all, since the usual limit is 8 MiB.
    #[serde(default)]
    pub enforce_memlock: bool,
}

/// A page-table format by its name. A wrong one is answered with the nearest.
fn format<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<TableFormat, D::Error> {
    let name = String::deserialize(deserializer)?;
    name.parse().map_err(|error| {
        let known = TableFormat::ALL.map(TableFormat::name);
        let meant = names::nearest(&name, known).map_or_else(String::new, |nearest| {
            format!("; did you mean `{nearest}`?")
        });
        serde::de::Error::custom(format_args!("{error}{meant}"))
    })
}

/// `[[device]]`: one PCI function.
#[derive(Clone, Debug)]
pub struct DeviceSection {
    /// The name of its model.
    pub model: &'static str,
    /// The PCI address that programs see; without one the next free of 0000:6a:01.0, 0000:6b:01.0 ...
    pub address: Option<PciAddress>,
    /// What drives it.
    pub driver: Driver,
    /// The VM that owns the whole device; only with `driver = "vfio"`.
    pub vm: Option<String>,
    /// The Linux driver whose part the host's own driver plays, if the model has one.
    pub(crate) host_driver: Option<&'static str>,
    /// The keys of its model.
    pub(crate) own: Arc<dyn model::Section>,
}

impl DeviceSection {
    /// The keys of its model, if they are an `S`.
    pub fn section<S: 'static>(&self) -> Option<&S> {
        self.own.any().downcast_ref()
    }
}

/// `[[emulated]]`: a mediated device that is software alone: it has no DMA, no PASID and no domain.
#[derive(Clone, Debug)]
pub struct EmulatedSection {
    /// The name of its model.
    pub model: &'static str,
    /// Its UUID; without one there is the parent alone, for `mdev create`.
    pub uuid: Option<Uuid>,
    /// The VM that owns it.
    pub vm: Option<String>,
    /// Shows it also as a PCI function with this address, bound to vfio-pci.
    pub present_as: Option<PciAddress>,
    /// Whether there are keys of its model.
    pub(crate) has_keys: bool,
    /// The keys of its model.
    pub(crate) own: Arc<dyn model::Section>,
}

impl MachineFile {
    /// Reads and checks the text of a machine file that can name `models`.
    ///
    /// # Errors
    /// See [`MachineFileError`].
    pub fn parse(text: &str, models: &Models) -> Result<Self, MachineFileError> {
        text::file(text, models)?.checked()
    }

    /// Reads and checks the file at `path`.
    ///
    /// # Errors
    /// See [`LoadError`].
    pub fn load(path: &Path, models: &Models) -> Result<Self, LoadError> {
        let text = std::fs::read_to_string(path).map_err(|source| LoadError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, models).map_err(|source| LoadError::Content {
            path: path.to_owned(),
            source,
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
    pub fn from_device_strings<S: AsRef<str>>(
        strings: &[S],
        models: &Models,
    ) -> Result<Self, MachineFileError> {
        let device = strings.iter().map(|string| {
            let text = string.as_ref();
            text::device_string(text, models).map_err(|source| MachineFileError::DeviceString {
                text: text.to_owned(),
                source,
            })
        });
        MachineFile {
            iommu: IommuSection::default(),
            device: device.collect::<Result<_, _>>()?,
            emulated: Vec::new(),
            inject: Vec::new(),
        }
        .checked()
    }

    /// The names of all VMs in the file.
    pub fn vms(&self) -> BTreeSet<String> {
        let devices = self.device.iter().filter_map(|device| device.vm.clone());
        let mdevs = self.device.iter().flat_map(|device| device.own.mdevs());
        let emulated = self
            .emulated
            .iter()
            .filter_map(|section| section.vm.clone());
        devices
            .chain(mdevs.filter_map(|mdev| mdev.vm))
            .chain(emulated)
            .collect()
    }
}

impl MachineFile {
    /// The mediated devices that have a PCI address besides their UUID.
    pub(crate) fn presented(&self) -> impl Iterator<Item = (Uuid, PciAddress)> {
        let mdevs = self.device.iter().flat_map(|device| device.own.mdevs());
        let mdevs = mdevs.filter_map(|mdev| Some((mdev.uuid, mdev.present_as?)));
        let emulated = self.emulated.iter();
        mdevs.chain(emulated.filter_map(|section| Some((section.uuid?, section.present_as?))))
    }
}

impl FromStr for MachineFile {
    type Err = MachineFileError;

    /// [`MachineFile::parse`] with the models that the project brings along.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        MachineFile::parse(text, &models::standard())
    }
}
