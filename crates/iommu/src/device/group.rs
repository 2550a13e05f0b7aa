//! Groups: the unit of ownership and of attachment, as in the kernel's `drivers/iommu/iommu.c`.
//!
//! A route of a group (without a PASID, or with one) leads to one domain for all its devices. Either
//! the devices' drivers use the DMA API, on the group's default domain, or one user owns the group
//! and everything is blocked until that user attaches domains; never both.
//!
//! What may change is decided elsewhere (`crate::attach`); here is what changes and in which order.
//! Every change of a route goes through [`GroupState::set_route`], which swaps the cells, and then
//! [`Group::drain`], which is the barrier. The group's lock is *not* held over the barrier: a reader
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
    lock_order::{OrderedGuard, OrderedMutex},
    observe::Event,
};

use super::{Device, error::DeviceError, route_table::Attachment};
use crate::{
    base::locks,
    domain::{Domain, dma_space::DmaSpace, registry::DomainRegistry, shared::Shared},
    events::fault::FaultSink,
};

/// A user that claims DMA ownership: one value per owner, compared and nothing else.
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

/// What a route of a group leads to.
pub(crate) struct Route {
    pub(crate) domain: Arc<Domain>,
    /// The group's own default domain, rather than one that was attached.
    pub(crate) default: bool,
    /// Where faults go; `None` for each device's own log.
    pub(crate) faults: Option<Arc<dyn FaultSink>>,
}

impl Route {
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
    pub(crate) owner: Option<OwnerId>,
    /// Claims of the owner; with no owner, uses of the DMA API.
    pub(crate) uses: u32,
    pub(crate) default: Option<Arc<DmaSpace>>,
    pub(crate) routes: BTreeMap<Option<Pasid>, Route>,
    /// Devices that are being reset, and how often: their cells are empty, whatever `routes` says.
    pub(crate) resetting: BTreeMap<u32, u32>,
    /// Domains that routes have left: readers may still be in them.
    pub(crate) draining: Vec<Draining>,
    last_draining: u64,
}

/// A domain that a route has left, while readers may still be in it.
pub(crate) struct Draining {
    number: u64,
    pub(crate) pasid: Option<Pasid>,
    /// The number in the markers of its readers.
    pub(crate) domain: DomainId,
}

/// A domain that a route has just left: readers may still be in it.
#[must_use = "the readers of the old domain are waited for by `Group::drain`"]
pub(crate) struct OldRoute {
    pub(crate) domain: Arc<Domain>,
    pub(crate) devices: Vec<Arc<Device>>,
    pub(crate) pasid: Option<Pasid>,
    /// Of its entry in [`GroupState::draining`]; `None` without one.
    number: Option<u64>,
}

impl OldRoute {
    /// The route of `device` to `domain`, which is blocked for a time and not left.
    pub(crate) fn blocked(
        device: &Arc<Device>,
        pasid: Option<Pasid>,
        domain: &Arc<Domain>,
    ) -> Self {
        OldRoute {
            domain: Arc::clone(domain),
            devices: vec![Arc::clone(device)],
            pasid,
            number: None,
        }
    }

    /// The barrier: afterwards no DMA of this route is in the domain, and no engine waits for a page
    /// of it. Never to be called with the group's lock held.
    pub(crate) fn wait(&self, shared: &Shared) {
        let domain = self.domain.id();
        for device in &self.devices {
            let pending = &shared.pending;
            pending.flush_source(device.source_id(self.pasid), domain);
            device.ats().invalidate(self.pasid, &[AddrRange::ALL]);
        }
        shared.grace.wait(self.domain.marker());
    }
}

