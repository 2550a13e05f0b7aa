//! Floor 3: the object model of `/dev/iommu` as Linux names it, without its bytes.
//!
//! * [`Context`]: one open `/dev/iommu` file: a table of objects, and every command on them.
//! * `ioas`: an I/O address space: *areas* and the domains that they are written to; `iova`: which
//!   addresses are mapped, reserved or allowed, and where the next mapping goes.
//! * `pages`: the memory behind areas, shared by copies, pinned while a domain needs it;
//!   [`MemoryLedger`]: who has locked how much.
//! * `hwpt`: a page table as programs name it, of an IOAS or nested on another; `domains`: what it
//!   stands on.
//! * [`BoundDevice`]: a device, or one default-PASID child of a device, that a program holds;
//!   `attach`: what it is attached to.
//! * [`HwInfo`], [`DirtyRequest`]: what a device can do; which pages were written.
//! * [`EventFile`]: queues of events that programs read through a descriptor of their own: page
//!   requests that they answer, and events of virtual IOMMUs.
//! * [`Viommu`]: what a guest sees of an IOMMU, its devices, events and hardware queues.
//! * [`Access`]: memory of an IOAS for who needs no page table: emulated devices, queues of hardware.
//! * [`HwOps`]: what differs between IOMMUs; [`ForeignObject`]: objects of a back end in the same
//!   table of ids.
//! * `vfio`: what the commands of a VFIO container need; `process`: another owner for mappings.
//!
//! What never lives here: the layout of ioctl structs and errno numbers (the `uapi` crate; only the
//! records that programs read from event files are made here), any back end's types and data, and any
//! notion of a mediated device: a child is a `device + PASID`, and the presence of the PASID alone
//! decides how it is attached.
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

mod access;
mod attach;
mod context;
mod device;
mod dirty;
mod domains;
mod error;
mod event;
mod fault;
mod foreign;
mod hw;
mod hw_info;
mod hw_queue;
mod hwpt;
mod hwpt_alloc;
mod ioas;
mod iova;
mod ledger;
mod mmap;
mod object;
mod pages;
mod process;
mod queue_file;
mod teardown;
mod user;
mod vevent;
mod vfio;
mod viommu;

pub use access::{Access, AccessKind, AccessUser, PinnedPages};
pub use context::Context;
pub use device::BoundDevice;
pub use dirty::DirtyRequest;
pub use error::{Error, Refusal};
pub use event::{EventFile, Notify};
pub use fault::PageFault;
pub use foreign::{ForeignObject, ReservedId};
pub use hw::{
    HwOps, HwQueueConfig, Invalidated, NestedOps, PagingConfig, SoftwareIommu, Target, TargetKind,
    ViommuOps, ViommuRequest,
};
pub use hw_info::{HwData, HwInfo, VtdRegisters};
pub use hw_queue::HwQueueAlloc;
pub use hwpt::{HwptAlloc, HwptFlags};
pub use ioas::{CopyArgs, IovaRanges, MapArgs};
pub use ledger::{Limits, MemoryLedger};
pub use mmap::{Mapped, MmapRequest, MmapSpace};
pub use object::ObjectId;
pub use user::{UserArray, UserData};
pub use viommu::{VeventqAlloc, Viommu, ViommuAlloc};
