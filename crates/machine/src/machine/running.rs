//! The machine as a whole: what it is made of, how it is built.

use std::{
    any::Any,
    collections::{BTreeMap, BTreeSet},
    fmt,
    sync::{Arc, Weak, atomic::AtomicU64},
    time::Duration,
};

use ioasid_core::{PciAddress, host::Spawner, sync::Mutex};
use ioasid_iommu::{Iommu, IommuConfig};
use ioasid_iommufd::{Context, Limits, MemoryLedger};
use ioasid_vfio::{Vfio, error::MdevError, mdev::Uuid};

use super::{
    device::MachineDevice, emulated::Emulated, error::MachineError, mdevs::Mdevs, node::MdevInfo,
    sriov::VirtualFunctions,
};
use crate::{file::MachineFile, model::HostDriver, sysfs::cpus::Cpus};

/// How long the removal of a mediated device waits for its user.
pub(super) const REMOVE_PATIENCE: Duration = Duration::from_secs(5);

/// A running machine. Dropping it stops its engines.
pub struct Machine {
    pub(super) name: String,
    pub(super) iommu: Arc<Iommu>,
    pub(super) vfio: Arc<Vfio>,
    pub(super) mdevs: Mdevs,
    pub(super) virtual_functions: VirtualFunctions,
    pub(super) emulated: Emulated,
    /// What was written to attributes that show it, by function and name.
    pub(super) kept: Mutex<BTreeMap<(PciAddress, &'static str), String>>,
    /// The processors of the host.
    pub(super) cpus: Mutex<Cpus>,
    /// Grows with every change of what programs see.
    pub(super) generation: AtomicU64,
    pub(super) devices: Vec<MachineDevice>,
    /// Nodes of whole devices that were taken away.
    pub(super) removed: Mutex<BTreeSet<String>>,
    pub(super) contexts: Mutex<Vec<Weak<Context>>>,
    /// Memory that programs have locked, whichever of their files they locked it with.
    pub(super) ledger: Arc<MemoryLedger>,
}

impl Machine {
    /// Builds the machine that `file` describes; its engines run on threads of `spawner`.
    ///
    /// # Errors
    /// See [`MachineError`]; what was built before the error is taken down again.
    pub fn build(
        name: impl Into<String>,
        file: &MachineFile,
        spawner: &dyn Spawner,
    ) -> Result<Arc<Self>, MachineError> {
        let iommu = Iommu::new(IommuConfig {
            format: file.iommu.format,
            ..IommuConfig::default()
        });
        let vfio = Vfio::new(&iommu);
        let mdevs = Mdevs::new(&vfio, file.presented().collect());
        let mut devices = Vec::new();
        for section in &file.device {
            let device = MachineDevice::build(section, &iommu, &vfio, spawner)?;
            devices.push(device);
        }
        let emulated = Emulated::build(&file.emulated, &iommu, spawner)?;
        let parents = devices.iter().filter_map(|device| device.parent.as_ref());
        for parent in parents.chain(emulated.parents()) {
            mdevs.add_parent(Arc::clone(parent));
        }
        let machine = Arc::new(Machine {
            name: name.into(),
            iommu,
            vfio,
            mdevs,
            virtual_functions: VirtualFunctions::default(),
            emulated,
            kept: Mutex::default(),
            cpus: Mutex::default(),
            generation: AtomicU64::new(0),
            devices,
            removed: Mutex::default(),
            contexts: Mutex::default(),
            ledger: MemoryLedger::new(match file.iommu.enforce_memlock {
                true => Limits::Enforced,
                false => Limits::Counted,
            }),
        });
        machine.create_first_mdevs(file)?;
        machine.inject_all(file)?;
        Ok(machine)
    }

