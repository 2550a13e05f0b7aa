//! A guest: its memory, where that lies in the guest-physical address space, and its device.

use std::{cell::Cell, sync::Arc};

use iommufd_bindings::iommufd::{
    iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING as DIRTY_TRACKING,
    iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_NEST_PARENT as NEST_PARENT,
    iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_PASID as ALLOC_PASID,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE as READABLE,
    iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE as WRITEABLE,
};
use passthrough_client::{
    Device, DmaMemory, MemoryKind, Vm, discover,
    dsa::{Completion, Descriptor, Status},
};

use crate::{
    Result,
    dsa::{Dsa, Queue},
    host::{self, Faults},
    tables::Table,
};

/// Guest-physical address of the memory: a multiple of 1 GiB, so that a leaf of that size can map it.
pub(crate) const BASE: u64 = 1 << 30;
/// Bytes of it.
pub(crate) const SIZE: u64 = 16 << 20;
/// Pages of the memory once more, each a mapping of its own, in another order.
pub(crate) const SCATTERED: u64 = 0x5000_0000;
pub(crate) const SCATTERED_PAGES: u64 = 64;
/// One page of the memory that devices may only read.
pub(crate) const READ_ONLY: u64 = 0x6000_0000;
/// Nothing is here.
pub(crate) const HOLE: u64 = 0x7000_0000;
/// The memory has room for tables from here on.
const TABLES: u64 = BASE + (8 << 20);
/// What tests move, at the begin of the memory, and behind it what [`SCATTERED`] shows.
pub(crate) const DATA: u64 = BASE;
const SCATTERED_DATA: u64 = 4 << 20;
const READ_ONLY_DATA: u64 = 6 << 20;
/// A page of completion records.
pub(crate) const RECORDS: u64 = BASE + (7 << 20);

/// Where in the memory the page is that [`READ_ONLY`] shows.
pub(crate) const READ_ONLY_BYTES: u64 = BASE + READ_ONLY_DATA;

/// Where every table of this program has the page of records, and one of its own.
pub(crate) const RECORD_PAGE: u64 = 0x1000;
/// Where tables have the data of tests: 8 pages before the end of a table of the lowest level, and in another
/// entry of the top table than [`RECORD_PAGE`].
pub(crate) const VIRTUAL: u64 = 0x5612_345f_8000;

/// The guest's memory, by guest-physical addresses.
pub(crate) struct Memory {
    bytes: Arc<DmaMemory>,
    next: Cell<u64>,
}

impl Memory {
    /// A page for a table, all zero.
    pub(crate) fn page(&self) -> u64 {
        let page = self.next.get();
        self.next.set(page + 4096);
        assert!(page < BASE + SIZE, "there is no room for another table");
        page
    }

