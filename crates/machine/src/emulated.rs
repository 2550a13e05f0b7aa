//! Emulated mediated devices: software that copies, of a parent with no device behind the IOMMU.

use std::sync::Arc;

use ioasid_core::{PciAddress, host::StdSpawner, inspect::Node};
use ioasid_edu::{EduParent, TYPE_EDU};
use ioasid_vfio::mdev::{MdevParent, MdevRegistry, Uuid};

use crate::{
    file::{EmulatedModel, EmulatedSection},
    sysfs::MdevTypeEntry,
};

/// The parents of a machine's emulated devices: one for each model that its file names.
pub(crate) struct Emulated {
    sections: Vec<EmulatedSection>,
    edu: Option<Arc<EduParent>>,
}

/// A device that is to be there from the start.
pub(crate) struct Wanted<'a> {
    pub(crate) parent: &'static str,
    pub(crate) type_name: &'static str,
    pub(crate) uuid: Uuid,
    pub(crate) vm: Option<&'a str>,
}

impl EmulatedModel {
    /// The name of its parent, and of its type.
    const fn names(self) -> (&'static str, &'static str) {
        match self {
            EmulatedModel::Edu => ("edu", TYPE_EDU),
        }
    }
}

impl Emulated {
    /// The parents that `sections` need; children of them can be made by `mdevs`.
    pub(crate) fn build(sections: &[EmulatedSection], mdevs: &MdevRegistry) -> Self {
        let mut models = sections.iter().map(|section| section.model);
        let edu = models
            .find(|model| *model == EmulatedModel::Edu)
            .map(|model| {
                let (name, _) = model.names();
                let parent = EduParent::new(name, Arc::new(StdSpawner));
                mdevs.add_parent(parent.clone());
                parent
            });
        Emulated {
            sections: sections.to_vec(),
            edu,
        }
    }

    /// The devices that are to be there from the start.
    pub(crate) fn wanted(&self) -> impl Iterator<Item = Wanted<'_>> {
        self.sections.iter().filter_map(|section| {
            let (parent, type_name) = section.model.names();
            Some(Wanted {
                parent,
                type_name,
                uuid: section.uuid?,
                vm: section.vm.as_deref(),
            })
        })
    }

    /// The PCI address that the device `uuid` has for programs besides its UUID.
    pub(crate) fn presented(&self, uuid: Uuid) -> Option<PciAddress> {
        let mut sections = self.sections.iter();
        sections
            .find(|section| section.uuid == Some(uuid))?
            .present_as
    }

    /// The types that can be made.
    pub(crate) fn types(&self) -> Vec<MdevTypeEntry> {
        let parents = self.edu.iter();
        let types = parents.flat_map(|parent| {
            let offered = parent.types().into_iter();
            offered.map(|offered| MdevTypeEntry {
                parent: parent.name(),
                available_instances: parent.available_instances(&offered.id),
                description: offered.description.unwrap_or(offered.name),
                type_name: offered.id,
            })
        });
        types.collect()
    }

    /// What the device `uuid` says of itself.
    pub(crate) fn inspect_child(&self, uuid: Uuid) -> Option<Node> {
        self.edu.as_ref()?.inspect_child(uuid)
    }
}
