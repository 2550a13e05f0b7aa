//! Containers and their mappings.

use ioasid_core::AddrRange;

/// Why an operation on a container is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ContainerError {
    /// No group is in the container (EINVAL).
    #[error("the container has no group: VFIO_GROUP_SET_CONTAINER first")]
    NoGroup,
    /// The container has no IOMMU backend (EINVAL).
    #[error("the container has no IOMMU backend: VFIO_SET_IOMMU first")]
    NoBackend,
    /// The container has an IOMMU backend (EINVAL).
    #[error("the container has an IOMMU backend already")]
    BackendSet,
    /// No IOMMU backend is of this type (ENODEV).
    #[error("no IOMMU backend is of this type: TYPE1_IOMMU (1) and TYPE1v2_IOMMU (3) are")]
    NoSuchBackend,
    /// A range that a device of the group reserves is mapped (EINVAL).
    #[error("the container and the group do not go together: {0}")]
    ReservedMapped(ioasid_iommufd::Error),
    /// Mappings have no address in the program for the time being (EBUSY).
    #[error("{mappings} mappings have no valid address in the program")]
    AddressesInvalid {
        /// Such mappings.
        mappings: usize,
    },
    /// Addresses cannot be made invalid while a mediated device is in the container (EBUSY).
    #[error("addresses cannot be made invalid: a mediated device is in the container")]
    AddressesNeeded,
}

/// Why a mapping of a container cannot be made, changed, removed or asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// The range is empty (EINVAL).
    #[error("the range at {iova:#x} is empty")]
    Empty {
        /// First IOVA.
        iova: u64,
    },
    /// The range passes the end of all addresses (EOVERFLOW).
    #[error("{size:#x} bytes from {start:#x} pass the end of all addresses")]
    Overflow {
        /// First address.
        start: u64,
        /// Bytes.
        size: u64,
    },
    /// A mapping without permissions, or permissions where a mapping only gets another address (EINVAL).
    #[error("a new mapping needs a permission, and one that gets another address must have none")]
    Permissions,
    /// An address or the size is no multiple of the page size (EINVAL).
    #[error(
        "{size:#x} bytes from {iova:#x}, or their memory, are not whole pages of {page_size:#x} bytes"
    )]
    Misaligned {
        /// First IOVA.
        iova: u64,
        /// Bytes.
        size: u64,
        /// Bytes of a page.
        page_size: u64,
    },
    /// A mapping overlaps (EEXIST).
    #[error("the range {range} overlaps the mapping that begins at {other:#x}")]
    Exists {
        /// The range asked for.
        range: AddrRange,
        /// First IOVA of the mapping in the way.
        other: u64,
    },
    /// Nothing is mapped there (ENOENT).
    #[error("nothing is mapped in {range}")]
    NotFound {
        /// The range asked for.
        range: AddrRange,
    },
    /// The container has as many mappings as it may have (ENOSPC).
    #[error("the container has {limit} mappings, as many as it may have")]
    TooMany {
        /// The most.
        limit: u32,
    },
    /// The range is not exactly one mapping without an address (EINVAL).
    #[error("the range {range} is not exactly one mapping whose address is invalid")]
    NotInvalid {
        /// The range asked for.
        range: AddrRange,
    },
    /// The address of a mapping in the range is invalid already (EINVAL).
    #[error("the address of the mapping at {iova:#x} is invalid already")]
    AlreadyInvalid {
        /// First IOVA of the mapping.
        iova: u64,
    },
    /// Everything is to be unmapped, and a range is given too (EINVAL).
    #[error("everything is to be unmapped, but a range is given too")]
    RangeWithAll,
    /// The range would cut a mapping (EINVAL).
    #[error("the range {range} cuts a mapping")]
    Cuts {
        /// The range asked for.
        range: AddrRange,
    },
    /// Dirty pages are asked for while they are not tracked (EINVAL).
    #[error("dirty pages are not tracked")]
    NotTracking,
    /// The bits of a dirty bitmap are not for the container's pages (EINVAL).
    #[error("a bit of the dirty bitmap is for {given:#x} bytes, and a page has {page_size:#x}")]
    BitmapUnit {
        /// Bytes of a bit.
        given: u64,
        /// Bytes of a page.
        page_size: u64,
    },
    /// A mapping is too large for a dirty bitmap (EINVAL).
    #[error("a mapping of {pages} pages is too large for a dirty bitmap: {limit} at most")]
    TooLargeForBitmap {
        /// Pages of the mapping.
        pages: u64,
        /// The most.
        limit: u64,
    },
    /// Version 1 of the type 1 IOMMU tracks no dirty pages (EACCES).
    #[error("version 1 of the type 1 IOMMU tracks no dirty pages")]
    NoDirtyPages,
}
