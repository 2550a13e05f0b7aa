//! One device that programs can open.

use std::{
    fmt,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use ioasid_core::{
    inspect::{Inspect, Node},
    sync::{Condvar, Mutex},
};
use ioasid_iommu::{FaultLog, Requests};

use crate::{
    error::{Error, Result},
    group::VfioGroup,
    irq::{self, Interrupts, IrqIndex, IrqInfo},
    model::{DeviceModel, Passthrough},
    region::{self, RegionIndex, RegionInfo},
};

mod access;
mod bound;
mod features;
mod file;
mod grouped;
mod logging;
mod mapped;
mod migration;
mod token;

pub(crate) use bound::BoundTo;
pub use features::{Feature, StoreRequest};
pub use file::DeviceFile;
pub(crate) use grouped::Opening;
pub use mapped::{MapRange, MapRequest};
pub use migration::{MAX_STATE, MigrationData, MigrationState};
pub use token::Token;

/// How often a user is asked again for a device that is to go.
const REQUEST_PERIOD: Duration = Duration::from_secs(10);

/// A device under `/dev/vfio/devices`.
pub struct VfioDevice {
    index: u32,
    name: String,
    bus_name: String,
    group: Arc<VfioGroup>,
    model: Arc<dyn DeviceModel>,
    passthrough: Passthrough,
    mappable: AtomicBool,
    interrupts: Interrupts,
    features: features::Features,
    migration: Mutex<migration::Migration>,
    logging: logging::Logging,
    sriov: token::Sriov,
    faults: Arc<FaultLog>,
    /// Held shared for every access, exclusively to reset, to release, and to change what answers.
    gate: RwLock<()>,
    files: AtomicU64,
    use_: Mutex<Use>,
    closed: Condvar,
}

/// Who uses the device.
#[derive(Debug, Default)]
struct Use {
    /// Open files, bound or not.
    open: usize,
    /// The number of the file that it is bound through.
    bound: Option<u64>,
    /// It is being removed: no file can be opened.
    leaving: bool,
}

/// What GET_INFO says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// The device can be reset.
    pub reset: bool,
    /// Number of region indexes.
    pub regions: u32,
    /// Number of interrupt indexes.
    pub irqs: u32,
    /// Widths of the atomic operations that the device completes: 1 for 32 bits, 2 for 64, 4 for 128.
    pub atomics: u32,
}

impl VfioDevice {
    pub(crate) fn new(
        index: u32,
        bus_name: String,
        group: Arc<VfioGroup>,
        model: Arc<dyn DeviceModel>,
        passthrough: Passthrough,
    ) -> Arc<Self> {
        match &passthrough {
            Passthrough::Whole(device) => model.function().issues(device, Requests::All),
            Passthrough::Emulated(dma) => model.function().issues_copies(dma),
            // Its PASID comes when it is bound.
            Passthrough::Child(_) => {}
        }
        let is_physical = model.function().sriov().is_some();
        let sriov = token::Sriov::new(is_physical);
        Arc::new(VfioDevice {
            index,
            name: format!("vfio{index}"),
            bus_name,
            group,
            model,
            passthrough,
            mappable: AtomicBool::new(false),
            interrupts: Interrupts::default(),
            features: features::Features::default(),
            migration: Mutex::default(),
            logging: logging::Logging::default(),
            sriov,
            faults: FaultLog::new(FaultLog::DEFAULT_CAPACITY),
            gate: RwLock::new(()),
            files: AtomicU64::new(1),
            use_: Mutex::default(),
            closed: Condvar::new(),
        })
    }

    /// The name under `/dev/vfio/devices`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number in the name.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Its name on its bus: a PCI address, or the UUID of a mediated device; empty if it has none.
    pub fn bus_name(&self) -> &str {
        &self.bus_name
    }

    /// The number of its group; a child's is not its parent's.
    pub fn group_number(&self) -> u32 {
        self.group.number()
    }

    /// Its group.
    pub fn group(&self) -> &Arc<VfioGroup> {
        &self.group
    }

    /// The model behind it.
    pub fn model(&self) -> &Arc<dyn DeviceModel> {
        &self.model
    }

    /// Resets the model. A whole device's DMA is blocked meanwhile, and nothing can be attached to it.
    /// It ends in D0 (`vfio_pci_ioctl_reset`). The gate is held exclusively.
    fn reset_model(&self) {
        let _blocked = match &self.passthrough {
            Passthrough::Whole(device) => Some(device.begin_reset()),
            _ => None,
        };
        self.model.reset();
        self.model.function().end_reset();
        self.end_migration();
    }

    /// How it reaches its address space.
    pub fn passthrough(&self) -> &Passthrough {
        &self.passthrough
    }

