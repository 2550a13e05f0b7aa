//! From text to sections: TOML, and device strings.

use std::sync::Arc;

use ioasid_core::PciAddress;
use ioasid_vfio::mdev::Uuid;
use serde::Deserialize;
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue, ValueDeserializer},
};

use super::{
    DeviceSection, EmulatedSection, IommuSection, MachineFile,
    error::{DeviceStringError, Fault, MachineFileError, SyntaxError},
    inject::InjectSection,
};
use crate::model::{
    Driver, Models, Section, Table,
    names::{Kind, fields, kind, parsed},
    registry::Entry,
};

/// The top of a machine file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Top {
    #[serde(default)]
    iommu: IommuSection,
    #[serde(default, rename = "device")]
    _devices: Vec<toml::Table>,
    #[serde(default, rename = "emulated")]
    _emulated: Vec<toml::Table>,
    #[serde(default)]
    inject: Vec<InjectSection>,
}

/// The keys of a `[[device]]` of every model.
#[derive(Deserialize)]
struct DeviceKeys {
    #[serde(default, deserialize_with = "parsed")]
    address: Option<PciAddress>,
    #[serde(default)]
    driver: Driver,
    #[serde(default)]
    vm: Option<String>,
}

/// The keys of an `[[emulated]]` of every model.
#[derive(Deserialize)]
struct EmulatedKeys {
    #[serde(default, deserialize_with = "parsed")]
    uuid: Option<Uuid>,
    #[serde(default)]
    vm: Option<String>,
    #[serde(default, deserialize_with = "parsed")]
    present_as: Option<PciAddress>,
}

/// The key that says which model a section is of.
const MODEL: &str = "model";

/// Reads a whole machine file; nothing is checked yet that needs more than one key.
pub(super) fn file(text: &str, models: &Models) -> Result<MachineFile, MachineFileError> {
    let reader = Reader { text, models };
    Ok(reader.file()?)
}

/// Reads `MODEL[,KEY=VALUE...]` with the keys of a `[[device]]` section.
pub(super) fn device_string(
    text: &str,
    models: &Models,
) -> Result<DeviceSection, DeviceStringError> {
    let mut parts = text.split(',');
    let mut table = toml::Table::new();
    let model = parts.next().unwrap_or_default();
    table.insert(MODEL.to_owned(), model.into());
    let entry = models.find(Table::Device, model);
    for part in parts {
        let pair = part.split_once('=');
        let (key, value) = pair.ok_or_else(|| DeviceStringError::NotKeyValue(part.to_owned()))?;
        let kind = match fields::<DeviceKeys>().is_some_and(|common| common.contains(&key)) {
            true => kind::<DeviceKeys>(key),
            false => entry.map_or(Kind::Other, |entry| (entry.kind)(key)),
        };
        let value = typed(value, kind);
        if table.insert(key.to_owned(), value).is_some() {
            return Err(DeviceStringError::Twice(key.to_owned()));
        }
    }
    // The same reader as for a file, whose lines nobody has written.
    let text = table.to_string();
    let without_line = |error: SyntaxError| error.fault.at(None);
    let reader = Reader {
        text: &text,
        models,
    };
    let section = reader.root().and_then(|root| {
        let span = root.span();
        reader.device(Spanned::new(span, root.into_inner()))
    });
    Ok(section.map_err(without_line)?)
}

/// The value that a text is for a key of `kind`. One that is none is left as it is: the key's type
/// answers it.
fn typed(text: &str, kind: Kind) -> toml::Value {
    let number = || match text.strip_prefix("0x") {
        Some(digits) => i64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    let value = match kind {
        Kind::Number => number().map(toml::Value::from),
        Kind::Flag => text.parse::<bool>().ok().map(toml::Value::from),
        Kind::Text | Kind::Other => None,
    };
    value.unwrap_or_else(|| text.into())
}

/// A text with what its sections can name.
struct Reader<'a> {
    text: &'a str,
    models: &'a Models,
}

