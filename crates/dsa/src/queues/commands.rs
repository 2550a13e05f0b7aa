//! Commands on queues and on the whole device. Each takes effect at once, may have to wait for
//! descriptors to end, and then stores its result: [`start`].
//!
//! A command with nothing to wait for has its result before the store to CMD returns. Drivers that
//! poll CMDSTS for some tens of microseconds only, and on a host with fewer processors than
//! threads, are served that way.

use std::sync::Arc;

use ioasid_core::Pasid;
use ioasid_iommu::PasidUse;

use crate::{
    config::MAX_BATCH_SHIFT,
    exec::Terms,
    function::endpoint::Endpoint,
    queues::queue::Queue,
    queues::schedule::Pool,
    queues::session::Session,
    queues::state::{Pending, State, Then},
    spec::{Cmd, CommandError, GroupConfig, WqConfig, WqState, tables::WqUse},
};

/// What a command does to descriptors before its result is stored.
pub(crate) struct Plan {
    /// Queues whose waiting descriptors are dropped.
    pub(crate) abort: u64,
    /// Queues that accept nothing more.
    pub(crate) close: u64,
    /// Queues whose accepted descriptors have to end first.
    pub(crate) drain: u64,
    /// Aborts and drains concern these PASIDs only.
    pub(crate) only: Option<Vec<Pasid>>,
    /// What is done then.
    pub(crate) then: Then,
}

impl Plan {
    /// Waits for nothing and does nothing.
    pub(crate) fn nothing() -> Self {
        Plan {
            abort: 0,
            close: 0,
            drain: 0,
            only: None,
            then: Box::new(|_| Ok(())),
        }
    }

    /// Waits until the accepted descriptors of `set` have ended.
    pub(crate) fn drain(set: u64) -> Self {
        Plan {
            drain: set,
            ..Plan::nothing()
        }
    }

    /// Drops what waits in `set`, and waits for the rest.
    pub(crate) fn abort(set: u64) -> Self {
        Plan {
            abort: set,
            drain: set,
            ..Plan::nothing()
        }
    }

    /// Drains and disables `set`.
    pub(crate) fn disable(set: u64) -> Self {
        Plan {
            close: set,
            drain: set,
            then: Box::new(move |state| {
                state.disable(set);
                Ok(())
            }),
            ..Plan::nothing()
        }
    }

    /// Aborts and disables `set`.
    pub(crate) fn abort_and_disable(set: u64) -> Self {
        Plan {
            abort: set,
            ..Plan::disable(set)
        }
    }

    /// The same for the descriptors of these PASIDs.
    pub(crate) fn only(self, pasids: Vec<Pasid>) -> Self {
        Plan {
            only: Some(pasids),
            ..self
        }
    }

    /// With something more to do at the end.
    pub(crate) fn and(
        self,
        more: impl FnOnce(&mut State) -> Result<(), CommandError> + Send + 'static,
    ) -> Self {
        let then = self.then;
        Plan {
            then: Box::new(move |state| then(state).and_then(|()| more(state))),
            ..self
        }
    }
}

/// Starts command `cmd` of the owner of `endpoint`: `plan` checks it and says what it does. Ignored
/// while another one of that owner is running.
pub(crate) fn start(
    pool: &Pool,
    endpoint: &Arc<Endpoint>,
    cmd: Cmd,
    plan: impl FnOnce(&mut State) -> Result<Plan, CommandError>,
) {
    if !endpoint.begin_command(cmd) {
        return;
    }
    pool.change(|state| {
        let (waits, then) = match plan(state) {
            Ok(plan) => {
                state.close(plan.close);
                let only = plan.only.as_deref();
                state.abort(plan.abort, only);
                (state.drain_points(plan.drain, only), plan.then)
            }
            Err(error) => (
                Vec::new(),
                Box::new(move |_: &mut State| Err(error)) as Then,
            ),
        };
        state.pending.push(Pending {
            endpoint: Arc::clone(endpoint),
            request_interrupt: cmd.request_interrupt(),
            waits,
            then,
        });
    });
}

/// Aborts and disables the queues in `set` and waits: when it returns, none of their descriptors
/// can touch memory, and no interrupt of the time before is about to be raised. Not a command: the
/// device or a child is reset, or a queue is given back.
pub(crate) fn stop(pool: &Pool, set: u64) {
    let points = pool.change(|state| {
        state.close(set);
        state.abort(set, None);
        state.drain_points(set, None)
    });
    pool.wait_until_quiet(|state| state.passed(&points));
    pool.change(|state| state.disable(set));
}

/// Stops the queues in `set` where they are, and waits until nothing of them goes on.
pub(crate) fn pause(pool: &Pool, set: u64) {
    set_paused(pool, set, true);
    pool.wait_until_quiet(|state| state.is_quiet(set));
}

/// Stops the queues in `set` where they are, or lets them go on.
pub(crate) fn set_paused(pool: &Pool, set: u64, paused: bool) {
    pool.change(|state| state.set_paused(set, paused));
}

