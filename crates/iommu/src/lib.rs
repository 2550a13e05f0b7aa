//! Floor 2: the IOMMU. Devices, the domains they are attached to, and the only way from a device to
//! memory.
//!
//! The IOMMU knows a [`DmaSource`], a device and perhaps a PASID, and nothing else: no mdev, no VFIO, no
//! file. A [`Domain`] is a domain, whether a device reaches it by its requester id or by a PASID:
//! the same code maps, unmaps and tracks it.
//!
//! The folders from the lowest up; a file names nothing of a folder above its own:
//! * `base`: the names of DMA sources, the machine's PASIDs (not reused before the last job is done),
//!   counters.
//! * `events`: what is reported to others: faults, page requests, writes, invalidations.
//! * `domain`: address spaces: blocked, identity, DMA API, unmanaged; and the list of those that live.
//! * `device`: devices, their groups, and the table of their routes.
//! * `attach`: what changes where DMA goes: [`DmaSource`] attaches and detaches, [`DmaOwnership`] is a
//!   claim of a group, [`DeviceReset`] a reset, [`Device::withhold`] is Bus Master 0.
//! * `dma`: [`DmaPort`] and [`DmaGuard`], how engines move bytes, and what stops them.
//!
//! Above them stand [`Iommu`], which holds everything, and [`DmaApi`], with which a device's own
//! driver maps its buffers.
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
//! use ioasid_core::{Pasid, Prot, memory::{OwnPages, PAGE_SIZE}};
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
//!     let buffer = OwnPages::new(iommu.space(), PAGE_SIZE as usize)?;
//!     domain.map(0x1000, buffer.spa(), PAGE_SIZE, Prot::RW)?;
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

mod attach;
mod base;
mod device;
mod dma;
mod dma_api;
mod domain;
mod events;
mod machine;

pub use attach::{
    bus_master::WITHHOLD_PATIENCE,
    ownership::{DmaOwnership, OwnershipError},
    reset::DeviceReset,
    source::{AttachError, DmaSource, Mismatch},
};
pub use base::{
    pasid::{PasidError, PasidHandle, PasidPool, PasidQuota, PasidUse},
    source_id::SourceId,
};
pub use device::{
    Device, DeviceConfig, Group, OwnerId, ReservedKind, ReservedRegion, error::DeviceError,
};
pub use dma::{
    inside::Copy,
    port::{DmaGuard, DmaPort, FaultReporter, GUARD_BYTES, GUARD_SLACK},
    tlb::Tlb,
    transfer::{Direction, Stop, Transfer},
    write_watch::WriteWatch,
};
pub use dma_api::{CoherentBuffer, DmaApi, DmaMapError, DmaMapping};
pub use domain::{
    Domain, DomainConfig, DomainKind,
    nested::{Invalidate, NestError},
    registry::DomainError,
};
pub use events::{
    ats::DeviceTlb,
    fault::{DmaRefusal, DmaWatcher, Fault, FaultLog, FaultReason, FaultSink},
    nested_fault::NestedFault,
    page_request::{
        OnAnswer, PAGE_REQUEST_LIMIT, PageRequest, PageRequestError, PageRequestHandler,
        PageRequestId, PageResponse, UnknownPageRequest,
    },
    writes::{Requests, WriteSink},
};
pub use ioasid_pgtable::{
    CustomFormat, CustomTable, FirstStage, FirstStageFault, MapError, TableFormat, Translation,
    WalkFault,
};
pub use machine::{Iommu, IommuConfig};
