//! The structs, numbers and flags of the kernel's headers, as types with documented fields.

pub mod container;
pub mod group;
pub mod iommufd;
pub mod vfio;
