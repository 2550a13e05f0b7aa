//! One channel: its registers, the chain it follows, and what of it is under way.
//!
//! ```text
//!            CHAINADDR          DMACOUNT            count reached
//!   HALTED ------------> ARMED ----------> ACTIVE ----------------> DONE
//!     ^   ------------>    ^                 |  ^ <----------------   |
//!     |    SUSPENDED ------+  SUSPEND, at    |  |     DMACOUNT        |
//!     |        ^ <-----------------(end of)--+  |                     |
//!     |        |          descriptor            | RESUME              |
//!     |        +--------------------------------+  <------------------+ SUSPEND
//!     +------- RESET from anywhere; an error
//! ```
//! While its function must not issue requests, an active channel stays where it is, in the middle
//! of a descriptor perhaps. SUSPEND does not wait for the end of that descriptor then.
//!
//! CHAINADDR has no effect while the channel is active or done.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU16, Ordering},
};

use ioasid_core::Pasid;
use ioasid_iommu::PasidUse;
use ioasid_vfio::{
    model::StateError,
    saved::{Reader, Writer, expect},
};

use crate::{
    config::{ChannelOwner, MAX_TRANSFER_SHIFT},
    endpoint::{Endpoint, Message},
    exec::{Ending, Execution, Terms},
    job::Task,
    spec::{
        ChanCmd, ChanCtrl, ChanErr, ChanSts, ChannelStatus, map::Chan, registers::COMPATIBILITY,
    },
};

/// The client that a channel works for. Every descriptor under way holds it, and with it the PASID.
#[derive(Debug)]
pub(crate) struct Client {
    /// Where its interrupts go.
    pub(crate) endpoint: Arc<Endpoint>,
    /// Channel number as that owner counts.
    pub(crate) index: usize,
    pub(crate) pasid: Option<Pasid>,
    /// Of the device itself, for a child.
    pub(crate) parent: Option<Arc<Endpoint>>,
    /// Keeps the PASID from being reused.
    pub(crate) _pasid_use: Option<PasidUse>,
}

impl Client {
    /// Whether the functions that it is about may issue requests.
    fn may_issue(&self) -> bool {
        let mut endpoints = self.parent.iter().chain([&self.endpoint]);
        endpoints.all(|endpoint| endpoint.function().bus_master())
    }
}

/// Where a channel's descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunState {
    /// Nothing is to be done, or engines do not know of it yet.
    Idle,
    /// In the queue for an engine.
    Ready,
    /// On an engine.
    OnEngine,
    /// On its client's worker, or on the way there.
    OnWorker,
}

/// What happened in a channel since the device was made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Stats {
    /// Descriptors that ended.
    pub(crate) ended: u64,
    /// Of them, those that did not succeed.
    pub(crate) failed: u64,
    /// Of them, those that a page fault ended.
    pub(crate) faults: u64,
    /// Descriptors cut short by a reset.
    pub(crate) aborted: u64,
    /// Bytes moved.
    pub(crate) bytes: u64,
}

/// A channel.
#[derive(Debug)]
pub(crate) struct Channel {
    /// The owner that has the channel for itself.
    pub(crate) claim: Option<ChannelOwner>,
    /// `None`: it is not in use, the doorbell has no effect.
    pub(crate) client: Option<Arc<Client>>,
    status: ChannelStatus,
    control: ChanCtrl,
    chain: u64,
    completion: u64,
    error: ChanErr,
    mask: ChanErr,
    dca: u32,
    /// DMACOUNT; descriptors under way look at it too.
    target: Arc<AtomicU16>,
    /// Descriptors of chains before, and multiples of 2^16 of this one.
    earlier: u64,
    /// Descriptors of the chain that are done.
    processed: u16,
    /// Address of the last of them, or 0.
    completed: u64,
    /// Address of the next.
    next: u64,
    /// No descriptor of the chain has been read yet.
    first: bool,
    /// A suspend waits for the current descriptor.
    suspending: bool,
    /// A reset waits for the current descriptor.
    resetting: Option<Reset>,
    /// An interrupt came while they were off.
    interrupt_waits: bool,
    /// Stopped to be migrated: the doorbell counts, and nothing goes on.
    paused: bool,
    pub(crate) run_state: RunState,
    /// A descriptor that an engine has given up for another channel's turn.
    held: Option<Execution>,
    /// For the tasks of now.
    aborted: Arc<AtomicBool>,
    pub(crate) stats: Stats,
}

