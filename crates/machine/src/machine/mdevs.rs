//! The mediated devices of a machine: which there are, and which VM owns each.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ioasid_core::{PciAddress, sync::Mutex};
use ioasid_vfio::{
    Vfio,
    error::MdevError,
    mdev::{Mdev, MdevRegistry, Uuid},
};

use super::node::{MdevInfo, VfioNode};
use crate::{model::Parent, sysfs::MdevTypeEntry};

/// Mediated devices, with what the machine file says of some of them.
#[derive(Debug)]
pub(super) struct Mdevs {
    registry: Arc<MdevRegistry>,
    /// The VM of each that belongs to one.
    owners: Mutex<BTreeMap<Uuid, String>>,
    /// The PCI address that some have besides their UUID.
    addresses: BTreeMap<Uuid, PciAddress>,
}

impl Mdevs {
    /// None yet; those of `addresses` get theirs when they are made.
    pub(super) fn new(vfio: &Arc<Vfio>, addresses: BTreeMap<Uuid, PciAddress>) -> Self {
        Mdevs {
            registry: MdevRegistry::new(vfio),
            owners: Mutex::default(),
            addresses,
        }
    }

    /// Lets children of `parent` be made.
    pub(super) fn add_parent(&self, parent: Arc<dyn Parent>) {
        self.registry.add_parent(parent);
    }

    /// Makes one, as by writing `text` to the `create` file of a type.
    ///
    /// # Errors
    /// As of [`MdevRegistry::create`].
    pub(super) fn create(
        &self,
        parent: &str,
        type_name: &str,
        text: &[u8],
        vm: Option<&str>,
    ) -> Result<MdevInfo, MdevError> {
        let mdev = self.registry.create(parent, type_name, text)?;
        if let Some(address) = self.address(mdev.uuid()) {
            mdev.device().group().present_as(address.to_string());
        }
        if let Some(vm) = vm {
            self.owners.lock().insert(mdev.uuid(), vm.to_owned());
        }
        Ok(info(&mdev, vm.map(str::to_owned)))
    }

    /// Removes one: asks its user for it and waits.
    ///
    /// # Errors
    /// As of [`MdevRegistry::remove`].
    pub(super) fn remove(&self, uuid: Uuid, patience: Duration) -> Result<(), MdevError> {
        self.registry.remove(uuid, patience)?;
        self.owners.lock().remove(&uuid);
        Ok(())
    }

    /// Those that a program of `vm` sees; all for `None`.
    pub(super) fn of(&self, vm: Option<&str>) -> Vec<MdevInfo> {
        let owners = self.owners.lock().clone();
        let mdevs = self.registry.list().into_iter();
        let mdevs = mdevs.map(|mdev| info(&mdev, owners.get(&mdev.uuid()).cloned()));
        mdevs
            .filter(|mdev| vm.is_none() || mdev.vm.as_deref() == vm)
            .collect()
    }

    /// The VMs that own one.
    pub(super) fn vms(&self) -> Vec<String> {
        self.owners.lock().values().cloned().collect()
    }

    /// The PCI address that `uuid` has for programs besides its UUID.
    pub(super) fn address(&self, uuid: Uuid) -> Option<PciAddress> {
        self.addresses.get(&uuid).copied()
    }
}

fn info(mdev: &Mdev, vm: Option<String>) -> MdevInfo {
    MdevInfo {
        uuid: mdev.uuid(),
        parent: mdev.parent().name(),
        type_name: mdev.type_id().to_owned(),
        vm,
        node: VfioNode::new(mdev.device()),
    }
}

/// The types that `parent` offers.
pub(super) fn types_of(parent: &dyn Parent) -> Vec<MdevTypeEntry> {
    let types = parent.types().into_iter();
    let entry = types.map(|offered| MdevTypeEntry {
        parent: parent.name(),
        available_instances: parent.available_instances(&offered.id),
        description: offered.description.unwrap_or(offered.name),
        type_name: offered.id,
    });
    entry.collect()
}
