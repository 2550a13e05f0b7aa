//! Values that JSON has no type for.

use std::{borrow::Cow, fmt, sync::Arc};

use ioasid_core::PciAddress;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A word: one of few, and made without taking memory.
pub type Word = Cow<'static, str>;

/// A number of 64 bits, written as a string in hexadecimal with `0x`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hex(pub u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl Serialize for Hex {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Hex {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x");
        let value = digits.and_then(|digits| u64::from_str_radix(digits, 16).ok());
        value
            .map(Hex)
            .ok_or_else(|| D::Error::custom(format_args!("{text:?} is no number such as 0x1000")))
    }
}

/// Bytes, written as a string of two hexadecimal digits each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bytes(pub Box<[u8]>);

impl From<&[u8]> for Bytes {
    fn from(bytes: &[u8]) -> Self {
        Bytes(bytes.into())
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&hex::encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bytes = hex::decode(text).map_err(D::Error::custom)?;
        Ok(Bytes(bytes.into()))
    }
}

/// The name of a device: a PCI address, or the UUID of a mediated device.
///
/// Made of an address without taking memory: engines name devices.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Name {
    /// A PCI address.
    Address(PciAddress),
    /// Anything else.
    Text(Arc<str>),
}

impl From<&Arc<str>> for Name {
    fn from(text: &Arc<str>) -> Self {
        match text.parse() {
            Ok(address) => Name::Address(address),
            Err(_) => Name::Text(Arc::clone(text)),
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Address(address) => address.fmt(f),
            Name::Text(text) => f.write_str(text),
        }
    }
}

impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Name::from(&Arc::<str>::deserialize(deserializer)?))
    }
}

/// What the schema document says of these types, which derive cannot know.
#[cfg(test)]
mod documented {
    use std::borrow::Cow;

    use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};

    use super::{Bytes, Hex, Name};

    macro_rules! documented {
        ($type:ident, $schema:tt) => {
            impl JsonSchema for $type {
                fn schema_name() -> Cow<'static, str> {
                    stringify!($type).into()
                }

                fn json_schema(_: &mut SchemaGenerator) -> Schema {
                    json_schema!($schema)
                }
            }
        };
    }

    documented!(Hex, {
        "description": "A number of 64 bits in hexadecimal.",
        "type": "string",
        "pattern": "^0x[0-9a-f]{1,16}$"
    });
    documented!(Bytes, {
        "description": "Bytes in the order of their addresses, two hexadecimal digits each.",
        "type": "string",
        "pattern": "^([0-9a-f]{2})*$"
    });
    documented!(Name, {
        "description": "A device: a PCI address, or the UUID of a mediated device.",
        "type": "string"
    });
}
