//! A child of the type `dsa-1dwq`: one dedicated queue of a parent, shown as a DSA device that has
//! one queue, one group and one engine and that cannot be configured.
//!
//! Its commands reach its own queue only. What its user writes to WQCFG, a PASID above all, never
//! reaches the real queue: when the user enables the queue, the child programs the PASID that it
//! was given at bind into the parent's WQCFG, and the user has no way to learn it.

use std::sync::Arc;

use ioasid_core::{
    Pasid,
    inspect::{Inspect, Node},
    sync::{Mutex, MutexGuard},
};
use ioasid_engine::ChildUnit;
use ioasid_iommu::Device;
use ioasid_vfio::{
    DefaultPasid, DeviceModel,
    error::BindError,
    mdev::PasidSlot,
    model::{Migrate, StateError},
    pci::Function,
    saved::{Reader, Writer},
};

use crate::{
    config::{Error, QueueType},
    devices::children::{check_queue, endpoint, limits},
    devices::device::{DsaDevice, portal_store},
    function::endpoint::Endpoint,
    function::registers::{self, Registers},
    queues::commands::{self, Identity, Plan},
    queues::queue::Store,
    queues::schedule,
    queues::state::State,
    spec::{
        Cmd, Command, CommandError, WqConfig, WqState,
        command::queue_bits,
        registers::{DeviceState, GenCap, GenStatus, WqCap},
        tables::WqUse,
    },
};

/// Bits of the child's WQCFG bytes 8..=11 that its user may write: PASID, PASID enable, privilege.
const USER_BITS: u32 = 0x3fff_ff00;
/// Priority of a queue that its parent's driver gave none.
const DEFAULT_PRIORITY: u8 = 10;

/// One queue of a parent as a device of its own.
#[derive(Debug)]
pub struct DsaChild {
    queue: ChildUnit<DsaDevice>,
    endpoint: Arc<Endpoint>,
    view: Arc<Mutex<View>>,
    /// The default PASID: not the user's to see or to reset.
    pasid: PasidSlot,
}

/// What the child's user alone sees.
#[derive(Debug, Default)]
pub(crate) struct View {
    enabled: bool,
    /// What the user wrote to the pasid dword.
    user_bits: u32,
}

impl View {
    pub(crate) const fn is_enabled(&self) -> bool {
        self.enabled
    }

    pub(crate) fn save(&self, out: &mut Writer) {
        out.bool(self.enabled);
        out.u32(self.user_bits);
    }

    pub(crate) fn load(state: &mut Reader<'_>) -> Result<Self, StateError> {
        Ok(View {
            enabled: state.bool()?,
            user_bits: state.u32()? & USER_BITS,
        })
    }
}

impl DsaChild {
    /// Takes queue `queue` of `parent` for a child.
    ///
    /// # Errors
    /// [`Error::NoQueue`], [`Error::QueueBusy`]; [`Error::Config`] if the queue was not set aside
    /// for mediated devices, or if the parent cannot send PASIDs.
    pub fn new(parent: &Arc<DsaDevice>, queue: usize) -> Result<Arc<Self>, Error> {
        check_queue(parent, queue)?;
        let endpoint = endpoint(parent)?;
        let claim = parent.claim_queue(queue, QueueType::Mdev)?;
        endpoint
            .function()
            .on_bus_master(parent.pool.on_bus_master());
        Ok(Arc::new(DsaChild {
            queue: ChildUnit::new(claim),
            endpoint,
            view: Arc::default(),
            pasid: PasidSlot::new(&parent.pasids),
        }))
    }

    /// The parent.
    pub fn parent(&self) -> &Arc<DsaDevice> {
        self.queue.parent()
    }

    /// Index of its queue in the parent.
    pub fn queue(&self) -> usize {
        self.queue.index()
    }

    /// The default PASID, while the child is bound. For the host alone: no user can read it.
    pub fn pasid(&self) -> Option<Pasid> {
        self.pasid.pasid()
    }

