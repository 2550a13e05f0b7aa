//! The whole device: its register file, and who may have which of its channels.

use std::sync::{Arc, atomic::AtomicBool};

use ioasid_core::{
    host::Spawner,
    inspect::{Inspect, Node, Value},
};
use ioasid_iommu::{Device, Iommu, PasidPool, Requests};
use ioasid_vfio::{DeviceModel, Migrate, pci::Function};

use crate::{
    channel::{Channel, Reset, Tag},
    config::{ChannelConfig, ChannelOwner, Error, IoatConfig, MAX_CHANNELS, MAX_ENGINES},
    engine::Shared,
    front::Front,
    registers::{self, Registers},
    spec::{ChannelStatus, registers::CHANNEL_STRIDE},
};

/// A software I/OAT device. Engines run while it lives; dropping it ends them and waits for them.
#[derive(Debug)]
pub struct IoatDevice {
    pub(crate) shared: Arc<Shared>,
    pub(crate) front: Arc<Front>,
    pub(crate) pasids: Arc<PasidPool>,
    /// A driver of the host has it.
    pub(crate) driven: AtomicBool,
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
            return Err(Error::Config("a device has 1 to 16 channels"));
        }
        if !(1..=MAX_ENGINES).contains(&engines) {
            return Err(Error::Config("a device has 1 to 16 engines"));
        }
        let front = Front::new(channels.len(), &device)
            .map_err(|_| Error::Config("the PCI function cannot be laid out"))?;
        front.function().issues(&device, Requests::All);
        let made = (0..channels.len()).map(|index| Channel::new(Some(own_tag(&front, index))));
        let shared = Shared::new(Arc::clone(&device), made.collect());
        shared.follow(&front);
        let this = Arc::new(IoatDevice {
            shared,
            front,
            pasids: Arc::clone(iommu.pasids()),
            driven: AtomicBool::new(false),
            channels,
            engines,
        });
        for index in 0..engines {
            let shared = Arc::clone(&this.shared);
            let name = format!("ioat {} engine {index}", device.address());
            this.shared.lock().engines += 1;
            let started = spawner.spawn(&name, Box::new(move || shared.engine()));
            if let Err(error) = started {
                this.shared.lock().engines -= 1;
                return Err(Error::Engine(error));
            }
        }
        Ok(this)
    }

    /// The device that its DMA is tagged as.
    pub fn device(&self) -> &Arc<Device> {
        &self.shared.device
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
        let mut state = self.shared.lock();
        let channel = state.channels.get_mut(index);
        let channel = channel.ok_or(Error::NoChannel(index))?;
        if let Some(owner) = channel.claim {
            return Err(Error::ChannelBusy { index, owner });
        }
        channel.claim = Some(owner);
        drop(state);
        let claim = ChannelClaim {
            device: Arc::clone(self),
            index,
        };
        match owner {
            ChannelOwner::Mdev => claim.retag(None),
            ChannelOwner::Kernel => claim.stop(),
        }
        Ok(claim)
    }

    /// Channels that were set aside for children and that nobody has.
    pub(crate) fn free_channels(&self) -> Vec<usize> {
        let state = self.shared.lock();
        let channels = self.channels.iter().zip(&state.channels).enumerate();
        channels
            .filter(|(_, (made, channel))| made.mdev && channel.claim.is_none())
            .map(|(index, _)| index)
            .collect()
    }
}

/// The name in which the device's own owner uses channel `index`.
fn own_tag(front: &Arc<Front>, index: usize) -> Arc<Tag> {
    Arc::new(Tag {
        front: Arc::clone(front),
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
    fn front(&self) -> &Front {
        &self.front
    }

    fn channels(&self) -> usize {
        self.channels.len()
    }

    fn channel_image(&self, index: usize) -> [u8; CHANNEL_STRIDE as usize] {
        let state = self.shared.lock();
        let channel = state.channels.get(index).filter(|channel| is_open(channel));
        match channel {
            Some(channel) => channel.image(),
            // A locked channel looks as after power-up.
            None => Channel::new(None).image(),
        }
    }

    fn write_channel(&self, index: usize, register: u64, value: u64, mask: u64) {
        self.shared.change(index, |channel| match is_open(channel) {
            true => channel.write(register, value, mask),
            false => None,
        });
    }
}

impl DeviceModel for IoatDevice {
    fn function(&self) -> &Function {
        self.front.function()
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
        self.shared.reset(|_, channel| is_open(channel));
        self.front.reset();
    }

    fn migration(&self) -> Option<&dyn Migrate> {
        Some(self)
    }
}

impl Drop for IoatDevice {
    fn drop(&mut self) {
        // Without waiting for a client: what is on a worker ends there.
        for channel in &mut self.shared.lock().channels {
            channel.begin_reset(Reset::Everything);
        }
        self.shared.stop();
    }
}

impl Inspect for IoatDevice {
    fn inspect(&self) -> Node {
        let state = self.shared.lock();
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
            .with("function", self.front.function().inspect())
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
    let mut node = Node::new()
        .with("owner", owner)
        .with("status", status)
        .with("depth", u64::from(channel.depth()));
    if let Some(pasid) = channel.tag.as_ref().and_then(|tag| tag.pasid) {
        node.set("pasid", pasid.get());
    }
    node.with("jobs", stats.ended)
        .with("failed", stats.failed)
        .with("aborted", stats.aborted)
        .with("bytes", stats.bytes)
        .with("faults", stats.faults)
}

/// A channel that one owner has for itself. Dropping it stops the channel: nothing of it is under
/// way and it is free when that returns.
#[derive(Debug)]
pub struct ChannelClaim {
    device: Arc<IoatDevice>,
    index: usize,
}

impl ChannelClaim {
    /// The device.
    pub fn device(&self) -> &Arc<IoatDevice> {
        &self.device
    }

    /// The channel's index.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Resets the channel and waits until nothing of it is under way.
    pub(crate) fn stop(&self) {
        self.device.shared.reset(|index, _| index == self.index);
    }

    /// The same, and says in whose name the channel works from now on.
    pub(crate) fn retag(&self, tag: Option<Arc<Tag>>) {
        self.device.shared.reset(|index, channel| {
            let own = index == self.index;
            if own {
                channel.tag.clone_from(&tag);
            }
            own
        });
    }
}

impl Drop for ChannelClaim {
    fn drop(&mut self) {
        self.stop();
        if let Some(channel) = self.device.shared.lock().channels.get_mut(self.index) {
            channel.tag = Some(own_tag(&self.device.front, self.index));
            channel.claim = None;
        }
    }
}
