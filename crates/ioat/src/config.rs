//! What a device is made of, and what can go wrong with it.

use ioasid_engine::driver::DriverError;
use ioasid_vfio::pci::LayoutError;

use crate::spec::ChanErr;

/// Most channels of one device: what fits the registers of this model.
pub const MAX_CHANNELS: usize = 16;
/// Most engines of one device.
pub const MAX_ENGINES: usize = 16;
/// Largest transfer of one descriptor: 2^18 bytes, less than the 2^20 of hardware. The storm of the
/// kernel's VFIO self-tests copies 65535 times as much, and has a minute for it.
pub const MAX_TRANSFER_SHIFT: u8 = 18;

/// What an I/OAT device is made of.
#[derive(Clone, Debug)]
pub struct IoatConfig {
    /// Its channels, 1..=[`MAX_CHANNELS`].
    pub channels: Vec<ChannelConfig>,
    /// Engines, each a thread, 1..=[`MAX_ENGINES`].
    pub engines: usize,
}

impl IoatConfig {
    /// `channels` channels for the driver of the device, and two engines.
    pub fn with_channels(channels: usize) -> Self {
        IoatConfig {
            channels: vec![ChannelConfig::default(); channels],
            engines: 2,
        }
    }
}

impl Default for IoatConfig {
    /// Four channels and two engines.
    fn default() -> Self {
        IoatConfig::with_channels(4)
    }
}

/// One channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelConfig {
    /// Set aside for mediated devices.
    pub mdev: bool,
}

/// The uses of a channel. They exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChannelOwner {
    /// The parent's own driver.
    Kernel,
    /// A mediated device. The channel is locked: the parent's registers do not reach it.
    Mdev,
}

/// What of a configuration this model does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The number of channels.
    #[error("{0} channels: a device has 1 to {MAX_CHANNELS}")]
    Channels(usize),
    /// The number of engines.
    #[error("{0} engines: a device has 1 to {MAX_ENGINES}")]
    Engines(usize),
    /// A child of a channel that was not set aside for mediated devices.
    #[error("channel {0} is not set aside for mediated devices")]
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
    #[error("invalid I/OAT configuration: {0}")]
    Config(ConfigError),
    /// There is no such channel (EINVAL).
    #[error("there is no channel {0}")]
    NoChannel(usize),
    /// The channel has an owner (EBUSY).
    #[error("channel {index} is in use by a {owner:?} owner")]
    ChannelBusy {
        /// The channel.
        index: usize,
        /// What has it.
        owner: ChannelOwner,
    },
    /// The host's driver cannot work.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// An engine thread could not be started (EAGAIN).
    #[error("cannot start an engine")]
    Engine(#[source] std::io::Error),
    /// A job did not succeed (EIO).
    #[error("the channel halted at a job: CHANERR {:#x}", .0.into_bits())]
    Job(ChanErr),
}

impl From<ConfigError> for Error {
    fn from(error: ConfigError) -> Self {
        Error::Config(error)
    }
}