    pub(crate) fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock()
    }

    /// Gives the queue back; the child answers nothing from now on.
    pub(crate) fn retire(&self) {
        self.queue.retire();
    }

    /// The queue as a set, while it is the child's.
    pub(crate) fn set(&self) -> u64 {
        let set = self.queue.if_claimed(|claim| 1 << claim.index());
        set.unwrap_or(0)
    }

    fn stop(&self) {
        let set = self.set();
        if set != 0 {
            commands::stop(&self.parent().pool, set);
        }
    }

    fn capabilities() -> u32 {
        // Its user knows no PASID, so there is none to drain or abort.
        Command::capabilities()
            & !(1 << Command::DrainPasid as u32 | 1 << Command::AbortPasid as u32)
    }

    /// The pasid dword as the user sees it.
    fn usage(&self, view: &View) -> WqUse {
        let fixed = WqUse::new()
            .with_dedicated(true)
            .with_block_on_fault(self.parent().abilities().block_on_fault)
            .with_priority(DEFAULT_PRIORITY);
        WqUse::from_bits(fixed.into_bits() | view.user_bits)
    }

    /// Enables the real queue in the name of the child, with the default PASID. Its requests are user
    /// requests, as those without a PASID are: its user knows of none. The state's lock is held.
    pub(crate) fn enable_queue(&self, state: &mut State, view: &View) -> Result<(), CommandError> {
        let usage = self.usage(view);
        if !view.enabled {
            return Err(CommandError::DeviceNotEnabled);
        }
        let device_enabled = state.enabled;
        let queue = state
            .queues
            .get_mut(self.queue())
            .ok_or(CommandError::InvalidQueue)?;
        if queue.state() == WqState::Enabled {
            return Err(CommandError::QueueEnabled);
        }
        if usage.pasid_en() {
            return Err(CommandError::PasidEnable);
        }
        let pasid = self.pasid.use_token().ok_or(CommandError::PasidEnable)?;
        if !device_enabled {
            return Err(CommandError::Hardware);
        }
        let priority = match queue.config.usage.priority() {
            0 => DEFAULT_PRIORITY,
            priority => priority,
        };
        queue.config.usage = WqUse::new()
            .with_dedicated(true)
            .with_block_on_fault(usage.block_on_fault())
            .with_priority(priority)
            .with_pasid(pasid.pasid().get())
            .with_pasid_en(true);
        queue.config.limits = limits(self.parent());
        let identity = Identity {
            endpoint: Arc::clone(&self.endpoint),
            index: 0,
            pasid_use: Some(pasid),
        };
        let enabled = queue.enable(device_enabled, self.parent().abilities(), identity);
        if enabled.is_err() {
            queue.disable();
        }
        enabled
    }
}

impl Registers for DsaChild {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn general_capabilities(&self) -> GenCap {
        self.parent().capabilities().with_config_en(false)
    }

    fn queue_capabilities(&self) -> u64 {
        let size = self.parent().queues().get(self.queue());
        WqCap::new()
            .with_total_wq_size(size.map_or(0, |queue| queue.size))
            .with_num_wqs(1)
            .with_dedicated_mode(true)
            .with_occupancy(true)
            .into_bits()
    }

    fn command_capabilities(&self) -> u32 {
        DsaChild::capabilities()
    }

    fn status(&self) -> GenStatus {
        GenStatus::new().with_state(if self.view.lock().enabled {
            DeviceState::Enabled
        } else {
            DeviceState::Disabled
        })
    }

    fn queue_config(&self, queue: usize, index: u64) -> u32 {
        if queue != 0 {
            return 0;
        }
        let size = self.parent().queues().get(self.queue());
        let state = self.parent().pool.lock();
        let Some(status) = state.queues.get(self.queue()).map(|queue| queue.status()) else {
            return 0;
        };
        let config = WqConfig {
            size: size.map_or(0, |queue| queue.size),
            threshold: 0,
            usage: self.usage(&self.view.lock()),
            limits: limits(self.parent()),
        };
        config.dword(index, status)
    }

    fn set_queue_config(&self, queue: usize, index: u64, value: u32) {
        if queue != 0 || index != 2 {
            return;
        }
        let state = self.parent().pool.lock();
        let disabled = state
            .queues
            .get(self.queue())
            .is_some_and(|queue| queue.state() == WqState::Disabled);
        if disabled {
            self.view.lock().user_bits = value & USER_BITS;
        }
    }

