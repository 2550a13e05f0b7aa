//! Queues in the machine file: what the sections of a DSA and of an I/OAT have in common.

use ioasid_core::PciAddress;
use ioasid_vfio::mdev::{SlotParent, Slots, Uuid};
use serde::Deserialize;

use crate::model::{Driver, Key, MdevSection, names::parsed};

/// Most engines of one device.
pub const MAX_ENGINES: usize = 8;
/// Most queues of one device.
pub const MAX_QUEUES: usize = 8;
/// Engines of a device whose section names no number.
pub(super) const DEFAULT_ENGINES: usize = 2;
/// Queues of a whole device whose section names no number.
const DEFAULT_QUEUES: usize = 4;

/// The key for the number of engines, which all devices with queues have.
pub(super) const ENGINES: Key = Key {
    name: "engines",
    values: "1 to 8",
    default: "2",
    meaning: "threads that move bytes",
};

/// `[[device.queue]]` or `[[device.channel]]`: one work queue of a DSA, one channel of an I/OAT.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(deny_unknown_fields)]
pub struct QueueSection {
    /// What uses it.
    pub owner: Owner,
    /// The mdev that takes it at start; an mdev queue without one waits for `mdev create`.
    #[serde(default, deserialize_with = "parsed")]
    pub uuid: Option<Uuid>,
    /// The VM that owns the mdev.
    #[serde(default)]
    pub vm: Option<String>,
    /// Shows the mdev also as a PCI function with this address, bound to vfio-pci: for programs that
    /// know devices by their PCI address only.
    #[serde(default, deserialize_with = "parsed")]
    pub present_as: Option<PciAddress>,
    /// Descriptors that a queue of a DSA holds. A channel holds none.
    #[serde(default)]
    pub size: Option<u32>,
}

impl QueueSection {
    /// A queue of `owner`, and nothing else said of it.
    pub(super) fn of(owner: Owner) -> Self {
        QueueSection {
            owner,
            uuid: None,
            vm: None,
            present_as: None,
            size: None,
        }
    }
}

/// What uses a queue of a device that the host drives.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    /// The parent's own driver.
    Host,
    /// A mediated device.
    Mdev,
}

/// What is wrong with the engines and queues of a section.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    /// The number of engines.
    #[error("engines must be 1 to {MAX_ENGINES}, not {0}")]
    Engines(usize),
    /// The number of queues.
    #[error("queues must be 1 to {MAX_QUEUES}, not {0}")]
    Queues(usize),
    /// The number says something else than the sections.
    #[error("queues = {queues}, but there are {sections} [[device.queue]] sections")]
    Sections {
        /// What the key says.
        queues: usize,
        /// How many sections there are.
        sections: usize,
    },
    /// There are more sections than a device has queues.
    #[error("{0} queues are more than {MAX_QUEUES}")]
    TooMany(usize),
    /// A queue of a device that programs have whole is set aside for an mdev.
    #[error(
        "queue {0} is for an mdev, but the whole device is offered (driver = \"vfio\"); use \
         driver = \"host\""
    )]
    WholeDevice(usize),
    /// A queue of the driver's has what only an mdev has.
    #[error("queue {0} belongs to the driver, so it has no uuid and no vm; use owner = \"mdev\"")]
    OwnedByHost(usize),
    /// A VM cannot own what is not there yet.
    #[error("queue {0} has a vm but no uuid")]
    VmWithoutUuid(usize),
    /// What is not there yet has no address.
    #[error("queue {0} has present_as but no uuid: there is nothing to present")]
    AddressWithoutUuid(usize),
}

/// The queues that a section asks for: those of its `[[device.queue]]` sections, or as many of the
/// driver's as it says.
pub(super) fn list(sections: &[QueueSection], queues: Option<usize>) -> Vec<QueueSection> {
    if !sections.is_empty() {
        return sections.to_vec();
    }
    vec![QueueSection::of(Owner::Host); queues.unwrap_or(DEFAULT_QUEUES)]
}

/// Engines and queues in a few words.
pub(super) fn contents(engines: usize, what: &str, queues: &[QueueSection]) -> String {
    let mdevs = queues.iter().filter(|queue| queue.owner == Owner::Mdev);
    let of_mdevs = match mdevs.count() {
        0 => String::new(),
        mdevs => format!(", {mdevs} of them for mediated devices"),
    };
    format!("{engines} engines, {} {what}{of_mdevs}", queues.len())
}

/// Checks the numbers of engines and queues.
pub(super) fn check_numbers(
    engines: usize,
    sections: &[QueueSection],
    queues: Option<usize>,
) -> Result<(), QueueError> {
    if !(1..=MAX_ENGINES).contains(&engines) {
        return Err(QueueError::Engines(engines));
    }
    if let Some(queues) = queues {
        let sections = sections.len();
        if sections != 0 && queues != sections {
            return Err(QueueError::Sections { queues, sections });
        }
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(QueueError::Queues(queues));
        }
    }
    if sections.len() > MAX_QUEUES {
        return Err(QueueError::TooMany(sections.len()));
    }
    Ok(())
}

/// Checks what the section of queue `index` says about its owner.
pub(super) fn check_owner(
    index: usize,
    queue: &QueueSection,
    driver: Driver,
) -> Result<(), QueueError> {
    match (driver, queue.owner) {
        (Driver::Vfio, Owner::Mdev) => Err(QueueError::WholeDevice(index)),
        (_, Owner::Host) if queue.uuid.is_some() || queue.vm.is_some() => {
            Err(QueueError::OwnedByHost(index))
        }
        (_, Owner::Mdev) if queue.vm.is_some() && queue.uuid.is_none() => {
            Err(QueueError::VmWithoutUuid(index))
        }
        (..) if queue.present_as.is_some() && queue.uuid.is_none() => {
            Err(QueueError::AddressWithoutUuid(index))
        }
        (..) => Ok(()),
    }
}

/// The mediated devices that `queues` ask for, of the type `type_name`.
pub(super) fn mdevs(queues: &[QueueSection], type_name: &'static str) -> Vec<MdevSection> {
    let mdev = |queue: &QueueSection| {
        Some(MdevSection {
            type_name,
            uuid: queue.uuid?,
            vm: queue.vm.clone(),
            present_as: queue.present_as,
        })
    };
    queues.iter().filter_map(mdev).collect()
}

/// The queues that the host's own driver opens.
pub(super) fn of_host(queues: &[QueueSection]) -> impl Iterator<Item = usize> {
    let queues = queues.iter().enumerate();
    let own = queues.filter(|(_, queue)| queue.owner == Owner::Host);
    own.map(|(index, _)| index)
}

/// Keeps the slots of `parent` for the children that `queues` name.
pub(super) fn keep_slots<D: Slots>(parent: &SlotParent<D>, queues: &[QueueSection]) {
    for (slot, queue) in queues.iter().enumerate() {
        if let Some(uuid) = queue.uuid {
            parent.keep(slot, uuid);
        }
    }
}
