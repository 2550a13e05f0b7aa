//! The whole device: its register file, and the owners of its channels.

use std::sync::Arc;

use ioasid_core::{
    Pasid,
    host::Spawner,
    inspect::{Inspect, Node, Value},
};
use ioasid_engine::{EnginePool, driver::DriverSlot};
use ioasid_iommu::{Device, Iommu, PasidPool, Requests};
use ioasid_vfio::{DeviceModel, Migrate, pci::Function};

use crate::{
    channel::{Channel, Client, Reset},
    claim::ChannelClaim,
    config::{
        ChannelConfig, ChannelOwner, ConfigError, Error, IoatConfig, MAX_CHANNELS, MAX_ENGINES,
    },
    endpoint::Endpoint,
    registers::{self, Registers},
    schedule::{self, Pool, State},
    spec::{ChannelStatus, map::Chan},
};

/// A software I/OAT device. Engines run while it lives; dropping it ends them and waits for them.
#[derive(Debug)]
pub struct IoatDevice {
    pub(crate) pool: Arc<Pool>,
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) pasids: Arc<PasidPool>,
    /// The host's own driver, if it has one.
    pub(crate) driver: DriverSlot,
    channels: Vec<ChannelConfig>,
    engines: usize,
}

impl IoatDevice {
    /// A device whose DMA is that of `device`, with its registers as after power-up. PASIDs of its
    /// children come from the pool of `iommu`.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::Engine`].
    pub fn new(
        iommu: &Iommu,
        device: Arc<Device>,
        config: IoatConfig,
        spawner: &dyn Spawner,
    ) -> Result<Arc<Self>, Error> {
        let IoatConfig { channels, engines } = config;
        if !(1..=MAX_CHANNELS).contains(&channels.len()) {
            return Err(ConfigError::Channels(channels.len()).into());
        }
        if !(1..=MAX_ENGINES).contains(&engines) {
            return Err(ConfigError::Engines(engines).into());
        }
        let endpoint = Endpoint::new(channels.len(), &device).map_err(ConfigError::Layout)?;
        endpoint.function().issues(&device, Requests::All);
        let made =
            (0..channels.len()).map(|index| Channel::new(Some(own_client(&endpoint, index))));
        let state = State::new(made.collect());
        // The function has no ATS, so the engines keep no translations.
        let pool = EnginePool::new(device, state, false);
        endpoint.function().on_bus_master(pool.on_bus_master());
        let this = Arc::new(IoatDevice {
            pool,
            endpoint,
            pasids: Arc::clone(iommu.pasids()),
            driver: DriverSlot::default(),
            channels,
            engines,
        });
        let started = this.pool.start(engines, "ioat", spawner);
        started.map_err(Error::Engine)?;
        Ok(this)
    }

    /// The device behind the IOMMU whose DMA it does.
    pub fn device(&self) -> &Arc<Device> {
        self.pool.device()
    }

    /// Its channels as configured at the start.
    pub fn channels(&self) -> &[ChannelConfig] {
        &self.channels
    }

    /// Number of engines.
    pub fn engines(&self) -> usize {
        self.engines
    }

    /// Takes channel `index` for a use that excludes all others; it is as after power-up. A channel
    /// with an mdev is locked: the device's own registers do not reach it.
    ///
    /// # Errors
    /// [`Error::NoChannel`], [`Error::ChannelBusy`].
    pub fn claim_channel(
        self: &Arc<Self>,
        index: usize,
        owner: ChannelOwner,
    ) -> Result<ChannelClaim, Error> {
        let claim = ChannelClaim::new(self, index, owner)?;
        match owner {
            ChannelOwner::Mdev => self.assign_channel(index, None),
            ChannelOwner::Kernel => self.reset_channel(index),
        }
        Ok(claim)
    }

    /// Resets a channel and waits until nothing of it is under way.
    pub(crate) fn reset_channel(&self, index: usize) {
        schedule::reset(&self.pool, |other, _| other == index);
    }

