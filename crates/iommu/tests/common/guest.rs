//! A guest: memory in a domain of its own, and first-stage tables in it that are written by hand, entry by
//! entry, as its kernel would.

use std::{any::Any, fmt, sync::Arc};

use ioasid_core::{
    Prot,
    host::{Job, Worker, WorkerStopped},
    memory::{Backing, Memory, MemoryGone, OwnMemory, OwnPages, PAGE_SIZE, RemoteMemory},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};
use ioasid_iommu::{Domain, DomainConfig, FirstStage, Iommu};

use super::FORMAT;

pub const P: u64 = 1 << 0;
pub const RW: u64 = 1 << 1;
pub const US: u64 = 1 << 2;
pub const A: u64 = 1 << 5;
pub const D: u64 = 1 << 6;
pub const PS: u64 = 1 << 7;
pub const EA: u64 = 1 << 10;

/// Where the guest's memory begins in its physical address space.
pub const BASE: u64 = 0x1_0000_0000;

/// Where a guest's memory is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Directly addressable.
    Own,
    /// In another process: to touch it may block.
    Private,
}

/// Is told of each access before it happens: its offset, and whether it is a write. Decides whether there is memory.
pub type Hook = Arc<dyn Fn(u64, bool) -> Result<(), MemoryGone> + Send + Sync>;

/// Memory of another process.
pub struct Private {
    memory: Arc<OwnMemory>,
    len: u64,
    worker: Arc<dyn Worker>,
    /// Reads so far.
    pub reads: AtomicU64,
    /// Writes so far.
    pub writes: AtomicU64,
    hook: Mutex<Option<Hook>>,
}

#[derive(Debug)]
struct Idle;

impl Worker for Idle {
    fn submit(&self, _job: Job) -> Result<(), WorkerStopped> {
        Err(WorkerStopped)
    }
}

impl Private {
    pub fn set_hook(&self, hook: Option<Hook>) {
        *self.hook.lock() = hook;
    }

    fn tell(&self, offset: u64, write: bool) -> Result<(), MemoryGone> {
        let hook = self.hook.lock().clone();
        hook.map_or(Ok(()), |hook| hook(offset, write))
    }

    /// Accesses so far.
    pub fn accesses(&self) -> u64 {
        self.reads.load(Ordering::Relaxed) + self.writes.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Private {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Private")
    }
}

impl Backing for Private {
    fn size(&self) -> u64 {
        self.len
    }

    fn memory(&self) -> Memory<'_> {
        Memory::Remote(self)
    }
}

impl RemoteMemory for Private {
    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.tell(offset, false)?;
        self.memory.read(offset as usize, dst);
        Ok(())
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.tell(offset, true)?;
        self.memory.write(offset as usize, src);
        Ok(())
    }

    fn worker(&self) -> &Arc<dyn Worker> {
        &self.worker
    }
}

/// A guest's memory and the free pages of it.
pub struct Guest {
    pub memory: Arc<OwnMemory>,
    pub parent: Arc<Domain>,
    pub len: u64,
    /// Of memory in another process.
    pub private: Option<Arc<Private>>,
    pub spa: u64,
    free: u64,
    _registered: Box<dyn Any + Send + Sync>,
}

impl Guest {
    /// With `len` bytes from [`BASE`] on, mapped page by page and in reverse: neighbours are none in memory.
    pub fn new(iommu: &Arc<Iommu>, len: u64) -> Self {
        Guest::with(iommu, len, Place::Own, DomainConfig::unmanaged(FORMAT))
    }

    /// The same, with memory at a place of its own and another parent.
    pub fn with(iommu: &Arc<Iommu>, len: u64, place: Place, config: DomainConfig) -> Self {
        let guest = Guest::unmapped(iommu, len, place, config);
        for gpa in (BASE..BASE + len).step_by(PAGE_SIZE as usize) {
            guest.map_parent(gpa, Prot::RW);
        }
        guest
    }

