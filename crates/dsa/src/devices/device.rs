//! The whole device: its register file, its portals, and the owners of its queues.

use std::sync::Arc;

use ioasid_core::{Pasid, host::Spawner};
use ioasid_engine::{EnginePool, Locked, driver::DriverSlot};
use ioasid_iommu::{Device, Iommu, PasidPool, Requests};
use ioasid_vfio::{
    DeviceModel, Migrate,
    pci::{Bar, Function, FunctionBuilder, MsixLayout, SriovLayout, spec},
};

use crate::{
    config::{
        ConfigError, DsaConfig, Error, MAX_BATCH_SHIFT, MAX_ENGINES, MAX_QUEUE_SIZE, MAX_QUEUES,
        MAX_TRANSFER_SHIFT, QueueConfig, QueueType, Role,
    },
    devices::claim::QueueClaim,
    function::endpoint::Endpoint,
    function::registers::{self, Registers},
    queues::commands::{self, Abilities, Identity, Plan},
    queues::queue::{Refused, Store},
    queues::schedule::{self, Pool},
    queues::state::State,
    spec::{
        Cmd, Command, CommandError, Descriptor, WqState,
        command::queue_bits,
        descriptor::DESCRIPTOR_SIZE,
        registers::{
            self as reg, DeviceState, EngineCap, GenCap, GenStatus, GroupCap, PORTAL_PAGE,
            PORTAL_STRIDE, WqCap,
        },
    },
};

/// A software Intel DSA. Engines run while it lives; dropping it ends them and waits for them.
#[derive(Debug)]
pub struct DsaDevice {
    pub(crate) pool: Arc<Pool>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) pasids: Arc<PasidPool>,
    /// The host's own driver, if it has one.
    pub(crate) driver: DriverSlot,
    queues: Vec<QueueConfig>,
    engines: usize,
    max_transfer_shift: u8,
    role: Role,
    engine_groups: Vec<usize>,
}

impl DsaDevice {
    /// A device whose DMA is that of `device`. Its registers are as after power-up: nothing is
    /// configured and nothing enabled. PASIDs of its children come from the pool of `iommu`.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::Engine`].
    pub fn new(
        iommu: &Iommu,
        device: Arc<Device>,
        config: DsaConfig,
        spawner: &dyn Spawner,
    ) -> Result<Arc<Self>, Error> {
        let DsaConfig {
            queues,
            engines,
            device_tlb,
            max_transfer_shift,
            role,
            engine_groups,
        } = config;
        if max_transfer_shift > MAX_TRANSFER_SHIFT {
            return Err(ConfigError::TransferShift(max_transfer_shift).into());
        }
        if !(1..=MAX_QUEUES).contains(&queues.len()) {
            return Err(ConfigError::Queues(queues.len()).into());
        }
        if !(1..=MAX_ENGINES).contains(&engines) {
            return Err(ConfigError::Engines(engines).into());
        }
        for (index, QueueConfig { size, .. }) in queues.iter().enumerate() {
            if !(1..=MAX_QUEUE_SIZE).contains(size) {
                return Err(ConfigError::QueueSize { index, size: *size }.into());
            }
        }
        let groups = queues.iter().map(|queue| queue.group);
        let mut groups = groups.chain(engine_groups.iter().copied());
        if let Some(group) = groups.find(|group| *group >= engines) {
            return Err(ConfigError::Group { group, engines }.into());
        }
        let function = function(queues.len(), queues.len() + 1, &device, device_tlb, role)
            .map_err(ConfigError::Layout)?;
        function.issues(&device, Requests::All);
        let endpoint = Arc::new(Endpoint::new(function));
        let state = State::new(Arc::clone(&endpoint), queues.len(), engines);
        let pool = EnginePool::new(device, state, device_tlb);
        endpoint.function().on_bus_master(pool.on_bus_master());
        let this = Arc::new(DsaDevice {
            pool,
            endpoint,
            pasids: Arc::clone(iommu.pasids()),
            driver: DriverSlot::default(),
            queues,
            engines,
            max_transfer_shift,
            role,
            engine_groups,
        });
        let started = this.pool.start(engines, "dsa", spawner);
        started.map_err(Error::Engine)?;
        Ok(this)
    }

    /// The device behind the IOMMU whose DMA it does.
    pub fn device(&self) -> &Arc<Device> {
        self.pool.device()
    }