impl GroupState {
    /// The devices that are not being dropped.
    pub(crate) fn live(&self) -> Vec<Arc<Device>> {
        self.devices.iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn driver_uses_dma_api(&self) -> bool {
        self.owner.is_none() && self.uses > 0
    }

    /// The first route that was attached, and its PASID.
    pub(crate) fn first_attached(&self) -> Option<(Option<Pasid>, &Route)> {
        let mut routes = self.routes.iter();
        let (pasid, route) = routes.find(|(_, route)| !route.default)?;
        Some((*pasid, route))
    }

    /// Whether the cell of `device` at a route is empty, whatever is attached there.
    fn is_blocked(&self, device: &Device, pasid: Option<Pasid>) -> bool {
        self.resetting.contains_key(&device.id()) || device.withheld().includes(pasid)
    }

    /// Leads a route of every device to a domain or to nothing.
    pub(crate) fn set_route(
        &mut self,
        pasid: Option<Pasid>,
        route: Option<Route>,
    ) -> Option<OldRoute> {
        let devices = self.live();
        for device in &devices {
            if let Some(route) = &route {
                let source = device.source_id(pasid);
                route.domain.add_source(source, device.ats());
            }
            if !self.is_blocked(device, pasid) {
                let attachment = route.as_ref().map(|route| route.attachment(device));
                device.routes().set(pasid, attachment);
            }
        }
        let domain = route.as_ref().map(|route| route.domain.id());
        let old = match route {
            Some(route) => self.routes.insert(pasid, route),
            None => self.routes.remove(&pasid),
        };
        let before = old.as_ref().map(|route| route.domain.id());
        for device in devices.iter().filter(|_| domain.or(before).is_some()) {
            device.watch().tell(|| Event::Route {
                device: device.address(),
                pasid,
                domain,
                before,
            });
        }
        let old = old?;
        self.last_draining += 1;
        self.draining.push(Draining {
            number: self.last_draining,
            pasid,
            domain: old.domain.marker(),
        });
        Some(OldRoute {
            domain: old.domain,
            devices,
            pasid,
            number: Some(self.last_draining),
        })
    }

    /// Leads a route to where it leads when nothing is attached: to the default domain for requests
    /// without a PASID of a group without owner, else to nothing.
    pub(crate) fn reset_route(&mut self, pasid: Option<Pasid>) -> Option<OldRoute> {
        let route = match &self.default {
            Some(space) if pasid.is_none() && self.owner.is_none() => Some(Route {
                domain: Arc::clone(space.domain()),
                default: true,
                faults: None,
            }),
            _ => None,
        };
        self.set_route(pasid, route)
    }
}

/// Devices that share an owner.
pub struct Group {
    id: u32,
    shared: Arc<Shared>,
    domains: Arc<DomainRegistry>,
    state: OrderedMutex<GroupState>,
}

impl Group {
    pub(crate) fn new(shared: Arc<Shared>, domains: Arc<DomainRegistry>, id: u32) -> Arc<Self> {
        Arc::new(Group {
            id,
            shared,
            domains,
            state: OrderedMutex::new(&locks::GROUP, GroupState::default()),
        })
    }

    /// The group's number, from 0.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The devices, in the order in which they joined.
    pub fn devices(&self) -> Vec<Arc<Device>> {
        self.lock().live()
    }

    /// Whether a driver of one of the devices uses the DMA API: then no user can own the group, and
    /// only the driver's own children may attach, at their default PASIDs.
    pub fn dma_api_in_use(&self) -> bool {
        self.lock().driver_uses_dma_api()
    }

    /// The user that owns the group.
    pub fn owner(&self) -> Option<OwnerId> {
        self.lock().owner
    }

    /// The routes of the group's devices and their domains; the route without a PASID first.
    pub fn attachments(&self) -> Vec<(Option<Pasid>, Arc<Domain>)> {
        let state = self.lock();
        let routes = state.routes.iter();
        routes
            .map(|(pasid, route)| (*pasid, Arc::clone(&route.domain)))
            .collect()
    }

    pub(crate) fn lock(&self) -> OrderedGuard<'_, GroupState> {
        self.state.lock()
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    pub(crate) fn domains(&self) -> &Arc<DomainRegistry> {
        &self.domains
    }

    /// Takes `device` in.
    pub(crate) fn join(&self, device: &Arc<Device>) -> Result<(), DeviceError> {
        let mut state = self.lock();
        if !state.routes.is_empty() || state.uses > 0 {
            return Err(DeviceError::GroupInUse { group: self.id });
        }
        state.devices.retain(|known| known.strong_count() > 0);
        state.devices.push(Arc::downgrade(device));
        Ok(())
    }

    /// Lets `device` go.
    pub(crate) fn leave(&self, device: &Arc<Device>) -> Result<(), DeviceError> {
        let old = {
            let mut state = self.lock();
            if state.uses > 0 {
                return Err(DeviceError::InUse {
                    device: device.address(),
                });
            }
            if let Some((pasid, route)) = state.first_attached() {
                return Err(DeviceError::Attached {
                    at: device.source_id(pasid),
                    domain: route.domain.id(),
                });
            }
            // What is left is the default domain without users: it goes with the first device.
            state.default = None;
            let old = state.reset_route(None);
            state
                .devices
                .retain(|known| !std::ptr::eq(known.as_ptr(), Arc::as_ptr(device)));
            old
        };
        self.drain(old);
        Ok(())
    }

    /// Waits for the readers of domains that routes have left, and takes the routes out of them.
    pub(crate) fn drain(&self, old: impl IntoIterator<Item = OldRoute>) {
        for old in old {
            old.wait(&self.shared);
            for device in &old.devices {
                old.domain.remove_source(device.source_id(old.pasid));
            }
            let draining = &mut self.lock().draining;
            draining.retain(|entry| Some(entry.number) != old.number);
        }
    }

    /// Runs `op` on the domain of a route, which cannot change meanwhile.
    pub(crate) fn with_route<R>(
        &self,
        pasid: Option<Pasid>,
        op: impl FnOnce(Option<&Arc<Domain>>) -> R,
    ) -> R {
        let state = self.lock();
        op(state.routes.get(&pasid).map(|route| &route.domain))
    }
}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
