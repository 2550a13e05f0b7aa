//! Domains and the routes that stand on them at one moment, read from the IOMMU.

use std::{collections::BTreeSet, sync::Arc};

use ioasid_core::DomainId;
use ioasid_iommu::{DomainKind, Iommu};

/// One domain that holds a page table, or is nested on such.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// The domain.
    pub(crate) id: DomainId,
    /// Its number in this run of the demo, from 1.
    pub(crate) number: usize,
    /// `DMA`, `unmanaged` or `nested`.
    pub(crate) kind: &'static str,
    /// Pages that its tables take.
    pub(crate) table_pages: u64,
    /// Bytes that it maps.
    pub(crate) mapped_bytes: u64,
    /// The routes, as `parent` or `parent + PASID 1`.
    pub(crate) routes: Vec<String>,
    /// Not in an earlier snapshot.
    pub(crate) is_new: bool,
}

/// The domains at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// In the order of their creation.
    pub(crate) rows: Vec<Row>,
}

/// Takes snapshots and remembers which domains it has seen.
#[derive(Debug)]
pub(crate) struct Snapshots {
    iommu: Arc<Iommu>,
    seen: Vec<DomainId>,
}

impl Snapshots {
    /// Snapshots of `iommu`.
    pub(crate) fn new(iommu: Arc<Iommu>) -> Self {
        Snapshots {
            iommu,
            seen: Vec::new(),
        }
    }

    /// The domains that hold a page table, and those nested on them, as of now.
    pub(crate) fn take(&mut self) -> Snapshot {
        let mut domains = self.iommu.domains();
        domains.sort_by_key(|domain| domain.id());
        let known: BTreeSet<_> = self.seen.iter().copied().collect();
        let rows = domains
            .iter()
            .filter_map(|domain| {
                let kind = kind(domain.kind())?;
                let is_new = !known.contains(&domain.id());
                if is_new {
                    self.seen.push(domain.id());
                }
                let position = self.seen.iter().position(|id| *id == domain.id());
                let mut routes: Vec<_> = domain
                    .attachments()
                    .into_iter()
                    .map(|(device, pasid)| match pasid {
                        Some(pasid) => format!("[{device} + PASID {pasid}]"),
                        None => format!("[{device}]"),
                    })
                    .collect();
                if routes.is_empty() {
                    routes.push("[no route]".to_owned());
                }
                Some(Row {
                    id: domain.id(),
                    number: position.map_or(0, |position| position + 1),
                    kind,
                    table_pages: domain.table_pages(),
                    mapped_bytes: domain.mapped_bytes(),
                    routes,
                    is_new,
                })
            })
            .collect();
        Snapshot { rows }
    }
}

/// What the demo calls a domain that it shows; those without a page table it does not.
const fn kind(kind: DomainKind) -> Option<&'static str> {
    match kind {
        DomainKind::Dma => Some("DMA"),
        DomainKind::Unmanaged => Some("unmanaged"),
        DomainKind::Nested => Some("nested"),
        DomainKind::Blocked | DomainKind::Identity => None,
    }
}
