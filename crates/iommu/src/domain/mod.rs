//! Domains: one address space each, whatever is attached to it and however.
//!
//! * [`config`]: what a domain is made of. [`space`]: what readers see of it.
//! * [`nested`]: guests' tables on another domain. [`guest_tables`]: what is kept of them.
//! * [`registry`]: the domains of one machine. [`shared`]: what all its objects share.
//! * [`dma_space`], [`iova`]: the default domain of a group, and its addresses.
//!
//! A domain knows its sources by name alone, never a device or a group.

use std::{fmt, sync::Arc};

use ioasid_core::{
    AddrRange, DomainId, Pasid, PciAddress, Prot, failpoint,
    inspect::{Inspect, Node, Value},
    lock_order::OrderedMutex,
    memory::PAGE_SIZE,
    observe::Event,
    sync::atomic::{AtomicU64, Ordering},
};
use ioasid_pgtable::{FirstStage, MapError, PageTable, TableConfig, Translation};

use self::{
    guest_tables::Lines,
    registry::DomainRegistry,
    shared::Shared,
    space::{AddressSpace, Nested, Translator},
};
use crate::{
    base::{counters::DmaCounters, locks, source_id::SourceId},
    events::{
        ats::Ats,
        page_request::{Handler, PageRequestHandler},
    },
};

mod config;
pub(crate) mod dma_space;
pub(crate) mod guest_tables;
mod iova;
pub(crate) mod nested;
pub(crate) mod registry;
pub(crate) mod shared;
pub(crate) mod space;

pub use config::{DomainConfig, DomainKind};

/// Ranges of mapped addresses that a domain shows of itself, and leaves that it looks at for them: a
/// domain may have millions.
const SHOWN_RANGES: usize = 16;
const SHOWN_LEAVES: usize = 4096;

/// One source that leads here.
struct Attached {
    source: SourceId,
    ats: Arc<Ats>,
    /// The domain that the source leads to: this one, or one that is nested on it.
    leads_to: DomainId,
}

/// One I/O address space. The same whether a device reaches it by its RID or by a PASID, and by how
/// many.
///
/// Everything that takes a translation away (`unmap`, `read_dirty` with `clear`,
/// `set_dirty_tracking`) returns only when no DMA through the old translation is in flight. Such a
/// call must not be made under a [`crate::DmaGuard`].
pub struct Domain {
    shared: Arc<Shared>,
    registry: Arc<DomainRegistry>,
    config: DomainConfig,
    space: Arc<AddressSpace>,
    /// Of a nested domain.
    parent: Option<Arc<Domain>>,
    /// What can reach the domain. A source is entered before its cell is set and taken out after the
    /// barrier that follows its removal, so an empty list means that nothing reads.
    sources: OrderedMutex<Vec<Attached>>,
    handler: OrderedMutex<Handler>,
}

impl Domain {
    fn new(
        shared: Arc<Shared>,
        registry: Arc<DomainRegistry>,
        id: DomainId,
        config: DomainConfig,
    ) -> Self {
        let translator = match config.kind {
            // A nested one is made by `Domain::nest`.
            DomainKind::Blocked | DomainKind::Nested => Translator::Blocked,
            DomainKind::Identity => Translator::Identity,
            DomainKind::Dma | DomainKind::Unmanaged => {
                Translator::Paging(PageTable::new(TableConfig::new(config.format)))
            }
        };
        Domain::with(shared, registry, (id, id), config, translator, None)
    }

    fn nested_on(
        parent: &Arc<Domain>,
        registry: Arc<DomainRegistry>,
        id: DomainId,
        first_stage: FirstStage,
    ) -> Self {
        let translator = Translator::Nested(Nested {
            parent: Arc::clone(&parent.space),
            first_stage,
            table_changes: AtomicU64::new(0),
            lines: Lines::default(),
        });
        let config = parent.config.with_kind(DomainKind::Nested);
        let ids = (id, parent.id());
        let (shared, parent) = (Arc::clone(&parent.shared), Some(Arc::clone(parent)));
        Domain::with(shared, registry, ids, config, translator, parent)
    }

