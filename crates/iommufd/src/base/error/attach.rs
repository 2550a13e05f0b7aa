//! Binding and attaching devices.

use ioasid_iommu::OwnershipError;

use crate::base::id::ObjectId;

/// How a page table does not fit a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// It tracks dirty pages, and the device's IOMMU cannot.
    #[error("the device's IOMMU cannot track dirty pages")]
    DirtyTracking,
    /// It is nested, and made for another IOMMU.
    #[error("the page table was made for another IOMMU")]
    OtherIommu,
    /// It has a fault queue, and the device is a virtual function: its page requests are its physical
    /// function's, and no program's alone.
    #[error("a virtual function has no page requests of its own, which a fault queue is for")]
    SharedPageRequests,
    /// It is nested, for addresses of neither 48 nor 57 bits, or the IOMMU does not walk that many levels.
    #[error("the device's IOMMU walks no first-stage table for addresses of {0} bits")]
    AddressWidth(u32),
    /// It is nested and for supervisor requests.
    #[error("the device's IOMMU takes no supervisor requests")]
    SupervisorRequests,
    /// It is nested and has extended accessed bits.
    #[error("the device's IOMMU sets no extended accessed bits")]
    ExtendedAccessed,
    /// Its smallest leaf is larger than a page.
    #[error("the smallest leaf is larger than a page")]
    LeafSize,
}

/// Why a device was not bound or attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// ATTACH names an object that is neither an IOAS nor a page table (EINVAL).
    #[error("object {0} is neither an IOAS nor a page table")]
    NotAttachable(ObjectId),
    /// A driver, or another file, owns the DMA of the device's group (EPERM).
    #[error("the file cannot own the DMA of the device: {0}")]
    NotOwner(OwnershipError),
    /// The device's group cannot be owned at present (EBUSY).
    #[error("the group of the device is busy: {0}")]
    GroupBusy(OwnershipError),
    /// The device, or its PASID, is attached already (EBUSY).
    #[error("device {device} is attached{} already: detach or replace it", At(*pasid))]
    Attached {
        /// The device object.
        device: ObjectId,
        /// The PASID, if not the device itself.
        pasid: Option<u32>,
    },
    /// The IOMMU refuses the domain: it is attached, reset or used by a driver (EBUSY), or the
    /// domain does not suit it (EINVAL).
    #[error("the IOMMU refuses the page table: {0}")]
    Iommu(ioasid_iommu::AttachError),
    /// A replace where nothing is attached (EINVAL).
    #[error("device {device} is not attached{}, so there is nothing to replace", At(*pasid))]
    NothingToReplace {
        /// The device object.
        device: ObjectId,
        /// The PASID, if not the device itself.
        pasid: Option<u32>,
    },
    /// The page table does not fit the device (EINVAL).
    #[error("the page table does not fit the device: {0}")]
    Incompatible(Mismatch),
    /// The page table has a fault queue, and the device makes no page requests (ENODEV).
    #[error("device {0} makes no page requests, which the fault queue of the page table is for")]
    NoPageRequests(ObjectId),
    /// The device's group is attached to another page table (EINVAL).
    #[error("the group is attached to page table {attached}, so it cannot attach to {wanted}")]
    GroupElsewhere {
        /// What the group is attached to.
        attached: ObjectId,
        /// What was asked for.
        wanted: ObjectId,
    },
    /// PASIDs need page tables made for them, at the device itself too (EINVAL).
    #[error("a page table without the PASID flag cannot be used with PASIDs of device {device}")]
    NotForPasids {
        /// The device object.
        device: ObjectId,
    },
    /// The PASID is 0 or beyond what the device has (EINVAL).
    #[error(
        "PASID {pasid} is not one of the device's, which are 1 to {}",
        max_pasids.saturating_sub(1)
    )]
    NoSuchPasid {
        /// The PASID.
        pasid: u32,
        /// PASIDs of the device, 0 among them; 0 if it has none.
        max_pasids: u32,
    },
    /// The PASID is 2^31 or more: no number of this kind is ever handed out (ENOSPC).
    #[error("PASID {0} is beyond the range of numbers")]
    PasidSpace(u32),
    /// Programs cannot choose PASIDs at this device (EOPNOTSUPP).
    #[error("device {0} has no PASIDs for programs")]
    NoPasids(ObjectId),
}

impl From<Mismatch> for AttachError {
    fn from(error: Mismatch) -> Self {
        AttachError::Incompatible(error)
    }
}

impl AttachError {
    /// As [`Error::is_mismatch`](super::Error).
    pub(super) fn is_mismatch(&self) -> bool {
        match self {
            AttachError::Incompatible(_)
            | AttachError::GroupElsewhere { .. }
            | AttachError::NotForPasids { .. }
            | AttachError::NoSuchPasid { .. } => true,
            AttachError::Iommu(error) => !is_busy(error),
            AttachError::NotAttachable(_)
            | AttachError::NotOwner(_)
            | AttachError::GroupBusy(_)
            | AttachError::Attached { .. }
            | AttachError::NothingToReplace { .. }
            | AttachError::NoPageRequests(_)
            | AttachError::PasidSpace(_)
            | AttachError::NoPasids(_) => false,
        }
    }
}

/// Whether no other domain would do either.
fn is_busy(error: &ioasid_iommu::AttachError) -> bool {
    use ioasid_iommu::AttachError as DomainError;
    match error {
        DomainError::Attached { .. }
        | DomainError::DriverInUse { .. }
        | DomainError::Resetting { .. }
        | DomainError::NoMemory(_) => true,
        DomainError::NoPasidSupport { .. }
        | DomainError::PasidRange { .. }
        | DomainError::NotSingleton { .. }
        | DomainError::NotAttached { .. }
        | DomainError::Incompatible(_) => false,
    }
}

impl From<ioasid_iommu::AttachError> for super::Error {
    fn from(error: ioasid_iommu::AttachError) -> Self {
        match error {
            ioasid_iommu::AttachError::NoMemory(error) => error.into(),
            error => AttachError::Iommu(error).into(),
        }
    }
}

/// " at PASID n", if there is one.
struct At(Option<u32>);

impl std::fmt::Display for At {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(pasid) => write!(f, " at PASID {pasid}"),
            None => Ok(()),
        }
    }
}
