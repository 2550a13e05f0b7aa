//! The models that a machine file can name.

use std::{any::Any, fmt, sync::Arc};

use toml::de::{Error, ValueDeserializer};

use super::{
    Built, Driver, Key, MdevSection, Model, ModelError, Site, Table, VirtualFunctions,
    names::{self, Kind},
};

/// Models by name. Programs register their own beside those of
/// [`models::standard`](crate::models::standard).
#[derive(Clone, Debug, Default)]
pub struct Models(Vec<Entry>);

/// A model without its type.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) table: Table,
    pub(crate) host_driver: Option<&'static str>,
    summary: &'static str,
    described: &'static [Key],
    /// The names of its keys, other names too, if they are fields of a struct.
    pub(crate) keys: Option<&'static [&'static str]>,
    /// What the key of a name has to be.
    pub(crate) kind: fn(&str) -> Kind,
    /// Reads its keys.
    pub(crate) read: for<'de> fn(ValueDeserializer<'de>) -> Result<Arc<dyn Section>, Error>,
}

impl Entry {
    /// The names of its keys that people are told of: one for each.
    pub(crate) fn listed(&self) -> Vec<&'static str> {
        match self.described {
            [] => self.keys.unwrap_or_default().to_vec(),
            described => described.iter().map(|key| key.name).collect(),
        }
    }
}

/// What people are told of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Described {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub summary: &'static str,
    /// Its own keys.
    pub keys: &'static [Key],
    /// Whether `driver = "host"` is possible.
    pub has_host_driver: bool,
}

impl Models {
    /// No model.
    pub fn new() -> Self {
        Models::default()
    }

    /// Adds the model `M`.
    ///
    /// # Panics
    /// If another model of the same table has its name.
    #[must_use]
    pub fn with<M: Model>(mut self) -> Self {
        assert!(
            self.find(M::TABLE, M::NAME).is_none(),
            "two models are called `{}`",
            M::NAME
        );
        self.0.push(Entry {
            name: M::NAME,
            table: M::TABLE,
            host_driver: M::HOST_DRIVER,
            summary: M::SUMMARY,
            described: M::KEYS,
            keys: names::fields::<M::Section>(),
            kind: |name| names::kind::<M::Section>(name),
            read: |own| {
                let section: M::Section = serde::Deserialize::deserialize(own)?;
                Ok(Arc::new(Typed::<M>(section)))
            },
        });
        self
    }

    /// The names of the models of `table`, in the order in which they were added.
    pub fn names(&self, table: Table) -> impl Iterator<Item = &'static str> {
        let entries = self.0.iter().filter(move |entry| entry.table == table);
        entries.map(|entry| entry.name)
    }

    /// What there is to know of the models of `table`, in the order in which they were added.
    pub fn describe(&self, table: Table) -> impl Iterator<Item = Described> {
        let entries = self.0.iter().filter(move |entry| entry.table == table);
        entries.map(|entry| Described {
            name: entry.name,
            summary: entry.summary,
            keys: entry.described,
            has_host_driver: entry.host_driver.is_some(),
        })
    }

    pub(crate) fn find(&self, table: Table, name: &str) -> Option<&Entry> {
        let mut entries = self.0.iter();
        entries.find(|entry| entry.table == table && entry.name == name)
    }

    /// The models of `table` that have the key `key`.
    pub(crate) fn with_key(&self, table: Table, key: &str) -> impl Iterator<Item = &'static str> {
        let entries = self.0.iter().filter(move |entry| entry.table == table);
        let having =
            entries.filter(move |entry| entry.keys.is_some_and(|keys| keys.contains(&key)));
        having.map(|entry| entry.name)
    }
}

/// A model's own keys of one section, without the type: what the machine asks of them. See the
/// functions of the same names in [`Model`].
pub trait Section: fmt::Debug + Send + Sync {
    /// The keys themselves.
    fn any(&self) -> &dyn Any;

    /// Refuses what cannot be built.
    ///
    /// # Errors
    /// What the model says.
    fn check(&self, driver: Driver) -> Result<(), ModelError>;

    /// What it asks for, in a few words.
    fn contents(&self) -> String;

    /// The mediated devices that are there from the start.
    fn mdevs(&self) -> Vec<MdevSection>;

    /// The virtual functions that there can be.
    fn virtual_functions(&self) -> Option<VirtualFunctions>;

    /// Builds the device.
    ///
    /// # Errors
    /// What the model says.
    fn build(&self, site: &Site<'_>) -> Result<Built, ModelError>;

    /// Builds a virtual function.
    ///
    /// # Errors
    /// What the model says.
    fn build_virtual(&self, site: &Site<'_>) -> Result<Built, ModelError>;
}

/// The keys of the model `M`.
struct Typed<M: Model>(M::Section);

impl<M: Model> fmt::Debug for Typed<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl<M: Model> Section for Typed<M> {
    fn any(&self) -> &dyn Any {
        &self.0
    }

    fn check(&self, driver: Driver) -> Result<(), ModelError> {
        M::check(&self.0, driver)
    }

    fn contents(&self) -> String {
        M::contents(&self.0)
    }

    fn mdevs(&self) -> Vec<MdevSection> {
        M::mdevs(&self.0)
    }

    fn virtual_functions(&self) -> Option<VirtualFunctions> {
        M::virtual_functions(&self.0)
    }

    fn build(&self, site: &Site<'_>) -> Result<Built, ModelError> {
        M::build(&self.0, site)
    }

    fn build_virtual(&self, site: &Site<'_>) -> Result<Built, ModelError> {
        M::build_virtual(&self.0, site)
    }
}
