//! What a domain is made of.

use std::fmt;

use ioasid_pgtable::TableFormat;

/// What a domain does with an address, and where its addresses come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DomainKind {
    /// Every access faults.
    Blocked,
    /// The system physical address is the I/O virtual address; unregistered ones fault.
    Identity,
    /// A page table with addresses from the DMA API.
    Dma,
    /// A page table with addresses of the owner's choice.
    Unmanaged,
    /// A guest's first-stage table, in memory of another domain, and then that domain
    /// ([`Domain::nest`](super::Domain::nest)).
    Nested,
}

impl DomainKind {
    /// Whether such a domain has a page table of its own.
    pub const fn is_paging(self) -> bool {
        matches!(self, DomainKind::Dma | DomainKind::Unmanaged)
    }
}

impl fmt::Display for DomainKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DomainKind::Blocked => "blocked",
            DomainKind::Identity => "identity",
            DomainKind::Dma => "dma",
            DomainKind::Unmanaged => "unmanaged",
            DomainKind::Nested => "nested",
        })
    }
}

/// What a domain is made of; does not change afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DomainConfig {
    /// The kind.
    pub kind: DomainKind,
    /// Page-table format; no meaning without a page table.
    pub format: TableFormat,
    /// Whether dirty tracking can be turned on. Only devices that support it may attach then.
    pub dirty_tracking: bool,
}

impl DomainConfig {
    /// An unmanaged domain of `format`, without dirty tracking.
    pub const fn unmanaged(format: TableFormat) -> Self {
        DomainConfig {
            kind: DomainKind::Unmanaged,
            format,
            dirty_tracking: false,
        }
    }

    /// The same with another kind.
    #[must_use]
    pub const fn with_kind(self, kind: DomainKind) -> Self {
        DomainConfig { kind, ..self }
    }
}