    fn with(
        shared: Arc<Shared>,
        registry: Arc<DomainRegistry>,
        (id, marker): (DomainId, DomainId),
        config: DomainConfig,
        translator: Translator,
        parent: Option<Arc<Domain>>,
    ) -> Self {
        let space = Arc::new(AddressSpace {
            id,
            marker,
            translator,
            changes: AtomicU64::new(0),
            counters: DmaCounters::default(),
            faults: AtomicU64::new(0),
        });
        Domain {
            shared,
            registry,
            config,
            space,
            parent,
            sources: OrderedMutex::new(&locks::SOURCES, Vec::new()),
            handler: OrderedMutex::new(&locks::HANDLER, None),
        }
    }

    /// The number of this domain.
    pub fn id(&self) -> DomainId {
        self.space.id
    }

    /// The kind.
    pub fn kind(&self) -> DomainKind {
        self.config.kind
    }

    /// What the domain was made of.
    pub fn config(&self) -> &DomainConfig {
        &self.config
    }

    /// The number that in-flight markers of its readers carry: its own, or that of the domain that it is
    /// nested on.
    pub(crate) fn marker(&self) -> DomainId {
        self.space.marker
    }

    pub(crate) fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    fn table(&self) -> Option<&PageTable> {
        match &self.space.translator {
            Translator::Paging(table) => Some(table),
            Translator::Blocked | Translator::Identity | Translator::Nested(_) => None,
        }
    }

    /// Maps `len` bytes from `iova` to the system physical addresses from `spa`; all or nothing.
    ///
    /// # Errors
    /// Those of the page table; [`MapError::NoPageTable`] if the domain has none;
    /// [`MapError::NoMemory`].
    pub fn map(&self, iova: u64, spa: u64, len: u64, prot: Prot) -> Result<(), MapError> {
        let table = self.table().ok_or(MapError::NoPageTable)?;
        // The tables that the range needs: before the first entry is written.
        failpoint::allocation()?;
        table.map(iova, spa, len, prot)?;
        if let Some(iova) = AddrRange::from_len(iova, len) {
            let domain = self.id();
            self.shared.watch.tell(|| Event::Map { domain, iova, prot });
        }
        Ok(())
    }

    /// Takes away every leaf that lies wholly in `range` and returns their bytes. When it returns,
    /// no DMA through them is in flight.
    pub fn unmap(&self, range: AddrRange) -> u64 {
        let Some(table) = self.table() else { return 0 };
        let unmapped = table.unmap(range);
        self.flush(&[range]);
        self.tell_unmap(range, unmapped.bytes);
        table.recycle(unmapped.freed);
        unmapped.bytes
    }

    fn tell_unmap(&self, iova: AddrRange, bytes: u64) {
        let domain = self.id();
        self.shared.watch.tell(|| Event::Unmap {
            domain,
            iova,
            bytes,
        });
    }

    /// As [`Domain::unmap`] for several ranges, with one barrier.
    pub fn unmap_many(&self, ranges: &[AddrRange]) -> u64 {
        if let [range] = ranges {
            return self.unmap(*range);
        }
        let Some(table) = self.table() else { return 0 };
        let cleared: Vec<_> = ranges.iter().map(|range| table.unmap(*range)).collect();
        self.flush(ranges);
        let mut bytes = 0;
        for (unmapped, range) in cleared.into_iter().zip(ranges) {
            bytes += unmapped.bytes;
            self.tell_unmap(*range, unmapped.bytes);
            table.recycle(unmapped.freed);
        }
        bytes
    }

    /// Returns when no DMA through a translation that was taken away before the call is in flight,
    /// and no device keeps one.
    pub fn barrier(&self) {
        self.flush(&[AddrRange::ALL]);
    }

