//! `model = "edu"`: QEMU's educational device of `ioasid_edu`, 1234:11e8, an emulated one.

use std::sync::Arc;

use ioasid_core::{host::StdSpawner, inspect::Node};
use ioasid_edu::EduParent;
use ioasid_vfio::mdev::Uuid;
use serde::Deserialize;

use crate::model::{Built, Model, ModelError, Parent, Site, Table};

/// The model.
#[derive(Debug)]
pub struct Edu;

/// It has no keys of its own.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Section {}

impl Model for Edu {
    const NAME: &'static str = "edu";
    const TABLE: Table = Table::Emulated;
    type Section = Section;

    fn build(_section: &Section, _site: &Site<'_>) -> Result<Built, ModelError> {
        Ok(Built::parent(EduParent::new(
            Self::NAME,
            Arc::new(StdSpawner),
        )))
    }
}

impl Parent for EduParent {
    fn inspect_child(&self, uuid: Uuid) -> Option<Node> {
        EduParent::inspect_child(self, uuid)
    }
}
