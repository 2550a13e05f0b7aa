//! Emulated mediated devices: software that copies, of a parent with no device behind the IOMMU.

use std::{collections::BTreeMap, sync::Arc};

use ioasid_core::{host::Spawner, inspect::Node};
use ioasid_iommu::Iommu;
use ioasid_vfio::mdev::Uuid;

use super::{
    error::{BuiltError, MachineError},
    mdevs::types_of,
};
use crate::{
    file::EmulatedSection,
    model::{Driver, Parent, Site},
    sysfs::MdevTypeEntry,
};

/// The parents of a machine's emulated devices: one for each model that its file names.
#[derive(Debug)]
pub(super) struct Emulated {
    parents: BTreeMap<&'static str, Arc<dyn Parent>>,
}

impl Emulated {
    /// The parents that `sections` need.
    pub(super) fn build(
        sections: &[EmulatedSection],
        iommu: &Arc<Iommu>,
        spawner: &dyn Spawner,
    ) -> Result<Self, MachineError> {
        let mut parents = BTreeMap::new();
        for section in sections {
            let model = section.model;
            if parents.contains_key(model) {
                continue;
            }
            let site = Site {
                iommu,
                spawner,
                address: None,
                driver: Driver::Vfio,
            };
            let built = section.own.build(&site);
            let parent = built.and_then(|built| Ok(built.parent.ok_or(BuiltError::NoParent)?));
            let parent = parent.map_err(|source| MachineError::Emulated { model, source })?;
            parents.insert(model, parent);
        }
        Ok(Emulated { parents })
    }

    /// The parents.
    pub(super) fn parents(&self) -> impl Iterator<Item = &Arc<dyn Parent>> {
        self.parents.values()
    }

    /// The name of the parent of `model`, and of the first type that it offers.
    pub(super) fn names(&self, model: &str) -> Option<(String, String)> {
        let parent = self.parents.get(model)?;
        let offered = parent.types().into_iter().next()?;
        Some((parent.name(), offered.id))
    }

    /// The types that can be made.
    pub(super) fn types(&self) -> Vec<MdevTypeEntry> {
        let parents = self.parents();
        parents.flat_map(|parent| types_of(&**parent)).collect()
    }

    /// What the device `uuid` says of itself.
    pub(super) fn inspect_child(&self, uuid: Uuid) -> Option<Node> {
        self.parents().find_map(|parent| parent.inspect_child(uuid))
    }
}