    /// Whether it is a mediated device: a child with a default PASID, or an emulated one.
    pub fn is_child(&self) -> bool {
        !matches!(self.passthrough, Passthrough::Whole(_))
    }

    /// The faults of its DMA.
    pub fn faults(&self) -> &Arc<FaultLog> {
        &self.faults
    }

    /// Says whether BARs can be mapped. They cannot at first: whoever serves mappings says so.
    pub fn set_mappable(&self, mappable: bool) {
        self.mappable.store(mappable, Ordering::Release);
    }

    /// Opens it. The file can do nothing until it is bound.
    ///
    /// # Errors
    /// [`Error::Gone`] while the device is being removed.
    pub fn open(self: &Arc<Self>) -> Result<Arc<DeviceFile>> {
        let mut users = self.use_.lock();
        if users.leaving {
            return Err(Error::Gone);
        }
        users.open += 1;
        let number = self.files.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(DeviceFile::new(Arc::clone(self), number)))
    }

    /// Open files, bound or not.
    pub fn open_files(&self) -> usize {
        self.use_.lock().open
    }

    /// Whether a program has bound it.
    pub fn is_bound(&self) -> bool {
        self.use_.lock().bound.is_some()
    }

    /// Resets it as the host may at any time (`reset` in sysfs), whoever uses it.
    pub fn reset_by_host(&self) {
        let _exclusive = self.exclusive();
        self.reset_model();
    }

    /// Asks its user, by the request interrupt, to give it back.
    pub fn ask_for_release(&self) {
        self.interrupts.request_release();
    }

    /// Asks for the device back and waits until no file is open. Afterwards nobody can open it.
    pub(crate) fn withdraw(&self, patience: Duration) -> Result<()> {
        let start = Instant::now();
        let mut users = self.use_.lock();
        if users.leaving {
            return Err(Error::Gone);
        }
        users.leaving = true;
        let mut asked: Option<Instant> = None;
        while users.open > 0 {
            let now = Instant::now();
            let left = patience.saturating_sub(now.duration_since(start));
            if left.is_zero() && asked.is_some() {
                users.leaving = false;
                return Err(Error::StillOpen);
            }
            if asked.is_none_or(|asked| now.duration_since(asked) >= REQUEST_PERIOD) {
                asked = Some(now);
                drop(users);
                self.interrupts.request_release();
                users = self.use_.lock();
                continue;
            }
            users = self.closed.wait_timeout(users, left.min(REQUEST_PERIOD));
        }
        Ok(())
    }

    fn info(&self) -> DeviceInfo {
        DeviceInfo {
            reset: true,
            regions: region::REGIONS,
            irqs: irq::IRQ_INDEXES,
            atomics: self.model.function().atomics() >> 7,
        }
    }

    fn region_info(&self, index: u32) -> Result<RegionInfo> {
        let mappable = self.mappable.load(Ordering::Acquire);
        RegionIndex::new(index)?.info(self.model.function(), mappable)
    }

    fn irq_info(&self, index: u32) -> Result<IrqInfo> {
        IrqIndex::new(index)?.info(self.model.function())
    }

    fn shared(&self) -> RwLockReadGuard<'_, ()> {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`VfioDevice::shared`], for those whom the holder of the gate may wait for.
    fn shared_within(&self, patience: Duration) -> Result<RwLockReadGuard<'_, ()>> {
        let start = Instant::now();
        loop {
            match self.gate.try_read() {
                Ok(shared) => return Ok(shared),
                Err(TryLockError::Poisoned(shared)) => return Ok(shared.into_inner()),
                Err(TryLockError::WouldBlock) if start.elapsed() >= patience => {
                    return Err(Error::MemoryDisabled);
                }
                Err(TryLockError::WouldBlock) => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, ()> {
        self.gate.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inspect for VfioDevice {
    fn inspect(&self) -> Node {
        let (open, bound, leaving) = {
            let users = self.use_.lock();
            (users.open, users.bound.is_some(), users.leaving)
        };
        Node::new()
            .with("group", self.group_number())
            .with(
                "kind",
                match self.passthrough {
                    Passthrough::Whole(_) => "pdev",
                    Passthrough::Child(_) => "mdev",
                    Passthrough::Emulated(_) => "emulated mdev",
                },
            )
            .with("open_files", open)
            .with("bound", bound)
            .with("leaving", leaving)
            .with("msix_enabled", self.interrupts.msix_enabled())
            .with("function", self.model.function().inspect())
            .with("dma_faults", self.faults.inspect())
    }
}

impl fmt::Debug for VfioDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioDevice")
            .field("name", &self.name)
            .field("group", &self.group_number())
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}
