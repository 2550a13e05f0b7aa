//! The running set: IOMMU, devices, the parent's own driver, mediated devices, open contexts.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Weak, atomic::AtomicU64},
    time::Duration,
};

use ioasid_core::{
    PciAddress,
    host::Spawner,
    inspect::{Inspect, Node, Value},
    sync::Mutex,
};
use ioasid_dsa::{DsaConfig, DsaDevice, HostQueue, MAX_TRANSFER_SHIFT, QueueConfig, Role};
use ioasid_ioat::{HostChannel, IoatDevice};
use ioasid_iommu::{DeviceConfig, Iommu, IommuConfig};
use ioasid_iommufd::{Context, Limits, MemoryLedger};
use ioasid_vfio::{
    Passthrough, Vfio, VfioDevice,
    mdev::{Mdev, MdevRegistry, Uuid},
    pci::Function,
};

use crate::{
    emulated::Emulated,
    file::{DeviceSection, Driver, MachineFile, Model, Owner},
    model::{HostSide, Whole},
    sriov::VirtualFunctions,
    sysfs::{
        MdevFunction, MdevTypeEntry, PciFunction, SysfsBuilder, SysfsEntry, VfioName, bar_base,
    },
};

mod changes;

/// Character device major number of the VFIO device nodes: in Linux a dynamic one, here the first
/// that Linux would give (`CHRDEV_MAJOR_DYN_EXT_START`, include/linux/fs.h).
const VFIO_MAJOR: u32 = 511;

/// PASIDs that one device can use, as a power of two.
const PASID_BITS: u8 = 20;

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

/// One device of the machine.
struct MachineDevice {
    section: DeviceSection,
    address: PciAddress,
    whole: Whole,
    group: u32,
    /// What the host has of a device that it drives.
    host: Option<HostSide>,
    /// The node, for a device that is offered whole.
    vfio: Option<Arc<VfioDevice>>,
}

/// A device node below `/dev/vfio/devices`.
#[derive(Clone, Debug)]
pub struct VfioNode {
    /// File name, `vfio0`.
    pub name: String,
    /// Character device number.
    pub major: u32,
    /// Character device number.
    pub minor: u32,
    /// What an open opens.
    pub device: Arc<VfioDevice>,
}

impl VfioNode {
    fn new(device: &Arc<VfioDevice>) -> Self {
        let (name, minor) = (device.name().to_owned(), device.index());
        VfioNode {
            name,
            major: VFIO_MAJOR,
            minor,
            device: Arc::clone(device),
        }
    }

    fn sysfs_name(&self) -> VfioName {
        VfioName {
            name: self.name.clone(),
            major: self.major,
            minor: self.minor,
        }
    }
}

/// A mediated device, for lists.
#[derive(Clone, Debug)]
pub struct MdevInfo {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its parent's name.
    pub parent: String,
    /// Its type.
    pub type_name: String,
    /// The VM that owns it.
    pub vm: Option<String>,
    /// Its node.
    pub node: VfioNode,
}

/// A device that can be handed to a VM as a whole.
#[derive(Clone, Debug)]
pub struct ExportedDevice {
    /// What it is called: its PCI address, or its UUID.
    pub name: String,
    /// The VM that owns it.
    pub vm: Option<String>,
    /// What an open opens.
    pub device: Arc<VfioDevice>,
}

/// A running machine. Dropping it stops its engines.
pub struct Machine {
    name: String,
    iommu: Arc<Iommu>,
    vfio: Arc<Vfio>,
    mdevs: Arc<MdevRegistry>,
    virtual_functions: VirtualFunctions,
    emulated: Emulated,
    driver_overrides: Mutex<BTreeMap<PciAddress, String>>,
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
        let format = file.iommu.format.into();
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
            driver_overrides: Mutex::default(),
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

    /// The whole devices that a program of `vm` sees; all for `None`.
    fn pdevs<'a>(&'a self, vm: Option<&'a str>) -> impl Iterator<Item = &'a MachineDevice> {
        self.devices.iter().filter(move |device| {
            device.vfio.is_some() && (vm.is_none() || device.section.vm.as_deref() == vm)
        })
    }

    /// The mediated devices that a program of `vm` sees; all for `None`.
    pub fn mdevs(&self, vm: Option<&str>) -> Vec<MdevInfo> {
        let owners = self.vm_of_mdev.lock().clone();
        let info = |mdev: Arc<Mdev>| MdevInfo {
            uuid: mdev.uuid(),
            parent: mdev.parent().name(),
            type_name: mdev.type_id().to_owned(),
            vm: owners.get(&mdev.uuid()).cloned(),
            node: VfioNode::new(mdev.device()),
        };
        let mdevs = self.mdevs.list().into_iter().map(info);
        mdevs
            .filter(|mdev| vm.is_none() || mdev.vm.as_deref() == vm)
            .collect()
    }

