//! The running set: IOMMU, devices, the parent's own driver, mediated devices, open contexts.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Weak, atomic::AtomicU64},
    time::Duration,
};

use ioasid_core::{PciAddress, host::Spawner, sync::Mutex};
use ioasid_dsa::{DsaDevice, HostQueue};
use ioasid_ioat::{HostChannel, IoatDevice};
use ioasid_iommu::{Iommu, IommuConfig};
use ioasid_iommufd::{Context, Limits, MemoryLedger};
use ioasid_vfio::{
    Vfio,
    mdev::{MdevRegistry, Uuid},
};

use crate::{
    emulated::Emulated,
    file::MachineFile,
    model::{HostSide, Whole},
    sriov::VirtualFunctions,
    sysfs::cpus::Cpus,
};

mod changes;
mod device;
mod functions;
mod inspect;
mod view;

use device::MachineDevice;
pub use view::{ExportedDevice, MdevInfo, VfioNode};

/// How long the removal of a mediated device waits for its user.
const REMOVE_PATIENCE: Duration = Duration::from_secs(5);

/// Why a machine could not be built or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// The IOMMU refuses a device.
    #[error("device {address}: {cause}")]
    Device {
        /// The device.
        address: PciAddress,
        /// Why, in words.
        cause: String,
    },
    /// A mediated device could not be created or removed.
    #[error("mediated device {uuid}: {cause}")]
    Mdev {
        /// What was given as its UUID.
        uuid: String,
        /// Why.
        cause: ioasid_vfio::Error,
    },
}

/// A running machine. Dropping it stops its engines.
pub struct Machine {
    name: String,
    iommu: Arc<Iommu>,
    vfio: Arc<Vfio>,
    mdevs: Arc<MdevRegistry>,
    virtual_functions: VirtualFunctions,
    emulated: Emulated,
    /// What was written to attributes that show it, by function and name.
    kept: Mutex<BTreeMap<(PciAddress, &'static str), String>>,
    /// The processors of the host.
    cpus: Mutex<Cpus>,
    /// Grows with every change of what programs see.
    generation: AtomicU64,
    devices: Vec<MachineDevice>,
    vm_of_mdev: Mutex<BTreeMap<Uuid, String>>,
    contexts: Mutex<Vec<Weak<Context>>>,
    /// Memory that programs have locked, whichever of their files they locked it with.
    ledger: Arc<MemoryLedger>,
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
        let format = file.iommu.format;
        let iommu = Iommu::new(IommuConfig {
            format,
            ..IommuConfig::default()
        });
        let vfio = Vfio::new(&iommu);
        let mdevs = MdevRegistry::new(&vfio);
        let mut devices = Vec::new();
        for section in &file.device {
            devices.push(MachineDevice::build(
                section, &iommu, &vfio, &mdevs, spawner,
            )?);
        }
        let emulated = Emulated::build(&file.emulated, &mdevs);
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
            vm_of_mdev: Mutex::default(),
            contexts: Mutex::default(),
            ledger: MemoryLedger::new(match file.iommu.enforce_memlock {
                true => Limits::Enforced,
                false => Limits::Counted,
            }),
        });
        for device in &machine.devices {
            let types = device.mdev_types();
            for (queue, offered) in device.section.queue.iter().zip(types.iter().cycle()) {
                if let Some(uuid) = queue.uuid {
                    let (parent, uuid) = (device.address.to_string(), uuid.to_string());
                    let vm = queue.vm.clone();
                    machine.create_mdev(&parent, &offered.type_name, &uuid, vm)?;
                }
            }
        }
        for wanted in machine.emulated.wanted() {
            let (uuid, vm) = (wanted.uuid.to_string(), wanted.vm.map(str::to_owned));
            machine.create_mdev(wanted.parent, wanted.type_name, &uuid, vm)?;
        }
        Ok(machine)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The IOMMU in front of every device.
    pub fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    fn whole(&self, address: PciAddress) -> Option<&Whole> {
        let mut devices = self.devices.iter();
        let device = devices.find(|device| device.address == address)?;
        Some(&device.whole)
    }

    /// The software DSA at `address`.
    pub fn dsa(&self, address: PciAddress) -> Option<&Arc<DsaDevice>> {
        match self.whole(address)? {
            Whole::Dsa(dsa) => Some(dsa),
            Whole::Ioat(_) => None,
        }
    }

    /// The software I/OAT at `address`.
    pub fn ioat(&self, address: PciAddress) -> Option<&Arc<IoatDevice>> {
        match self.whole(address)? {
            Whole::Dsa(_) => None,
            Whole::Ioat(ioat) => Some(ioat),
        }
    }

    /// The devices that the host drives, by address.
    fn hosts(&self) -> impl Iterator<Item = (PciAddress, &HostSide)> {
        let devices = self.devices.iter();
        devices.filter_map(|device| Some((device.address, device.host.as_ref()?)))
    }

    /// The queues on which the parents' own drivers work.
    pub fn host_queues(&self) -> impl Iterator<Item = (PciAddress, &Arc<HostQueue>)> {
        let hosts = self.hosts();
        hosts.flat_map(|(address, host)| host.queues.dsa().iter().map(move |one| (address, one)))
    }

    /// The channels on which the parents' own drivers work.
    pub fn host_channels(&self) -> impl Iterator<Item = (PciAddress, &Arc<HostChannel>)> {
        let hosts = self.hosts();
        hosts.flat_map(|(address, host)| host.queues.ioat().iter().map(move |one| (address, one)))
    }

    /// Who has locked how much memory.
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
        self.devices
            .iter()
            .any(|device| device.section.vm.as_deref() == Some(vm))
            || self.vm_of_mdev.lock().values().any(|owner| owner == vm)
    }

    /// The names of all VMs.
    pub fn vms(&self) -> Vec<String> {
        let devices = self
            .devices
            .iter()
            .filter_map(|device| device.section.vm.clone());
        let mut vms: Vec<_> = devices
            .chain(self.vm_of_mdev.lock().values().cloned())
            .collect();
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
        let failed = |cause| MachineError::Mdev {
            uuid: uuid.to_owned(),
            cause,
        };
        let mdev = self
            .mdevs
            .create(parent, type_name, uuid.as_bytes())
            .map_err(failed)?;
        if let Some(address) = self.presented(mdev.uuid()) {
            mdev.device().group().present_as(address.to_string());
        }
        if let Some(vm) = &vm {
            self.vm_of_mdev.lock().insert(mdev.uuid(), vm.clone());
        }
        self.has_changed();
        Ok(MdevInfo {
            uuid: mdev.uuid(),
            parent: parent.to_owned(),
            type_name: type_name.to_owned(),
            vm,
            node: VfioNode::new(mdev.device()),
        })
    }

    /// Removes a mediated device: asks its user for it and waits a few seconds.
    ///
    /// # Errors
    /// [`MachineError::Mdev`] if there is none, or it is still in use.
    pub fn remove_mdev(&self, uuid: &str) -> Result<(), MachineError> {
        let failed = |cause| MachineError::Mdev {
            uuid: uuid.to_owned(),
            cause,
        };
        let parsed: Uuid = uuid.parse().map_err(failed)?;
        self.remove_mdev_of(parsed, REMOVE_PATIENCE)
            .map_err(failed)?;
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
