//! The tree of a running machine as types: what the screen, the list, the live view and the graph are
//! drawn from. It is read from the JSON that `inspect --json` prints, so a field that its schema does
//! not have cannot be used here.

use std::{collections::BTreeMap, fmt};

use anyhow::{Context as _, Result};
use ioasid_core::inspect::Node;
use serde::Deserialize;
use serde_json::{Map, Value as Json};

use super::tree;

/// A machine at one moment.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) pid: Option<u64>,
    pub(crate) iommu: Iommu,
    pub(crate) devices: Vec<Device>,
    pub(crate) mdevs: Vec<Mdev>,
    pub(crate) mdev_types: Vec<MdevType>,
    pub(crate) iommufds: Vec<Iommufd>,
    pub(crate) vfio_user: Option<VfioUser>,
    #[serde(default)]
    pub(crate) programs: Vec<Program>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Iommu {
    pub(crate) format: String,
    pub(crate) domains: Vec<Domain>,
    pub(crate) devices: Vec<Translated>,
    pub(crate) page_requests: u64,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Domain {
    pub(crate) id: u64,
    pub(crate) kind: String,
    /// Of a nested domain.
    pub(crate) parent: Option<u64>,
    /// Of a nested domain.
    pub(crate) first_stage: Option<FirstStage>,
    pub(crate) routes: Vec<Route>,
    pub(crate) mapped_bytes: u64,
    pub(crate) mapped: Vec<Range>,
    pub(crate) dma_operations: u64,
    pub(crate) dma_bytes: u64,
    pub(crate) faults: u64,
}

/// A guest's table on a domain.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct FirstStage {
    pub(crate) root: u64,
    pub(crate) address_bits: u64,
}

/// A source of DMA.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub(crate) struct Route {
    pub(crate) device: String,
    pub(crate) pasid: Option<u64>,
}

/// Inclusive.
#[derive(Clone, Copy, Debug, Deserialize)]
pub(crate) struct Range {
    pub(crate) start: u64,
    pub(crate) last: u64,
}

