//! What a device is made of, and what can go wrong with it.

use ioasid_engine::driver::DriverError;
use ioasid_vfio::pci::LayoutError;

use crate::spec::CommandError;

/// Most queues of one device: what fits the tables of this model.
pub const MAX_QUEUES: usize = 32;
/// Most entries of one queue.
pub const MAX_QUEUE_SIZE: u16 = 1024;
/// Most engines of one device.
pub const MAX_ENGINES: usize = 16;
/// Largest transfer of one descriptor: 2^21 bytes, unless a device is given less.
pub const MAX_TRANSFER_SHIFT: u8 = 21;
/// Largest batch: 2^10 descriptors.
pub const MAX_BATCH_SHIFT: u8 = 10;

/// What a DSA device is made of.
#[derive(Clone, Debug)]
pub struct DsaConfig {
    /// Its work queues, 1..=[`MAX_QUEUES`].
    pub queues: Vec<QueueConfig>,
    /// Engines, each a thread, 1..=[`MAX_ENGINES`].
    pub engines: usize,
    /// Whether the engines keep translations (ATS): queues may turn that off, and the
    /// IOMMU invalidates a translation and waits before it takes it away.
    pub device_tlb: bool,
    /// The largest transfer of one descriptor as a power of two, at most [`MAX_TRANSFER_SHIFT`].
    pub max_transfer_shift: u8,
    /// What it is in SR-IOV.
    pub role: Role,
    /// The group into which the host's driver puts each engine; without one, group 0. A device has as
    /// many groups as engines.
    pub engine_groups: Vec<usize>,
}

/// What a device is in single root I/O virtualization.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Role {
    /// A function of its own.
    #[default]
    Alone,
    /// A physical function with virtual ones, each a DSA with a queue.
    Physical {
        /// Most virtual functions.
        total: u16,
    },
    /// A virtual function.
    Virtual,
}

impl Role {
    /// Routing ids from the physical function to the first virtual one, and from one to the next.
    pub const ROUTING_STEP: u16 = 1;
}

impl DsaConfig {
    /// `queues` queues of 32 entries for the driver of the device, and two engines that keep
    /// translations.
    pub fn with_queues(queues: usize) -> Self {
        DsaConfig {
            queues: vec![QueueConfig::default(); queues],
            engines: 2,
            device_tlb: true,
            max_transfer_shift: MAX_TRANSFER_SHIFT,
            role: Role::Alone,
            engine_groups: Vec::new(),
        }
    }
}

impl Default for DsaConfig {
    /// Eight queues and two engines.
    fn default() -> Self {
        DsaConfig::with_queues(8)
    }
}

/// One work queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// Entries that the parent driver gives it; their sum is the device's total. 1..=1024.
    pub size: u16,
    /// Set aside for mediated devices.
    pub mdev: bool,
    /// The group into which the host's driver puts it.
    pub group: usize,
    /// Among the queues of the group, 1..=15.
    pub priority: u8,
    /// Most bytes of a descriptor of the host's driver, as a power of two; the device's without one.
    pub transfer_shift: Option<u8>,
    /// Most descriptors of its batches, as a power of two; the device's without one.
    pub batch_shift: Option<u8>,
}

impl Default for QueueConfig {
    fn default() -> Self {
        QueueConfig {
            size: 32,
            mdev: false,
            group: 0,
            priority: 10,
            transfer_shift: None,
            batch_shift: None,
        }
    }
}

/// The three uses of a queue (`drivers/dma/idxd`: kernel, user, and mdev of its SIOV extension).
/// They exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueType {
    /// The parent's own driver.
    Kernel,
    /// A program that the parent's driver lets submit.
    User,
    /// A mediated device. The queue is locked: the parent's registers do not reach it.
    Mdev,
}

/// What of a configuration this model does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The largest transfer as a power of two.
    #[error("transfers of 2^{0} bytes: the most are 2^{MAX_TRANSFER_SHIFT}")]
    TransferShift(u8),
    /// The number of queues.
    #[error("{0} queues: a device has 1 to {MAX_QUEUES}")]
    Queues(usize),
    /// The number of engines.
    #[error("{0} engines: a device has 1 to {MAX_ENGINES}")]
    Engines(usize),
    /// Entries of one queue.
    #[error("{size} entries of queue {index}: a queue has 1 to {MAX_QUEUE_SIZE}")]
    QueueSize {
        /// The queue.
        index: usize,
        /// Its entries.
        size: u16,
    },
    /// A group that the device does not have.
    #[error("group {group}: a device of {engines} engines has as many groups, from 0")]
    Group {
        /// The group.
        group: usize,
        /// Its engines.
        engines: usize,
    },
    /// A child of a queue that was not set aside for mediated devices.
    #[error("queue {0} is not set aside for mediated devices")]
    NotForChildren(usize),
    /// A child of a parent that cannot send PASIDs.
    #[error("the parent cannot send PASIDs")]
    NoPasids,
    /// The PCI function cannot be laid out.
    #[error("the PCI function cannot be laid out: {0}")]
    Layout(LayoutError),
}

impl From<LayoutError> for ConfigError {
    fn from(error: LayoutError) -> Self {
        ConfigError::Layout(error)
    }
}

/// Why a device, a child or a driver could not be made, or a job not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration asks for something this model does not have (EINVAL).
    #[error("invalid DSA configuration: {0}")]
    Config(ConfigError),
    /// There is no such queue (EINVAL).
    #[error("there is no queue {0}")]
    NoQueue(usize),
    /// The queue has an owner (EBUSY).
    #[error("queue {index} is in use by a {owner:?} owner")]
    QueueBusy {
        /// The queue.
        index: usize,
        /// What has it.
        owner: QueueType,
    },
    /// The host's driver cannot work.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// An engine thread could not be started (EAGAIN).
    #[error("cannot start an engine")]
    Engine(#[source] std::io::Error),
    /// A command of the parent's driver failed (EIO).
    #[error("the device refused a command: {0}")]
    Command(CommandError),
    /// A job did not succeed (EIO).
    #[error("the device ended a job with status {status:#04x} after {completed} bytes")]
    Job {
        /// Status byte of the completion record.
        status: u8,
        /// Bytes done.
        completed: u32,
        /// Address that could not be reached, for a page fault.
        fault_addr: u64,
    },
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Error::Config(error)
    }
}

impl From<CommandError> for Error {
    fn from(error: CommandError) -> Self {
        Error::Command(error)
    }
}