    /// The same, and says which client the channel works for from now on.
    pub(crate) fn assign_channel(&self, index: usize, client: Option<&Arc<Client>>) {
        schedule::reset(&self.pool, |other, channel| {
            let own = other == index;
            if own {
                channel.client = client.map(Arc::clone);
            }
            own
        });
    }

    /// Channels that were set aside for children and have no owner.
    pub(crate) fn free_channels(&self) -> Vec<usize> {
        let state = self.pool.lock();
        let channels = self.channels.iter().zip(&state.channels).enumerate();
        channels
            .filter(|(_, (made, channel))| made.mdev && channel.claim.is_none())
            .map(|(index, _)| index)
            .collect()
    }
}

/// The owner of the whole device as the client of channel `index`.
pub(crate) fn own_client(endpoint: &Arc<Endpoint>, index: usize) -> Arc<Client> {
    Arc::new(Client {
        endpoint: Arc::clone(endpoint),
        index,
        pasid: None,
        parent: None,
        _pasid_use: None,
    })
}

/// Whether the device's own registers reach a channel.
pub(crate) fn is_open(channel: &Channel) -> bool {
    channel.claim != Some(ChannelOwner::Mdev)
}

impl Registers for IoatDevice {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn channels(&self) -> usize {
        self.channels.len()
    }

    fn read_channel(&self, index: usize, read: impl FnOnce(&Channel)) {
        let state = self.pool.lock();
        let channel = state.channels.get(index).filter(|channel| is_open(channel));
        match channel {
            Some(channel) => read(channel),
            // A locked channel looks as after power-up.
            None => read(&Channel::new(None)),
        }
    }

    fn write_channel(&self, index: usize, register: Chan, value: u64, mask: u64) {
        schedule::write_register(&self.pool, index, is_open, (register, value, mask));
    }
}

impl DeviceModel for IoatDevice {
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
        if bar == 0 {
            registers::write(self, offset, data);
        }
    }

    fn reset(&self) {
        schedule::reset(&self.pool, |_, channel| is_open(channel));
        self.endpoint.reset();
    }

    fn migration(&self) -> Option<&dyn Migrate> {
        Some(self)
    }
}

impl Drop for IoatDevice {
    fn drop(&mut self) {
        // Without waiting for a client: what is on a worker ends there.
        for channel in &mut self.pool.lock().channels {
            channel.begin_reset(Reset::Everything);
        }
        self.pool.stop();
    }
}

impl Inspect for IoatDevice {
    fn inspect(&self) -> Node {
        let state = self.pool.lock();
        let channels: Vec<Value> = state
            .channels
            .iter()
            .zip(&self.channels)
            .map(|(channel, made)| inspect_channel(channel, made).into())
            .collect();
        drop(state);
        Node::new()
            .with("model", "ioat")
            .with("address", self.device().address().to_string())
            .with("engines", self.engines)
            .with("channels", Value::List(channels))
            .with("function", self.endpoint.function().inspect())
    }
}

/// One channel for the tree of named values.
fn inspect_channel(channel: &Channel, made: &ChannelConfig) -> Node {
    let owner = match (channel.claim, made.mdev) {
        (Some(ChannelOwner::Kernel), _) => "kernel",
        (Some(ChannelOwner::Mdev), _) => "mdev",
        (None, true) => "none (for mdevs)",
        (None, false) => "none",
    };
    let status = match channel.status() {
        ChannelStatus::Active => "active",
        ChannelStatus::Done => "done",
        ChannelStatus::Suspended => "suspended",
        ChannelStatus::Halted => "halted",
        ChannelStatus::Armed => "armed",
    };
    let stats = channel.stats;
    let pasid = channel.client.as_ref().and_then(|client| client.pasid);
    Node::new()
        .with("owner", owner)
        .with("status", status)
        .with("depth", u64::from(channel.depth()))
        .with("pasid", pasid.map(Pasid::get))
        .with("jobs", stats.ended)
        .with("failed", stats.failed)
        .with("aborted", stats.aborted)
        .with("bytes", stats.bytes)
        .with("faults", stats.faults)
}