    /// The device nodes that a program of `vm` sees; all for `None`.
    pub fn nodes(&self, vm: Option<&str>) -> Vec<VfioNode> {
        let pdevs = self
            .pdevs(vm)
            .filter_map(|device| device.vfio.as_ref())
            .map(VfioNode::new);
        let virtual_functions = self.shown_virtual_functions(vm).into_iter();
        pdevs
            .chain(virtual_functions.map(|function| VfioNode::new(&function.node)))
            .chain(self.mdevs(vm).into_iter().map(|mdev| mdev.node))
            .collect()
    }

    /// The whole devices and the mediated ones, by names that do not depend on the order in which they
    /// came.
    pub fn exports(&self) -> Vec<ExportedDevice> {
        let pdevs = self.pdevs(None).filter_map(|device| {
            Some(ExportedDevice {
                name: device.address.to_string(),
                vm: device.section.vm.clone(),
                device: Arc::clone(device.vfio.as_ref()?),
            })
        });
        let mdevs = self.mdevs(None).into_iter().map(|mdev| ExportedDevice {
            name: mdev.uuid.to_string(),
            vm: mdev.vm,
            device: mdev.node.device,
        });
        pdevs.chain(mdevs).collect()
    }

    /// What is added to the `/sys` of a program of `vm`. A parent is shown to whoever sees one of
    /// its mediated devices.
    pub fn sysfs(&self, vm: Option<&str>) -> Vec<SysfsEntry> {
        let mut sysfs = SysfsBuilder::new();
        let mdevs = self.mdevs(vm);
        for device in &self.devices {
            let name = device.address.to_string();
            let is_parent = mdevs.iter().any(|mdev| mdev.parent == name);
            let is_visible = self
                .pdevs(vm)
                .any(|visible| visible.address == device.address);
            if vm.is_none() || is_parent || is_visible {
                self.show_more(&mut sysfs, device);
                sysfs.pci(&device.pci_function());
            }
            if is_parent || (vm.is_none() && device.host.is_some()) {
                device
                    .mdev_types()
                    .iter()
                    .for_each(|entry| sysfs.mdev_type(entry));
            }
        }
        for entry in self.emulated.types() {
            if vm.is_none() || mdevs.iter().any(|mdev| mdev.parent == entry.parent) {
                sysfs.mdev_type(&entry);
            }
        }
        for function in self.shown_virtual_functions(vm) {
            let config = function.node.model().function().host_config();
            sysfs.config(function.address, &config);
            sysfs.pci(&changes::virtual_function(&function));
        }
        for mdev in mdevs {
            sysfs.mdev(&MdevFunction {
                uuid: mdev.uuid.to_string(),
                parent: mdev.parent,
                type_name: mdev.type_name,
                group: mdev.node.device.group_number(),
                vfio: mdev.node.sysfs_name(),
            });
            if let Some(address) = self.presented(mdev.uuid) {
                sysfs.pci(&presented(address, &mdev.node));
            }
        }
        sysfs.finish()
    }

    /// The PCI address that the mediated device `uuid` has for programs besides its UUID.
    fn presented(&self, uuid: Uuid) -> Option<PciAddress> {
        let mut queues = self.devices.iter().flat_map(|device| &device.section.queue);
        match queues.find(|queue| queue.uuid == Some(uuid)) {
            Some(queue) => queue.present_as,
            None => self.emulated.presented(uuid),
        }
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

    fn inspect_mdev(&self, mdev: &MdevInfo) -> Node {
        let mut node = Node::new()
            .with("uuid", mdev.uuid.to_string())
            .with("type", mdev.type_name.as_str())
            .with("parent", mdev.parent.as_str())
            .with("vm", mdev.vm.as_deref().unwrap_or("-"))
            .with("node", mdev.node.name.as_str());
        let mut hosts = self.hosts();
        if let Some(child) = hosts.find_map(|(_, host)| host.parent.inspect_child(mdev.uuid)) {
            node.set("queue", child);
        } else if let Some(child) = self.emulated.inspect_child(mdev.uuid) {
            node.set("device", child);
        }
        node.with("vfio", mdev.node.device.inspect())
    }

    /// The types of mediated devices that `parent` offers.
    pub fn mdev_types_of(&self, parent: &str) -> Vec<String> {
        let types = self.mdev_types().into_iter();
        let types = types.filter(|entry| entry.parent == parent);
        types.map(|entry| entry.type_name).collect()
    }

    /// The parents with their types, free instances and children.
    pub fn inspect_mdevs(&self) -> Node {
        let types = self.mdev_types().into_iter().map(|entry| {
            Node::new()
                .with("parent", entry.parent)
                .with("type", entry.type_name)
                .with("description", entry.description)
                .with("available_instances", entry.available_instances)
        });
        let types: Vec<Node> = types.collect();
        let devices: Vec<Node> = self
            .mdevs(None)
            .iter()
            .map(|mdev| self.inspect_mdev(mdev))
            .collect();
        Node::new().with("types", types).with("devices", devices)
    }
}

impl MachineDevice {
    fn build(
        section: &DeviceSection,
        iommu: &Arc<Iommu>,
        vfio: &Arc<Vfio>,
        mdevs: &MdevRegistry,
        spawner: &dyn Spawner,
    ) -> Result<Self, MachineError> {
        let Some(address) = section.address else {
            unreachable!("a checked machine file has an address for every device")
        };
        let failed = |cause: &dyn fmt::Display| MachineError::Device {
            address,
            cause: cause.to_string(),
        };
        let config = DeviceConfig {
            pasid_bits: PASID_BITS,
            format: iommu.config().format,
            dirty: true,
            // An I/OAT descriptor has no way to wait for a page.
            page_requests: section.model == Model::Dsa,
            ..DeviceConfig::new(address)
        };
        let device = iommu.add_device(config).map_err(|error| failed(&error))?;
        let group = device.group().id();
        let whole = match section.model {
            Model::Dsa => {
                let queues = section.queue.iter().map(|queue| QueueConfig {
                    size: u16::try_from(queue.size).unwrap_or(u16::MAX),
                    mdev: queue.owner == Owner::Mdev,
                });
                let config = DsaConfig {
                    queues: queues.collect(),
                    engines: section.engines,
                    device_tlb: true,
                    max_transfer_shift: section
                        .max_transfer
                        .map_or(MAX_TRANSFER_SHIFT, |bytes| bytes.ilog2() as u8),
                    role: match section.vfs {
                        0 => Role::Alone,
                        total => Role::Physical { total },
                    },
                };
                DsaDevice::new(iommu, device.clone(), config, spawner)
                    .map(Whole::Dsa)
                    .map_err(|error| failed(&error))?
            }
            Model::Ioat => Whole::ioat(section, iommu, device.clone(), spawner)
                .map_err(|error| failed(&error))?,
        };
        whole.model().function().assign_bars(bar_base(address));
        let (mut host, mut node) = (None, None);
        match section.driver {
            Driver::Host => {
                let side = whole.drive(section).map_err(|error| failed(&*error))?;
                mdevs.add_parent(side.parent.clone());
                host = Some(side);
            }
            Driver::Vfio => node = Some(vfio.add(whole.model(), Passthrough::Whole(device))),
        }
        Ok(MachineDevice {
            section: section.clone(),
            address,
            whole,
            group,
            host,
            vfio: node,
        })
    }

