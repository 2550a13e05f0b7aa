//! Page tables that a back end brings along.
//!
//! The formats of this crate are those of real IOMMUs. A model of another one (a test bench, an IOMMU
//! with a granule of its own) implements [`CustomTable`] and names it by a [`CustomFormat`]; domains
//! then hold such a table like any other. It is reached through `dyn` and takes the locks it likes,
//! within the protocol of [`PageTable`](crate::PageTable): an unmap may return while a walk that
//! began before still uses the old translation, since its caller has a barrier.

use std::{
    fmt,
    hash::{Hash, Hasher},
};

use ioasid_core::{Access, AddrRange, Prot};

use crate::{
    error::{MapError, WalkFault},
    translation::Translation,
};

/// A page table of another kind than those of this crate. Each method is what the method of
/// [`PageTable`](crate::PageTable) of that name is; none may panic for any address. There is no table
/// memory to walk by hand, and runs go leaf by leaf.
pub trait CustomTable: Send + Sync {
    /// The input addresses that can be mapped.
    fn aperture(&self) -> AddrRange;

    /// The sizes of all leaves, as a bitmap of powers of two. Not 0.
    fn page_sizes(&self) -> u64;

    /// Maps a range; all of it or nothing.
    ///
    /// # Errors
    /// See [`MapError`].
    fn map(&self, iova: u64, spa: u64, len: u64, prot: Prot) -> Result<(), MapError>;

    /// Takes every leaf out that lies in `range` whole; returns their bytes.
    fn unmap(&self, range: AddrRange) -> u64;

    /// Makes a leaf boundary at `iova`.
    ///
    /// # Errors
    /// See [`MapError`].
    fn cut(&self, iova: u64) -> Result<(), MapError>;

    /// Does what hardware does for one access.
    ///
    /// # Errors
    /// See [`WalkFault`].
    fn translate(&self, iova: u64, access: Access) -> Result<Translation, WalkFault>;

    /// The translation of `iova`, leaving no trace.
    fn iova_to_phys(&self, iova: u64) -> Option<Translation>;

    /// Switches dirty tracking; switching it on clears all dirty bits.
    fn set_dirty_tracking(&self, on: bool);

    /// Whether accesses are marked.
    fn dirty_tracking(&self) -> bool;

    /// Reports what was written in `range`, ascending, and clears it if asked to.
    fn read_dirty(&self, range: AddrRange, clear: bool, report: &mut dyn FnMut(AddrRange));

    /// Bytes that are mapped.
    fn mapped_bytes(&self) -> u64;

    /// Leaves that were written since the beginning.
    fn writes(&self) -> u64;
}

/// Names and makes tables of one custom format.
pub struct CustomFormat {
    /// The name; two formats of one name are the same.
    pub name: &'static str,
    /// The IOMMU that walks such tables. One device can be attached to all formats of a family.
    pub family: &'static str,
    /// Makes an empty table, with dirty tracking on or off.
    pub make: fn(tracking: bool) -> Box<dyn CustomTable>,
}

impl PartialEq for CustomFormat {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for CustomFormat {}

impl Hash for CustomFormat {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl fmt::Debug for CustomFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PageTable, TableConfig, TableFormat};

    /// One leaf that is always there.
    struct Fixed {
        tracking: bool,
    }

    impl CustomTable for Fixed {
        fn aperture(&self) -> AddrRange {
            AddrRange::new(0x800, 0xfff).expect("not empty")
        }

        fn page_sizes(&self) -> u64 {
            0x800
        }

        fn map(&self, iova: u64, _: u64, _: u64, _: Prot) -> Result<(), MapError> {
            Err(MapError::NoPermission { iova })
        }

        fn unmap(&self, _: AddrRange) -> u64 {
            0x800
        }

        fn cut(&self, _: u64) -> Result<(), MapError> {
            Ok(())
        }

        fn translate(&self, iova: u64, _: Access) -> Result<Translation, WalkFault> {
            self.iova_to_phys(iova).ok_or(WalkFault::OutOfRange)
        }

        fn iova_to_phys(&self, iova: u64) -> Option<Translation> {
            self.aperture().contains(iova).then_some(Translation {
                spa: iova,
                len: 0x1000 - iova,
                prot: Prot::RW,
            })
        }

        fn set_dirty_tracking(&self, _: bool) {}

        fn dirty_tracking(&self) -> bool {
            self.tracking
        }

        fn read_dirty(&self, range: AddrRange, _: bool, report: &mut dyn FnMut(AddrRange)) {
            report(range);
        }

        fn mapped_bytes(&self) -> u64 {
            0x800
        }

        fn writes(&self) -> u64 {
            1
        }
    }

    static FIXED: CustomFormat = CustomFormat {
        name: "fixed",
        family: "tests",
        make: |tracking| Box::new(Fixed { tracking }),
    };

    #[test]
    fn a_custom_table_answers_for_a_tree() {
        let format = TableFormat::Custom(&FIXED);
        let table = PageTable::new(TableConfig {
            format,
            dirty_tracking: true,
        });
        assert_eq!((table.format(), format.name()), (format, "fixed"));
        assert!(table.dirty_tracking());
        assert_eq!(table.aperture().start(), 0x800);
        assert_eq!(
            table.map(7, 0, 1, Prot::RW),
            Err(MapError::NoPermission { iova: 7 })
        );
        assert_eq!(
            table.translate(0x900, Access::Read).map(|t| t.spa),
            Ok(0x900)
        );
        assert_eq!(table.iova_to_phys(0), None);
        let unmapped = table.unmap(AddrRange::ALL);
        assert_eq!((unmapped.bytes, unmapped.freed.len()), (0x800, 0));
        table.recycle(unmapped.freed);
        assert_eq!(table.read_table_entry(table.root(), 0), None);
    }

    #[test]
    fn formats_of_one_family_stand_behind_one_device() {
        static SISTER: CustomFormat = CustomFormat {
            name: "sister",
            ..FIXED
        };
        let (one, other) = (TableFormat::Custom(&FIXED), TableFormat::Custom(&SISTER));
        assert_ne!(one, other);
        assert!(one.is_walked_with(other));
        assert!(!one.is_walked_with(TableFormat::AmdV1));
        assert!(!TableFormat::AmdV1.is_walked_with(TableFormat::VtdSecondStage));
    }
}
