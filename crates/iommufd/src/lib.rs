//! Floor 3: the object model of `/dev/iommu` as Linux names it, without its bytes.
//!
//! The rooms, from the lowest; a path between them only ever points down:
//! * `base`: ids and their uses, errors, flags, files of events, data of programs.
//! * `space`: I/O address spaces: *areas* and the pages behind them, pinned while a domain needs
//!   them; which addresses are mapped, reserved or allowed; the domains that areas are written to;
//!   which pages were written ([`DirtyRequest`]); how much memory each program has locked
//!   ([`MemoryLedger`]).
//! * `hardware`: bound devices and the IOMMU in front of them ([`HwOps`], [`HwInfo`]), page tables
//!   as programs name them, virtual IOMMUs ([`Viommu`]), their events and queues, page requests.
//! * `file`: one open `/dev/iommu` file ([`Context`]): its objects by id, what is attached to what,
//!   and how all of it goes. A back end keeps objects of its own there ([`ForeignObject`]).
//! * `handles`: what is held outside and keeps the file: [`BoundDevice`], [`Access`], an
//!   [`EventFile`], [`Mapped`] memory.
//! * `commands`: every command on the file, one file for each family.
//!
//! What never lives here: the layout of ioctl structs and errno numbers (the `uapi` crate; only the
//! records that programs read from event files are made here), any back end's types and data, and
//! any notion of a mediated device: a child is a `device + PASID`, and the presence of the PASID
//! alone decides how it is attached.
//!
//! Two invariants hold. *Destroy never fails*: an object that nothing uses can always go, and
//! everything goes with the file. *One address space, one table*: page tables of an IOAS whose
//! attributes agree stand on one [`Domain`](ioasid_iommu::Domain), whether they were made by hand
//! or by attaching to the IOAS, for a whole device or for a child.
//!
//! # Example
//! A whole device and a default-PASID child of another one on one address space:
//! ```
//! # use std::sync::Arc;
//! # use ioasid_core::{Pasid, Prot, memory::OwnPages};
//! # use ioasid_iommu::{DeviceConfig, FaultLog, Iommu, IommuConfig};
//! use ioasid_iommufd::{Context, MapArgs};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let iommu = Iommu::new(IommuConfig::default());
//! let pdev = iommu.add_device(DeviceConfig::new("0000:6b:01.0".parse()?))?;
//! let parent = iommu.add_device(DeviceConfig::new("0000:6a:01.0".parse()?))?;
//! let pasid = Pasid::new(5).ok_or("a PASID")?;
//!
//! let context = Context::new(&iommu);
//! let pdev = context.bind_device(&pdev, FaultLog::new(8))?;
//! let mdev = context.bind_pasid(&parent, pasid, FaultLog::new(8))?;
//!
//! let ioas = context.ioas_alloc()?;
//! let pages = OwnPages::new(iommu.space(), 4096)?;
//! context.ioas_map(ioas, Arc::new(pages), MapArgs::fixed(0x1000, 4096, Prot::RW))?;
//!
//! assert_eq!(pdev.attach(ioas)?, mdev.attach(ioas)?, "one page table");
//! assert_eq!(iommu.domains()[0].attachments().len(), 2, "one domain, two routes");
//! # Ok(())
//! # }
//! ```
//!
//! Ranges are (start, inclusive last). The behaviour follows Linux 7.2
//! (drivers/iommu/iommufd/{device,hw_pagetable,io_pagetable,ioas,main}.c).
#![forbid(unsafe_code)]

mod base;
mod commands;
mod file;
mod handles;
mod hardware;
mod space;

pub use base::{
    error::{
        AccessError, AllocError, AttachError, CutError, DirtyError, Error, EventError,
        InvalidateError, MapError, Mismatch, MmapError, ObjectError, OptionError, RangeError,
        Refusal, ReservedBy, UnmapError, UserDataError,
    },
    event::{EventFile, Notify},
    flags::HwptFlags,
    id::ObjectId,
    user::{UserArray, UserData},
};
pub use file::{context::Context, object::ForeignObject, table::ReservedId};
pub use handles::{access::Access, bound_device::BoundDevice, mapped::Mapped};
pub use hardware::{
    fault::PageFault,
    hw::{
        HwOps, HwQueueConfig, Invalidated, NestedOps, Target, TargetKind, ViommuOps, ViommuRequest,
    },
    hw_info::{HwData, HwInfo},
    hw_queue::HwQueueAlloc,
    hwpt::HwptAlloc,
    mmap::{MmapRequest, MmapSpace},
    software::SoftwareIommu,
    viommu::{VeventqAlloc, Viommu, ViommuAlloc},
    vtd::VtdRegisters,
};
pub use space::{
    access::{AccessKind, AccessUser, PinnedPages},
    dirty::DirtyRequest,
    domains::PagingConfig,
    ioas::{CopyArgs, IovaRanges, MapArgs},
    ledger::{Limits, MemoryLedger},
};
