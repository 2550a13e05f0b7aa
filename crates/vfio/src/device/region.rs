//! The regions of a PCI device: which file offset is what.

use crate::{base::error::RegionError, pci::Function};

/// Number of region indexes of a PCI device without regions of its vendor.
pub const REGIONS: u32 = 9;

/// The index of a region is in the file offset from this bit on.
pub const INDEX_SHIFT: u32 = 40;

/// A region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RegionIndex {
    /// Base address register 0..=5.
    Bar(u8),
    /// The expansion ROM. No device has one.
    Rom,
    /// Configuration space.
    Config,
    /// VGA memory. No device has it.
    Vga,
}

impl RegionIndex {
    /// The region `index`.
    ///
    /// # Errors
    /// [`RegionError::NoSuchIndex`] from [`REGIONS`] on.
    pub fn new(index: u32) -> Result<Self, RegionError> {
        match index {
            0..=5 => Ok(RegionIndex::Bar(index as u8)),
            6 => Ok(RegionIndex::Rom),
            7 => Ok(RegionIndex::Config),
            8 => Ok(RegionIndex::Vga),
            _ => Err(RegionError::NoSuchIndex { index }),
        }
    }

    /// The region that the file offset lies in, and the offset inside it.
    ///
    /// # Errors
    /// [`RegionError::NoSuchIndex`] past the last region.
    pub fn at(offset: u64) -> Result<(Self, u64), RegionError> {
        let index = (offset >> INDEX_SHIFT) as u32;
        Ok((RegionIndex::new(index)?, offset & ((1 << INDEX_SHIFT) - 1)))
    }

    /// The number.
    pub const fn number(self) -> u32 {
        match self {
            RegionIndex::Bar(index) => index as u32,
            RegionIndex::Rom => 6,
            RegionIndex::Config => 7,
            RegionIndex::Vga => 8,
        }
    }

    /// The file offset of the region's first byte.
    pub const fn offset(self) -> u64 {
        (self.number() as u64) << INDEX_SHIFT
    }

    /// What REGION_INFO says of this region. `mappable` if BARs can be mapped.
    ///
    /// # Errors
    /// [`RegionError::Absent`] for VGA.
    pub fn info(self, function: &Function, mappable: bool) -> Result<RegionInfo, RegionError> {
        let (size, mmap) = match self {
            RegionIndex::Bar(index) => {
                let size = function.bar(index).map_or(0, |bar| bar.size);
                (size, mappable && can_be_mapped(index, function))
            }
            RegionIndex::Rom => (0, false),
            RegionIndex::Config => (function.config_size(), false),
            RegionIndex::Vga => {
                let index = self.number();
                return Err(RegionError::Absent { index });
            }
        };
        let holds_msix = function
            .msix()
            .is_some_and(|msix| self == RegionIndex::Bar(msix.bar));
        Ok(RegionInfo {
            offset: self.offset(),
            size,
            mmap,
            msix_mappable: mmap && holds_msix,
        })
    }
}

/// Bytes of a page.
const PAGE: u64 = 4096;

/// Whether a BAR can be mapped: memory, and nothing else on its last page
/// (`vfio_pci_probe_mmaps`, `drivers/vfio/pci/vfio_pci_core.c`).
fn can_be_mapped(index: u8, function: &Function) -> bool {
    match function.bar(index) {
        None => false,
        Some(bar) if bar.is_io => false,
        Some(bar) if bar.size >= PAGE => true,
        Some(_) => {
            let start = function.bar_address(index);
            let others = (0..6).filter(|other| *other != index);
            start.is_multiple_of(PAGE)
                && others
                    .filter(|other| function.bar(*other).is_some_and(|bar| !bar.is_io))
                    .all(|other| !(start..start + PAGE).contains(&function.bar_address(other)))
        }
    }
}

/// What REGION_INFO says. A region of size 0 is absent and can be neither read nor written; all
/// others can be both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionInfo {
    /// File offset of the first byte.
    pub offset: u64,
    /// Bytes.
    pub size: u64,
    /// The region can be mapped.
    pub mmap: bool,
    /// The page of the MSI-X table can be mapped too (a capability of the region).
    pub msix_mappable: bool,
}