    /// As [`Domain::barrier`], where only translations in `ranges` were taken away.
    fn flush(&self, ranges: &[AddrRange]) {
        // Before the barrier looks for guards: one that it does not see sees this.
        self.space.changes.fetch_add(1, Ordering::SeqCst);
        // Nothing can have read the old state if nothing is attached: a source that comes later is
        // entered under this lock, and its readers see the new state.
        let sources = self.sources.lock();
        if sources.is_empty() {
            return;
        }
        for attached in &*sources {
            // What a device keeps of a nested domain has addresses of that one.
            let ranges = match attached.leads_to == self.id() {
                true => ranges,
                false => &[AddrRange::ALL],
            };
            attached.ats.invalidate(attached.source.pasid, ranges);
        }
        drop(sources);
        self.shared.grace.wait(self.marker());
    }

    /// Where `iova` leads, without marking anything accessed; `None` if nowhere. A nested domain does not say:
    /// to read its table may block.
    pub fn iova_to_phys(&self, iova: u64) -> Option<Translation> {
        match &self.space.translator {
            Translator::Blocked | Translator::Nested(_) => None,
            Translator::Identity => Some(Translation {
                spa: iova,
                len: (u64::MAX - iova).saturating_add(1),
                prot: Prot::RW,
            }),
            Translator::Paging(table) => self
                .shared
                .as_reader(self.space.id, || table.iova_to_phys(iova)),
        }
    }

    /// Makes a leaf boundary at `iova`, so that an unmap may begin or end there. Translations stay
    /// as they are.
    ///
    /// # Errors
    /// Those of the page table; [`MapError::NoPageTable`] if the domain has none.
    pub fn cut(&self, iova: u64) -> Result<(), MapError> {
        self.table().ok_or(MapError::NoPageTable)?.cut(iova)
    }

    /// Turns dirty tracking on (after clearing every dirty bit) or off. No effect on a domain that
    /// was not made with [`DomainConfig::dirty_tracking`].
    pub fn set_dirty_tracking(&self, on: bool) {
        if self.config.dirty_tracking
            && let Some(table) = self.table()
        {
            table.set_dirty_tracking(on);
            self.barrier();
        }
    }

    /// Reports the dirty parts of `range`, in order, and clears them if `clear`. After a clearing
    /// call returns, every byte that was written under a cleared bit is in memory: the pages may be
    /// copied, and a later write is reported by a later call.
    pub fn read_dirty(&self, range: AddrRange, clear: bool, report: &mut dyn FnMut(AddrRange)) {
        if let Some(table) = self.table() {
            table.read_dirty(range, clear, report);
            if clear {
                self.flush(&[range]);
            }
        }
    }

    /// Device and PASID of every attachment, in the order of attaching.
    pub fn attachments(&self) -> Vec<(PciAddress, Option<Pasid>)> {
        let names = self.source_ids().into_iter();
        names.map(|name| (name.device, name.pasid)).collect()
    }

    fn source_ids(&self) -> Vec<SourceId> {
        let sources = self.sources.lock();
        let own = sources
            .iter()
            .filter(|attached| attached.leads_to == self.id());
        own.map(|attached| attached.source).collect()
    }

    /// Pages of page-table memory in use; 0 without a page table.
    pub fn table_pages(&self) -> u64 {
        self.table().map_or(0, PageTable::table_pages)
    }

    /// Bytes that are mapped.
    pub fn mapped_bytes(&self) -> u64 {
        self.table().map_or(0, PageTable::mapped_bytes)
    }

    /// Page-table entries written so far: the cost of maps and unmaps, whatever is attached.
    pub fn pte_writes(&self) -> u64 {
        self.table().map_or(0, PageTable::pte_writes)
    }

    /// The addresses that can be translated.
    pub fn aperture(&self) -> AddrRange {
        self.table().map_or(AddrRange::ALL, PageTable::aperture)
    }

