//! Flags of page tables.

use super::error::AllocError;

/// Flags of HWPT_ALLOC, with the kernel's numbers (`enum iommufd_hwpt_alloc_flags`). Unknown bits
/// are kept, and refused where the kernel refuses them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HwptFlags(u32);

impl HwptFlags {
    /// No flag.
    pub const NONE: HwptFlags = HwptFlags(0);
    /// Page tables of guests may be nested on it.
    pub const NEST_PARENT: HwptFlags = HwptFlags(1 << 0);
    /// Dirty tracking can be turned on; devices that cannot track are refused.
    pub const DIRTY_TRACKING: HwptFlags = HwptFlags(1 << 1);
    /// Page requests go to the fault queue of [`HwptAlloc::fault_id`](crate::HwptAlloc::fault_id).
    pub const FAULT_ID_VALID: HwptFlags = HwptFlags(1 << 2);
    /// May be attached to PASIDs that the program chooses, and to a device that has such.
    pub const PASID: HwptFlags = HwptFlags(1 << 3);

    /// The flags that a program sent.
    pub const fn from_raw(bits: u32) -> Self {
        HwptFlags(bits)
    }

    /// Whether all of `other` are set.
    pub const fn contains(self, other: HwptFlags) -> bool {
        self.0 & other.0 == other.0
    }

    /// Both.
    #[must_use]
    pub const fn with(self, other: HwptFlags) -> Self {
        HwptFlags(self.0 | other.0)
    }

    /// Those of `self` that are not in `other`.
    #[must_use]
    pub const fn without(self, other: HwptFlags) -> Self {
        HwptFlags(self.0 & !other.0)
    }

    /// The bits.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether a bit is set that is none of `known`.
    const fn beyond(self, known: HwptFlags) -> bool {
        self.0 & !known.0 != 0
    }

    /// The checks of a page table on an IOAS, for a device that can track dirty pages or not.
    pub(crate) fn check_paging(self, tracks_dirty: bool) -> Result<(), AllocError> {
        let known = Self::NEST_PARENT
            .with(Self::DIRTY_TRACKING)
            .with(Self::FAULT_ID_VALID)
            .with(Self::PASID);
        let faults_below_nesting =
            self.contains(Self::FAULT_ID_VALID) && self.contains(Self::NEST_PARENT);
        if self.beyond(known)
            || faults_below_nesting
            || (self.contains(Self::DIRTY_TRACKING) && !tracks_dirty)
        {
            return Err(AllocError::FlagsNotSupported(self.0));
        }
        Ok(())
    }

    /// The checks of a page table nested on another.
    pub(crate) fn check_nested(self) -> Result<(), AllocError> {
        if self.beyond(Self::FAULT_ID_VALID.with(Self::PASID)) {
            return Err(AllocError::FlagsNotSupported(self.0));
        }
        Ok(())
    }
}
