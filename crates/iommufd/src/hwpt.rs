//! Page tables as programs name them.

use crate::object::ObjectId;

/// Flags of HWPT_ALLOC, with the kernel's numbers (`enum iommufd_hwpt_alloc_flags`); unknown bits
/// are kept, and refused where the kernel refuses them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HwptFlags(pub u32);

/// What HWPT_ALLOC is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HwptAlloc {
    /// The device whose IOMMU the page table is for.
    pub device: ObjectId,
    /// What it is built on: an IOAS, or the page table to nest on.
    pub parent: ObjectId,
    /// How.
    pub flags: HwptFlags,
    /// The fault queue, looked at only with [`HwptFlags::FAULT_ID_VALID`].
    pub fault_id: u32,
    /// Whether data for a nested page table comes with it.
    pub has_data: bool,
}
