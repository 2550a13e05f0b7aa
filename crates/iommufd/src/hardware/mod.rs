//! What stands for hardware: the IOMMU in front of a bound device, devices, page tables as programs
//! name them, virtual IOMMUs, their events and queues, and page requests.
//!
//! Objects know each other, and nothing of the file that they are kept in.

pub(crate) mod attach_point;
pub(crate) mod device;
pub(crate) mod fault;
pub(crate) mod hw;
pub(crate) mod hw_info;
pub(crate) mod hw_queue;
pub(crate) mod hwpt;
pub(crate) mod mmap;
pub(crate) mod paging;
pub(crate) mod software;
pub(crate) mod vdevice;
pub(crate) mod vevent;
pub(crate) mod viommu;
pub(crate) mod vtd;
