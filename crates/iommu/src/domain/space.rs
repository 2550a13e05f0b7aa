//! The part of a domain that readers reach.

use std::{fmt, sync::Arc};

use ioasid_core::{
    DomainId,
    sync::atomic::{AtomicU64, Ordering},
};
use ioasid_pgtable::{FirstStage, PageTable};

use super::guest_tables::{Counts, Lines};
use crate::base::counters::DmaCounters;

/// How addresses are translated.
#[allow(clippy::large_enum_variant)] // One per domain, never moved; a walk saves a load.
pub(crate) enum Translator {
    Blocked,
    Identity,
    Paging(PageTable),
    Nested(Nested),
}

/// A guest's table and what it lies in.
pub(crate) struct Nested {
    /// Paging.
    pub(crate) parent: Arc<AddressSpace>,
    pub(crate) first_stage: FirstStage,
    /// How often entries of the guest's table that lead to tables may have changed.
    pub(crate) table_changes: AtomicU64,
    /// What is kept of the table where it lies in another process.
    pub(crate) lines: Lines,
}

impl Nested {
    /// The parent's page table.
    pub(crate) fn second_stage(&self) -> Option<&PageTable> {
        match &self.parent.translator {
            Translator::Paging(table) => Some(table),
            // Nothing else is nested on.
            _ => None,
        }
    }

    /// The counts of changes of now, of the nested domain whose readers reach `own`.
    #[inline]
    pub(crate) fn counts(&self, own: &AddressSpace) -> Counts {
        let parent = self.parent.changes.load(Ordering::Acquire);
        // All counts only rise: an old sum means two old counts.
        Counts {
            all: own.changes.load(Ordering::Acquire) + parent,
            tables: self.table_changes.load(Ordering::Acquire) + parent,
        }
    }
}

/// The part of a domain that readers reach under a guard. It outlives the [`Domain`](super::Domain) until the last
/// guard on it is gone.
pub(crate) struct AddressSpace {
    pub(crate) id: DomainId,
    /// The domain that guards name in their in-flight markers: this one, or the one that it is nested on.
    pub(crate) marker: DomainId,
    pub(crate) translator: Translator,
    /// How often a barrier was about to wait for the readers: what they keep is gone then.
    pub(crate) changes: AtomicU64,
    pub(crate) counters: DmaCounters,
    pub(crate) faults: AtomicU64,
}

impl AddressSpace {
    /// A count that rises with every change which takes a translation away: its own, and those of the domain
    /// that it is nested on.
    #[inline]
    pub(crate) fn all_changes(&self) -> u64 {
        match &self.translator {
            Translator::Nested(nested) => nested.counts(self).all,
            _ => self.changes.load(Ordering::Acquire),
        }
    }
}

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AddressSpace({})", self.id)
    }
}
