//! `model = "dsa"`: the Intel DSA of `ioasid_dsa`, 8086:0b25.

use std::sync::Arc;

use ioasid_core::inspect::{Inspect as _, Node};
use ioasid_dsa::{
    DsaConfig, DsaDevice, DsaParent, HostDriver, HostQueue, MAX_TRANSFER_SHIFT, QueueConfig, Role,
    TYPE_1DWQ,
};
use ioasid_iommu::Device;
use serde::Deserialize;

use super::{
    accel::{AccelConfig, AccelError, WorkQueue},
    queue::{self, Owner, QueueError, QueueSection},
};
use crate::model::{
    self, Built, Driver, Key, MdevSection, Model, ModelError, Site, SiteError, VirtualFunctions,
    names::parsed,
};

/// Most descriptors in one queue.
pub const MAX_QUEUE_SIZE: u32 = 128;
/// Descriptors of a queue whose section names no number.
const DEFAULT_QUEUE_SIZE: u32 = 32;
/// Most virtual functions of one physical one.
const MAX_VIRTUAL: u16 = 31;

/// The model.
#[derive(Debug)]
pub struct Dsa;

/// The keys of a DSA.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct Section {
    /// Engines (threads that move bytes), 1..=[`queue::MAX_ENGINES`].
    #[serde(default)]
    engines: Option<usize>,
    /// Most bytes that one descriptor moves, a power of two up to 2 MiB, which it is by default.
    #[serde(default)]
    pub max_transfer: Option<u32>,
    /// Virtual functions that programs can ask for (SR-IOV), up to 31; only with
    /// `driver = "vfio"`. They take the addresses after the device's own.
    #[serde(default)]
    pub vfs: u16,
    /// Queues and engines as accel-config says them, instead of the other keys.
    #[serde(default, deserialize_with = "parsed")]
    config: Option<AccelConfig>,
    /// Number of queues without `[[device.queue]]` sections, 1..=[`queue::MAX_QUEUES`].
    #[serde(default, alias = "channels")]
    queues: Option<usize>,
    /// `[[device.queue]]`, from queue 0.
    #[serde(default, alias = "channel")]
    queue: Vec<QueueSection>,
}