    /// Creates the mediated devices that the machine file names.
    fn create_first_mdevs(&self, file: &MachineFile) -> Result<(), MachineError> {
        for device in &self.devices {
            let parent = device.address.to_string();
            for mdev in device.section.own.mdevs() {
                let uuid = mdev.uuid.to_string();
                self.create_mdev(&parent, mdev.type_name, &uuid, mdev.vm)?;
            }
        }
        for section in &file.emulated {
            if let Some(uuid) = section.uuid
                && let Some((parent, type_name)) = self.emulated.names(section.model)
            {
                let vm = section.vm.clone();
                self.create_mdev(&parent, &type_name, &uuid.to_string(), vm)?;
            }
        }
        Ok(())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The IOMMU in front of every device.
    pub fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    /// The device at `address`, if it is a `D`: `DsaDevice`, for instance.
    pub fn device<D: Any + Send + Sync>(&self, address: PciAddress) -> Option<Arc<D>> {
        let mut devices = self.devices.iter();
        let device = devices.find(|device| device.address == address)?;
        let whole: Arc<dyn Any + Send + Sync> = device.whole.clone();
        whole.downcast().ok()
    }

    /// The host's own drivers that are an `H`, with the addresses of their devices.
    pub fn host_drivers<H: HostDriver>(&self) -> impl Iterator<Item = (PciAddress, Arc<H>)> {
        let devices = self.devices.iter();
        devices.filter_map(|device| {
            let host: Arc<dyn Any + Send + Sync> = device.host.clone()?;
            Some((device.address, host.downcast().ok()?))
        })
    }

    /// How much memory each user has locked.
    pub fn ledger(&self) -> &Arc<MemoryLedger> {
        &self.ledger
    }

    /// A new open file of `/dev/iommu`.
    pub fn new_context(&self) -> Arc<Context> {
        let context = Context::with_ledger(&self.iommu, &self.ledger);
        let mut contexts = self.contexts.lock();
        contexts.retain(|known| known.strong_count() > 0);
        contexts.push(Arc::downgrade(&context));
        context
    }

    /// Whether something of the machine belongs to `vm`.
    pub fn has_vm(&self, vm: &str) -> bool {
        self.vms().iter().any(|known| known == vm)
    }

    /// The names of all VMs.
    pub fn vms(&self) -> Vec<String> {
        let devices = self.devices.iter();
        let devices = devices.filter_map(|device| device.section.vm.clone());
        let mut vms: Vec<_> = devices.chain(self.mdevs.vms()).collect();
        vms.sort();
        vms.dedup();
        vms
    }

    /// Creates a mediated device on a queue of `parent` that is set aside for one.
    ///
    /// # Errors
    /// [`MachineError::Mdev`] with what writing to the `create` file would give: EINVAL for what is
    /// no UUID, EEXIST, EUSERS when no queue is left.
    pub fn create_mdev(
        &self,
        parent: &str,
        type_name: &str,
        uuid: &str,
        vm: Option<String>,
    ) -> Result<MdevInfo, MachineError> {
        let created = self
            .mdevs
            .create(parent, type_name, uuid.as_bytes(), vm.as_deref());
        let mdev = created.map_err(|source| MachineError::Mdev {
            uuid: uuid.to_owned(),
            source,
        })?;
        self.has_changed();
        Ok(mdev)
    }

    /// Removes a mediated device: asks its user for it and waits a few seconds.
    ///
    /// # Errors
    /// [`MachineError::Mdev`] if there is none, or it is still in use.
    pub fn remove_mdev(&self, uuid: &str) -> Result<(), MachineError> {
        let parsed = uuid.parse::<Uuid>().map_err(MdevError::from);
        let removed = parsed.and_then(|uuid| self.mdevs.remove(uuid, REMOVE_PATIENCE));
        removed.map_err(|source| MachineError::Mdev {
            uuid: uuid.to_owned(),
            source,
        })?;
        self.has_changed();
        Ok(())
    }

    /// The types of mediated devices that `parent` offers.
    pub fn mdev_types_of(&self, parent: &str) -> Vec<String> {
        let types = self.mdev_types().into_iter();
        let types = types.filter(|entry| entry.parent == parent);
        types.map(|entry| entry.type_name).collect()
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}
