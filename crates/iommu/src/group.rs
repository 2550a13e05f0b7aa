//! Groups: who may point a device's DMA at what.
//!
//! A group is the unit of ownership and of attachment, as in the kernel's `drivers/iommu/iommu.c`:
//! a route (no PASID, or one PASID) of a group leads to one domain for all its devices. Either the
//! devices' drivers use the DMA API, on the group's default domain, or one user owns the group and
//! everything is blocked until that user attaches domains; never both.
//!
//! Every change of a route goes through `GroupState::point`, which swaps the cells, and then
//! `Left::settle`, which is the barrier. The group's lock is *not* held over the barrier: a reader
//! that blocks for ever delays only those who wait for its own domain.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

use ioasid_core::{
    AddrRange, DomainId, Pasid,
    failpoint::{self, OutOfMemory},
    sync::Mutex,
};

use crate::{
    base::source_id::SourceId,
    device::{Attachment, Device},
    dma_api::DmaSpace,
    domain::Domain,
    fault::FaultSink,
    machine::{DeviceError, Shared},
    source::{AttachError, DmaSource, Mismatch},
};

/// Who claims DMA ownership: one value per owner, compared and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OwnerId(u64);

impl OwnerId {
    /// An owner unlike any other.
    #[allow(clippy::new_without_default)] // Two defaults would not be equal.
    pub fn new() -> Self {
        static LAST: AtomicU64 = AtomicU64::new(0);
        OwnerId(LAST.fetch_add(1, Ordering::Relaxed) + 1)
    }
}

/// Why a group could not be claimed, by a user or by a driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OwnershipError {
    /// A domain is attached that the claim would take away, or, for a driver, a user owns the group
    /// (EBUSY).
    #[error("the group is attached, or a user owns it")]
    Busy,
    /// Another owner has the group, or a driver uses the DMA API on it (EPERM).
    #[error("the group belongs to somebody else")]
    Permission,
    /// There is no domain number for the default domain (ENOMEM).
    #[error("no domain number is left")]
    NoDomain,
    /// No memory for the claim (ENOMEM).
    #[error("no memory for the claim")]
    NoMemory,
}

impl From<OutOfMemory> for OwnershipError {
    fn from(_: OutOfMemory) -> Self {
        OwnershipError::NoMemory
    }
}

/// What a route of a group leads to.
pub(crate) struct Entry {
    pub(crate) domain: Arc<Domain>,
    /// The group's own default domain, rather than one that somebody attached.
    default: bool,
    /// Where faults go; `None` for each device's own log.
    faults: Option<Arc<dyn FaultSink>>,
}

impl Entry {
    /// What the cell of `device` holds.
    pub(crate) fn attachment(&self, device: &Device) -> Arc<Attachment> {
        let own = || Arc::clone(device.fault_log()) as Arc<dyn FaultSink>;
        Arc::new(Attachment {
            space: Arc::clone(self.domain.space()),
            faults: self.faults.as_ref().map_or_else(own, Arc::clone),
        })
    }
}

#[derive(Default)]
pub(crate) struct GroupState {
    devices: Vec<Weak<Device>>,
    owner: Option<OwnerId>,
    /// Claims of the owner; with no owner, uses of the DMA API.
    uses: u32,
    default: Option<Arc<DmaSpace>>,
    pub(crate) routes: BTreeMap<Option<Pasid>, Entry>,
    /// Devices that are being reset, and how often: their cells are empty, whatever `routes` says.
    pub(crate) resetting: BTreeMap<u32, u32>,
    /// Domains that routes are leaving: readers may still be in them.
    pub(crate) leaving: Vec<Leaving>,
    last_leaving: u64,
}

/// A domain that a route is leaving.
pub(crate) struct Leaving {
    number: u64,
    pub(crate) pasid: Option<Pasid>,
    pub(crate) domain: DomainId,
}

/// A domain that a route has just left: readers may still be in it.
#[must_use = "the readers of the old domain are waited for by `settle`"]
struct Left {
    domain: Arc<Domain>,
    devices: Vec<Arc<Device>>,
    pasid: Option<Pasid>,
    /// Of its place in the list of the group.
    number: u64,
}

impl Left {
    /// The barrier: afterwards no DMA of these routes is in the old domain, and no engine waits for
    /// a page of it.
    fn settle(&self, shared: &Shared) {
        self.quiet(shared);
        for device in &self.devices {
            self.domain.forget(SourceId {
                device: device.address(),
                pasid: self.pasid,
            });
        }
    }