/// What is wrong with a section.
#[derive(Debug, thiserror::Error)]
pub enum SectionError {
    /// The same is said twice.
    #[error("config says what {0} says: leave one of them out")]
    Twice(&'static str),
    /// What the file asks for.
    #[error("config: {0}")]
    Accel(AccelError),
    /// The number of virtual functions.
    #[error("vfs must be 0 to {MAX_VIRTUAL}, not {0}")]
    VirtualFunctions(u16),
    /// Virtual functions of a device that the host drives.
    #[error("vfs is for a dsa with driver = \"vfio\"")]
    VirtualOfHost,
    /// The largest transfer.
    #[error("max_transfer is a power of two from 4096 to 2097152, not {0}")]
    MaxTransfer(u32),
    /// The size of a queue.
    #[error("queue {index}: size must be 1 to {MAX_QUEUE_SIZE}, not {size}")]
    QueueSize {
        /// The queue.
        index: usize,
        /// What its section says.
        size: u32,
    },
    /// Engines, queues or their owners.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

impl From<AccelError> for SectionError {
    fn from(error: AccelError) -> Self {
        SectionError::Accel(error)
    }
}

impl Section {
    /// Its queues, from queue 0: those of its sections, or as many of the driver's as it says.
    pub fn queues(&self) -> Vec<QueueSection> {
        if let Some(config) = &self.config {
            let queue = |queue: &WorkQueue| QueueSection {
                size: Some(queue.size),
                ..QueueSection::of(queue.owner())
            };
            return config.queues.iter().map(queue).collect();
        }
        queue::list(&self.queue, self.queues)
    }

    /// Its engines.
    pub fn engines(&self) -> usize {
        match &self.config {
            Some(config) => config.engines.len(),
            None => self.engines.unwrap_or(queue::DEFAULT_ENGINES),
        }
    }

    fn check(&self, driver: Driver) -> Result<(), SectionError> {
        if let Some(config) = &self.config {
            let others = [
                ("engines", self.engines.is_some()),
                ("queues", self.queues.is_some()),
                ("[[device.queue]]", !self.queue.is_empty()),
            ];
            if let Some((name, _)) = others.into_iter().find(|(_, given)| *given) {
                return Err(SectionError::Twice(name));
            }
            config.check(driver)?;
        }
        if self.vfs > MAX_VIRTUAL {
            return Err(SectionError::VirtualFunctions(self.vfs));
        }
        if self.vfs > 0 && driver != Driver::Vfio {
            return Err(SectionError::VirtualOfHost);
        }
        if let Some(bytes) = self.max_transfer
            && (!bytes.is_power_of_two() || !(4096..=1 << MAX_TRANSFER_SHIFT).contains(&bytes))
        {
            return Err(SectionError::MaxTransfer(bytes));
        }
        queue::check_numbers(self.engines(), &self.queue, self.queues)?;
        for (index, queue) in self.queue.iter().enumerate() {
            if let Some(size) = queue.size
                && !(1..=MAX_QUEUE_SIZE).contains(&size)
            {
                return Err(SectionError::QueueSize { index, size });
            }
            queue::check_owner(index, queue, driver)?;
        }
        Ok(())
    }

    fn config(&self) -> DsaConfig {
        let queues = self.queues();
        let accel = self.config.as_ref();
        let queues = queues.iter().enumerate().map(|(index, queue)| {
            let size = queue.size.unwrap_or(DEFAULT_QUEUE_SIZE);
            let config = QueueConfig {
                size: u16::try_from(size).unwrap_or(u16::MAX),
                mdev: queue.owner == Owner::Mdev,
                ..QueueConfig::default()
            };
            match accel.and_then(|accel| accel.queues.get(index)) {
                None => config,
                Some(queue) => QueueConfig {
                    group: queue.group,
                    priority: queue.priority,
                    transfer_shift: queue.transfer_shift,
                    batch_shift: queue.batch_shift,
                    ..config
                },
            }
        });
        DsaConfig {
            queues: queues.collect(),
            engines: self.engines(),
            engine_groups: accel.map_or_else(Vec::new, |accel| accel.engines.clone()),
            device_tlb: true,
            max_transfer_shift: self
                .max_transfer
                .map_or(MAX_TRANSFER_SHIFT, |bytes| bytes.ilog2() as u8),
            role: match self.vfs {
                0 => Role::Alone,
                total => Role::Physical { total },
            },
        }
    }
}

/// The host's own driver, with the queues that it works on.
#[derive(Debug)]
pub struct Host {
    queues: Vec<Arc<HostQueue>>,
    // Goes last: the queues are the driver's.
    _driver: Arc<HostDriver>,
}

impl Host {
    /// The queues, in the order of their numbers.
    pub fn queues(&self) -> &[Arc<HostQueue>] {
        &self.queues
    }
}

impl model::HostDriver for Host {
    fn inspect_queues(&self) -> Vec<Node> {
        self.queues.iter().map(|queue| queue.inspect()).collect()
    }
}

impl Model for Dsa {
    const NAME: &'static str = "dsa";
    const SUMMARY: &'static str = "Intel Data Streaming Accelerator, 8086:0b25; children dsa-1dwq";
    const KEYS: &'static [Key] = &[
        queue::ENGINES,
        Key {
            name: "queues",
            values: "1 to 8",
            default: "4",
            meaning: "work queues",
        },
        Key {
            name: "max_transfer",
            values: "4096 to 2097152",
            default: "2097152",
            meaning: "most bytes that one descriptor moves",
        },
        Key {
            name: "vfs",
            values: "0 to 31",
            default: "0",
            meaning: "virtual functions (SR-IOV)",
        },
        Key {
            name: "config",
            values: "a file",
            default: "none",
            meaning: "queues and engines as accel-config saves them",
        },
    ];
    const HOST_DRIVER: Option<&'static str> = Some("idxd");
    type Section = Section;

    fn check(section: &Section, driver: Driver) -> Result<(), ModelError> {
        Ok(section.check(driver)?)
    }

    fn contents(section: &Section) -> String {
        queue::contents(section.engines(), "queues", &section.queues())
    }

    fn mdevs(section: &Section) -> Vec<MdevSection> {
        queue::mdevs(&section.queue, TYPE_1DWQ)
    }

    fn virtual_functions(section: &Section) -> Option<VirtualFunctions> {
        (section.vfs > 0).then_some(VirtualFunctions {
            total: section.vfs,
            offset: Role::ROUTING_STEP,
            stride: Role::ROUTING_STEP,
        })
    }

    fn build(section: &Section, site: &Site<'_>) -> Result<Built, ModelError> {
        let device = add_device(site, false)?;
        let config = section.config();
        let dsa = DsaDevice::new(site.iommu(), Arc::clone(&device), config, site.spawner())?;
        let built = Built::function(Arc::clone(&dsa), device);
        if site.driver() == Driver::Vfio {
            return Ok(built);
        }
        let queues = section.queues();
        let driver = HostDriver::probe(&dsa)?;
        let own = queue::of_host(&queues).map(|index| driver.open_queue(index).map(Arc::new));
        let host = Host {
            queues: own.collect::<Result<_, _>>()?,
            _driver: driver,
        };
        let parent = DsaParent::new(dsa);
        queue::keep_slots(&parent, &queues);
        Ok(built.driven_by(Arc::new(host)).with_parent(parent))
    }

    fn build_virtual(_section: &Section, site: &Site<'_>) -> Result<Built, ModelError> {
        let device = add_device(site, true)?;
        let config = DsaConfig {
            queues: vec![QueueConfig::default()],
            engines: 1,
            device_tlb: true,
            max_transfer_shift: MAX_TRANSFER_SHIFT,
            role: Role::Virtual,
            engine_groups: Vec::new(),
        };
        let dsa = DsaDevice::new(site.iommu(), Arc::clone(&device), config, site.spawner())?;
        Ok(Built::function(dsa, device))
    }
}

fn add_device(site: &Site<'_>, virtual_function: bool) -> Result<Arc<Device>, SiteError> {
    site.add_device(|config| {
        config.virtual_function = virtual_function;
        // As a Sapphire Rapids shows: `PASIDCap: Exec- Priv+`.
        config.pasid_privileged = true;
    })
}