    pub(crate) fn load(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.bytes.read(address - BASE, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    pub(crate) fn store(&self, address: u64, value: u64) {
        self.bytes.write(address - BASE, &value.to_le_bytes());
    }

    pub(crate) fn read(&self, address: u64, len: u64) -> Vec<u8> {
        let mut bytes = vec![0; len as usize];
        self.bytes.read(address - BASE, &mut bytes);
        bytes
    }

    pub(crate) fn write(&self, address: u64, bytes: &[u8]) {
        self.bytes.write(address - BASE, bytes);
    }

    pub(crate) fn clear(&self, address: u64, len: u64) {
        self.bytes.fill(address - BASE, len, 0);
    }

    /// Where the next table will be.
    pub(crate) fn next_page(&self) -> u64 {
        self.next.get()
    }

    /// Tables from `page` on may be made anew.
    pub(crate) fn reuse(&self, page: u64) {
        let end = self.next.get();
        self.clear(page, end.saturating_sub(page));
        self.next.set(page.min(end));
    }

    /// Where [`BASE`] is in this process.
    pub(crate) fn host_address(&self) -> u64 {
        self.bytes.address()
    }

    /// The address in the memory of page `page` of [`SCATTERED`].
    pub(crate) const fn scattered(page: u64) -> u64 {
        // 5 and 64 have no common divisor.
        BASE + SCATTERED_DATA + 4096 * (page * 5 % SCATTERED_PAGES)
    }
}

/// Different bytes at each place.
pub(crate) fn pattern(len: u64, seed: u64) -> Vec<u8> {
    let byte = |at: u64| (at ^ at >> 8).wrapping_mul(31).wrapping_add(seed) as u8;
    (0..len).map(byte).collect()
}

/// A guest with a whole device, whose IOAS holds the memory.
pub(crate) struct Guest {
    pub(crate) vm: Vm,
    pub(crate) memory: Memory,
    pub(crate) dsa: Dsa,
    /// The HWPT that holds guest-physical addresses.
    pub(crate) parent: u32,
}

impl Guest {
    pub(crate) fn new(kind: MemoryKind, queues: &[Queue]) -> Result<Guest> {
        Guest::on(Vm::open()?, kind, queues)
    }

    /// A guest whose memory is mapped page by page: so dirty pages are told one by one.
    pub(crate) fn of_small_pages(kind: MemoryKind, queues: &[Queue]) -> Result<Guest> {
        let vm = Vm::open()?;
        host::small_pages(&vm)?;
        Guest::on(vm, kind, queues)
    }

    fn on(vm: Vm, kind: MemoryKind, queues: &[Queue]) -> Result<Guest> {
        let memory = map_memory(&vm, kind)?;
        let pdev = discover::first_pdev()?.ok_or("there is no whole device")?;
        let device = vm.open_device(&pdev)?;
        let parent = alloc_parent(&vm, &device)?;
        host::attach(&device, None, parent)?;
        Ok(Guest {
            dsa: Dsa::bring_up(device, queues)?,
            vm,
            memory,
            parent,
        })
    }

    pub(crate) fn device(&self) -> &Device {
        self.dsa.device()
    }

    /// A table with the page of records.
    pub(crate) fn table(&self, levels: u32) -> Table {
        let table = Table::new(&self.memory, levels);
        table.map(&self.memory, RECORD_PAGE, 0, RECORDS);
        table
    }

    /// A HWPT for a table.
    pub(crate) fn nest(&self, table: &Table, options: u32) -> Result<u32> {
        let hwpt = host::nest(&self.vm, self.device(), self.parent, table, options, None)?;
        Ok(hwpt)
    }

    /// The same, which asks for pages.
    pub(crate) fn nest_with_faults(&self, table: &Table, faults: &Faults) -> Result<u32> {
        let (vm, device) = (&self.vm, self.device());
        let hwpt = host::nest(vm, device, self.parent, table, 0, Some(faults.id))?;
        Ok(hwpt)
    }

    /// Attaches a new HWPT for `table` at the RID, and gives its id.
    pub(crate) fn use_table(&self, table: &Table, options: u32) -> Result<u32> {
        let hwpt = self.nest(table, options)?;
        host::attach(self.device(), None, hwpt)?;
        Ok(hwpt)
    }

    /// Puts record `index` back to "not done".
    pub(crate) fn clear_record(&self, index: u64) {
        self.memory.clear(RECORDS + 32 * index, 32);
    }

    /// Submits to `queue`, with record `index`.
    pub(crate) fn submit(&self, queue: u64, index: u64, descriptor: Descriptor) {
        self.clear_record(index);
        self.dsa.submit(queue, RECORD_PAGE + 32 * index, descriptor);
    }

    /// Waits for record `index`.
    pub(crate) fn wait(&self, index: u64) -> Result<Completion> {
        let at = RECORDS + 32 * index;
        crate::dsa::eventually(
            "a completion record",
            || Ok(self.memory.read(at, 1)[0] != 0),
        )?;
        let mut bytes = [0; Completion::SIZE];
        bytes.copy_from_slice(&self.memory.read(at, 32));
        Ok(Completion::decode(&bytes))
    }

    /// Submits to `queue` and waits.
    pub(crate) fn run(&self, queue: u64, descriptor: Descriptor) -> Result<Completion> {
        self.submit(queue, 0, descriptor);
        self.wait(0)
    }

    /// Runs it on queue 0, and fails unless it succeeds.
    pub(crate) fn succeed(&self, descriptor: Descriptor) -> Result {
        let done = self.run(0, descriptor)?;
        crate::check!(done.status == Status::SUCCESS, "it ended with {done:x?}");
        Ok(())
    }
}

/// A HWPT for guest-physical addresses, with dirty tracking, that PASIDs may use.
pub(crate) fn alloc_parent(vm: &Vm, device: &Device) -> Result<u32> {
    let flags = NEST_PARENT | DIRTY_TRACKING | ALLOC_PASID;
    Ok(vm.alloc_hwpt(device, flags)?)
}

/// The memory of a guest, mapped.
pub(crate) fn map_memory(vm: &Vm, kind: MemoryKind) -> Result<Memory> {
    let bytes = Arc::new(DmaMemory::new(SIZE as usize, kind)?);
    let at = bytes.address();
    let both = READABLE | WRITEABLE;
    host::map(vm, both, at, BASE, SIZE)?;
    for page in 0..SCATTERED_PAGES {
        let from = at + Memory::scattered(page) - BASE;
        host::map(vm, both, from, SCATTERED + 4096 * page, 4096)?;
    }
    host::map(vm, READABLE, at + READ_ONLY_DATA, READ_ONLY, 4096)?;
    Ok(Memory {
        bytes,
        next: Cell::new(TABLES),
    })
}