    /// The same for routes that stay attached, and are blocked for the moment.
    fn quiet(&self, shared: &Shared) {
        let domain = self.domain.id();
        for device in &self.devices {
            let pending = &shared.pending;
            pending.flush_route(device.address(), self.pasid, domain);
            device.ats().invalidate(self.pasid, &[AddrRange::ALL]);
        }
        shared.grace.wait(domain);
    }
}

impl GroupState {
    fn live(&self) -> Vec<Arc<Device>> {
        self.devices.iter().filter_map(Weak::upgrade).collect()
    }

    fn driver_uses_dma_api(&self) -> bool {
        self.owner.is_none() && self.uses > 0
    }

    /// Whether the cell of `device` at a route is empty, whatever is attached there.
    fn is_blocked(&self, device: &Device, pasid: Option<Pasid>) -> bool {
        self.resetting.contains_key(&device.id()) || device.withheld().includes(pasid)
    }

    /// Whether `domain` can be attached to `source`, and with it to every device of the group.
    fn check(
        &self,
        source: &DmaSource,
        domain: &Domain,
        change: Change,
    ) -> Result<(), AttachError> {
        let (devices, own) = (self.live(), source.device.address());
        if change == Change::AttachSingleton && source.pasid.is_none() && devices.len() != 1 {
            return Err(AttachError::NotSingleton {
                device: own,
                others: devices.len().saturating_sub(1),
            });
        }
        if source.pasid.is_some()
            && let Some(device) = devices.iter().find(|device| device.max_pasids() == 0)
        {
            return Err(AttachError::NoPasidSupport {
                device: device.address(),
            });
        }
        if !self.resetting.is_empty() {
            let resetting = |device: &&Arc<Device>| self.resetting.contains_key(&device.id());
            let device = devices.iter().find(resetting);
            return Err(AttachError::Resetting {
                device: device.map_or(own, |device| device.address()),
            });
        }
        if let Some(pasid) = source.pasid.map(Pasid::get)
            && let Some(device) = devices.iter().find(|device| pasid >= device.max_pasids())
        {
            return Err(AttachError::PasidRange {
                device: device.address(),
                pasid,
                last: device.max_pasids().saturating_sub(1),
            });
        }
        let attached = self.routes.get(&source.pasid);
        match (change, attached.filter(|entry| !entry.default)) {
            (Change::Replace, None) => return Err(AttachError::NotAttached { at: source.id() }),
            (Change::Attach | Change::AttachSingleton, Some(entry)) => {
                return Err(AttachError::Attached {
                    at: source.id(),
                    domain: entry.domain.id(),
                });
            }
            (Change::Attach | Change::AttachSingleton, None)
                if source.pasid.is_none() && self.driver_uses_dma_api() =>
            {
                return Err(AttachError::DriverInUse { device: own });
            }
            _ => {}
        }
        let mut devices = devices.iter();
        let mismatch = devices.find_map(|device| mismatch(domain, device));
        mismatch.map_or(Ok(()), |mismatch| Err(mismatch.into()))
    }

    /// Points a route of every device at a domain or at nothing.
    fn point(&mut self, pasid: Option<Pasid>, entry: Option<Entry>) -> Option<Left> {
        let devices = self.live();
        for device in &devices {
            if let Some(entry) = &entry {
                entry.domain.remember(device, pasid);
            }
            if !self.is_blocked(device, pasid) {
                let attachment = entry.as_ref().map(|entry| entry.attachment(device));
                device.routes().set(pasid, attachment);
            }
        }
        let old = match entry {
            Some(entry) => self.routes.insert(pasid, entry),
            None => self.routes.remove(&pasid),
        }?;
        self.last_leaving += 1;
        self.leaving.push(Leaving {
            number: self.last_leaving,
            pasid,
            domain: old.domain.id(),
        });
        Some(Left {
            domain: old.domain,
            devices,
            pasid,
            number: self.last_leaving,
        })
    }

    /// Points a route at what it leads to when nobody has attached anything: the default domain for
    /// the requester id of a group without owner, else nothing.
    fn point_back(&mut self, pasid: Option<Pasid>) -> Option<Left> {
        let entry = match &self.default {
            Some(space) if pasid.is_none() && self.owner.is_none() => Some(Entry {
                domain: Arc::clone(space.domain()),
                default: true,
                faults: None,
            }),
            _ => None,
        };
        self.point(pasid, entry)
    }
}

/// What a change of a route expects to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Nothing attached.
    Attach,
    /// Nothing attached and, without a PASID, one device in the group.
    AttachSingleton,
    /// Something attached.
    Replace,
}

/// Devices that share an owner.
pub struct Group {
    id: u32,
    pub(crate) shared: Arc<Shared>,
    pub(crate) state: Mutex<GroupState>,
}

