//! How a device's memory accesses are made and logged, as far as the IOMMU does not do it: copies of
//! an emulated device, and the pages that a device has written.

pub(crate) mod emulated;
pub mod write_log;