    fn command(&self, cmd: Cmd) {
        let set = self.set();
        let operand = cmd.operand();
        let view = Arc::clone(&self.view);
        let endpoint = Arc::clone(&self.endpoint);
        commands::start(&self.parent().pool, &self.endpoint, cmd, |state| {
            let command = registers::decode(cmd, DsaChild::capabilities());
            let command = command.ok_or(CommandError::InvalidCommand)?;
            if set == 0 {
                return Err(CommandError::Hardware);
            }
            let enabled = view.lock().enabled;
            let own = |plan: fn(u64) -> Plan| match (enabled, queue_bits(operand)) {
                (false, _) => Err(CommandError::QueueDeviceNotEnabled),
                (true, 1) => Ok(plan(set)),
                (true, _) => Err(CommandError::InvalidQueue),
            };
            match command {
                Command::EnableDevice if enabled => Err(CommandError::DeviceEnabled),
                Command::EnableDevice if !self.endpoint.function().bus_master() => {
                    Err(CommandError::BusMaster)
                }
                Command::EnableDevice => {
                    endpoint.check_log(0)?;
                    view.lock().enabled = true;
                    Ok(Plan::nothing())
                }
                Command::DisableDevice if !enabled => Err(CommandError::DisableNotEnabled),
                Command::DisableDevice => Ok(Plan::disable(set).and(move |_| {
                    view.lock().enabled = false;
                    Ok(())
                })),
                Command::DrainAll => Ok(Plan::drain(set)),
                Command::AbortAll => Ok(Plan::abort(set)),
                Command::ResetDevice => Ok(Plan::abort_and_disable(set).and(move |_| {
                    *view.lock() = View::default();
                    endpoint.reset();
                    Ok(())
                })),
                Command::EnableWq if operand != 0 => Err(CommandError::InvalidQueue),
                Command::EnableWq => {
                    self.enable_queue(state, &view.lock())?;
                    Ok(Plan::nothing())
                }
                Command::DisableWq => own(Plan::disable),
                Command::DrainWq => own(Plan::drain),
                Command::AbortWq => own(Plan::abort),
                Command::ResetWq => Ok(own(Plan::abort_and_disable)?.and(move |_| {
                    view.lock().user_bits = 0;
                    Ok(())
                })),
                Command::DrainPasid | Command::AbortPasid => Err(CommandError::InvalidCommand),
            }
        });
    }
}

impl DeviceModel for DsaChild {
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
        match bar {
            0 => registers::write(self, offset, data),
            2 if self.set() != 0 => {
                if let Some(descriptor) = portal_store(&self.endpoint, offset, data) {
                    let pool = &self.parent().pool;
                    let queue = self.queue();
                    // A posted store has no answer.
                    let _ = schedule::submit(
                        pool,
                        queue,
                        &self.endpoint,
                        descriptor,
                        Store::Posted,
                        None,
                    );
                }
            }
            _ => {}
        }
    }

    fn reset(&self) {
        self.stop();
        *self.view.lock() = View::default();
        self.endpoint.reset();
        self.resume();
    }

    fn migration(&self) -> Option<&dyn Migrate> {
        Some(self)
    }
}

impl DefaultPasid for DsaChild {
    fn bind(&self) -> Result<(Arc<Device>, Pasid), BindError> {
        self.pasid.bind(self.parent().device())
    }

    fn quiesce(&self) {
        // An abort, not a drain: a descriptor may wait for a page that only the user could give.
        // Its page request is answered when the PASID is detached, and has no effect then.
        self.stop();
    }

    fn unbind(&self) {
        self.pasid.unbind();
    }
}

impl Inspect for DsaChild {
    fn inspect(&self) -> Node {
        let (enabled, pasid) = (self.view.lock().enabled, self.pasid());
        Node::new()
            .with("parent", self.parent().device().address().to_string())
            .with("queue", self.queue())
            .with("enabled", enabled)
            .with("errors", self.endpoint.errors())
            .with("default_pasid", pasid.map(Pasid::get))
    }
}
