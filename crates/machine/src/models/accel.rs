//! What `accel-config save-config` writes: the queues and engines of a DSA, as users of one have them
//! in files already.
//!
//! Of a device with `driver = "host"` everything is the host driver's business, and becomes its queues.
//! One that programs have whole starts as after a reset, as hardware does: how many queues and
//! engines there are, and how large, is the device's, and the program's own driver sets the rest.
//!
//! Read buffers (tokens) and traffic classes are taken and mean nothing here.

use std::{fs, io, path::PathBuf, str::FromStr};

use ioasid_dsa::{MAX_BATCH_SHIFT, MAX_TRANSFER_SHIFT};
use serde::Deserialize;

use super::{
    dsa::MAX_QUEUE_SIZE,
    queue::{MAX_ENGINES, MAX_QUEUES, Owner},
};
use crate::model::Driver;

/// The file's part for one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccelConfig {
    /// Its queues, from queue 0.
    pub queues: Vec<WorkQueue>,
    /// The group of each of its engines, from engine 0.
    pub engines: Vec<usize>,
}

/// One work queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkQueue {
    /// Its group.
    pub group: usize,
    /// Entries.
    pub size: u32,
    /// Among the queues of its group, 1..=15.
    pub priority: u8,
    /// Most bytes of a descriptor as a power of two; the device's if the file says nothing.
    pub transfer_shift: Option<u8>,
    /// Most descriptors of a batch as a power of two; the device's if the file says nothing.
    pub batch_shift: Option<u8>,
    /// The mode, as the file says it.
    mode: Mode,
    /// What uses it, as the file says it.
    kind: Kind,
    threshold: u32,
    block_on_fault: bool,
    driver_name: Option<String>,
}

/// What is wrong with a file, or with what it asks for.
#[derive(Debug, thiserror::Error)]
pub enum AccelError {
    /// It cannot be read.
    #[error("cannot read {path}: {error}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// It is not what accel-config writes.
    #[error("{path} is not of accel-config's format: {error}", path = path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// Where, and why not.
        error: serde_json::Error,
    },
    /// It has several devices, or none of that name.
    #[error("it has {}: name one as in config = \"FILE#dsa0\"", names(.0))]
    Which(Vec<String>),
    /// Queues or engines are not numbered from 0 on.
    #[error("{kind}s are numbered from 0, each once, and {kind}{missing} is not there")]
    Numbers {
        /// `wq` or `engine`.
        kind: &'static str,
        /// The first that is not there.
        missing: usize,
    },
    /// A name that is not of the form.
    #[error("`{0}` is no name of a queue, an engine or a group, such as wq0.1")]
    Name(String),
    /// A number that this model does not have.
    #[error("{what}: {key} must be {allowed}, not {value}")]
    Value {
        /// Whose.
        what: String,
        /// The key.
        key: &'static str,
        /// What it can be.
        allowed: String,
        /// What it is.
        value: u64,
    },
    /// Something that the device, or the host's driver, does not do.
    #[error("{what}: {sentence}")]
    NotHad {
        /// Whose.
        what: String,
        /// What.
        sentence: &'static str,
    },
}

fn names(names: &[String]) -> String {
    match names {
        [] => "no device".to_owned(),
        names => format!("the devices {}", names.join(", ")),
    }
}

/// One device of a file.
#[derive(Deserialize)]
struct Device {
    dev: String,
    #[serde(default)]
    groups: Vec<Group>,
}

#[derive(Deserialize)]
struct Group {
    dev: String,
    #[serde(default)]
    grouped_workqueues: Vec<Wq>,
    #[serde(default)]
    grouped_engines: Vec<Engine>,
}

#[derive(Deserialize)]
struct Engine {
    dev: String,
}

#[derive(Deserialize)]
struct Wq {
    dev: String,
    mode: Mode,
    size: u32,
    #[serde(default = "priority")]
    priority: u64,
    #[serde(default)]
    block_on_fault: u64,
    #[serde(default)]
    max_batch_size: Option<u64>,
    #[serde(default)]
    max_transfer_size: Option<u64>,
    #[serde(rename = "type")]
    kind: Kind,
    #[serde(default)]
    driver_name: Option<String>,
    #[serde(default)]
    threshold: u32,
}

fn priority() -> u64 {
    10
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Mode {
    Dedicated,
    Shared,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Kernel,
    User,
    Mdev,
    None,
}

/// `FILE`, or `FILE#DEVICE` for one of several.
impl FromStr for AccelConfig {
    type Err = AccelError;

    fn from_str(text: &str) -> Result<Self, AccelError> {
        let (path, device) = match text.rsplit_once('#') {
            Some((path, device)) => (path, Some(device)),
            None => (text, None),
        };
        let path = PathBuf::from(path);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => return Err(AccelError::Read { path, error }),
        };
        let devices: Vec<Device> = match serde_json::from_str(&text) {
            Ok(devices) => devices,
            Err(error) => return Err(AccelError::Format { path, error }),
        };
        let names = || devices.iter().map(|one| one.dev.clone()).collect();
        let chosen = match (device, &devices[..]) {
            (None, [only]) => only,
            (None, _) => return Err(AccelError::Which(names())),
            (Some(name), devices) => {
                let mut named = devices.iter().filter(|one| one.dev == name);
                named.next().ok_or_else(|| AccelError::Which(names()))?
            }
        };
        chosen.read()
    }
}