/// What a reset is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reset {
    /// CHANCMD: the channel stops and forgets its chain and its errors. CHANCTRL, CHANCMP,
    /// CHANERRMSK and DCACTRL stay: drivers go on with a new chain alone (`ioat_eh` and
    /// `ioat_reboot_chan`, Linux `drivers/dma/ioat/dma.c`).
    Channel,
    /// The function, or the end of its use: nothing of its user stays.
    Everything,
}

impl Channel {
    pub(crate) fn new(client: Option<Arc<Client>>) -> Self {
        Channel {
            claim: None,
            client,
            status: ChannelStatus::Halted,
            control: ChanCtrl::new(),
            chain: 0,
            completion: 0,
            error: ChanErr::new(),
            mask: ChanErr::new(),
            dca: 0,
            target: Arc::default(),
            earlier: 0,
            processed: 0,
            completed: 0,
            next: 0,
            first: true,
            suspending: false,
            resetting: None,
            interrupt_waits: false,
            paused: false,
            run_state: RunState::Idle,
            held: None,
            aborted: Arc::default(),
            stats: Stats::default(),
        }
    }

    pub(crate) const fn status(&self) -> ChannelStatus {
        self.status
    }

    /// Whether a reset waits for a descriptor to end.
    pub(crate) const fn resetting(&self) -> bool {
        self.resetting.is_some()
    }

    /// Descriptors asked for and not done.
    pub(crate) fn depth(&self) -> u16 {
        self.target
            .load(Ordering::Relaxed)
            .wrapping_sub(self.processed)
    }

    /// The number of the next descriptor among all of the channel.
    fn number(&self) -> u64 {
        self.earlier.wrapping_add(self.processed.into())
    }

    /// The number of the next descriptor that will be asked for.
    pub(crate) fn submitted(&self) -> u64 {
        self.number().wrapping_add(self.depth().into())
    }

    /// The value of a register.
    pub(crate) fn read(&self, register: Chan) -> u64 {
        match register {
            Chan::Ctrl => self.control.into_bits().into(),
            Chan::Compatibility => COMPATIBILITY.into(),
            Chan::Cmd => {
                let command = ChanCmd::new().with_reset(self.resetting());
                command.into_bits().into()
            }
            Chan::DmaCount => self.target.load(Ordering::Relaxed).into(),
            Chan::Status => ChanSts::at(self.completed, self.status).into_bits(),
            Chan::ChainAddr => self.chain,
            Chan::CompletionAddr => self.completion,
            Chan::CurrentAddr => self.next,
            Chan::Error => self.error.into_bits().into(),
            Chan::ErrorMask => self.mask.into_bits().into(),
            Chan::DcaCtrl => self.dca.into(),
        }
    }

    /// Writes the bits in `mask` of a register; those of `value` are 0 elsewhere.
    pub(crate) fn write(&mut self, register: Chan, value: u64, mask: u64) -> Option<Message> {
        let merged = |old: u64| old & !mask | value;
        match register {
            Chan::Ctrl => return self.set_control(value as u16, mask as u16),
            Chan::Cmd => return self.command(ChanCmd::from_bits(value as u8)),
            Chan::DmaCount => {
                let count = merged(self.target.load(Ordering::Relaxed).into());
                self.doorbell(count as u16);
            }
            Chan::ChainAddr => self.set_chain(merged(self.chain)),
            Chan::CompletionAddr => self.completion = merged(self.completion),
            Chan::Error => {
                self.error = ChanErr::from_bits(self.error.into_bits() & !(value as u32));
            }
            Chan::ErrorMask => {
                self.mask = ChanErr::from_bits(merged(self.mask.into_bits().into()) as u32);
            }
            Chan::DcaCtrl => self.dca = merged(self.dca.into()) as u32,
            Chan::Compatibility | Chan::Status | Chan::CurrentAddr => {}
        }
        None
    }

    fn set_control(&mut self, value: u16, mask: u16) -> Option<Message> {
        let kept = mask & ChanCtrl::KEPT;
        let old = self.control.into_bits();
        self.control = ChanCtrl::from_bits(old & !kept | value & kept);
        if !ChanCtrl::from_bits(value).int_disable() {
            return None;
        }
        self.control.set_int_disable(false);
        if let Some(client) = &self.client {
            client.endpoint.rearm(client.index);
        }
        match std::mem::take(&mut self.interrupt_waits) {
            true => self.interrupt(),
            false => None,
        }
    }

    /// An interrupt of the channel: now, or when it is rearmed.
    fn interrupt(&mut self) -> Option<Message> {
        if self.control.int_disable() {
            self.interrupt_waits = true;
            return None;
        }
        self.control.set_int_disable(true);
        let client = self.client.as_ref()?;
        let vector = client.endpoint.request_attention(client.index)?;
        Some(Message {
            endpoint: Arc::clone(&client.endpoint),
            vector,
        })
    }