    /// The same, with nothing mapped in the parent yet.
    pub fn unmapped(iommu: &Arc<Iommu>, len: u64, place: Place, config: DomainConfig) -> Self {
        let parent = iommu.alloc_domain(config).unwrap();
        let (memory, private, spa, registered): (_, _, _, Box<dyn Any + Send + Sync>) = match place
        {
            Place::Own => {
                let pages = OwnPages::new(iommu.space(), len as usize).unwrap();
                (
                    Arc::clone(pages.memory()),
                    None,
                    pages.spa(),
                    Box::new(pages),
                )
            }
            Place::Private => {
                let private = Arc::new(Private {
                    memory: OwnMemory::new(len as usize),
                    len,
                    worker: Arc::new(Idle),
                    reads: AtomicU64::new(0),
                    writes: AtomicU64::new(0),
                    hook: Mutex::default(),
                });
                let range = iommu.space().register(private.clone(), 0).unwrap();
                let memory = Arc::clone(&private.memory);
                (memory, Some(private), range.start(), Box::new(range))
            }
        };
        Guest {
            memory,
            parent,
            len,
            private,
            spa,
            free: BASE,
            _registered: registered,
        }
    }

    /// Maps the page at `gpa` in the parent.
    pub fn map_parent(&self, gpa: u64, prot: Prot) {
        let spa = self.spa + self.offset(gpa);
        self.parent.map(gpa, spa, PAGE_SIZE, prot).unwrap();
    }

    /// Maps the page at `gpa` anew, with other rights.
    pub fn remap_parent(&self, gpa: u64, prot: Prot) {
        self.parent.unmap(super::range(gpa, PAGE_SIZE));
        self.map_parent(gpa, prot);
    }

    /// Where the byte at a guest-physical address lies in the memory.
    pub fn offset(&self, gpa: u64) -> u64 {
        let in_page = gpa % PAGE_SIZE;
        self.len - PAGE_SIZE - (gpa - in_page - BASE) + in_page
    }

    /// A page that nothing uses yet.
    pub fn page(&mut self) -> u64 {
        self.free += PAGE_SIZE;
        assert!(self.free <= BASE + self.len, "the guest is full");
        self.free - PAGE_SIZE
    }

    pub fn read(&self, gpa: u64) -> u64 {
        let mut word = [0; 8];
        self.memory.read(self.offset(gpa) as usize, &mut word);
        u64::from_le_bytes(word)
    }

    pub fn write(&self, gpa: u64, word: u64) {
        self.memory
            .write(self.offset(gpa) as usize, &word.to_le_bytes());
    }

    /// The bytes of a guest-physical page.
    pub fn bytes(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(self.offset(gpa) as usize, &mut bytes);
        bytes
    }

    /// A top table without entries.
    pub fn table(&mut self, levels: u32) -> FirstStage {
        FirstStage {
            levels,
            ..FirstStage::new(self.page())
        }
    }

    /// The address of the entry for `iova` at `level` of `table`; tables on the way are made, with every right.
    pub fn entry(&mut self, table: FirstStage, iova: u64, level: u32) -> u64 {
        let mut at = table.root;
        for above in (level + 1..table.levels).rev() {
            let entry = at + 8 * (iova >> (12 + 9 * above) & 511);
            if self.read(entry) & P == 0 {
                let next = self.page();
                self.write(entry, next | P | RW | US);
            }
            at = self.read(entry) & 0x000f_ffff_ffff_f000;
        }
        at + 8 * (iova >> (12 + 9 * level) & 511)
    }

    /// The entries that decide about `iova`, from the top down to the one at `level`.
    pub fn entries(&mut self, table: FirstStage, iova: u64, level: u32) -> Vec<u64> {
        let levels = (level..table.levels).rev();
        levels.map(|level| self.entry(table, iova, level)).collect()
    }

    /// Maps one page of the size of `level` with the rights `bits`; returns where its entry is.
    pub fn map(&mut self, table: FirstStage, iova: u64, gpa: u64, level: u32, bits: u64) -> u64 {
        let entry = self.entry(table, iova, level);
        let page = if level > 0 { PS } else { 0 };
        self.write(entry, gpa | P | page | bits);
        entry
    }
}
