//! One open `/dev/iommu` file: what it consists of, and how long it lives. Its commands are in
//! `commands`.

use std::sync::{
    Arc, Weak,
    atomic::{AtomicUsize, Ordering},
};

use ioasid_core::{host::Account, sync::Mutex};
use ioasid_iommu::{Iommu, OwnerId};

use super::{attachments::Attachments, close, page_tables::PageTables, table::Objects};
use crate::{
    base::id::ObjectId,
    hardware::mmap::MmapOffsets,
    space::ledger::{Charge, HasAreas, Limits, MemoryLedger, Payer},
};

/// One open `/dev/iommu` file: an object table and the commands on it.
///
/// Every command may be called from any thread. The checks of a command come in the kernel's order,
/// but for those that need only the ioctl struct: the caller that decodes the struct makes them
/// first.
#[derive(Debug)]
pub struct Context {
    iommu: Arc<Iommu>,
    ledger: Arc<MemoryLedger>,
    owner: OwnerId,
    /// Files of events and mapped pages.
    open_files: AtomicUsize,
    mmap_offsets: MmapOffsets,
    objects: Arc<Objects>,
    /// Held through a whole attach, detach or destroy; outside every other lock.
    pub(crate) attachments: Mutex<Attachments>,
    pub(crate) options: Mutex<Options>,
}

/// The options of a file.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Locked memory is counted per process, not per user.
    pub(crate) rlimit_per_process: bool,
    /// The IOAS that VFIO container commands work on.
    pub(crate) vfio_ioas: Option<ObjectId>,
    /// The last that has mapped: nearly always the next too.
    payer: Option<Arc<Payer>>,
}

impl Context {
    /// A file without objects, whose locked memory counts in a ledger of its own.
    pub fn new(iommu: &Arc<Iommu>) -> Arc<Self> {
        Context::with_ledger(iommu, &MemoryLedger::new(Limits::Counted))
    }

    /// A file without objects, whose locked memory counts in `ledger`.
    pub fn with_ledger(iommu: &Arc<Iommu>, ledger: &Arc<MemoryLedger>) -> Arc<Self> {
        let objects = Arc::<Objects>::default();
        let file: Weak<dyn HasAreas> = Arc::downgrade(&objects) as _;
        ledger.enter(file);
        Arc::new(Context {
            iommu: Arc::clone(iommu),
            ledger: Arc::clone(ledger),
            owner: OwnerId::new(),
            open_files: AtomicUsize::new(0),
            mmap_offsets: MmapOffsets::default(),
            objects,
            attachments: Mutex::default(),
            options: Mutex::default(),
        })
    }

    /// The machine's IOMMU.
    pub fn iommu(&self) -> &Arc<Iommu> {
        &self.iommu
    }

    /// How much memory each program has locked.
    pub fn ledger(&self) -> &Arc<MemoryLedger> {
        &self.ledger
    }

    /// Where memory counts that `account` maps.
    pub(crate) fn payer(&self, account: Account) -> Arc<Payer> {
        let mut options = self.options.lock();
        let charge = Charge::new(account, options.rlimit_per_process);
        let last = options.payer.as_ref();
        if let Some(payer) = last.filter(|payer| payer.charge() == charge) {
            return Arc::clone(payer);
        }
        let payer = self.ledger.payer(charge);
        options.payer = Some(Arc::clone(&payer));
        payer
    }

    pub(crate) fn owner(&self) -> OwnerId {
        self.owner
    }

    pub(crate) fn objects(&self) -> &Arc<Objects> {
        &self.objects
    }

    pub(crate) fn mmap_offsets(&self) -> &MmapOffsets {
        &self.mmap_offsets
    }

    pub(crate) fn page_tables(&self) -> PageTables<'_> {
        PageTables {
            objects: &self.objects,
            iommu: &self.iommu,
        }
    }

    /// The last descriptor of the file is gone: every object goes, after what uses it. Devices that
    /// are still bound, access objects, open files of events and mapped pages keep them; then this
    /// happens when the last of those is gone.
    pub fn close(&self) {
        self.objects.lock().closed = true;
        self.finish_close();
    }

    /// Takes everything apart if the file is closed and nothing keeps it.
    pub(crate) fn finish_close(&self) {
        close::finish(self);
    }

    pub(crate) fn has_open_files(&self) -> bool {
        self.open_files.load(Ordering::Acquire) > 0
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // The order matters: domains go before the pages they lead to.
        self.close();
    }
}

/// A file that keeps a context's objects.
#[derive(Debug)]
pub(crate) struct OpenFile(Arc<Context>);

impl OpenFile {
    pub(crate) fn new(context: &Arc<Context>) -> Self {
        context.open_files.fetch_add(1, Ordering::AcqRel);
        OpenFile(Arc::clone(context))
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.0
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.0.open_files.fetch_sub(1, Ordering::AcqRel);
        self.0.finish_close();
    }
}
