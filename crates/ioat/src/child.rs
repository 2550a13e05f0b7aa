//! A child of the type `ioat-1chan`: one channel of a parent, shown as an I/OAT device with one
//! channel.
//!
//! Its registers reach its own channel only, and its channel's DMA carries the PASID that the child
//! was given at bind, which no register of either shows.

use std::sync::Arc;

use ioasid_core::{
    Pasid,
    inspect::{Inspect, Node},
};
use ioasid_engine::ChildUnit;
use ioasid_iommu::Device;
use ioasid_vfio::{
    DefaultPasid, DeviceModel, Migrate,
    error::BindError,
    mdev::{MdevType, PasidSlot, SlotError, SlotParent, Slots},
    pci::Function,
};

use crate::{
    channel::{Channel, Client},
    config::{ChannelOwner, ConfigError, Error},
    device::IoatDevice,
    endpoint::Endpoint,
    registers::{self, Registers},
    schedule,
    spec::map::Chan,
};

/// The type of a child with one channel.
pub const TYPE_1CHAN: &str = "ioat-1chan";

/// The parent of children of an I/OAT device.
pub type IoatParent = SlotParent<IoatDevice>;

/// One channel of a parent as a device of its own.
#[derive(Debug)]
pub struct IoatChild {
    channel: ChildUnit<IoatDevice>,
    endpoint: Arc<Endpoint>,
    pasid: PasidSlot,
}

impl IoatChild {
    /// Takes channel `channel` of `parent` for a child.
    ///
    /// # Errors
    /// [`Error::NoChannel`], [`Error::ChannelBusy`]; [`Error::Config`] if the channel was not set
    /// aside for mediated devices, or if the parent cannot send PASIDs.
    pub fn new(parent: &Arc<IoatDevice>, channel: usize) -> Result<Arc<Self>, Error> {
        let config = parent.channels().get(channel);
        let config = config.ok_or(Error::NoChannel(channel))?;
        if !config.mdev {
            return Err(ConfigError::NotForChildren(channel).into());
        }
        if parent.device().max_pasids() == 0 {
            return Err(ConfigError::NoPasids.into());
        }
        let endpoint = Endpoint::new(1, parent.device()).map_err(ConfigError::Layout)?;
        endpoint
            .function()
            .on_bus_master(parent.pool.on_bus_master());
        let claim = parent.claim_channel(channel, ChannelOwner::Mdev)?;
        Ok(Arc::new(IoatChild {
            channel: ChildUnit::new(claim),
            endpoint,
            pasid: PasidSlot::new(&parent.pasids),
        }))
    }

    /// The parent.
    pub fn parent(&self) -> &Arc<IoatDevice> {
        self.channel.parent()
    }

    /// Index of its channel in the parent.
    pub fn channel(&self) -> usize {
        self.channel.index()
    }

    /// The default PASID, while the child is bound. For the host alone: no user can read it.
    pub fn pasid(&self) -> Option<Pasid> {
        self.pasid.pasid()
    }

    /// Resets the channel and lets it work for `client`, or for none. Waits until
    /// nothing of the time before is under way.
    fn assign(&self, client: Option<&Arc<Client>>) {
        self.channel.if_claimed(|claim| {
            claim.device().assign_channel(claim.index(), client);
        });
    }
}

impl Registers for IoatChild {
    fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    fn channels(&self) -> usize {
        1
    }

    fn read_channel(&self, _index: usize, read: impl FnOnce(&Channel)) {
        let state = self.parent().pool.lock();
        // Once its channel has gone to another child, this one shows nothing of it.
        match state.channels.get(self.channel()) {
            Some(channel) if self.owns(channel) => read(channel),
            _ => read(&Channel::new(None)),
        }
    }

    fn write_channel(&self, _index: usize, register: Chan, value: u64, mask: u64) {
        let own = |channel: &Channel| self.owns(channel);
        let write = (register, value, mask);
        schedule::write_register(&self.parent().pool, self.channel(), own, write);
    }
}

impl IoatChild {
    /// Whether the channel works for this child now.
    pub(crate) fn owns(&self, channel: &Channel) -> bool {
        let client = channel.client.as_ref();
        client.is_some_and(|client| Arc::ptr_eq(&client.endpoint, &self.endpoint))
    }
}

impl DeviceModel for IoatChild {
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
        self.channel
            .if_claimed(|claim| claim.device().reset_channel(claim.index()));
        self.endpoint.reset();
    }

    fn migration(&self) -> Option<&dyn Migrate> {
        Some(self)
    }
}

impl DefaultPasid for IoatChild {
    fn bind(&self) -> Result<(Arc<Device>, Pasid), BindError> {
        let (device, pasid) = self.pasid.bind(self.parent().device())?;
        self.assign(Some(&Arc::new(Client {
            endpoint: Arc::clone(&self.endpoint),
            index: 0,
            pasid: Some(pasid),
            parent: Some(Arc::clone(&self.parent().endpoint)),
            _pasid_use: self.pasid.use_token(),
        })));
        Ok((device, pasid))
    }

    fn quiesce(&self) {
        // From now on the doorbell has no effect.
        self.assign(None);
    }

    fn unbind(&self) {
        self.pasid.unbind();
    }
}

impl Inspect for IoatChild {
    fn inspect(&self) -> Node {
        Node::new()
            .with("parent", self.parent().device().address().to_string())
            .with("channel", self.channel())
            .with("default_pasid", self.pasid().map(Pasid::get))
    }
}

impl Slots for IoatDevice {
    type Child = IoatChild;

    fn name(&self) -> String {
        self.device().address().to_string()
    }

    fn mdev_type(&self) -> MdevType {
        MdevType {
            id: TYPE_1CHAN.to_owned(),
            name: "1chan".to_owned(),
            description: Some("one channel of an I/OAT device".to_owned()),
        }
    }

    fn free_slots(&self) -> Vec<usize> {
        self.free_channels()
    }

    fn make(self: &Arc<Self>, slot: usize) -> Result<Arc<IoatChild>, SlotError> {
        IoatChild::new(self, slot).map_err(|error| match error {
            Error::ChannelBusy { .. } => SlotError::Taken,
            error => SlotError::refused(error),
        })
    }

    fn retire(&self, child: &IoatChild) {
        child.channel.retire();
    }
}
