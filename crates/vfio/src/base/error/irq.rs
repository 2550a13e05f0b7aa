//! Interrupts.

use ioasid_core::host::FdError;

use crate::base::abi::{IrqAction, IrqIndex};

/// Why a request about interrupts is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IrqError {
    /// No interrupt index has this number (EINVAL).
    #[error("there is no interrupt index {index}")]
    NoSuchIndex {
        /// The number.
        index: u32,
    },
    /// The device has no interrupt at the index (EINVAL).
    #[error("the device has no {index} interrupt")]
    Absent {
        /// The index.
        index: IrqIndex,
    },
    /// The vectors are not all there (EINVAL).
    #[error("{count} vectors from {start} on do not lie in the {available} of {index}")]
    NoSuchVectors {
        /// The index.
        index: IrqIndex,
        /// First vector.
        start: u32,
        /// Vectors asked for.
        count: u32,
        /// Vectors that there are.
        available: u32,
    },
    /// The number of data elements is not that of the vectors (EINVAL).
    #[error("{elements} data elements are given for {count} vectors")]
    DataCount {
        /// Data elements.
        elements: usize,
        /// Vectors.
        count: u32,
    },
    /// Another index is enabled, and they exclude each other (EINVAL).
    #[error("{index} cannot be used while {enabled} is enabled")]
    OtherEnabled {
        /// The index asked for.
        index: IrqIndex,
        /// The one that is enabled.
        enabled: IrqIndex,
    },
    /// The index is not enabled (EINVAL).
    #[error("{index} is not enabled")]
    NotEnabled {
        /// The index.
        index: IrqIndex,
    },
    /// A request about the wired interrupt is not about its one vector (EINVAL).
    #[error("{index} has one vector, and the request is about {count}")]
    NotOneVector {
        /// The index.
        index: IrqIndex,
        /// Vectors of the request.
        count: u32,
    },
    /// Message interrupts are to be enabled while the function is not in D0 (EINVAL).
    #[error("{index} cannot be enabled while the device is not in D0")]
    Asleep {
        /// The index.
        index: IrqIndex,
    },
    /// MSI was enabled with fewer vectors (EINVAL).
    #[error("vector {vector} is beyond the {enabled} that MSI was enabled with")]
    BeyondEnabled {
        /// The vector.
        vector: u32,
        /// Vectors that are enabled.
        enabled: u32,
    },
    /// Nothing is connected that could be fired or disconnected, or no eventfd is given (EINVAL).
    #[error("{index} has no eventfd, and the request gives none")]
    NoEventfd {
        /// The index.
        index: IrqIndex,
    },
    /// The index does not know the action (ENOTTY).
    #[error("{index} interrupts cannot be {action} in this way")]
    NoSuchAction {
        /// The index.
        index: IrqIndex,
        /// The action.
        action: IrqAction,
    },
    /// MSI or MSI-X is to be enabled with no vector (ERANGE).
    #[error("{index} cannot be enabled with no vector")]
    NoVectors {
        /// The index.
        index: IrqIndex,
    },
    /// A file descriptor of the program is no eventfd: EBADF if it is not open, EINVAL if it is another
    /// kind of file.
    #[error("the descriptor for vector {vector} is no eventfd: {error}")]
    Eventfd {
        /// The vector.
        vector: u32,
        /// What the descriptor is.
        error: FdError,
    },
    /// An eventfd unmasks the wired interrupt already (EBUSY).
    #[error("an eventfd unmasks the wired interrupt already")]
    UnmaskedAlready,
}