    fn driver_name(&self) -> &'static str {
        match self.section.driver {
            Driver::Host => self.whole.driver_name(),
            Driver::Vfio => "vfio-pci",
        }
    }

    fn pci_function(&self) -> PciFunction {
        let model = self.whole.model();
        let function = model.function();
        PciFunction {
            address: self.address,
            config: function.host_config(),
            bars: bar_sizes(function),
            driver: self.driver_name(),
            group: self.group,
            vfio: self
                .vfio
                .as_ref()
                .map(|device| VfioNode::new(device).sysfs_name()),
        }
    }

    fn mdev_types(&self) -> Vec<MdevTypeEntry> {
        let Some(host) = &self.host else {
            return Vec::new();
        };
        let types = host.parent.types().into_iter();
        types
            .map(|offered| MdevTypeEntry {
                parent: self.address.to_string(),
                available_instances: host.parent.available_instances(&offered.id),
                description: offered.description.unwrap_or(offered.name),
                type_name: offered.id,
            })
            .collect()
    }

    fn inspect(&self) -> Node {
        let mut node = Node::new()
            .with("address", self.address.to_string())
            .with("model", self.whole.name())
            .with("driver", self.driver_name())
            .with("vm", self.section.vm.as_deref().unwrap_or("-"))
            .with(self.whole.name(), self.whole.inspect());
        if let Some(host) = &self.host {
            node.set("host_queues", host.queues.inspect());
        }
        if let Some(device) = &self.vfio {
            node.set("node", device.name())
                .set("vfio", device.inspect());
        }
        node
    }
}

impl Inspect for Machine {
    fn inspect(&self) -> Node {
        let devices: Vec<Node> = self.devices.iter().map(MachineDevice::inspect).collect();
        let mdevs: Vec<Node> = self
            .mdevs(None)
            .iter()
            .map(|mdev| self.inspect_mdev(mdev))
            .collect();
        let contexts: Vec<_> = self
            .contexts
            .lock()
            .iter()
            .filter_map(Weak::upgrade)
            .collect();
        let contexts: Vec<Value> = contexts
            .iter()
            .map(|context| context.inspect().into())
            .collect();
        Node::new()
            .with("name", self.name.as_str())
            .with("iommu", self.iommu.inspect())
            .with("devices", devices)
            .with("mdevs", mdevs)
            .with("iommufds", Value::List(contexts))
    }
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// Sizes in bytes of BAR 0-5; 0 where there is none.
fn bar_sizes(function: &Function) -> [u64; 6] {
    std::array::from_fn(|index| function.bar(index as u8).map_or(0, |bar| bar.size))
}

/// A mediated device as a PCI function at `address`.
fn presented(address: PciAddress, node: &VfioNode) -> PciFunction {
    let function = node.device.model().function();
    PciFunction {
        address,
        config: function.host_config(),
        bars: bar_sizes(function),
        driver: "vfio-pci",
        group: node.device.group_number(),
        vfio: Some(node.sysfs_name()),
    }
}