    /// Its queues as configured at the start.
    pub fn queues(&self) -> &[QueueConfig] {
        &self.queues
    }

    /// Number of engines.
    pub fn engines(&self) -> usize {
        self.engines
    }

    /// The group of engine `index`.
    pub(crate) fn engine_group(&self, index: usize) -> usize {
        self.engine_groups.get(index).copied().unwrap_or(0)
    }

    /// Entries of all queues together.
    pub(crate) fn total_size(&self) -> u32 {
        self.queues.iter().map(|queue| u32::from(queue.size)).sum()
    }

    pub(crate) fn abilities(&self) -> Abilities {
        let device = self.device();
        Abilities {
            max_pasids: device.max_pasids(),
            // Enabled wherever it is there: what programs see of the configuration space has no PASID
            // capability.
            privileged_mode: device.pasid_features().1,
            block_on_fault: device.supports_page_requests(),
            max_transfer_shift: self.max_transfer_shift,
        }
    }

    /// General capabilities; a child has the same, but for `config_en`.
    pub(crate) fn capabilities(&self) -> GenCap {
        GenCap::new()
            .with_block_on_fault(self.abilities().block_on_fault)
            .with_overlap_copy(true)
            .with_cache_control_mem(true)
            .with_cache_control_cache(true)
            .with_cmd_cap(true)
            .with_dest_readback(true)
            .with_evl_support(1)
            .with_max_xfer_shift(self.max_transfer_shift)
            .with_max_batch_shift(MAX_BATCH_SHIFT)
            .with_config_en(true)
    }

    /// Takes queue `index` for a use that excludes all others. A queue with an mdev is locked: the
    /// device's own registers and portals do not reach it.
    ///
    /// # Errors
    /// [`Error::NoQueue`], [`Error::QueueBusy`].
    pub fn claim_queue(
        self: &Arc<Self>,
        index: usize,
        owner: QueueType,
    ) -> Result<QueueClaim, Error> {
        Ok(QueueClaim::new(self, index, owner)?)
    }

    /// Whether the device's own registers reach queue `index`.
    fn open_queue(state: &State, index: usize) -> bool {
        let queue = state.queues.get(index);
        queue.is_some_and(|queue| queue.claim != Some(QueueType::Mdev))
    }

    /// The queues that the device's own registers reach, as bits.
    pub(crate) fn open_queues(&self) -> u64 {
        let state = self.state();
        let open = state.indexes(state.all_queues());
        open.filter(|index| Self::open_queue(&state, *index))
            .fold(0, |set, index| set | 1 << index)
    }

    /// Checks the general configuration and enables the device. The state's lock is held.
    pub(crate) fn enable_device(
        &self,
        state: &mut State,
        bus_master: bool,
    ) -> Result<(), CommandError> {
        self.endpoint.check_log(self.abilities().max_pasids)?;
        state.enable_device(bus_master, self.total_size())
    }

    /// Enables queue `index` for the owner of the whole device. The state's lock is held.
    pub(crate) fn enable_queue(&self, state: &mut State, index: usize) -> Result<(), CommandError> {
        if !Self::open_queue(state, index) {
            return Err(CommandError::InvalidQueue);
        }
        let enabled = state.enabled;
        let queue = state.queues.get_mut(index);
        let queue = queue.ok_or(CommandError::InvalidQueue)?;
        let identity = Identity {
            endpoint: Arc::clone(&self.endpoint),
            index: index as u8,
            pasid_use: None,
        };
        queue.enable(enabled, self.abilities(), identity)
    }

    /// A store to the portals.
    fn submit(&self, offset: u64, data: &[u8], store: Store) -> Result<(), Refused> {
        let queue = usize::try_from(offset / PORTAL_STRIDE).unwrap_or(usize::MAX);
        let descriptor = portal_store(&self.endpoint, offset, data).ok_or(Refused::NotEnabled)?;
        if !Self::open_queue(&self.state(), queue) {
            return Err(Refused::NotEnabled);
        }
        schedule::submit(&self.pool, queue, &self.endpoint, descriptor, store, None)
    }

    pub(crate) fn state(&self) -> Locked<'_, State> {
        self.pool.lock()
    }

    /// The plan of a command that names queues by bits.
    fn on_queues(
        state: &State,
        operand: u32,
        plan: impl FnOnce(u64) -> Plan,
    ) -> Result<Plan, CommandError> {
        let set = queue_bits(operand);
        if !state.enabled {
            return Err(CommandError::QueueDeviceNotEnabled);
        }
        let known = set != 0 && set & !state.all_queues() == 0;
        if !known
            || !state
                .indexes(set)
                .all(|index| Self::open_queue(state, index))
        {
            return Err(CommandError::InvalidQueue);
        }
        Ok(plan(set))
    }
}

