//! Nested domains: a guest's first-stage table on a domain that holds the guest's memory.
//!
//! A nested domain has no mappings of its own. Its addresses are translated by the guest's table, whose
//! entries lie at addresses of the parent and lead to such, and then by the parent. Only the parent's table
//! decides what can be reached: whatever a guest writes, its devices stay inside of its own memory.
//!
//! The guards of a nested domain name the parent in their in-flight markers, and its sources are members of
//! the parent too. So one barrier on the parent covers all that is nested on it, and the parent's changes
//! reach the TLBs of devices that are attached to nested domains alone.

use std::sync::{Arc, atomic::Ordering};

use ioasid_core::AddrRange;
use ioasid_pgtable::{FirstStage, TableFormat};

use super::{
    Domain, DomainConfig, DomainKind,
    registry::DomainError,
    space::{Nested, Translator},
};

/// Why nothing can be nested on a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NestError {
    /// The domain has no second-stage page table (EINVAL).
    #[error(
        "a {kind} domain with {format} tables is no second stage: nest on an unmanaged domain with vtd-ss tables"
    )]
    NoSecondStage {
        /// What the domain is.
        kind: DomainKind,
        /// The format of its table.
        format: TableFormat,
    },
    /// There is no new domain.
    #[error(transparent)]
    Domain(#[from] DomainError),
}

/// What [`Domain::invalidate`] is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalidate {
    /// Only entries that map pages have changed (the leaf hint of VT-d's invalidation requests).
    Leaves,
    /// Entries that lead to tables may have changed too.
    Tables,
}

impl Domain {
    /// A domain that translates by `table`, in memory that this domain maps, and then by this domain. The
    /// table belongs to a guest: it may say anything and change at any time; what of it is kept is dropped
    /// by [`Domain::invalidate`].
    ///
    /// # Errors
    /// [`NestError`].
    pub fn nest(self: &Arc<Self>, table: FirstStage) -> Result<Arc<Domain>, NestError> {
        let DomainConfig { kind, format, .. } = *self.config();
        if !kind.is_paging() || format != TableFormat::VtdSecondStage {
            return Err(NestError::NoSecondStage { kind, format });
        }
        Ok(self.registry.alloc_nested(self, table)?)
    }

    /// The domain that this one is nested on.
    pub fn parent(&self) -> Option<&Arc<Domain>> {
        self.parent.as_ref()
    }

    /// The guest's table of a nested domain.
    pub fn first_stage(&self) -> Option<FirstStage> {
        self.nested().map(|nested| nested.first_stage)
    }

    pub(super) fn nested(&self) -> Option<&Nested> {
        match &self.space().translator {
            Translator::Nested(nested) => Some(nested),
            _ => None,
        }
    }

    /// Drops what is kept of the guest's table for `range`, by the IOMMU and by devices. When it returns, no
    /// DMA through an entry that the guest had taken away before the call is in flight. Nothing happens to a
    /// domain that is not nested: its owner's changes need no such call.
    ///
    /// More may be dropped than is asked for.
    pub fn invalidate(&self, range: AddrRange, what: Invalidate) {
        let Some(nested) = self.nested() else {
            return;
        };
        if what == Invalidate::Tables {
            // Before the count of all changes: who sees the old one of these sees the old one of those.
            nested.table_changes.fetch_add(1, Ordering::SeqCst);
        }
        self.flush(&[whole_pages(range)]);
    }
}

/// The largest page of a first-stage table.
const LARGEST_PAGE: u64 = 1 << 30;

/// `range` with all of a page at both ends, however large that is: a guest may name any address of a page
/// (Intel VT-d specification, 6.5.2.4), and what a device keeps of it may begin behind that.
fn whole_pages(range: AddrRange) -> AddrRange {
    let in_page = LARGEST_PAGE - 1;
    AddrRange::new(range.start() & !in_page, range.last() | in_page).unwrap_or(AddrRange::ALL)
}
