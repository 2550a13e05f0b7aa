//! Children of one shared queue, whose users have PASID numbers of their own (virtual PASIDs, Intel
//! Scalable I/O Virtualization: the host translates them for each guest, as VT-x does for `ENQCMD`).
//!
//! The host leases a PASID of its pool for each number that a child's user has, and attaches a domain
//! there. The table is the child's: two children use the same number for two address spaces, and no user
//! can name a number of the host's. A descriptor keeps the number that its user put into it, which is what
//! errors, the event register and the MSI-X permission table are about; its requests carry the leased one.

use std::{collections::BTreeMap, sync::Arc};

use ioasid_core::{
    Pasid,
    inspect::{Inspect, Node},
    sync::Mutex,
};
use ioasid_iommu::{
    AttachError, DmaSource, Domain, FaultSink, PasidError, PasidHandle, PasidQuota,
};
use ioasid_vfio::{DeviceModel, pci::Function};

use crate::{
    config::{Error, QueueType},
    devices::children::{check_queue, endpoint, limits},
    devices::claim::QueueClaim,
    devices::device::{DsaDevice, portal_store},
    function::endpoint::Endpoint,
    function::registers::{self, Registers},
    queues::commands::{self, Identity, Plan},
    queues::queue::{ChildClient, Refused, Store},
    queues::schedule,
    queues::state::State,
    spec::{
        Cmd, Command, CommandError, WqConfig, WqState,
        command::queue_bits,
        descriptor::DESCRIPTOR_SIZE,
        registers::{DeviceState, GenCap, GenStatus, WqCap},
        tables::{WqStatus, WqUse},
    },
};

/// A queue of a parent that several children share. The parent's own registers and portals do not reach it.
#[derive(Debug)]
pub struct SharedQueue {
    claim: QueueClaim,
}

impl SharedQueue {
    /// Takes queue `queue` of `parent`. It is enabled when the first child's user enables its own.
    ///
    /// # Errors
    /// [`Error::NoQueue`], [`Error::QueueBusy`]; [`Error::Config`] if the queue was not set aside for
    /// mediated devices, or if the parent cannot send PASIDs.
    pub fn new(parent: &Arc<DsaDevice>, queue: usize) -> Result<Arc<Self>, Error> {
        check_queue(parent, queue)?;
        let claim = parent.claim_queue(queue, QueueType::Mdev)?;
        Ok(Arc::new(SharedQueue { claim }))
    }

    /// The parent.
    pub fn parent(&self) -> &Arc<DsaDevice> {
        self.claim.device()
    }

    /// Index of the queue in the parent.
    pub fn index(&self) -> usize {
        self.claim.index()
    }

    fn set(&self) -> u64 {
        1 << self.index()
    }

    fn size(&self) -> u16 {
        let queues = self.parent().queues();
        queues.get(self.index()).map_or(0, |queue| queue.size)
    }

    /// How the queue is used, as every child's user reads it.
    fn usage(&self) -> WqUse {
        let queues = self.parent().queues();
        WqUse::new()
            .with_block_on_fault(self.parent().abilities().block_on_fault)
            .with_priority(queues.get(self.index()).map_or(1, |queue| queue.priority))
            .with_pasid_en(true)
    }

    /// Enables the real queue, unless it is. The state's lock is held.
    fn enable(&self, state: &mut State) -> Result<(), CommandError> {
        let enabled = state.enabled;
        let queue = state.queues.get_mut(self.index());
        let queue = queue.ok_or(CommandError::InvalidQueue)?;
        if queue.state() == WqState::Enabled {
            return Ok(());
        }
        if !enabled {
            return Err(CommandError::Hardware);
        }
        queue.config.usage = self.usage();
        queue.config.limits = limits(self.parent());
        queue.config.threshold = queue.config.size;
        let identity = Identity {
            endpoint: Arc::clone(&self.parent().endpoint),
            index: self.index() as u8,
            pasid_use: None,
        };
        queue.enable(enabled, self.parent().abilities(), identity)
    }
}