/// A device as the IOMMU has it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Translated {
    pub(crate) own_faults: Faults,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Faults {
    pub(crate) faults: u64,
    pub(crate) held: Vec<Fault>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Fault {
    #[serde(flatten)]
    pub(crate) source: Route,
    pub(crate) access: String,
    pub(crate) iova: u64,
    pub(crate) reason: String,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Device {
    pub(crate) address: String,
    pub(crate) model: String,
    pub(crate) driver: String,
    pub(crate) vm: Option<String>,
    pub(crate) node: Option<String>,
    pub(crate) vfio: Option<Vfio>,
    /// Among others what its model shows, under the model's name.
    #[serde(flatten)]
    rest: Map<String, Json>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Mdev {
    pub(crate) uuid: String,
    #[serde(rename = "type")]
    pub(crate) type_name: String,
    pub(crate) parent: String,
    pub(crate) vm: Option<String>,
    pub(crate) node: String,
    queue: Option<Map<String, Json>>,
    pub(crate) vfio: Vfio,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct MdevType {
    pub(crate) parent: String,
    #[serde(rename = "type")]
    pub(crate) type_name: String,
    pub(crate) available_instances: u64,
}

/// A device as VFIO has it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Vfio {
    pub(crate) group: u64,
    pub(crate) open_files: u64,
    pub(crate) dma_faults: Faults,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Iommufd {
    pub(crate) ioas: Vec<Ioas>,
    pub(crate) devices: Vec<Bound>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Ioas {
    pub(crate) id: u64,
    pub(crate) areas: u64,
    pub(crate) mapped_bytes: u64,
    pub(crate) domain_ids: Vec<u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Bound {
    pub(crate) device: String,
    pub(crate) default_pasid: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct VfioUser {
    pub(crate) sockets: Vec<Socket>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Socket {
    pub(crate) node: String,
    pub(crate) vm: Option<String>,
    pub(crate) connected: bool,
    pub(crate) pid: Option<u64>,
}

#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Program {
    pub(crate) program: String,
    pub(crate) pid: u64,
    pub(crate) vm: Option<String>,
    pub(crate) requests: u64,
    pub(crate) open_files: u64,
    pub(crate) devices: Vec<String>,
}

/// Who uses a device.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct User {
    pub(crate) pid: Option<u64>,
    /// One word.
    pub(crate) program: String,
    pub(crate) vm: Option<String>,
}

/// A queue of a device, or a channel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Queue {
    pub(crate) index: usize,
    pub(crate) owner: String,
    pub(crate) waiting: u64,
    pub(crate) jobs: u64,
    pub(crate) failed: u64,
    pub(crate) bytes: u64,
    pub(crate) faults: u64,
}

impl Seen {
    /// Reads the tree of a machine.
    ///
    /// # Errors
    /// If it is of another version of this program.
    pub(crate) fn new(node: &Node) -> Result<Seen> {
        let json = tree::node_to_json(node);
        serde_json::from_value(json).context("the machine is of another version of ioasid")
    }

    /// The domains with a page table of their own, by number. Those that block or pass through, which are
    /// there with every device, are left out; for nested ones see [`Seen::nested_on`].
    pub(crate) fn paging(&self) -> Vec<&Domain> {
        self.domains(|domain| matches!(&*domain.kind, "dma" | "unmanaged"))
    }

    /// The domains that are nested on `parent`, by number.
    pub(crate) fn nested_on(&self, parent: &Domain) -> Vec<&Domain> {
        self.domains(|domain| domain.parent == Some(parent.id))
    }

    fn domains(&self, wanted: impl Fn(&Domain) -> bool) -> Vec<&Domain> {
        let domains = self.iommu.domains.iter();
        let mut domains: Vec<_> = domains.filter(|domain| wanted(domain)).collect();
        domains.sort_by_key(|domain| domain.id);
        domains
    }

    /// Who has the device with this node open.
    pub(crate) fn user(&self, node: &str) -> Option<User> {
        let mut programs = self.programs.iter();
        if let Some(program) = programs.find(|p| p.devices.iter().any(|name| name == node)) {
            return Some(program.user());
        }
        let sockets = self.vfio_user.iter().flat_map(|server| &server.sockets);
        let socket = sockets.filter(|socket| socket.node == node && socket.connected);
        socket.map(Socket::user).next()
    }

    /// The source of DMA behind a node of `/dev/vfio/devices`; none if it does no DMA now.
    pub(crate) fn source(&self, node: &str) -> Option<Route> {
        let mut devices = self.devices.iter();
        if let Some(device) = devices.find(|device| device.node.as_deref() == Some(node)) {
            return Some(Route {
                device: device.address.clone(),
                pasid: None,
            });
        }
        let mdev = self.mdevs.iter().find(|mdev| mdev.node == node)?;
        Some(Route {
            device: mdev.parent.clone(),
            pasid: Some(mdev.default_pasid()?),
        })
    }

    /// Who has bound a device to this file of `/dev/iommu`.
    pub(crate) fn owner(&self, iommufd: &Iommufd) -> Option<User> {
        let nodes = self.devices.iter().filter_map(|d| d.node.as_deref());
        let nodes = nodes.chain(self.mdevs.iter().map(|mdev| mdev.node.as_str()));
        let mut owners = nodes.filter_map(|node| {
            let source = self.source(node)?;
            let mut bound = iommufd.devices.iter();
            bound.find(|bound| {
                bound.device == source.device && bound.default_pasid == source.pasid
            })?;
            self.user(node)
        });
        owners.next()
    }

    /// DMA faults: how many there were, and those that nobody has fetched yet, each with its source.
    pub(crate) fn faults(&self) -> (u64, Vec<&Fault>) {
        let own = self.iommu.devices.iter().map(|device| &device.own_faults);
        let whole = self
            .devices
            .iter()
            .filter_map(|d| Some(&d.vfio.as_ref()?.dma_faults));
        let children = self.mdevs.iter().map(|mdev| &mdev.vfio.dma_faults);
        let logs: Vec<_> = own.chain(whole).chain(children).collect();
        let held = logs.iter().flat_map(|log| &log.held).collect();
        (logs.iter().map(|log| log.faults).sum(), held)
    }

    /// Mediated devices that may still be made on `parent`, by type.
    pub(crate) fn free_instances(&self, parent: &str) -> BTreeMap<&str, u64> {
        let types = self.mdev_types.iter().filter(|t| t.parent == parent);
        types
            .map(|t| (t.type_name.as_str(), t.available_instances))
            .collect()
    }
}

impl Device {
    /// Its queues or channels, if its model shows any.
    pub(crate) fn queues(&self) -> Vec<Queue> {
        let shown = self.rest.get(&self.model);
        let lists = ["queues", "channels"]
            .iter()
            .filter_map(|name| shown?.get(name)?.as_array());
        let queues = lists.flatten().enumerate().map(|(index, queue)| {
            let number = |name: &str| queue.get(name).and_then(Json::as_u64);
            let owner = queue.get("owner").and_then(Json::as_str);
            Queue {
                index,
                owner: owner.unwrap_or("-").to_owned(),
                waiting: number("occupancy").unwrap_or(0) + number("under_way").unwrap_or(0),
                jobs: number("jobs").unwrap_or(0),
                failed: number("failed").unwrap_or(0),
                bytes: number("bytes").unwrap_or(0),
                faults: number("faults").unwrap_or(0),
            }
        });
        queues.collect()
    }
}

impl Mdev {
    /// The PASID of its DMA while it is used.
    pub(crate) fn default_pasid(&self) -> Option<u64> {
        self.queue.as_ref()?.get("default_pasid")?.as_u64()
    }

    /// The queue or channel of its parent that it is.
    pub(crate) fn queue(&self) -> Option<u64> {
        let queue = self.queue.as_ref()?;
        let number = |name: &str| queue.get(name).and_then(Json::as_u64);
        number("queue").or_else(|| number("channel"))
    }
}

impl Program {
    fn user(&self) -> User {
        User {
            pid: Some(self.pid),
            program: self.program.clone(),
            vm: self.vm.clone(),
        }
    }
}

impl Socket {
    fn user(&self) -> User {
        User {
            pid: self.pid,
            program: "vfio-user".to_owned(),
            vm: self.vm.clone(),
        }
    }
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program)?;
        match self.pid {
            Some(pid) => write!(f, " ({pid})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.pasid {
            Some(pasid) => write!(f, "{} PASID {pasid}", self.device),
            None => f.write_str(&self.device),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.start, self.last)
    }
}

impl fmt::Display for FirstStage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "first stage at {:#x}, {} bits",
            self.root, self.address_bits
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Fault {
            source,
            access,
            iova,
            reason,
        } = self;
        write!(f, "{source}: {access} at {iova:#x}: {reason}")
    }
}

impl Range {
    /// Bytes.
    pub(crate) fn len(self) -> u64 {
        (self.last - self.start).saturating_add(1)
    }
}