impl Registers for DsaDevice {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn general_capabilities(&self) -> GenCap {
        self.capabilities()
    }

    fn queue_capabilities(&self) -> u64 {
        WqCap::new()
            .with_total_wq_size(u16::try_from(self.total_size()).unwrap_or(u16::MAX))
            .with_num_wqs(self.queues.len() as u8)
            .with_shared_mode(self.device().max_pasids() > 0)
            .with_dedicated_mode(true)
            .with_wq_ats_support(self.pool.tlb().is_some())
            .with_priority(true)
            .with_occupancy(true)
            .with_wq_prs_support(self.device().supports_page_requests())
            .into_bits()
    }

    fn group_capabilities(&self) -> u64 {
        GroupCap::new()
            .with_num_groups(self.engines as u8)
            .into_bits()
    }

    fn engine_capabilities(&self) -> u64 {
        EngineCap::new()
            .with_num_engines(self.engines as u8)
            .into_bits()
    }

    fn command_capabilities(&self) -> u32 {
        Command::capabilities()
    }

    fn status(&self) -> GenStatus {
        GenStatus::new().with_state(if self.state().enabled {
            DeviceState::Enabled
        } else {
            DeviceState::Disabled
        })
    }

    fn group_config(&self, group: usize, index: u64) -> u64 {
        let state = self.state();
        state
            .groups
            .get(group)
            .map_or(0, |group| group.quadword(index))
    }

    fn set_group_config(&self, group: usize, index: u64, value: u64, mask: u64) {
        let mut state = self.state();
        if !state.enabled
            && let Some(group) = state.groups.get_mut(group)
            && let Some(quadword) = group.quadword_mut(index)
        {
            *quadword = *quadword & !mask | value;
        }
    }

    fn queue_config(&self, queue: usize, index: u64) -> u32 {
        let state = self.state();
        let queue = state.queues.get(queue);
        queue.map_or(0, |queue| queue.config.dword(index, queue.status()))
    }

    fn set_queue_config(&self, queue: usize, index: u64, value: u32) {
        let mut state = self.state();
        // The size is fixed while the device is enabled, and a size is no way into a locked queue.
        let allowed = match index {
            0 => !state.enabled,
            _ => Self::open_queue(&state, queue),
        };
        if allowed
            && let Some(queue) = state.queues.get_mut(queue)
            && queue.state() == WqState::Disabled
        {
            queue.config.set_dword(index, value);
        }
    }

    fn command(&self, cmd: Cmd) {
        let operand = cmd.operand();
        let endpoint = Arc::clone(&self.endpoint);
        let bus_master = self.endpoint.function().bus_master();
        commands::start(&self.pool, &self.endpoint, cmd, move |state| {
            let all = state.all_queues();
            let command = registers::decode(cmd, Command::capabilities());
            match command.ok_or(CommandError::InvalidCommand)? {
                Command::EnableDevice => {
                    self.enable_device(state, bus_master)?;
                    Ok(Plan::nothing())
                }
                Command::DisableDevice if !state.enabled => Err(CommandError::DisableNotEnabled),
                Command::DisableDevice => Ok(Plan::disable(all).and(|state| {
                    state.enabled = false;
                    Ok(())
                })),
                Command::DrainAll => Ok(Plan::drain(all)),
                Command::AbortAll => Ok(Plan::abort(all)),
                Command::ResetDevice => Ok(Plan::abort_and_disable(all).and(move |state| {
                    state.reset_device();
                    endpoint.reset();
                    Ok(())
                })),
                Command::EnableWq => {
                    self.enable_queue(state, operand as usize)?;
                    Ok(Plan::nothing())
                }
                Command::DisableWq => Self::on_queues(state, operand, Plan::disable),
                Command::DrainWq => Self::on_queues(state, operand, Plan::drain),
                Command::AbortWq => Self::on_queues(state, operand, Plan::abort),
                Command::ResetWq => Self::on_queues(state, operand, |set| {
                    Plan::abort_and_disable(set).and(move |state| {
                        for index in state.indexes(set) {
                            state.queues[index].reset();
                        }
                        Ok(())
                    })
                }),
                // A number that is no PASID has no descriptors.
                Command::DrainPasid | Command::AbortPasid => {
                    Ok(Pasid::new(operand).map_or_else(Plan::nothing, |pasid| {
                        match command == Some(Command::DrainPasid) {
                            true => Plan::drain(all).only(vec![pasid]),
                            false => Plan::abort(all).only(vec![pasid]),
                        }
                    }))
                }
            }
        });
    }
}

