//! Floor 2: the IOMMU. Devices, the domains they are attached to, and the only way from a device to
//! memory.
//!
//! The IOMMU knows a [`DmaSource`], a device and perhaps a PASID, and nothing else: no mdev, no VFIO, no
//! file. A [`Domain`] is a domain, whether a device reaches it by its requester id or by a PASID:
//! the same code maps, unmaps and tracks it.
//!
//! * [`machine`]: [`Iommu`], which holds everything.
//! * [`device`], [`group`]: devices, and who may point their DMA at what (DMA ownership).
//! * [`domain`]: address spaces: blocked, identity, DMA API, unmanaged.
//! * [`reset`]: devices that are being reset.
//! * [`source`]: attach, replace, detach; with a PASID or without.
//! * [`port`], [`transfer`]: [`DmaPort`] and [`DmaGuard`], how engines move bytes, and what stops
//!   them.
//! * [`ats`]: devices that keep translations themselves.
//! * [`fault`]: refused accesses and where they are reported. [`page_request`]: those that can be
//!   mended.
//! * [`pasid`]: the machine's PASIDs, not reused before the last job is done.
//! * [`dma_api`]: what a device's own driver maps its buffers with.
//!
//! # The barrier
//! When `unmap`, `detach`, `replace`, a release of ownership or a clearing `read_dirty` returns, no
//! DMA through the old translation is in flight or can start. Each of them makes its change visible
//! (page-table entries, or the cell of a route) and then waits for the guards that name the domain.
//! A guard is bounded by bytes and holds nothing that blocks, except on a client's own worker. No
//! lock is held while waiting, and no wait happens under a guard.
//!
//! # Example
//! One device, its primary domain and an auxiliary one: the same address leads to two buffers.
//! ```
//! use std::sync::Arc;
//! use ioasid_core::{Pasid, Prot, memory::OwnPages};
//! use ioasid_iommu::{
//!     DeviceConfig, DmaSource, DomainConfig, FaultLog, FaultSink, Iommu, IommuConfig,
//! };
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let iommu = Iommu::new(IommuConfig::default());
//! let device = iommu.add_device(DeviceConfig::new("0000:6a:01.0".parse()?))?;
//! let faults: Arc<dyn FaultSink> = FaultLog::new(16);
//! let mut port = device.port();
//! for pasid in [None, Pasid::new(5)] {
//!     let domain = iommu.alloc_domain(DomainConfig::unmanaged(device.format()))?;
//!     let buffer = OwnPages::new(iommu.space(), 4096)?;
//!     domain.map(0x1000, buffer.spa(), 4096, Prot::RW)?;
//!     let source = DmaSource::new(&device, pasid);
//!     source.attach(&domain, &faults)?;
//!     assert!(port.enter(pasid).write(0x1000, b"here").is_complete());
//!     let mut found = [0; 4];
//!     buffer.memory().read(0, &mut found);
//!     assert_eq!(&found, b"here");
//!     source.detach();
//!     assert!(port.enter(pasid).write(0x1000, b"gone").fault().is_some());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! All address ranges are (start, inclusive last).
#![forbid(unsafe_code)]

pub mod ats;
mod base;
pub mod bus_master;
pub mod device;
pub mod dma_api;
pub mod domain;
pub mod fault;
pub mod group;
mod iova;
pub mod machine;
pub mod page_request;
pub mod pasid;
pub mod port;
pub mod reset;
mod route_table;
pub mod source;
mod tally;
pub mod transfer;
mod view;
pub mod writes;

pub use ats::{DeviceTlb, Tlb};
pub use base::source_id::SourceId;
pub use device::{Device, DeviceConfig, ReservedKind, ReservedRegion};
pub use dma_api::{CoherentBuffer, DmaApi, DmaMapError, DmaMapping};
pub use domain::{Domain, DomainConfig, DomainKind};
pub use fault::{Fault, FaultLog, FaultReason, FaultSink};
pub use group::{DmaOwnership, Group, OwnerId, OwnershipError};
pub use ioasid_pgtable::{
    CustomFormat, CustomTable, MapError, TableFormat, Translation, WalkFault,
};
pub use machine::{DeviceError, DomainError, Iommu, IommuConfig};
pub use page_request::{
    OnAnswer, PageRequest, PageRequestError, PageRequestHandler, PageRequestId, PageResponse,
    UnknownPageRequest,
};
pub use pasid::{PasidError, PasidHandle, PasidPool, PasidQuota, PasidUse};
pub use port::{DmaGuard, DmaPort, FaultReporter, GUARD_BYTES, GUARD_SLACK};
pub use reset::DeviceReset;
pub use source::{AttachError, DmaSource, Mismatch};
pub use transfer::{Direction, Stop, Transfer};
pub use writes::{Requests, WriteSink, WriteWatch};