impl State {
    /// Checks the general configuration and enables the device.
    pub(crate) fn enable_device(
        &mut self,
        bus_master: bool,
        total: u32,
    ) -> Result<(), CommandError> {
        if self.enabled {
            return Err(CommandError::DeviceEnabled);
        }
        if !bus_master {
            return Err(CommandError::BusMaster);
        }
        let sizes = self.queues.iter().map(|queue| u32::from(queue.config.size));
        if sizes.sum::<u32>() > total {
            return Err(CommandError::QueueSizeRange);
        }
        let (mut queues, mut engines) = (0, 0);
        for group in &self.groups {
            if group.queues & (queues | !self.all_queues()) != 0 {
                return Err(CommandError::GroupQueues);
            }
            if group.engines & (engines | !self.all_engines()) != 0 {
                return Err(CommandError::GroupEngines);
            }
            match (group.queues, group.engines) {
                (0, 0) => {}
                (_, 0) => return Err(CommandError::GroupNoEngine),
                (0, _) => return Err(CommandError::GroupNoQueue),
                _ => {}
            }
            queues |= group.queues;
            engines |= group.engines;
        }
        let sized = self.indexes(self.all_queues());
        let sized = sized.filter(|index| self.queues[*index].config.size > 0);
        if sized.fold(0, |set, index| set | 1 << index) & !queues != 0 {
            return Err(CommandError::GroupQueues);
        }
        self.enabled = true;
        Ok(())
    }

    /// Everything as after power-up; every queue is idle and disabled.
    pub(crate) fn reset_device(&mut self) {
        self.enabled = false;
        self.groups.fill(GroupConfig::default());
        for queue in &mut self.queues {
            queue.disable();
            queue.config = WqConfig::default();
        }
    }
}

/// The name in which a queue is enabled.
pub(crate) struct Identity {
    pub(crate) endpoint: Arc<Endpoint>,
    /// Queue index as the owner counts.
    pub(crate) index: u8,
    /// Keeps the PASID of the configuration from being reused.
    pub(crate) pasid_use: Option<PasidUse>,
}

/// What the device can do for a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Abilities {
    /// One past the largest PASID.
    pub(crate) max_pasids: u32,
    /// Its requests with PASIDs may be privileged.
    pub(crate) privileged_mode: bool,
    pub(crate) block_on_fault: bool,
    pub(crate) max_transfer_shift: u8,
}

impl Queue {
    /// Checks the configuration and enables the queue in the name of `identity`.
    pub(crate) fn enable(
        &mut self,
        device_enabled: bool,
        abilities: Abilities,
        identity: Identity,
    ) -> Result<(), CommandError> {
        if !device_enabled {
            return Err(CommandError::DeviceNotEnabled);
        }
        if self.state() == WqState::Enabled {
            return Err(CommandError::QueueEnabled);
        }
        let (usage, limits) = (self.config.usage, self.config.limits);
        if self.config.size == 0 {
            return Err(CommandError::QueueSize);
        }
        if usage.priority() == 0 {
            return Err(CommandError::QueuePriority);
        }
        let shared = !usage.dedicated();
        if shared && abilities.max_pasids == 0 {
            return Err(CommandError::QueueMode);
        }
        if shared && !(1..=self.config.size).contains(&self.config.threshold) {
            return Err(CommandError::QueueSize);
        }
        if usage.block_on_fault() && !abilities.block_on_fault {
            return Err(CommandError::BlockOnFault);
        }
        let pasid = match usage.pasid_en() {
            // The clients of a shared queue are distinguished by their PASIDs.
            false if shared => return Err(CommandError::PasidEnable),
            false => None,
            true if shared => None,
            true => Some(
                Pasid::new(usage.pasid())
                    .filter(|pasid| pasid.get() < abilities.max_pasids)
                    .ok_or(CommandError::PasidEnable)?,
            ),
        };
        if pasid.is_some() && usage.privileged() && !abilities.privileged_mode {
            return Err(CommandError::PasidEnable);
        }
        if limits.max_batch_shift() > MAX_BATCH_SHIFT {
            return Err(CommandError::MaxBatch);
        }
        if limits.max_xfer_shift() > abilities.max_transfer_shift {
            return Err(CommandError::MaxTransfer);
        }
        let terms = Terms {
            max_transfer: 1 << limits.max_xfer_shift(),
            max_batch: 1 << limits.max_batch_shift(),
            block_on_fault: usage.block_on_fault(),
            page_requests: usage.block_on_fault() && !usage.prs_disable(),
            vectors: identity.endpoint.vectors(),
            shared,
            privileged: usage.privileged(),
            privileged_mode: abilities.privileged_mode,
            max_pasids: abilities.max_pasids,
            ats: !usage.ats_disable(),
        };
        self.session = Some(Session::new(
            identity.endpoint,
            identity.index,
            pasid,
            identity.pasid_use,
            terms,
        ));
        self.closing = false;
        self.credit = 0;
        Ok(())
    }

    /// A disabled queue's configuration, with its entries and limits only.
    pub(crate) fn reset(&mut self) {
        self.config.threshold = 0;
        self.config.usage = WqUse::new();
    }
}
