//! Page tables, virtual IOMMUs, devices on them, and queues.

use ioasid_iommu::{DomainError, DomainKind, NestError, TableFormat};

use crate::base::id::ObjectId;

/// Why an object was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// What HWPT_ALLOC or VIOMMU_ALLOC is to build on does not exist, or cannot be built on
    /// (EINVAL).
    #[error("object {0} is nothing to build a page table or virtual IOMMU on")]
    NotAParent(ObjectId),
    /// A flag that is unknown, or that this device or its IOMMU does not support (EOPNOTSUPP).
    #[error("the flags {0:#x} are unknown, or the device's IOMMU does not support them")]
    FlagsNotSupported(u32),
    /// A page table that is to be nested needs data of its own (EOPNOTSUPP).
    #[error("a nested page table needs data that describes it")]
    NoData,
    /// The device's IOMMU translates in one stage only (EOPNOTSUPP).
    #[error("nothing is nested on {0} tables: the device needs vtd-ss tables for it")]
    NoNesting(TableFormat),
    /// A page table cannot be nested on one that is no second stage (EINVAL).
    #[error("a {kind} domain with {format} tables is no second stage to nest on")]
    NoSecondStage {
        /// What the domain of the parent is.
        kind: DomainKind,
        /// The format of its table.
        format: TableFormat,
    },
    /// A type of data, page table, virtual IOMMU, event or queue that the device's IOMMU does not
    /// have (EOPNOTSUPP).
    #[error("the device's IOMMU has nothing of the type {0}")]
    TypeNotSupported(u32),
    /// Data for the page table is missing, or there where it must not be (EINVAL).
    #[error("data of type {kind} cannot have {len} bytes")]
    DataLength {
        /// The type that the program says.
        kind: u32,
        /// Bytes.
        len: u32,
    },
    /// The device is behind another IOMMU than the virtual one (EINVAL).
    #[error("device {device} is behind another IOMMU than virtual IOMMU {viommu}")]
    OtherIommu {
        /// The device.
        device: ObjectId,
        /// The virtual IOMMU.
        viommu: ObjectId,
    },
    /// The device has a number on a virtual IOMMU (EEXIST).
    #[error("device {0} has a number on a virtual IOMMU already")]
    DeviceHasNumber(ObjectId),
    /// The number is that of another device (EEXIST).
    #[error("another device has the number {number:#x} on virtual IOMMU {viommu}")]
    NumberTaken {
        /// The virtual IOMMU.
        viommu: ObjectId,
        /// The number.
        number: u64,
    },
    /// The virtual IOMMU has a queue for such events (EEXIST).
    #[error("virtual IOMMU {viommu} has a queue for events of the type {kind} already")]
    QueueExists {
        /// The virtual IOMMU.
        viommu: ObjectId,
        /// The type of the events.
        kind: u32,
    },
    /// A queue of events for none or for more than 2^19 (EINVAL).
    #[error("a queue holds 1 to {max} events, not {depth}")]
    BadDepth {
        /// What was asked for.
        depth: u32,
        /// The most.
        max: u32,
    },
    /// The ring of a hardware queue has no byte (EINVAL).
    #[error("the ring of a hardware queue cannot be empty")]
    RingEmpty,
    /// The ring of a hardware queue passes the end of the 64-bit space (EOVERFLOW).
    #[error("a ring of {len:#x} bytes at {iova:#x} passes the end of the address space")]
    RingOverflow {
        /// Where it starts.
        iova: u64,
        /// Bytes.
        len: u64,
    },
    /// The ring of a hardware queue ends inside the last page of the 64-bit space (ERANGE).
    #[error("a ring of {len:#x} bytes at {iova:#x} ends in the last page of the address space")]
    RingInLastPage {
        /// Where it starts.
        iova: u64,
        /// Bytes.
        len: u64,
    },
    /// The pages of a hardware queue are not neighbours (EFAULT).
    #[error("the ring at {iova:#x} is {pieces} pieces of memory and must be one")]
    NotContiguous {
        /// Where it starts.
        iova: u64,
        /// Pieces of contiguous memory behind it.
        pieces: usize,
    },
    /// No domain number is left (ENOSPC).
    #[error("no domain number is left")]
    NoDomain,
}

impl From<DomainError> for super::Error {
    fn from(error: DomainError) -> Self {
        match error {
            DomainError::NoMemory(error) => error.into(),
            DomainError::Exhausted => AllocError::NoDomain.into(),
        }
    }
}

impl From<NestError> for super::Error {
    fn from(error: NestError) -> Self {
        match error {
            NestError::NoSecondStage { kind, format } => {
                AllocError::NoSecondStage { kind, format }.into()
            }
            NestError::Domain(error) => error.into(),
        }
    }
}