    fn set_chain(&mut self, address: u64) {
        use ChannelStatus::{Active, Armed, Done, Halted, Suspended};
        match self.status {
            Active | Done => {}
            // What stopped the channel is cleared first.
            Halted if self.error.into_bits() != 0 => {}
            Halted | Suspended | Armed => {
                // A descriptor of the chain before that could not be ended.
                self.stats.aborted += u64::from(self.held.take().is_some());
                self.earlier = self.submitted();
                self.chain = address;
                self.next = address;
                self.first = true;
                (self.processed, self.completed) = (0, 0);
                // A descriptor of the chain before may still look at the old one.
                self.target = Arc::default();
                self.status = Armed;
            }
        }
    }

    fn doorbell(&mut self, count: u16) {
        use ChannelStatus::{Active, Armed, Done};
        if self.client.is_none() || self.resetting() {
            return;
        }
        self.target.store(count, Ordering::Release);
        if matches!(self.status, Active | Armed | Done) && self.depth() > 0 {
            self.status = Active;
        }
    }

    fn command(&mut self, command: ChanCmd) -> Option<Message> {
        use ChannelStatus::{Active, Armed, Done, Suspended};
        let [reset, suspend, resume] = [
            ChanCmd::new().with_reset(true),
            ChanCmd::new().with_suspend(true),
            ChanCmd::new().with_resume(true),
        ];
        if command == reset {
            self.begin_reset(Reset::Channel);
        } else if command == suspend {
            match self.status {
                // A descriptor that has been begun is ended.
                Active if self.can_suspend() => self.status = Suspended,
                Active => self.suspending = true,
                Done | Armed => self.status = Suspended,
                _ => {}
            }
        } else if command == resume {
            self.suspending = false;
            if self.status == Suspended {
                self.status = match (self.depth(), self.first) {
                    (0, true) => Armed,
                    (0, false) => Done,
                    _ => Active,
                };
            }
        } else if command.into_bits() != 0 {
            return self.halt(ChanErr::new().with_chancmd(true));
        }
        None
    }

    /// With nothing begun that will be ended.
    fn can_suspend(&self) -> bool {
        self.rests() && (self.held.is_none() || !self.may_issue())
    }

    /// Whether the functions of the channel's client may issue requests.
    fn may_issue(&self) -> bool {
        self.client
            .as_ref()
            .is_some_and(|client| client.may_issue())
    }

    /// Bus mastering has changed: nothing waits for a descriptor that will not be ended.
    pub(crate) fn follow_bus_master(&mut self) {
        if self.suspending && self.can_suspend() {
            self.suspending = false;
            self.status = ChannelStatus::Suspended;
        }
    }

    /// On no engine and no worker.
    pub(crate) fn rests(&self) -> bool {
        matches!(self.run_state, RunState::Idle | RunState::Ready)
    }

    /// Stops the channel where it is, or lets it go on.
    pub(crate) const fn set_paused(&mut self, paused: bool) {
        self.paused = paused;
    }

    pub(crate) const fn paused(&self) -> bool {
        self.paused
    }

    /// Writes the paused channel into a state.
    pub(crate) fn save(&self, out: &mut Writer) {
        out.u8(self.status as u8);
        out.u16(self.control.into_bits());
        out.u64(self.chain);
        out.u64(self.completion);
        out.u32(self.error.into_bits());
        out.u32(self.mask.into_bits());
        out.u32(self.dca);
        out.u16(self.target.load(Ordering::Relaxed));
        out.u16(self.processed);
        out.u64(self.completed);
        out.u64(self.next);
        out.bool(self.first);
        out.bool(self.suspending);
        out.bool(self.interrupt_waits);
        out.bool(self.held.is_some());
        if let Some(held) = &self.held {
            held.save(out);
        }
    }

    /// Takes what such a state says; the channel is as after a reset, and paused.
    pub(crate) fn load(&mut self, state: &mut Reader<'_>) -> Result<(), StateError> {
        self.status = ChannelStatus::from_code(state.u8()?).ok_or(StateError)?;
        self.control = ChanCtrl::from_bits(state.u16()? & ChanCtrl::STATE);
        self.chain = state.u64()?;
        self.completion = state.u64()?;
        self.error = ChanErr::from_bits(state.u32()? & ChanErr::ALL);
        self.mask = ChanErr::from_bits(state.u32()?);
        self.dca = state.u32()?;
        self.target = Arc::new(AtomicU16::new(state.u16()?));
        self.processed = state.u16()?;
        self.completed = state.u64()?;
        self.next = state.u64()?;
        self.first = state.bool()?;
        self.suspending = state.bool()?;
        self.interrupt_waits = state.bool()?;
        let active = self.status == ChannelStatus::Active;
        expect(active || !self.suspending)?;
        if state.bool()? {
            expect(active || self.status == ChannelStatus::Suspended)?;
            let held = Execution::load(self.terms(), state)?;
            self.held = Some(held);
        }
        Ok(())
    }

