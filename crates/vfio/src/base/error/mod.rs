//! What can go wrong with a device, nested by subject; each cause says the values that its rule is about.
//! The errno of each is in its doc line; the numbers themselves are in `ioasid-uapi` alone.

mod attach;
mod bind;
mod container;
mod dma_log;
mod feature;
mod group;
mod irq;
mod mdev;
mod region;

pub use attach::AttachError;
pub use bind::{BindError, TokenError};
pub use container::{ContainerError, MapError};
pub use dma_log::DmaLogError;
pub use feature::{FeatureError, IoeventfdError, MigrationError};
pub use group::{DeviceNameError, GroupError};
pub use irq::IrqError;
pub use mdev::{DeviceError, MdevError, UuidError};
pub use region::RegionError;

/// Why an operation on a VFIO device, a group or a container failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Open, bind and use of a device file.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The token that a physical function and its virtual ones share.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Attachments to page tables.
    #[error(transparent)]
    Attach(#[from] AttachError),
    /// Accesses to regions, and their mappings.
    #[error(transparent)]
    Region(#[from] RegionError),
    /// Interrupts.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// Features that a device may have.
    #[error(transparent)]
    Feature(#[from] FeatureError),
    /// Stores that an eventfd makes.
    #[error(transparent)]
    Ioeventfd(#[from] IoeventfdError),
    /// Migration.
    #[error(transparent)]
    Migration(#[from] MigrationError),
    /// The log of what a device writes.
    #[error(transparent)]
    DmaLog(#[from] DmaLogError),
    /// Groups.
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Containers and their IOMMU backends.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// Mappings of a container.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Mediated devices.
    #[error(transparent)]
    Mdev(#[from] MdevError),
    /// What the I/O address space layer said.
    #[error(transparent)]
    Iommufd(#[from] ioasid_iommufd::Error),
}

/// `Result` with this crate's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;
