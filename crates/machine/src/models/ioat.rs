//! `model = "ioat"`: the Intel I/OAT of `ioasid_ioat`, 8086:2021.

use std::sync::Arc;

use ioasid_core::inspect::{Inspect as _, Node};
use ioasid_ioat::{
    ChannelConfig, HostChannel, HostDriver, IoatConfig, IoatDevice, IoatParent, TYPE_1CHAN,
};
use serde::Deserialize;

use super::queue::{self, Owner, QueueError, QueueSection};
use crate::model::{self, Built, Driver, Key, MdevSection, Model, ModelError, Site};

/// The model.
#[derive(Debug)]
pub struct Ioat;

/// The keys of an I/OAT.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Engines (threads that move bytes), 1..=[`queue::MAX_ENGINES`].
    #[serde(default = "engines")]
    pub engines: usize,
    /// Number of channels without `[[device.channel]]` sections, 1..=[`queue::MAX_QUEUES`].
    #[serde(default, alias = "queues")]
    channels: Option<usize>,
    /// `[[device.channel]]`, from channel 0.
    #[serde(default, alias = "queue")]
    channel: Vec<QueueSection>,
}

fn engines() -> usize {
    queue::DEFAULT_ENGINES
}

/// What is wrong with a section.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SectionError {
    /// A channel was given a size.
    #[error("channel {0} has no size: its descriptors lie in memory; leave the key out")]
    ChannelSize(usize),
    /// Engines, channels or their owners.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

impl Section {
    /// Its channels, from channel 0: those of its sections, or as many of the driver's as it says.
    pub fn channels(&self) -> Vec<QueueSection> {
        queue::list(&self.channel, self.channels)
    }

    fn check(&self, driver: Driver) -> Result<(), SectionError> {
        queue::check_numbers(self.engines, &self.channel, self.channels)?;
        for (index, channel) in self.channel.iter().enumerate() {
            if channel.size.is_some() {
                return Err(SectionError::ChannelSize(index));
            }
            queue::check_owner(index, channel, driver)?;
        }
        Ok(())
    }

    fn config(&self) -> IoatConfig {
        let channels = self.channels();
        let channels = channels.iter().map(|channel| ChannelConfig {
            mdev: channel.owner == Owner::Mdev,
        });
        IoatConfig {
            channels: channels.collect(),
            engines: self.engines,
        }
    }
}

/// The host's own driver, with the channels that it works on.
#[derive(Debug)]
pub struct Host {
    channels: Vec<Arc<HostChannel>>,
    // Goes last: the channels are the driver's.
    _driver: Arc<HostDriver>,
}

impl Host {
    /// The channels, in the order of their numbers.
    pub fn channels(&self) -> &[Arc<HostChannel>] {
        &self.channels
    }
}

impl model::HostDriver for Host {
    fn inspect_queues(&self) -> Vec<Node> {
        self.channels.iter().map(|one| one.inspect()).collect()
    }
}

impl Model for Ioat {
    const NAME: &'static str = "ioat";
    const SUMMARY: &'static str = "Intel I/OAT DMA engine, 8086:2021; children ioat-1chan";
    const KEYS: &'static [Key] = &[
        queue::ENGINES,
        Key {
            name: "channels",
            values: "1 to 8",
            default: "4",
            meaning: "channels",
        },
    ];
    const HOST_DRIVER: Option<&'static str> = Some("ioatdma");
    type Section = Section;

    fn check(section: &Section, driver: Driver) -> Result<(), ModelError> {
        Ok(section.check(driver)?)
    }

    fn contents(section: &Section) -> String {
        queue::contents(section.engines, "channels", &section.channels())
    }

    fn mdevs(section: &Section) -> Vec<MdevSection> {
        queue::mdevs(&section.channel, TYPE_1CHAN)
    }

    fn build(section: &Section, site: &Site<'_>) -> Result<Built, ModelError> {
        let device = site.add_device(|config| {
            // A descriptor has no way to wait for a page.
            config.page_requests = false;
        })?;
        let config = section.config();
        let ioat = IoatDevice::new(site.iommu(), Arc::clone(&device), config, site.spawner())?;
        let built = Built::function(Arc::clone(&ioat), device);
        if site.driver() == Driver::Vfio {
            return Ok(built);
        }
        let channels = section.channels();
        let driver = HostDriver::probe(&ioat)?;
        let own = queue::of_host(&channels).map(|index| driver.open_channel(index).map(Arc::new));
        let host = Host {
            channels: own.collect::<Result<_, _>>()?,
            _driver: driver,
        };
        let parent = IoatParent::new(ioat);
        queue::keep_slots(&parent, &channels);
        Ok(built.driven_by(Arc::new(host)).with_parent(parent))
    }
}
