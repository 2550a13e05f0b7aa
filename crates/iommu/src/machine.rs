//! The IOMMU itself: what it holds, and what its parts share.

use std::{collections::BTreeMap, fmt, sync::Arc};

use ioasid_core::{
    PciAddress, failpoint,
    grace::Grace,
    inject::Injections,
    inspect::{Inspect, Node, Value},
    lock_order::OrderedMutex,
    observe::Watch,
    spa::SpaSpace,
    sync::atomic::{AtomicU32, Ordering},
};
use ioasid_pgtable::TableFormat;

use crate::{
    base::{locks, pasid::PasidPool},
    device::{Device, DeviceConfig, Group, error::DeviceError},
    domain::{
        Domain, DomainConfig,
        registry::{DomainError, DomainRegistry},
        shared::Shared,
    },
    events::{
        fault::DmaWatcher,
        page_request::{PageRequestId, PageResponse, UnknownPageRequest},
    },
};

/// What an [`Iommu`] is made of.
#[derive(Clone, Copy, Debug)]
pub struct IommuConfig {
    /// The page-table format of the machine: what devices have unless their own config says else.
    pub format: TableFormat,
    /// The largest PASID of the machine's pool.
    pub last_pasid: u32,
}

impl Default for IommuConfig {
    fn default() -> Self {
        IommuConfig {
            format: TableFormat::VtdSecondStage,
            last_pasid: ioasid_core::Pasid::LIMIT - 1,
        }
    }
}

/// A machine's I/O memory management unit: devices, the domains they are attached to, and the
/// barrier between changes of a domain and the DMA that reads it.
pub struct Iommu {
    config: IommuConfig,
    shared: Arc<Shared>,
    registry: Arc<DomainRegistry>,
    pasids: Arc<PasidPool>,
    devices: OrderedMutex<BTreeMap<PciAddress, Arc<Device>>>,
    last_device: AtomicU32,
    last_group: AtomicU32,
    injections: Injections,
}

impl Iommu {
    /// A machine without devices.
    pub fn new(config: IommuConfig) -> Arc<Self> {
        let shared = Shared::new();
        Arc::new(Iommu {
            config,
            registry: DomainRegistry::new(Arc::clone(&shared)),
            shared,
            pasids: PasidPool::with_last(config.last_pasid),
            devices: OrderedMutex::new(&locks::DEVICES, BTreeMap::new()),
            last_device: AtomicU32::new(0),
            last_group: AtomicU32::new(0),
            injections: Injections::default(),
        })
    }

    /// What the machine was made of.
    pub fn config(&self) -> &IommuConfig {
        &self.config
    }

    /// The system physical addresses that devices can be given.
    pub fn space(&self) -> &Arc<SpaSpace> {
        &self.shared.space
    }

    /// The grace period of every reader of this machine.
    pub fn grace(&self) -> &Arc<Grace> {
        &self.shared.grace
    }

    /// Tells `watcher` of all DMA that is refused from now on, as long as it lives.
    pub fn watch_refused_dma(&self, watcher: &Arc<dyn DmaWatcher>) {
        self.shared.watchers.add(watcher);
    }

    /// Who watches the machine.
    pub fn watch(&self) -> &Arc<Watch> {
        &self.shared.watch
    }

    /// The machine's own PASIDs: what parents give to their children.
    pub fn pasids(&self) -> &Arc<PasidPool> {
        &self.pasids
    }

    /// Failures of maps, by whatever program, that a test asks for.
    pub fn injections(&self) -> &Injections {
        &self.injections
    }

    /// A group without devices.
    pub fn add_group(&self) -> Arc<Group> {
        let id = self.last_group.fetch_add(1, Ordering::AcqRel);
        Group::new(Arc::clone(&self.shared), Arc::clone(&self.registry), id)
    }

    /// Adds a device, in a group of its own unless the config names one. Nothing is attached: its
    /// DMA is blocked.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub fn add_device(self: &Arc<Self>, config: DeviceConfig) -> Result<Arc<Device>, DeviceError> {
        if config.pasid_bits > 20 {
            return Err(DeviceError::PasidBits {
                device: config.address,
                bits: config.pasid_bits,
            });
        }
        let mut devices = self.devices.lock();
        if devices.contains_key(&config.address) {
            return Err(DeviceError::Exists(config.address));
        }
        failpoint::allocation()?;
        let group = match &config.group {
            Some(group) => Arc::clone(group),
            None => self.add_group(),
        };
        let id = self.last_device.fetch_add(1, Ordering::AcqRel) + 1;
        let device = Device::new(Arc::clone(&self.shared), id, Arc::clone(&group), config);
        group.join(&device)?;
        devices.insert(device.address(), Arc::clone(&device));
        Ok(device)
    }

    /// Takes a device out of the machine.
    ///
    /// # Errors
    /// [`DeviceError::Attached`] while anything is attached to it (children with a default PASID go
    /// first), [`DeviceError::InUse`] while a driver uses the DMA API or a user owns it;
    /// [`DeviceError::NoDevice`].
    pub fn remove_device(&self, device: &Arc<Device>) -> Result<(), DeviceError> {
        let mut devices = self.devices.lock();
        match devices.get(&device.address()) {
            Some(known) if Arc::ptr_eq(known, device) => {}
            _ => return Err(DeviceError::NoDevice(device.address())),
        }
        device.group().leave(device)?;
        devices.remove(&device.address());
        Ok(())
    }

    /// A domain that nothing is attached to.
    ///
    /// # Errors
    /// See [`DomainError`].
    pub fn alloc_domain(
        self: &Arc<Self>,
        config: DomainConfig,
    ) -> Result<Arc<Domain>, DomainError> {
        self.registry.alloc(config)
    }

    /// The devices, by address.
    pub fn devices(&self) -> Vec<Arc<Device>> {
        self.devices.lock().values().map(Arc::clone).collect()
    }

    /// The device at `address`.
    pub fn device(&self, address: PciAddress) -> Option<Arc<Device>> {
        self.devices.lock().get(&address).map(Arc::clone)
    }

    /// The live domains, by number.
    pub fn domains(&self) -> Vec<Arc<Domain>> {
        self.registry.domains()
    }

    /// How many live domains have a page table.
    pub fn paging_domains(&self) -> usize {
        self.registry.paging_domains()
    }

    /// Answers a page request.
    ///
    /// # Errors
    /// [`UnknownPageRequest`] if it has been answered, or was never made.
    pub fn page_response(
        &self,
        id: PageRequestId,
        response: PageResponse,
    ) -> Result<(), UnknownPageRequest> {
        self.shared.pending.answer(id, response)
    }

    /// Page requests that wait for an answer.
    pub fn pending_page_requests(&self) -> usize {
        self.shared.pending.len()
    }
}

impl fmt::Debug for Iommu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iommu")
            .field("format", &self.config.format)
            .finish_non_exhaustive()
    }
}

impl Inspect for Iommu {
    fn inspect(&self) -> Node {
        let devices: Vec<Value> = self
            .devices()
            .iter()
            .map(|device| device.inspect().into())
            .collect();
        let domains: Vec<Value> = self
            .domains()
            .iter()
            .map(|domain| domain.inspect().into())
            .collect();
        Node::new()
            .with("format", self.config.format.to_string())
            .with("paging_domains", self.paging_domains())
            .with("domains", Value::List(domains))
            .with("devices", Value::List(devices))
            .with("pasids", self.pasids().inspect())
            .with("page_requests", self.pending_page_requests())
            .with("retired_items", self.grace().retired_items())
    }
}