impl DeviceModel for DsaDevice {
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
            2 => {
                // A posted store has no answer.
                let _ = self.submit(offset, data, Store::Posted);
            }
            _ => {}
        }
    }

    fn enqueue(&self, bar: u8, offset: u64, data: &[u8; DESCRIPTOR_SIZE]) -> bool {
        if bar != 2 {
            return false;
        }
        let limited = offset / PORTAL_PAGE % 2 == 1;
        match self.submit(offset, data, Store::Deferrable { limited }) {
            // One with a PASID that leads nowhere is taken, and reported as an error.
            Ok(()) | Err(Refused::BadPasid) => true,
            Err(_) => false,
        }
    }

    fn reset(&self) {
        let all = self.state().all_queues();
        commands::stop(&self.pool, all);
        self.pool.change(|state| {
            state.reset_device();
            state.set_paused(all, false);
        });
        self.endpoint.reset();
    }

    fn migration(&self) -> Option<&dyn Migrate> {
        // Virtual functions are no part of a state.
        let physical = matches!(self.role, Role::Physical { .. });
        (!physical).then_some(self)
    }
}

impl Drop for DsaDevice {
    fn drop(&mut self) {
        let all = self.state().all_queues();
        self.pool.change(|state| {
            state.close(all);
            state.abort(all, None);
        });
        self.pool.stop();
    }
}

/// The descriptor in a store to a portal page, if it is a submission: one store of 64 aligned bytes
/// to a page that exists (the interrupt message store's two do not), with bus mastering on.
pub(crate) fn portal_store(endpoint: &Endpoint, offset: u64, data: &[u8]) -> Option<Descriptor> {
    let bytes: &[u8; DESCRIPTOR_SIZE] = data.try_into().ok()?;
    let page = offset % PORTAL_STRIDE / PORTAL_PAGE;
    let aligned = offset.is_multiple_of(DESCRIPTOR_SIZE as u64);
    (page < 2 && aligned && endpoint.function().bus_master()).then(|| Descriptor::from_bytes(bytes))
}

/// The PCI function of a DSA with `queues` portals and `vectors` MSI-X vectors.
pub(crate) fn function(
    queues: usize,
    vectors: usize,
    device: &Device,
    device_tlb: bool,
    role: Role,
) -> Result<Function, ioasid_vfio::pci::LayoutError> {
    let portals = (queues as u64 * PORTAL_STRIDE).next_power_of_two();
    let msix = MsixLayout::new(0, reg::MSIX_TABLE, reg::MSIX_PBA, vectors as u16);
    let mut builder = FunctionBuilder::new(reg::VENDOR, reg::DEVICE)
        .class(reg::CLASS, 0)
        .subsystem(reg::VENDOR, 0)
        .bar(0, Bar::memory64(reg::BAR0_SIZE))
        .bar(2, Bar::memory64(portals).with_wide_stores())
        .express()
        .msix(msix)
        .power_management()
        .advanced_error_reporting();
    if device_tlb {
        builder = builder.address_translation();
    }
    if device.max_pasids() > 0 {
        let (execute, privileged) = device.pasid_features();
        let execute = if execute { spec::PASID_EXEC } else { 0 };
        let privileged = if privileged { spec::PASID_PRIV } else { 0 };
        builder = builder.pasid(device.pasid_bits(), execute | privileged);
    }
    if device.supports_page_requests() {
        builder = builder.page_requests(512);
    }
    match role {
        Role::Alone => {}
        Role::Virtual => builder = builder.virtual_function(),
        Role::Physical { total } => {
            let mut bars = [None; 6];
            bars[0] = Some(Bar::memory64(reg::BAR0_SIZE));
            bars[2] = Some(Bar::memory64(PORTAL_STRIDE));
            builder = builder.sriov(SriovLayout {
                total,
                offset: Role::ROUTING_STEP,
                stride: Role::ROUTING_STEP,
                device: reg::DEVICE,
                bars,
            });
        }
    }
    builder.build()
}