impl Device {
    fn read(&self) -> Result<AccelConfig, AccelError> {
        let (mut queues, mut engines) = (Vec::new(), Vec::new());
        for group in &self.groups {
            let own = number(&group.dev)?;
            for queue in &group.grouped_workqueues {
                queues.push((number(&queue.dev)?, queue.read(own)?));
            }
            for engine in &group.grouped_engines {
                engines.push((number(&engine.dev)?, own));
            }
            if !group.grouped_workqueues.is_empty() && group.grouped_engines.is_empty() {
                return Err(AccelError::NotHad {
                    what: group.dev.clone(),
                    sentence: "it has queues and no engine",
                });
            }
        }
        let config = AccelConfig {
            queues: in_order("wq", queues)?,
            engines: in_order("engine", engines)?,
        };
        config.check_counts(&self.dev)?;
        Ok(config)
    }
}

impl Wq {
    fn read(&self, group: usize) -> Result<WorkQueue, AccelError> {
        let value = |key, allowed: String, value: u64| AccelError::Value {
            what: self.dev.clone(),
            key,
            allowed,
            value,
        };
        if !(1..=MAX_QUEUE_SIZE).contains(&self.size) {
            return Err(value(
                "size",
                format!("1 to {MAX_QUEUE_SIZE}"),
                self.size.into(),
            ));
        }
        if !(1..=15).contains(&self.priority) {
            return Err(value("priority", "1 to 15".to_owned(), self.priority));
        }
        let shift = |key, number: Option<u64>, most: u8| match number {
            None => Ok(None),
            Some(number) if number.is_power_of_two() && number <= 1 << most => {
                Ok(Some(number.ilog2() as u8))
            }
            Some(number) => {
                let allowed = format!("a power of two up to {}", 1_u64 << most);
                Err(value(key, allowed, number))
            }
        };
        let transfer = ("max_transfer_size", self.max_transfer_size);
        Ok(WorkQueue {
            group,
            size: self.size,
            priority: self.priority as u8,
            transfer_shift: shift(transfer.0, transfer.1, MAX_TRANSFER_SHIFT)?,
            batch_shift: shift("max_batch_size", self.max_batch_size, MAX_BATCH_SHIFT)?,
            mode: self.mode,
            kind: self.kind,
            threshold: self.threshold,
            block_on_fault: self.block_on_fault != 0,
            driver_name: self.driver_name.clone(),
        })
    }
}

impl AccelConfig {
    fn check_counts(&self, device: &str) -> Result<(), AccelError> {
        let check = |key, most: usize, count: usize| match (1..=most).contains(&count) {
            true => Ok(()),
            false => Err(AccelError::Value {
                what: device.to_owned(),
                key,
                allowed: format!("1 to {most}"),
                value: count as u64,
            }),
        };
        check("the number of queues", MAX_QUEUES, self.queues.len())?;
        check("the number of engines", MAX_ENGINES, self.engines.len())?;
        // As many groups as engines.
        let groups = self.queues.iter().map(|queue| queue.group);
        let highest = groups.chain(self.engines.iter().copied()).max();
        check(
            "the number of groups",
            self.engines.len(),
            highest.unwrap_or(0) + 1,
        )
    }

    /// Refuses what the device, or the driver that has it, does not do.
    ///
    /// # Errors
    /// [`AccelError::NotHad`].
    pub(super) fn check(&self, driver: Driver) -> Result<(), AccelError> {
        for (index, queue) in self.queues.iter().enumerate() {
            let sentence = match driver {
                Driver::Host => queue.not_had_by_host(),
                Driver::Vfio => {
                    (queue.kind == Kind::Mdev).then_some("type mdev needs driver = \"host\"")
                }
            };
            let threshold = (queue.mode == Mode::Dedicated && queue.threshold != 0)
                .then_some("threshold is for shared queues");
            if let Some(sentence) = sentence.or(threshold) {
                return Err(AccelError::NotHad {
                    what: format!("wq {index}"),
                    sentence,
                });
            }
        }
        Ok(())
    }
}

impl WorkQueue {
    /// What uses it, of a device that the host drives.
    pub(super) fn owner(&self) -> Owner {
        match self.kind {
            Kind::Mdev => Owner::Mdev,
            Kind::Kernel | Kind::User | Kind::None => Owner::Host,
        }
    }

    fn not_had_by_host(&self) -> Option<&'static str> {
        let is_dmaengine = |name: &str| name.is_empty() || name == "dmaengine";
        if self.mode == Mode::Shared {
            return Some("mode shared: queues of a device with driver = \"host\" are dedicated");
        }
        match self.kind {
            Kind::User => Some("type user: there is no /dev/dsa; use kernel or mdev"),
            Kind::None => Some("type none: a queue is for the kernel or for an mdev"),
            Kind::Kernel if self.block_on_fault => {
                Some("block_on_fault: the host's own driver does not wait for pages")
            }
            Kind::Kernel if !self.driver_name.as_deref().is_none_or(is_dmaengine) => {
                Some("driver_name: the host's own driver is dmaengine")
            }
            Kind::Kernel | Kind::Mdev => None,
        }
    }
}

/// The number after the last dot of `wq0.1`, `engine0.1` or `group0.1`.
fn number(name: &str) -> Result<usize, AccelError> {
    let number = name.rsplit_once('.').map(|(_, number)| number.parse());
    match number {
        Some(Ok(number)) => Ok(number),
        _ => Err(AccelError::Name(name.to_owned())),
    }
}

/// The values by their numbers, which are 0, 1, 2 and so on.
fn in_order<T>(kind: &'static str, mut numbered: Vec<(usize, T)>) -> Result<Vec<T>, AccelError> {
    numbered.sort_by_key(|(number, _)| *number);
    let mut values = Vec::new();
    for (missing, (number, value)) in numbered.into_iter().enumerate() {
        if number != missing {
            return Err(AccelError::Numbers { kind, missing });
        }
        values.push(value);
    }
    Ok(values)
}