impl<'a> Reader<'a> {
    fn root(&self) -> Result<Spanned<DeTable<'a>>, SyntaxError> {
        DeTable::parse(self.text).map_err(|error| self.toml(error))
    }

    fn file(&self) -> Result<MachineFile, SyntaxError> {
        let mut root = self.root()?;
        let known = fields::<Top>().unwrap_or_default();
        self.check_keys(root.get_ref(), &[known], known.to_vec(), |_| Vec::new())?;
        let span = root.span();
        let top = DeValue::Table(root.get_ref().clone());
        let top: Top = self.value(Spanned::new(span, top))?;
        let devices = Self::sections(root.get_mut(), "device").into_iter();
        let devices = devices.map(|section| self.device(section));
        let emulated = Self::sections(root.get_mut(), "emulated").into_iter();
        let emulated = emulated.map(|section| self.emulated(section));
        Ok(MachineFile {
            iommu: top.iommu,
            device: devices.collect::<Result<_, _>>()?,
            emulated: emulated.collect::<Result<_, _>>()?,
            inject: top.inject,
        })
    }

    /// Takes the tables `[[name]]` out of `root`. What is none has been refused with the top.
    fn sections(root: &mut DeTable<'a>, name: &str) -> Vec<Spanned<DeTable<'a>>> {
        let array = match root.remove(name).map(Spanned::into_inner) {
            Some(DeValue::Array(array)) => array,
            _ => DeArray::new(),
        };
        let table = |value: Spanned<DeValue<'a>>| {
            let span = value.span();
            match value.into_inner() {
                DeValue::Table(table) => Some(Spanned::new(span, table)),
                _ => None,
            }
        };
        array.into_iter().filter_map(table).collect()
    }

    fn device(&self, section: Spanned<DeTable<'a>>) -> Result<DeviceSection, SyntaxError> {
        let known = fields::<DeviceKeys>().unwrap_or_default();
        let (entry, common, own) = self.split(section, Table::Device, known)?;
        let keys: DeviceKeys = self.value(common)?;
        Ok(DeviceSection {
            model: entry.name,
            host_driver: entry.host_driver,
            address: keys.address,
            driver: keys.driver,
            vm: keys.vm,
            own: self.own(entry, own)?,
        })
    }

    fn emulated(&self, section: Spanned<DeTable<'a>>) -> Result<EmulatedSection, SyntaxError> {
        let known = fields::<EmulatedKeys>().unwrap_or_default();
        let (entry, common, own) = self.split(section, Table::Emulated, known)?;
        let keys: EmulatedKeys = self.value(common)?;
        Ok(EmulatedSection {
            model: entry.name,
            uuid: keys.uuid,
            vm: keys.vm,
            present_as: keys.present_as,
            has_keys: own.get_ref().as_table().is_some_and(|own| !own.is_empty()),
            own: self.own(entry, own)?,
        })
    }

    /// The model of a section, its keys that every model has, and those of the model.
    fn split(
        &self,
        section: Spanned<DeTable<'a>>,
        table: Table,
        common: &'static [&'static str],
    ) -> Result<(Entry, Spanned<DeValue<'a>>, Spanned<DeValue<'a>>), SyntaxError> {
        let span = section.span();
        let line = Some(self.line(span.start));
        let mut own = section.into_inner();
        let model = own.remove(MODEL).ok_or_else(|| Fault::NoModel.at(line))?;
        let line = Some(self.line(model.span().start));
        let model: String = self.value(model)?;
        let entry = self.models.find(table, &model);
        let entry = *entry.ok_or_else(|| {
            let known = self.models.names(table).collect();
            let name = model.clone();
            Fault::UnknownModel { name, known }.at(line)
        })?;
        if let Some(keys) = entry.keys {
            let others = |key: &str| self.models.with_key(table, key).collect();
            let listed = [entry.listed().as_slice(), common].concat();
            self.check_keys(&own, &[common, keys], listed, others)?;
        }
        let mut shared = DeTable::new();
        for name in common {
            if let Some((key, value)) = own.remove_entry(*name) {
                shared.insert(key, value);
            }
        }
        let spanned = |table| Spanned::new(span.clone(), DeValue::Table(table));
        Ok((entry, spanned(shared), spanned(own)))
    }

    /// Refuses a key of `table` that none of `taken` has, with those that are `listed` and the models
    /// that do have it.
    fn check_keys(
        &self,
        table: &DeTable<'a>,
        taken: &[&[&'static str]],
        listed: Vec<&'static str>,
        owners: impl Fn(&str) -> Vec<&'static str>,
    ) -> Result<(), SyntaxError> {
        let taken = taken.concat();
        let mut keys: Vec<_> = table.keys().collect();
        // In the order of the text.
        keys.sort_by_key(|key| key.span().start);
        match keys.iter().find(|key| !taken.contains(&&**key.get_ref())) {
            None => Ok(()),
            Some(key) => {
                let line = Some(self.line(key.span().start));
                let key = key.get_ref().clone().into_owned();
                let owners = owners(&key);
                let known = listed;
                Err(Fault::UnknownKey { key, known, owners }.at(line))
            }
        }
    }

    fn own(
        &self,
        entry: Entry,
        own: Spanned<DeValue<'a>>,
    ) -> Result<Arc<dyn Section>, SyntaxError> {
        (entry.read)(ValueDeserializer::from(own)).map_err(|error| self.toml(error))
    }

    fn value<T: Deserialize<'a>>(&self, value: Spanned<DeValue<'a>>) -> Result<T, SyntaxError> {
        let value = ValueDeserializer::from(value);
        T::deserialize(value).map_err(|error| self.toml(error))
    }

    fn toml(&self, error: toml::de::Error) -> SyntaxError {
        let line = error.span().map(|span| self.line(span.start));
        Fault::from(error).at(line)
    }

    /// The line of the byte at `offset`, from 1.
    fn line(&self, offset: usize) -> usize {
        let before = self.text.as_bytes().iter().take(offset);
        before.filter(|byte| **byte == b'\n').count() + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file::DEVICE_KEYS;

    #[test]
    fn every_key_that_all_models_have_is_described() {
        let described: Vec<_> = DEVICE_KEYS.iter().map(|key| key.name).collect();
        assert_eq!(fields::<DeviceKeys>(), Some(&*described));
    }
}
