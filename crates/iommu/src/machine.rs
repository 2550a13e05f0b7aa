//! The IOMMU itself: what it holds, and what its parts share.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{Arc, Weak},
};

use ioasid_core::{
    DomainId, PciAddress,
    failpoint::{self, OutOfMemory},
    grace::{Grace, Slot},
    inspect::{Inspect, Node, Value},
    spa::SpaSpace,
    sync::{
        Mutex,
        atomic::{AtomicU32, Ordering},
    },
};
use ioasid_pgtable::TableFormat;

use crate::{
    device::{Device, DeviceConfig},
    domain::{Domain, DomainConfig, DomainKind},
    group::Group,
    page_request::{PageRequestId, PageResponse, PendingRequests, UnknownPageRequest},
    pasid::PasidPool,
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

/// What devices, groups and domains need from their machine.
pub(crate) struct Shared {
    pub(crate) space: Arc<SpaSpace>,
    pub(crate) grace: Arc<Grace>,
    pub(crate) pasids: Arc<PasidPool>,
    pub(crate) pending: PendingRequests,
    last_domain: AtomicU32,
    last_device: AtomicU32,
    last_group: AtomicU32,
    domains: Mutex<BTreeMap<DomainId, (DomainKind, Weak<Domain>)>>,
    /// The marker of readers that are no DMA.
    reader: Mutex<Slot>,
}

impl Shared {
    /// Runs a short `op` that reads the page table of `domain` as a reader that the barrier waits
    /// for, like a DMA.
    pub(crate) fn as_reader<R>(&self, domain: DomainId, op: impl FnOnce() -> R) -> R {
        let mut slot = self.reader.lock();
        let guard = slot.enter();
        guard.narrow(domain);
        op()
    }

    pub(crate) fn alloc_domain(
        self: &Arc<Self>,
        config: DomainConfig,
    ) -> Result<Arc<Domain>, DomainError> {
        failpoint::allocation()?;
        let number = self
            .last_domain
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |last| {
                last.checked_add(1)
                    .filter(|next| *next != DomainId::RESERVED)
            })
            .map_err(|_| DomainError::Exhausted)?;
        let id = DomainId::new(number + 1).ok_or(DomainError::Exhausted)?;
        let domain = Arc::new(Domain::new(Arc::clone(self), id, config));
        self.domains
            .lock()
            .insert(id, (config.kind, Arc::downgrade(&domain)));
        Ok(domain)
    }

    pub(crate) fn forget_domain(&self, id: DomainId) {
        self.domains.lock().remove(&id);
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Shared")
    }
}

/// Why there is no new domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DomainError {
    /// The machine has used up its 2^32-2 domain numbers (ENOSPC).
    #[error("no domain number is left")]
    Exhausted,
    /// No memory for the domain or its first table (ENOMEM).
    #[error("no memory for a domain")]
    NoMemory,
}

impl From<OutOfMemory> for DomainError {
    fn from(_: OutOfMemory) -> Self {
        DomainError::NoMemory
    }
}

/// Why a device could not be added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// There is a device at this address (EEXIST).
    #[error("there is a device at {0}")]
    Exists(PciAddress),
    /// PASIDs are at most 20 bits wide (EINVAL).
    #[error("PASIDs of {0} bits: the limit is 20")]
    PasidBits(u8),
    /// The group is attached or owned, so it cannot take a device in (EBUSY).
    #[error("the group is in use")]
    GroupBusy,
    /// Something is attached to the device, or its driver or an owner uses it (EBUSY).
    #[error("the device is in use")]
    Busy,
    /// The machine has no such device (ENODEV).
    #[error("no such device")]
    NoDevice,
    /// No memory for the device (ENOMEM).
    #[error("no memory for a device")]
    NoMemory,
}

impl From<OutOfMemory> for DeviceError {
    fn from(_: OutOfMemory) -> Self {
        DeviceError::NoMemory
    }
}

/// A machine's I/O memory management unit: devices, the domains they are attached to, and the
/// barrier between those who change a domain and those who read it.
pub struct Iommu {
    config: IommuConfig,
    shared: Arc<Shared>,
    devices: Mutex<BTreeMap<PciAddress, Arc<Device>>>,
}

impl Iommu {
    /// A machine without devices.
    pub fn new(config: IommuConfig) -> Arc<Self> {
        let grace = Grace::new();
        let reader = Mutex::new(grace.slot());
        Arc::new(Iommu {
            config,
            shared: Arc::new(Shared {
                space: SpaSpace::new(Arc::clone(&grace)),
                grace,
                pasids: PasidPool::with_last(config.last_pasid),
                pending: PendingRequests::default(),
                last_domain: AtomicU32::new(0),
                last_device: AtomicU32::new(0),
                last_group: AtomicU32::new(0),
                domains: Mutex::default(),
                reader,
            }),
            devices: Mutex::default(),
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

    /// The machine's own PASIDs: what parents give to their children.
    pub fn pasids(&self) -> &Arc<PasidPool> {
        &self.shared.pasids
    }

    /// A group without devices.
    pub fn add_group(&self) -> Arc<Group> {
        let id = self.shared.last_group.fetch_add(1, Ordering::AcqRel);
        Group::new(Arc::clone(&self.shared), id)
    }

    /// Adds a device, in a group of its own unless the config names one. Nothing is attached: its
    /// DMA is blocked.
    ///
    /// # Errors
    /// See [`DeviceError`].
    pub fn add_device(self: &Arc<Self>, config: DeviceConfig) -> Result<Arc<Device>, DeviceError> {
        if config.pasid_bits > 20 {
            return Err(DeviceError::PasidBits(config.pasid_bits));
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
        let id = self.shared.last_device.fetch_add(1, Ordering::AcqRel) + 1;
        let device = Device::new(Arc::clone(&self.shared), id, Arc::clone(&group), config);
        group.join(&device)?;
        devices.insert(device.address(), Arc::clone(&device));
        Ok(device)
    }

    /// Takes a device out of the machine.
    ///
    /// # Errors
    /// [`DeviceError::Busy`] while anything is attached to it (children with a default PASID go
    /// first), a driver uses the DMA API or somebody owns it; [`DeviceError::NoDevice`].
    pub fn remove_device(&self, device: &Arc<Device>) -> Result<(), DeviceError> {
        let mut devices = self.devices.lock();
        match devices.get(&device.address()) {
            Some(known) if Arc::ptr_eq(known, device) => {}
            _ => return Err(DeviceError::NoDevice),
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
        self.shared.alloc_domain(config)
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
        let domains = self.shared.domains.lock();
        // The lock is released before what is collected can be dropped: `Domain` takes it when it
        // goes.
        domains
            .values()
            .filter_map(|(_, domain)| domain.upgrade())
            .collect()
    }

    /// How many live domains have a page table.
    pub fn paging_domains(&self) -> usize {
        let domains = self.shared.domains.lock();
        domains
            .values()
            .filter(|(kind, _)| kind.is_paging())
            .count()
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