    /// Stops for an error that is not a descriptor's.
    fn halt(&mut self, error: ChanErr) -> Option<Message> {
        self.error = ChanErr::from_bits(self.error.into_bits() | error.into_bits());
        self.abort();
        self.status = ChannelStatus::Halted;
        self.suspending = false;
        match self.control.err_int_en() {
            true => self.interrupt(),
            false => None,
        }
    }

    /// Whether the channel should be queued for an engine.
    pub(crate) fn is_due(&self) -> bool {
        let active = self.status == ChannelStatus::Active && !self.resetting();
        self.run_state == RunState::Idle && active && !self.paused && self.may_issue()
    }

    /// Takes what an engine should do next, if the channel is queued and still has work.
    pub(crate) fn take(&mut self, channel: usize) -> Option<Task> {
        if self.run_state != RunState::Ready {
            return None;
        }
        self.run_state = RunState::Idle;
        if !self.is_due() {
            return None;
        }
        let client = Arc::clone(self.client.as_ref()?);
        let held = self.held.take();
        let execution = held.unwrap_or_else(|| Execution::new(self.terms()));
        self.run_state = RunState::OnEngine;
        let id = (channel, self.number());
        Some(Task::new(id, client, execution, &self.aborted))
    }

    /// What the next descriptor is begun with.
    fn terms(&self) -> Terms {
        Terms {
            address: self.next,
            first: self.first,
            processed: self.processed,
            target: Arc::clone(&self.target),
            completed: self.completed,
            control: self.control,
            completion: self.completion,
            mask: self.mask,
            max_transfer: 1 << MAX_TRANSFER_SHIFT,
        }
    }

    /// The engine gives the descriptor up for another channel's turn.
    pub(crate) fn hold(&mut self, execution: Execution) {
        self.run_state = RunState::Idle;
        self.held = Some(execution);
        self.follow_bus_master();
    }

    /// The descriptor has ended, unless it was aborted. Its task is gone already.
    pub(crate) fn end(&mut self, ending: Option<&Ending>) -> Option<Message> {
        self.run_state = RunState::Idle;
        let Some(ending) = ending else {
            self.stats.aborted += 1;
            self.finish_reset();
            return None;
        };
        self.first = false;
        self.stats.ended += 1;
        self.stats.failed += u64::from(ending.error.into_bits() != 0);
        self.stats.faults += u64::from(ending.faulted);
        self.error = ChanErr::from_bits(self.error.into_bits() | ending.error.into_bits());
        if ending.halts {
            self.status = ChannelStatus::Halted;
            self.suspending = false;
            return match self.control.err_int_en() {
                true => self.interrupt(),
                false => None,
            };
        }
        self.completed = ending.address;
        self.next = ending.next;
        let (processed, wrapped) = self.processed.overflowing_add(ending.count);
        self.processed = processed;
        self.earlier += u64::from(wrapped) << 16;
        self.status = if std::mem::take(&mut self.suspending) {
            ChannelStatus::Suspended
        } else if self.depth() == 0 {
            ChannelStatus::Done
        } else {
            ChannelStatus::Active
        };
        match ending.interrupt {
            true => self.interrupt(),
            false => None,
        }
    }

    /// Asks what is under way to end.
    fn abort(&mut self) {
        std::mem::take(&mut self.aborted).store(true, Ordering::Release);
        self.stats.aborted += u64::from(self.held.take().is_some());
    }

    /// Starts a reset: over at once, or when what is under way has ended.
    pub(crate) fn begin_reset(&mut self, reset: Reset) {
        self.abort();
        self.resetting = self.resetting.max(Some(reset));
        if self.rests() {
            self.run_state = RunState::Idle;
            self.finish_reset();
        }
    }

    /// As after power-up, but for its client, and for what a [`Reset::Channel`] leaves.
    fn finish_reset(&mut self) {
        let Some(reset) = self.resetting else {
            return;
        };
        let client = self.client.take();
        let old = std::mem::replace(self, Channel::new(client));
        self.claim = old.claim;
        self.paused = old.paused;
        self.stats = old.stats;
        self.earlier = old.submitted();
        if reset == Reset::Channel {
            self.control = old.control.with_int_disable(false);
            self.completion = old.completion;
            self.mask = old.mask;
            self.dca = old.dca;
        }
    }
}
