//! Which format a table has, and the names a machine file and `inspect` use for it.

use std::{fmt, str::FromStr};

use crate::custom::CustomFormat;

/// A page-table format.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TableFormat {
    /// x86-64 4-level paging, used by IOMMUs as the first stage (Intel SDM volume 3, section 4.5;
    /// VT-d specification, section 9.7). Input addresses: the positive half, 47 bits.
    X86_64Stage1,
    /// Intel VT-d second stage, 4 levels (VT-d specification, sections 3.7 and 9.8). Input
    /// addresses: 48 bits.
    #[default]
    VtdSecondStage,
    /// AMD I/O page table for host translations, "v1" (AMD I/O Virtualization Technology
    /// specification, section 2.2.3). It grows from 3 to 6 levels as needed. Input addresses: 64
    /// bits.
    AmdV1,
    /// A table that a back end brings along.
    Custom(&'static CustomFormat),
}

impl TableFormat {
    /// Every format of this crate.
    pub const ALL: [TableFormat; 3] = [
        TableFormat::X86_64Stage1,
        TableFormat::VtdSecondStage,
        TableFormat::AmdV1,
    ];

    /// The name in machine files: `x86-64`, `vtd-ss` or `amdv1`. Custom formats have none there.
    pub const fn name(self) -> &'static str {
        match self {
            TableFormat::X86_64Stage1 => "x86-64",
            TableFormat::VtdSecondStage => "vtd-ss",
            TableFormat::AmdV1 => "amdv1",
            TableFormat::Custom(format) => format.name,
        }
    }

    /// Whether an IOMMU that walks tables of this format walks those of `other` as well.
    pub fn is_walked_with(self, other: TableFormat) -> bool {
        match (self, other) {
            (TableFormat::Custom(one), TableFormat::Custom(other)) => one.family == other.family,
            _ => self == other,
        }
    }
}

impl fmt::Display for TableFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that no format has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown page-table format {name:?} (known: {})", TableFormat::ALL.map(TableFormat::name).join(", "))]
pub struct UnknownFormat {
    /// The name.
    pub name: String,
}

impl FromStr for TableFormat {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        TableFormat::ALL
            .into_iter()
            .find(|format| format.name() == name)
            .ok_or_else(|| UnknownFormat { name: name.into() })
    }
}

/// How to make a [`PageTable`](crate::PageTable).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TableConfig {
    /// The format.
    pub format: TableFormat,
    /// Whether walks set accessed and dirty bits from the start
    /// ([`PageTable::set_dirty_tracking`](crate::PageTable::set_dirty_tracking) changes it).
    pub dirty_tracking: bool,
}

impl TableConfig {
    /// A table of `format` without dirty tracking.
    pub const fn new(format: TableFormat) -> Self {
        TableConfig {
            format,
            dirty_tracking: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused() {
        for format in TableFormat::ALL {
            assert_eq!(format.to_string().parse(), Ok(format));
        }
        assert!("amdv2".parse::<TableFormat>().is_err());
    }
}
