//! Floor 3: the object model of `/dev/iommu` as Linux names it, without its bytes.
//!
//! * [`Context`]: one open `/dev/iommu` file: a table of objects, and every command on them.
//! * [`ioas`]: an I/O address space: *areas* (which IOVAs are mapped), reserved and allowed ranges,
//!   the IOVA allocator, and the domains that the areas are written to.
//! * [`pages`]: the memory behind areas, shared by copies, pinned while a domain needs it.
//! * [`hwpt`]: a page table of an IOAS as programs name it.
//! * [`BoundDevice`]: a device, or one default-PASID child of a device, that a program holds.
//! * [`hw_info`], [`dirty`]: what a device can do; which pages were written.
//!
//! What never lives here: the layout of ioctl structs and errno numbers (the `uapi` crate), and any
//! notion of a mediated device: a child is a `device + PASID`, and the presence of the PASID alone
//! decides how it is attached.
//!
//! Two invariants hold. *Destroy never fails*: an object that nothing uses can always go, and
//! everything goes with the file. *One address space, one table*: page tables of an IOAS whose
//! attributes agree stand on one [`Domain`](ioasid_iommu::Domain), whether they were made by hand
//! or by attaching to the IOAS, for a whole device or for a child.
//!
//! Ranges are (start, inclusive last). The behaviour follows Linux 7.2
//! (drivers/iommu/iommufd/{device,hw_pagetable,io_pagetable,ioas,main}.c).
#![forbid(unsafe_code)]

mod attach;
pub mod context;
pub mod device;
pub mod dirty;
pub mod error;
pub mod hw_info;
pub mod hwpt;
pub mod ioas;
mod object;
pub mod pages;

pub use context::Context;
pub use device::BoundDevice;
pub use dirty::DirtyRequest;
pub use error::Error;
pub use hw_info::HwInfo;
pub use hwpt::{HwptAlloc, HwptFlags};
pub use ioas::{CopyArgs, IovaRanges, MapArgs};
pub use object::ObjectId;
