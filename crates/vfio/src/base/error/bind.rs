//! Open, bind and use of a device file; the token of SR-IOV.

use ioasid_core::Pasid;
use ioasid_iommu::PasidError;

/// Why a device cannot be opened, bound or used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BindError {
    /// The file is not bound, or closed (EINVAL).
    #[error("the device file is not bound: VFIO_DEVICE_BIND_IOMMUFD first")]
    NotBound,
    /// This file is bound already (EINVAL).
    #[error("the device file is bound already")]
    AlreadyBound,
    /// The device is bound through another open file (EINVAL).
    #[error("the device is bound through another open file of it")]
    BoundElsewhere,
    /// The device is gone, or being removed (ENODEV).
    #[error("the device is gone, or is being removed")]
    Gone,
    /// Files are open after the time that their users were given (EAGAIN).
    #[error("the device cannot be removed: {open} files of it are open")]
    StillOpen {
        /// Open files.
        open: usize,
    },
    /// No default PASID is left for a child (ENOSPC).
    #[error("no PASID is left for the mediated device: {0}")]
    NoPasid(PasidError),
    /// The default PASID of a child is none that its parent can send (ENOSPC).
    #[error("PASID {pasid} is none that the parent device can send: it has {limit}")]
    PasidTooLarge {
        /// The PASID.
        pasid: Pasid,
        /// PASIDs of the parent.
        limit: u32,
    },
}

/// Why a VF token is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// A token is needed, and none was given (EACCES).
    #[error("the device needs a VF token, and none was given")]
    Missing,
    /// It is not the token of the physical function (EACCES).
    #[error("the VF token is not that of the physical function")]
    Wrong,
    /// A token was given to a device that has neither virtual functions nor a physical one (EINVAL).
    #[error(
        "a VF token was given, but the device has neither virtual functions nor a physical one"
    )]
    Unneeded,
}
