//! A device model as a machine knows it: a name, keys of its own in the machine file, and what it
//! builds from them.
//!
//! The author of a device implements [`Model`] beside `ioasid_vfio::DeviceModel` and registers it
//! ([`Models::with`]). From then on `[[device]]` and `[[emulated]]` sections, and the command line,
//! can name it. A machine knows its devices by this trait alone.
//!
//! * [`Site`]: what a model is given to build with. [`Built`]: what it gives back.
//! * [`Models`]: the registry.
//! * [`names`]: how a wrong name is answered.

use std::{error::Error, fmt};

use ioasid_core::{PciAddress, Rid};
use ioasid_vfio::mdev::Uuid;
use serde::{Deserialize, de::DeserializeOwned};

mod built;
pub mod names;
pub(crate) mod registry;
mod site;

pub use built::{Built, HostDriver, Parent, Whole};
pub use registry::{Described, Models, Section};
pub use site::{Site, SiteError};

/// Why a model refuses its section or cannot build: an error of its own, which the machine keeps as
/// the source of its error.
pub type ModelError = Box<dyn Error + Send + Sync>;

/// A device model: what stands behind `model = "NAME"`.
///
/// It is never made: everything about one device is in its [`Section`](Self::Section).
pub trait Model: 'static {
    /// Its name in the machine file and in device strings.
    const NAME: &'static str;

    /// What it is, in a few words: a line of `--device help`.
    const SUMMARY: &'static str;

    /// What its keys mean, for `--device NAME,help` and for a wrong key. A key that is not among them
    /// is taken all the same, but not listed: another name of one, or sections of its own.
    const KEYS: &'static [Key] = &[];

    /// Which sections can name it.
    const TABLE: Table = Table::Device;

    /// The name of the Linux driver whose part is played by the host's own driver of the model, if it
    /// has one: then it can be built with `driver = "host"`.
    const HOST_DRIVER: Option<&'static str> = None;

    /// Its own keys of a section. The machine refuses keys that are not fields of it, and takes
    /// `model`, `address`, `driver`, `vm` (of a `[[device]]`) and `model`, `uuid`, `vm`,
    /// `present_as` (of an `[[emulated]]`) itself. A model without keys has a `struct` without
    /// fields.
    type Section: DeserializeOwned + fmt::Debug + Send + Sync + 'static;

    /// Refuses a section from which no device can be built, before anything is.
    ///
    /// # Errors
    /// One sentence that says which key is wrong and what it can be.
    fn check(section: &Self::Section, driver: Driver) -> Result<(), ModelError> {
        let _ = (section, driver);
        Ok(())
    }

    /// What the section asks for, in a few words, such as its queues: for people.
    fn contents(section: &Self::Section) -> String {
        let _ = section;
        String::new()
    }

    /// The mediated devices that the section asks for from the start: of a parent with
    /// `driver = "host"`. Those of an `[[emulated]]` section are not the model's business.
    fn mdevs(section: &Self::Section) -> Vec<MdevSection> {
        let _ = section;
        Vec::new()
    }

    /// The virtual functions that programs can ask for (SR-IOV); none by default.
    fn virtual_functions(section: &Self::Section) -> Option<VirtualFunctions> {
        let _ = section;
        None
    }

    /// Builds the device, and with `driver = "host"` what the host has of it.
    ///
    /// An `[[emulated]]` model builds a parent without a device, once for all its sections.
    ///
    /// # Errors
    /// What the device, its driver or the IOMMU says. What was added to the IOMMU is removed by the
    /// machine.
    fn build(section: &Self::Section, site: &Site<'_>) -> Result<Built, ModelError>;

    /// Builds one virtual function at `site`; asked only if there are
    /// [`virtual_functions`](Self::virtual_functions).
    ///
    /// # Errors
    /// As of [`build`](Self::build).
    fn build_virtual(section: &Self::Section, site: &Site<'_>) -> Result<Built, ModelError> {
        let _ = (section, site);
        Err(Box::new(SiteError::NotVirtual))
    }
}

/// What there is to know of one key of a section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// Its name.
    pub name: &'static str,
    /// What it can be, such as `1 to 8`.
    pub values: &'static str,
    /// What it is where it is not given.
    pub default: &'static str,
    /// What it means, in a few words.
    pub meaning: &'static str,
}

/// Where a model can stand in the machine file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// `[[device]]`: a PCI function behind the IOMMU.
    Device,
    /// `[[emulated]]`: a mediated device that is software alone, without DMA, PASID and domain.
    Emulated,
}

/// What drives a device.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// The host's own driver, through the DMA API.
    Host,
    /// vfio-pci: offered whole to programs.
    #[default]
    Vfio,
}

/// A mediated device that a section asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MdevSection {
    /// Its type, one that the parent offers.
    pub type_name: &'static str,
    /// Its UUID.
    pub uuid: Uuid,
    /// The VM that owns it.
    pub vm: Option<String>,
    /// The PCI address that it has for programs besides its UUID.
    pub present_as: Option<PciAddress>,
}

/// The virtual functions that a physical function can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VirtualFunctions {
    /// How many, at most.
    pub total: u16,
    /// Routing ids from the physical function to the first virtual one.
    pub offset: u16,
    /// Routing ids from one virtual function to the next.
    pub stride: u16,
}

impl VirtualFunctions {
    /// The address of virtual function `index` of `physical`, or none if its bus has no room for it.
    pub(crate) fn address(&self, physical: PciAddress, index: u16) -> Option<PciAddress> {
        let offset = index.checked_mul(self.stride)?.checked_add(self.offset)?;
        let rid = physical.rid.0.checked_add(offset)?;
        (rid >> 8 == physical.rid.0 >> 8).then_some(PciAddress {
            rid: Rid(rid),
            ..physical
        })
    }
}
