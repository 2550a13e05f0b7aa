//! Why a machine could not be built or changed.

use ioasid_core::PciAddress;

use crate::{file::inject::InjectError, model::ModelError};

/// Why a machine could not be built or changed. An error and its sources, one after the other, are
/// one sentence.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A device could not be built.
    #[error("device {address}")]
    Device {
        /// The device.
        address: PciAddress,
        /// What its model says, or a [`BuiltError`].
        source: ModelError,
    },
    /// The parent of emulated devices could not be built.
    #[error("emulated: model `{model}`")]
    Emulated {
        /// The model.
        model: &'static str,
        /// What the model says, or a [`BuiltError`].
        source: ModelError,
    },
    /// A mediated device could not be created or removed.
    #[error("mediated device {uuid}")]
    Mdev {
        /// What was given as its UUID.
        uuid: String,
        /// Why.
        source: ioasid_vfio::error::MdevError,
    },
    /// A failure that was asked for cannot be.
    #[error("inject")]
    Inject(#[from] InjectError),
}

/// A model has not built what it was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BuiltError {
    /// A `[[device]]` is a PCI function.
    #[error("the model has built no PCI function")]
    NoFunction,
    /// A device with `driver = "host"` has a driver.
    #[error("the model has built no driver of the host's")]
    NoHostDriver,
    /// An emulated device has a parent.
    #[error("the model has built no parent of mediated devices")]
    NoParent,
}