impl Group {
    pub(crate) fn new(shared: Arc<Shared>, id: u32) -> Arc<Self> {
        Arc::new(Group {
            id,
            shared,
            state: Mutex::default(),
        })
    }

    /// The group's number, from 0.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The devices, in the order in which they joined.
    pub fn devices(&self) -> Vec<Arc<Device>> {
        self.state.lock().live()
    }

    /// Whether a driver of one of the devices uses the DMA API: then no user can own the group, and
    /// only the driver's own children may attach, at their default PASIDs.
    pub fn dma_api_in_use(&self) -> bool {
        self.state.lock().driver_uses_dma_api()
    }

    /// The user who owns the group.
    pub fn owner(&self) -> Option<OwnerId> {
        self.state.lock().owner
    }

    /// Claims the group for a user: DMA without a PASID is blocked from here until the user attaches
    /// a domain. The same owner may claim again; the group is given back with the last claim.
    ///
    /// # Errors
    /// [`OwnershipError::Permission`] if another owner has it or a driver uses the DMA API,
    /// [`OwnershipError::Busy`] if a domain is attached (`__iommu_take_dma_ownership`).
    pub fn claim_dma_owner(
        self: &Arc<Self>,
        owner: OwnerId,
    ) -> Result<DmaOwnership, OwnershipError> {
        let left = {
            let mut state = self.state.lock();
            if state.uses > 0 && state.owner != Some(owner) {
                return Err(OwnershipError::Permission);
            }
            if state.uses == 0 && state.routes.values().any(|entry| !entry.default) {
                return Err(OwnershipError::Busy);
            }
            failpoint::allocation()?;
            state.uses += 1;
            if state.uses == 1 {
                state.owner = Some(owner);
                state.point_back(None)
            } else {
                None
            }
        };
        self.settle(left);
        Ok(DmaOwnership {
            group: Arc::clone(self),
            owner,
        })
    }

    fn release_dma_owner(&self) {
        let left: Vec<Left> = {
            let mut state = self.state.lock();
            state.uses -= 1;
            if state.uses > 0 {
                return;
            }
            state.owner = None;
            // Whoever owns a group detaches before giving it back; what was forgotten goes here, so
            // that no domain of a user survives the claim.
            let mut routes: Vec<_> = state.routes.keys().copied().collect();
            if !routes.contains(&None) {
                routes.push(None);
            }
            routes
                .into_iter()
                .filter_map(|pasid| state.point_back(pasid))
                .collect()
        };
        self.settle(left);
    }

    /// Counts one use of the DMA API and gives the default domain, made by `make` the first time.
    pub(crate) fn begin_dma_api(
        &self,
        make: impl FnOnce(&[Arc<Device>]) -> Result<Arc<DmaSpace>, OwnershipError>,
    ) -> Result<Arc<DmaSpace>, OwnershipError> {
        let (space, left) = {
            let mut state = self.state.lock();
            let attached = state.routes.get(&None).is_some_and(|entry| !entry.default);
            if state.owner.is_some() || attached {
                return Err(OwnershipError::Busy);
            }
            let space = match &state.default {
                Some(space) => Arc::clone(space),
                None => {
                    let space = make(&state.live())?;
                    state.default = Some(Arc::clone(&space));
                    space
                }
            };
            state.uses += 1;
            let left = if state.routes.contains_key(&None) {
                None
            } else {
                state.point_back(None)
            };
            (space, left)
        };
        self.settle(left);
        Ok(space)
    }

    /// Ends one use of the DMA API. The default domain stays, as in the kernel.
    pub(crate) fn end_dma_api(&self) {
        self.state.lock().uses -= 1;
    }

    pub(crate) fn join(&self, device: &Arc<Device>) -> Result<(), DeviceError> {
        let mut state = self.state.lock();
        if !state.routes.is_empty() || state.uses > 0 {
            return Err(DeviceError::GroupBusy);
        }
        state.devices.retain(|known| known.strong_count() > 0);
        state.devices.push(Arc::downgrade(device));
        Ok(())
    }

    pub(crate) fn leave(&self, device: &Arc<Device>) -> Result<(), DeviceError> {
        let left = {
            let mut state = self.state.lock();
            if state.uses > 0 || state.routes.values().any(|entry| !entry.default) {
                return Err(DeviceError::Busy);
            }
            // What is left is the default domain without users: it goes with the first device.
            state.default = None;
            let left = state.point_back(None);
            state
                .devices
                .retain(|known| !std::ptr::eq(known.as_ptr(), Arc::as_ptr(device)));
            left
        };
        self.settle(left);
        Ok(())
    }