    /// The sizes of leaves as a bitmap: bit n for 2^n bytes. 4 KiB and more without a page table.
    pub fn page_sizes(&self) -> u64 {
        self.table().map_or(!(PAGE_SIZE - 1), PageTable::page_sizes)
    }

    /// The page table, for independent walkers and inspection.
    pub fn page_table(&self) -> Option<&PageTable> {
        self.table()
    }

    /// Sets what answers page requests; with `None` nothing does. What the old handler has not answered is answered
    /// invalid.
    pub fn set_page_request_handler(&self, handler: Option<Arc<dyn PageRequestHandler>>) {
        let old = {
            let mut current = self.handler.lock();
            std::mem::replace(&mut *current, handler)
        };
        if old.is_some() {
            self.shared.pending.flush_domain(self.id());
        }
    }

    pub(crate) fn handler(&self) -> &OrderedMutex<Handler> {
        &self.handler
    }

    /// Enters a source that is about to lead here; `ats` is the device's.
    pub(crate) fn add_source(&self, source: SourceId, ats: &Arc<Ats>) {
        for domain in self.with_parent() {
            domain.sources.lock().push(Attached {
                source,
                ats: Arc::clone(ats),
                leads_to: self.id(),
            });
        }
    }

    /// The domains whose readers it brings along: itself, and the one that it is nested on.
    fn with_parent(&self) -> impl Iterator<Item = &Domain> {
        std::iter::once(self).chain(self.parent.as_deref())
    }

    /// Takes out a source after the barrier that followed its detach or replacement.
    pub(crate) fn remove_source(&self, source: SourceId) {
        for domain in self.with_parent() {
            let mut sources = domain.sources.lock();
            let own =
                |attached: &Attached| attached.source == source && attached.leads_to == self.id();
            if let Some(index) = sources.iter().position(own) {
                sources.remove(index);
            }
        }
    }

    /// DMA operations done through this domain.
    pub fn dma_operations(&self) -> u64 {
        self.space.counters.operations()
    }

    /// Bytes moved through this domain; a copy counts once.
    pub fn dma_bytes(&self) -> u64 {
        self.space.counters.bytes()
    }

    /// Faults reported to the owners of this domain's attachments.
    pub fn faults(&self) -> u64 {
        self.space.faults.load(Ordering::Relaxed)
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        self.shared.pending.flush_domain(self.id());
        self.registry.remove(self.id());
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Domain")
            .field("id", &self.id().get())
            .field("kind", &self.config.kind)
            .finish_non_exhaustive()
    }
}

impl Inspect for Domain {
    fn inspect(&self) -> Node {
        let sources = self.source_ids().into_iter();
        let sources = sources.map(|source| {
            let node = Node::new().with("device", source.device.to_string());
            node.with("pasid", source.pasid.map(Pasid::get)).into()
        });
        let sources: Vec<Value> = sources.collect();
        let table = self.table();
        let format = table.map(|_| self.config.format.to_string());
        let shown = table.map_or(Vec::new(), |t| t.mapped_ranges(SHOWN_RANGES, SHOWN_LEAVES));
        Node::new()
            .with("id", self.id().get())
            .with("kind", self.kind().to_string())
            .with("parent", self.parent().map(|parent| parent.id().get()))
            .with("first_stage", self.first_stage().map(inspect_first_stage))
            .with("routes", Value::List(sources))
            .with("format", format)
            .with("table_pages", self.table_pages())
            .with("mapped_bytes", self.mapped_bytes())
            .with("mapped", shown)
            .with("pte_writes", self.pte_writes())
            .with("dma_operations", self.dma_operations())
            .with("dma_bytes", self.dma_bytes())
            .with("faults", self.faults())
    }
}

fn inspect_first_stage(table: FirstStage) -> Node {
    Node::new()
        .with("root", Value::Hex(table.root))
        .with("address_bits", table.address_bits())
        .with("supervisor", table.supervisor)
        .with("write_protect", table.write_protect)
        .with("extended_accessed", table.extended_accessed)
}
