//! Mappings of an address space: what one costs in time, with a domain and without, and many of them at
//! an attach.

use std::{cell::Cell, sync::Arc};

use ioasid_core::{
    AddrRange, PciAddress, Prot, Rid,
    heap::CountedHeap,
    memory::{OwnPages, PAGE_SIZE as PAGE},
};
use ioasid_iommu::{DeviceConfig, FaultLog, Iommu, IommuConfig};
use ioasid_iommufd::{BoundDevice, Context, MapArgs, ObjectId};
use ioasid_pgtable::{PageTable, TableConfig, TableFormat};
use vm_memory::{GuestAddress, Iotlb, Permissions};

use crate::{
    clock::thread_cpu,
    measure::{Contender, Effort, Table, measure},
    opaque::opaque,
};

const HUGE: u64 = 2 << 20;
/// Where the mapping is that comes and goes; a neighbour at twice that keeps the tables in place.
const IOVA: u64 = 1 << 30;
/// Mappings at an attach.
const MANY: u64 = 1 << 17;

/// A file with an address space, and memory.
struct Stage {
    context: Arc<Context>,
    ioas: ObjectId,
    pages: OwnPages,
    iommu: Arc<Iommu>,
}

impl Stage {
    fn new(len: u64) -> Stage {
        let iommu = Iommu::new(IommuConfig::default());
        let context = Context::new(&iommu);
        let ioas = context.ioas_alloc().expect("an address space");
        let pages = OwnPages::new(iommu.space(), len as usize).expect("room for memory");
        Stage {
            context,
            ioas,
            pages,
            iommu,
        }
    }

    /// As the ioctl does, with a source of its own.
    fn map(&self, iova: u64, offset: u64, len: u64) {
        let args = MapArgs {
            offset,
            ..MapArgs::fixed(iova, len, Prot::RW)
        };
        let source = Arc::new(self.pages.clone());
        let mapped = self.context.ioas_map(self.ioas, source, args);
        assert_eq!(mapped, Ok(iova), "{len:#x} bytes at {iova:#x}");
    }

    fn unmap(&self, iova: u64, len: u64) {
        let unmapped = self.context.ioas_unmap(self.ioas, iova, len);
        assert_eq!(unmapped, Ok(len), "{iova:#x}");
    }

    fn device(&self) -> BoundDevice {
        let address = PciAddress {
            segment: 0,
            rid: Rid(0x6a08),
        };
        let device = self.iommu.add_device(DeviceConfig::new(address));
        let device = device.expect("the first device");
        let bound = self.context.bind_device(&device, FaultLog::new(16));
        bound.expect("nobody else has it")
    }
}

/// `MANY` pages, each a mapping of its own.
fn map_many(stage: &Stage) {
    for number in 0..MANY {
        stage.map(IOVA + number * PAGE, number * PAGE % HUGE, PAGE);
    }
}

fn one_mapping(effort: Effort) -> Table {
    let mut iotlb = Iotlb::new();
    let set = |iotlb: &mut Iotlb, iova| {
        let (at, to) = (GuestAddress(iova), GuestAddress(iova << 4));
        let mapped = iotlb.set_mapping(at, to, PAGE as usize, Permissions::ReadWrite);
        assert!(mapped.is_ok(), "mapping {iova:#x}");
    };
    set(&mut iotlb, 2 * IOVA);
    let anchor = Contender::new("vm-memory Iotlb", |n| {
        for _ in 0..n {
            set(&mut iotlb, IOVA);
            iotlb.invalidate_mapping(GuestAddress(IOVA), PAGE as usize);
        }
    });
    let toggle = |name: &str, len, attached: bool| {
        let stage = Stage::new(len);
        stage.map(2 * IOVA, 0, PAGE);
        let device = attached.then(|| {
            let device = stage.device();
            device.attach(stage.ioas).expect("the first");
            device
        });
        Contender::new(name, move |n| {
            for _ in 0..n {
                stage.map(IOVA, 0, len);
                stage.unmap(IOVA, len);
            }
            opaque(u64::from(device.is_some()));
        })
    };
    let contenders = vec![
        anchor,
        toggle("IOAS without a domain, 4 KiB", PAGE, false).goal(0, 2.3),
        toggle("IOAS with a domain, 4 KiB", PAGE, true).goal(0, 6.9),
        toggle("IOAS with a domain, 2 MiB", HUGE, true).goal(0, 20.0),
    ];
    measure(
        "map and unmap in an address space, one mapping beside another",
        "ns",
        effort,
        contenders,
    )
    .note(
        "Linux 7.2's iommufd, not in this run: 2.3x what the Iotlb takes without a domain, 14x \
         with one, 400x for 2 MiB of pages",
    )
}