    /// Makes `domain` what `source` leads to, for every device of the group; all or nothing.
    pub(crate) fn change(
        &self,
        source: &DmaSource,
        domain: &Arc<Domain>,
        faults: &Arc<dyn FaultSink>,
        change: Change,
    ) -> Result<(), AttachError> {
        let left = {
            let mut state = self.state.lock();
            state.check(source, domain, change)?;
            failpoint::allocation()?;
            let entry = Entry {
                domain: Arc::clone(domain),
                default: false,
                faults: Some(Arc::clone(faults)),
            };
            state.point(source.pasid, Some(entry))
        };
        self.settle(left);
        Ok(())
    }

    /// Takes away what was attached at a route, if anything.
    pub(crate) fn detach(&self, pasid: Option<Pasid>) {
        let left = {
            let mut state = self.state.lock();
            match state.routes.get(&pasid) {
                Some(entry) if !entry.default => state.point_back(pasid),
                _ => None,
            }
        };
        self.settle(left);
    }

    /// Blocks the DMA of `device` and waits for what is in flight; attachments stay what they are.
    pub(crate) fn begin_reset(&self, device: &Arc<Device>) {
        let blocked: Vec<Left> = {
            let mut state = self.state.lock();
            *state.resetting.entry(device.id()).or_default() += 1;
            let routes = state.routes.iter();
            routes
                .map(|(pasid, entry)| {
                    device.routes().set(*pasid, None);
                    Left {
                        domain: Arc::clone(&entry.domain),
                        devices: vec![Arc::clone(device)],
                        pasid: *pasid,
                        number: 0,
                    }
                })
                .collect()
        };
        for left in blocked {
            left.quiet(&self.shared);
        }
    }

    /// Ends what `begin_reset` began; with the last one, the attachments are in force again.
    pub(crate) fn end_reset(&self, device: &Arc<Device>) {
        let mut state = self.state.lock();
        if let Some(depth) = state.resetting.get_mut(&device.id()) {
            *depth -= 1;
            if *depth > 0 {
                return;
            }
        }
        state.resetting.remove(&device.id());
        for (pasid, entry) in &state.routes {
            if !device.withheld().includes(*pasid) {
                device.routes().set(*pasid, Some(entry.attachment(device)));
            }
        }
    }

    fn settle(&self, left: impl IntoIterator<Item = Left>) {
        for left in left {
            left.settle(&self.shared);
            let leaving = &mut self.state.lock().leaving;
            leaving.retain(|entry| entry.number != left.number);
        }
    }

    /// Runs `op` on the domain of a route, which cannot change meanwhile.
    pub(crate) fn with_route<R>(
        &self,
        pasid: Option<Pasid>,
        op: impl FnOnce(Option<&Arc<Domain>>) -> R,
    ) -> R {
        let state = self.state.lock();
        op(state.routes.get(&pasid).map(|entry| &entry.domain))
    }

    /// The routes of the group's devices and their domains; the route without a PASID first.
    pub fn attachments(&self) -> Vec<(Option<Pasid>, Arc<Domain>)> {
        let state = self.state.lock();
        state
            .routes
            .iter()
            .map(|(pasid, entry)| (*pasid, Arc::clone(&entry.domain)))
            .collect()
    }
}

/// What the domain is made for that the device or its IOMMU cannot do, if anything.
fn mismatch(domain: &Domain, device: &Device) -> Option<Mismatch> {
    let (config, address) = (domain.config(), device.address());
    if config.kind.is_paging() && !config.format.is_walked_with(device.format()) {
        return Some(Mismatch::Format {
            device: address,
            walked: device.format(),
            table: config.format,
        });
    }
    if config.kind.is_paging() && config.dirty_tracking && !device.supports_dirty() {
        return Some(Mismatch::DirtyTracking { device: address });
    }
    (!device.supports_page_requests() && domain.handler().lock().is_some())
        .then_some(Mismatch::PageRequests { device: address })
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// One claim of a group by a user. Dropping the last one gives the group back: whatever is still
/// attached is detached, and the default domain, if there is one, is the primary one again.
pub struct DmaOwnership {
    group: Arc<Group>,
    owner: OwnerId,
}

impl DmaOwnership {
    /// The group.
    pub fn group(&self) -> &Arc<Group> {
        &self.group
    }

    /// The owner.
    pub fn owner(&self) -> OwnerId {
        self.owner
    }
}

impl Drop for DmaOwnership {
    fn drop(&mut self) {
        self.group.release_dma_owner();
    }
}

impl fmt::Debug for DmaOwnership {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DmaOwnership")
            .field("group", &self.group.id)
            .field("owner", &self.owner)
            .finish()
    }
}
