//! What is wrong with a machine file or a device string. An error and its sources, one after the
//! other, are one sentence.

use std::{fmt, io, path::PathBuf};

use ioasid_core::PciAddress;
use ioasid_vfio::mdev::Uuid;

use super::inject::InjectError;
use crate::model::{ModelError, names::nearest};

/// A file from which no machine can be read.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read machine file {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// What is in it is no machine.
    #[error("{path}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: MachineFileError,
    },
}

/// A text that is no machine that can be built.
#[derive(Debug, thiserror::Error)]
pub enum MachineFileError {
    /// Not TOML, or a key or value that is not known.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
    /// A device string.
    #[error("device `{text}`")]
    DeviceString {
        /// The string.
        text: String,
        /// What is wrong with it.
        source: DeviceStringError,
    },
    /// There is neither a device nor an emulated one.
    #[error("the machine has no device: add a [[device]] section")]
    NoDevice,
    /// An address that two functions have.
    #[error("two devices have the address {0}")]
    AddressTwice(PciAddress),
    /// All addresses that devices without one get are taken.
    #[error("no PCI address is left for another device")]
    NoAddress,
    /// The bus has no place for a virtual function, or something is there.
    #[error("device {address}: no PCI address is left for virtual function {index}")]
    NoVirtualAddress {
        /// The physical function.
        address: PciAddress,
        /// Which virtual one, from 0.
        index: u16,
    },
    /// A UUID that two mediated devices have.
    #[error("{place}: the uuid {uuid} is used twice")]
    UuidTwice {
        /// Where it is used again.
        place: Place,
        /// The UUID.
        uuid: Uuid,
    },
    /// An emulated device that is not there yet has an owner or an address.
    #[error("emulated: vm and present_as need a uuid")]
    EmulatedWithoutUuid,
    /// A later section of an emulated model has keys of the model's.
    #[error(
        "emulated: all devices of the model `{model}` have one parent; give its keys in the first \
         section"
    )]
    EmulatedKeys {
        /// The model.
        model: &'static str,
    },
    /// An `[[inject]]` section.
    #[error("inject {number}")]
    Inject {
        /// Which, from 1.
        number: usize,
        /// What is wrong with it.
        source: InjectError,
    },
    /// The section of a device.
    #[error("device {address}")]
    Device {
        /// The device.
        address: PciAddress,
        /// What is wrong with it: a [`DeviceError`], or an error of its model.
        source: ModelError,
    },
}

/// A kind of section, for a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The `[[device]]` section with this address.
    Device(PciAddress),
    /// An `[[emulated]]` section.
    Emulated,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Device(address) => write!(f, "device {address}"),
            Place::Emulated => f.write_str("emulated"),
        }
    }
}

/// What is wrong with the keys that every device has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// A device that the host drives has an owner.
    #[error("vm on a device needs driver = \"vfio\"; give vm to its queues")]
    VmOfHost,
    /// The host has no driver for the model.
    #[error("there is no driver = \"host\" for the model `{model}`; use driver = \"vfio\"")]
    NoHostDriver {
        /// The model.
        model: &'static str,
    },
}

/// What is wrong with a device string.
#[derive(Debug, thiserror::Error)]
pub enum DeviceStringError {
    /// A part without `=`.
    #[error("`{0}` is not of the form key=value")]
    NotKeyValue(String),
    /// The key stands there already.
    #[error("`{0}` is given twice")]
    Twice(String),
    /// A model, key or value that is not known.
    #[error(transparent)]
    Syntax(#[from] SyntaxError),
}

/// What is wrong with the text, and in which line.
#[derive(Debug)]
pub struct SyntaxError {
    /// The line, from 1; a device string has none.
    pub line: Option<usize>,
    /// What is wrong.
    pub fault: Box<Fault>,
}

/// A fault of the text.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// What the reader of TOML says.
    #[error("{}", with_nearest(.0.message()))]
    Toml(toml::de::Error),
    /// A section without a model.
    #[error("missing field `model`")]
    NoModel,
    /// A model that is not registered.
    #[error("{}", unknown("model", name, known))]
    UnknownModel {
        /// The name.
        name: String,
        /// Those that are.
        known: Vec<&'static str>,
    },
    /// A key that a section does not have.
    #[error("{}{}", unknown("field", key, known), belongs(owners))]
    UnknownKey {
        /// The key.
        key: String,
        /// Those that it has.
        known: Vec<&'static str>,
        /// Other models that have it.
        owners: Vec<&'static str>,
    },
}

impl Fault {
    /// In `line` of a file.
    pub(super) fn at(self, line: Option<usize>) -> SyntaxError {
        SyntaxError {
            line,
            fault: Box::new(self),
        }
    }
}

impl From<toml::de::Error> for Fault {
    fn from(error: toml::de::Error) -> Self {
        Fault::Toml(error)
    }
}

impl fmt::Display for SyntaxError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(line) = self.line {
            write!(f, "line {line}: ")?;
        }
        self.fault.fmt(f)
    }
}

impl std::error::Error for SyntaxError {}

/// That a name is unknown, which are known, and which of them, named first, may have been meant.
fn unknown(what: &str, wrong: &str, known: &[&str]) -> String {
    let meant = nearest(wrong, known.iter().copied());
    let others = known.iter().copied().filter(|name| Some(*name) != meant);
    let quoted: Vec<_> = meant.into_iter().chain(others).collect();
    let quoted: Vec<_> = quoted.iter().map(|name| format!("`{name}`")).collect();
    let expected = match &quoted[..] {
        [] => "there are none".to_owned(),
        [only] => format!("expected {only}"),
        [one, other] => format!("expected {one} or {other}"),
        several => format!("expected one of {}", several.join(", ")),
    };
    let meant = did_you_mean(wrong, known);
    format!("unknown {what} `{wrong}`, {expected}{meant}")
}

fn did_you_mean(wrong: &str, known: &[&str]) -> String {
    let nearest = nearest(wrong, known.iter().copied());
    nearest.map_or_else(String::new, |name| format!("; did you mean `{name}`?"))
}

fn belongs(owners: &[&str]) -> String {
    let quoted: Vec<_> = owners.iter().map(|name| format!("`{name}`")).collect();
    match quoted.is_empty() {
        true => String::new(),
        false => format!("; it is a key of {}", quoted.join(", ")),
    }
}

/// Adds "did you mean" to serde's message about an unknown name, when one is near enough.
fn with_nearest(message: &str) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    match quoted.split_first() {
        Some((wrong, valid)) if message.starts_with("unknown") => {
            format!("{message}{}", did_you_mean(wrong, valid))
        }
        _ => message.to_owned(),
    }
}