fn attach(effort: Effort) -> Table {
    let stage = Stage::new(HUGE);
    map_many(&stage);
    let device = stage.device();
    let spent = Cell::new(0);
    let timed = |work: &dyn Fn()| {
        let before = thread_cpu();
        work();
        spent.set(spent.get() + thread_cpu() - before);
    };
    let anchor = Contender::timing_itself("table map, one by one", |n| {
        spent.set(0);
        for _ in 0..n {
            let table = PageTable::new(TableConfig::new(TableFormat::VtdSecondStage));
            timed(&|| {
                for number in 0..MANY {
                    let spa = (1 << 40) + number * PAGE % HUGE;
                    let mapped = table.map(IOVA + number * PAGE, spa, PAGE, Prot::RW);
                    opaque(u64::from(mapped.is_ok()));
                }
            });
            let unmapped = table.unmap(AddrRange::ALL);
            table.recycle(unmapped.freed);
        }
        spent.get()
    })
    .per(MANY);
    let halves = [("attach", true), ("detach", false)].map(|(name, attaching)| {
        let (stage, device, timed, spent) = (&stage, &device, &timed, &spent);
        let contender = Contender::timing_itself(name, move |n| {
            spent.set(0);
            for _ in 0..n {
                let attach = || {
                    device.attach(stage.ioas).expect("the only one");
                };
                let detach = || device.detach();
                if attaching {
                    timed(&attach);
                    detach();
                } else {
                    attach();
                    timed(&detach);
                }
            }
            spent.get()
        });
        contender.per(MANY).goal(0, 10.0)
    });
    let contenders = std::iter::once(anchor).chain(halves).collect();
    let title = format!("attach a device to an address space of {MANY} mappings of 4 KiB");
    measure(title, "ns", effort, contenders)
}

/// Counted, not measured: the same in every run.
fn bytes() -> Table {
    let each = |bytes: isize| vec![bytes as f64 / MANY as f64];
    let stage = Stage::new(HUGE);
    let before = CountedHeap::live();
    map_many(&stage);
    let without = CountedHeap::live() - before;
    let device = stage.device();
    device.attach(stage.ioas).expect("the first");
    let with = CountedHeap::live() - before;
    let unmapped = stage.context.ioas_unmap_all(stage.ioas);
    assert_eq!(unmapped, Ok(MANY * PAGE));
    device.detach();
    drop(device);
    let left = CountedHeap::live() - before;
    let title = format!("memory of each of {MANY} mappings of 4 KiB");
    let rows = vec![
        ("an entry of a page table".to_owned(), vec![8.0], None),
        ("without a domain".to_owned(), each(without), Some(32.0)),
        ("with a domain".to_owned(), each(with), Some(32.0)),
        ("after UNMAP of all".to_owned(), each(left), Some(0.1)),
    ];
    Table::from_samples(title, "bytes", rows).note(
        "bytes that are asked for; the system's allocator adds 8 to 16 to each of three requests",
    )
}

/// The tables of this benchmark.
pub(crate) fn tables(effort: Effort) -> Vec<Table> {
    vec![one_mapping(effort), attach(effort), bytes()]
}