/// Why a number of a child's user was not bound.
#[derive(Debug, thiserror::Error)]
pub enum VirtualPasidError {
    /// Not a PASID of this device (EINVAL).
    #[error("{pasid} is not one of the PASIDs 1 to {last} of the device")]
    NoPasid {
        /// The number.
        pasid: u32,
        /// The device's last PASID.
        last: u32,
    },
    /// It leads to a domain already (EBUSY).
    #[error("virtual PASID {0} is bound: unbind it first")]
    Bound(u32),
    /// There is none that could be leased (ENOSPC).
    #[error(transparent)]
    Lease(#[from] PasidError),
    /// The domain cannot be attached there.
    #[error(transparent)]
    Attach(#[from] AttachError),
}

/// A PASID of the host's that stands for one of a child's user.
#[derive(Debug)]
struct Lease {
    handle: PasidHandle,
    source: DmaSource,
}

/// What one child has for itself.
#[derive(Debug, Default)]
struct View {
    enabled: bool,
    queue_enabled: bool,
    /// By the number that the user knows.
    pasids: BTreeMap<u32, Lease>,
}

impl View {
    fn leased(&self) -> Vec<Pasid> {
        let leases = self.pasids.values();
        leases.map(|lease| lease.handle.pasid()).collect()
    }
}

/// One user's part of a [`SharedQueue`], shown as a DSA device that has one shared queue, one group and one
/// engine and that cannot be configured. Its commands concern its own descriptors.
#[derive(Debug)]
pub struct SharedChild {
    queue: Arc<SharedQueue>,
    endpoint: Arc<Endpoint>,
    quota: Arc<PasidQuota>,
    /// Taken while the state's lock is held, never the other way round.
    view: Arc<Mutex<View>>,
}

impl SharedChild {
    /// A child that may have `most` PASIDs at a time.
    ///
    /// # Errors
    /// [`Error::Config`] if its function cannot be laid out.
    pub fn new(queue: &Arc<SharedQueue>, most: u32) -> Result<Arc<Self>, Error> {
        Ok(Arc::new(SharedChild {
            queue: Arc::clone(queue),
            endpoint: endpoint(queue.parent())?,
            quota: PasidQuota::new(most),
            view: Arc::default(),
        }))
    }

    /// Its queue.
    pub fn queue(&self) -> &Arc<SharedQueue> {
        &self.queue
    }

    /// Lets the user's PASID `pasid` lead to `domain`, through a PASID of the host's that is leased for it.
    ///
    /// # Errors
    /// [`VirtualPasidError`]; nothing has changed then.
    pub fn bind_pasid(
        &self,
        pasid: u32,
        domain: &Arc<Domain>,
        faults: &Arc<dyn FaultSink>,
    ) -> Result<(), VirtualPasidError> {
        let parent = self.queue.parent();
        let last = parent.device().max_pasids() - 1;
        if !(1..=last).contains(&pasid) {
            return Err(VirtualPasidError::NoPasid { pasid, last });
        }
        if self.view.lock().pasids.contains_key(&pasid) {
            return Err(VirtualPasidError::Bound(pasid));
        }
        let handle = parent.pasids.alloc(&self.quota)?;
        let source = DmaSource::with_pasid(parent.device(), handle.pasid().get())?;
        source.attach(domain, faults)?;
        let lease = Lease { handle, source };
        let mut view = self.view.lock();
        match view.pasids.contains_key(&pasid) {
            false => view.pasids.insert(pasid, lease),
            true => {
                drop(view);
                lease.source.detach();
                return Err(VirtualPasidError::Bound(pasid));
            }
        };
        Ok(())
    }

    /// Takes the user's PASID `pasid` away, if it is bound. When this returns, no descriptor with it touches
    /// memory any more: those that waited, for an engine or for a page, have been dropped, as by an abort.
    /// The PASID that was leased for it is not leased again before.
    pub fn unbind_pasid(&self, pasid: u32) {
        let pool = &self.queue.parent().pool;
        let set = self.queue.set();
        let unbound = pool.change(|state| {
            let lease = self.view.lock().pasids.remove(&pasid)?;
            let only = [lease.handle.pasid()];
            state.abort(set, Some(&only));
            Some((lease, state.drain_points(set, Some(&only))))
        });
        if let Some((lease, points)) = unbound {
            pool.wait_until_quiet(|state| state.passed(&points));
            lease.source.detach();
        }
    }

    /// The host's PASID that stands for the user's PASID `pasid`. For the host alone: no user can read it.
    pub fn leased(&self, pasid: u32) -> Option<Pasid> {
        let view = self.view.lock();
        view.pasids.get(&pasid).map(|lease| lease.handle.pasid())
    }

    /// In whose name a descriptor runs that names the user's PASID `pasid`.
    fn client(&self, pasid: u32) -> Result<ChildClient, Refused> {
        let view = self.view.lock();
        if !view.queue_enabled {
            return Err(Refused::NotEnabled);
        }
        let lease = view.pasids.get(&pasid).ok_or(Refused::BadPasid)?;
        Ok(ChildClient {
            endpoint: Arc::clone(&self.endpoint),
            pasid_use: lease.handle.use_token(),
        })
    }

    fn capabilities() -> u32 {
        Command::capabilities()
    }
}

/// What `command` does; the state's lock is held, and the view's is taken.
fn plan(
    queue: &SharedQueue,
    endpoint: &Arc<Endpoint>,
    shared: &Arc<Mutex<View>>,
    state: &mut State,
    command: Command,
    operand: u32,
) -> Result<Plan, CommandError> {
    let set = queue.set();
    let mut view = shared.lock();
    let all = view.leased();
    let of_queue = |view: &View| match (view.enabled, queue_bits(operand)) {
        (false, _) => Err(CommandError::QueueDeviceNotEnabled),
        (true, 1) => Ok(()),
        (true, _) => Err(CommandError::InvalidQueue),
    };
    match command {
        Command::EnableDevice if view.enabled => return Err(CommandError::DeviceEnabled),
        Command::EnableDevice if !endpoint.function().bus_master() => {
            return Err(CommandError::BusMaster);
        }
        Command::EnableDevice => {
            // There is no address space that a log could be in.
            if endpoint.has_log() {
                return Err(CommandError::Configuration);
            }
            view.enabled = true;
            return Ok(Plan::nothing());
        }
        Command::DisableDevice if !view.enabled => return Err(CommandError::DisableNotEnabled),
        Command::EnableWq if operand != 0 => return Err(CommandError::InvalidQueue),
        Command::EnableWq if !view.enabled => return Err(CommandError::DeviceNotEnabled),
        Command::EnableWq if view.queue_enabled => return Err(CommandError::QueueEnabled),
        Command::EnableWq => {
            queue.enable(state)?;
            view.queue_enabled = true;
            return Ok(Plan::nothing());
        }
        Command::DisableWq | Command::DrainWq | Command::AbortWq | Command::ResetWq => {
            of_queue(&view)?;
        }
        _ => {}
    }
    Ok(match command {
        Command::DisableDevice => {
            let shared = Arc::clone(shared);
            view.queue_enabled = false;
            Plan::drain(set).only(all).and(move |_| {
                shared.lock().enabled = false;
                Ok(())
            })
        }
        Command::DisableWq => {
            view.queue_enabled = false;
            Plan::drain(set).only(all)
        }
        Command::ResetWq => {
            view.queue_enabled = false;
            Plan::abort(set).only(all)
        }
        Command::ResetDevice => {
            let endpoint = Arc::clone(endpoint);
            (view.enabled, view.queue_enabled) = (false, false);
            Plan::abort(set).only(all).and(move |_| {
                endpoint.reset();
                Ok(())
            })
        }
        Command::DrainAll | Command::DrainWq => Plan::drain(set).only(all),
        Command::AbortAll | Command::AbortWq => Plan::abort(set).only(all),
        // One that the user has not has no descriptors.
        Command::DrainPasid | Command::AbortPasid => {
            let lease = view.pasids.get(&operand);
            let one = lease.map(|lease| lease.handle.pasid()).into_iter();
            match command {
                Command::DrainPasid => Plan::drain(set).only(one.collect()),
                _ => Plan::abort(set).only(one.collect()),
            }
        }
        Command::EnableDevice | Command::EnableWq => Plan::nothing(),
    })
}

impl Registers for SharedChild {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn general_capabilities(&self) -> GenCap {
        let parent = self.queue.parent().capabilities();
        parent.with_config_en(false).with_evl_support(0)
    }

    fn queue_capabilities(&self) -> u64 {
        WqCap::new()
            .with_total_wq_size(self.queue.size())
            .with_num_wqs(1)
            .with_shared_mode(true)
            .into_bits()
    }

    fn command_capabilities(&self) -> u32 {
        SharedChild::capabilities()
    }

    fn status(&self) -> GenStatus {
        GenStatus::new().with_state(match self.view.lock().enabled {
            true => DeviceState::Enabled,
            false => DeviceState::Disabled,
        })
    }

    fn queue_config(&self, queue: usize, index: u64) -> u32 {
        if queue != 0 {
            return 0;
        }
        // How full the queue is would tell of the other children.
        let status = WqStatus::new().with_state(match self.view.lock().queue_enabled {
            true => WqState::Enabled,
            false => WqState::Disabled,
        });
        let size = self.queue.size();
        let config = WqConfig {
            size,
            threshold: size,
            usage: self.queue.usage(),
            limits: limits(self.queue.parent()),
        };
        config.dword(index, status)
    }

    fn set_queue_config(&self, _queue: usize, _index: u64, _value: u32) {}

    fn command(&self, cmd: Cmd) {
        let queue = Arc::clone(&self.queue);
        let (endpoint, view) = (Arc::clone(&self.endpoint), Arc::clone(&self.view));
        commands::start(&self.queue.parent().pool, &self.endpoint, cmd, |state| {
            let command = registers::decode(cmd, SharedChild::capabilities());
            let command = command.ok_or(CommandError::InvalidCommand)?;
            plan(&queue, &endpoint, &view, state, command, cmd.operand())
        });
    }
}

impl DeviceModel for SharedChild {
    fn function(&self) -> &Function {
        self.endpoint.function()
    }

    fn read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        match bar {
            0 => registers::read(self, offset, data),
            _ => data.fill(0),
        }
    }

    fn write(&self, bar: u8, offset: u64, data: &[u8]) {
        // A posted store is not for a shared queue.
        if bar == 0 {
            registers::write(self, offset, data);
        }
    }

    fn enqueue(&self, bar: u8, offset: u64, data: &[u8; DESCRIPTOR_SIZE]) -> bool {
        let descriptor = match bar {
            2 => portal_store(&self.endpoint, offset, data),
            _ => None,
        };
        let Some(descriptor) = descriptor else {
            return false;
        };
        let queue = &self.queue;
        let client = || self.client(descriptor.pasid);
        let accepted = schedule::submit(
            &queue.parent().pool,
            queue.index(),
            &self.endpoint,
            descriptor,
            // Whichever page it was: the other one is the host's.
            Store::Deferrable { limited: true },
            Some(&client),
        );
        // One with a PASID that leads nowhere is taken, and reported as an error.
        matches!(accepted, Ok(()) | Err(Refused::BadPasid))
    }

    fn reset(&self) {
        let pool = &self.queue.parent().pool;
        let set = self.queue.set();
        let points = pool.change(|state| {
            let mut view = self.view.lock();
            (view.enabled, view.queue_enabled) = (false, false);
            let all = view.leased();
            state.abort(set, Some(&all));
            state.drain_points(set, Some(&all))
        });
        pool.wait_until_quiet(|state| state.passed(&points));
        self.endpoint.reset();
    }
}

impl Drop for SharedChild {
    fn drop(&mut self) {
        let bound: Vec<u32> = self.view.lock().pasids.keys().copied().collect();
        bound.iter().for_each(|pasid| self.unbind_pasid(*pasid));
    }
}

impl Inspect for SharedChild {
    fn inspect(&self) -> Node {
        let view = self.view.lock();
        let mut pasids = Node::new();
        for (pasid, lease) in &view.pasids {
            pasids.set(pasid.to_string(), lease.handle.pasid().get());
        }
        Node::new()
            .with("parent", self.queue.parent().device().address().to_string())
            .with("queue", self.queue.index())
            .with("enabled", view.enabled)
            .with("errors", self.endpoint.errors())
            .with("virtual_pasids", pasids)
    }
}
