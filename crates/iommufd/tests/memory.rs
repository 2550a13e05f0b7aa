//! What a mapping costs on the heap, counted byte by byte.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use ioasid_core::{PciAddress, Prot, Rid, heap::CountedHeap, memory::OwnPages};
use ioasid_iommu::{DeviceConfig, FaultLog, Iommu, IommuConfig};
use ioasid_iommufd::{BoundDevice, Context, MapArgs, ObjectId};

#[global_allocator]
static HEAP: CountedHeap = CountedHeap;

const PAGE: u64 = 4096;
const COUNT: u64 = 20_000;

/// Bytes that a mapping may cost with a domain or without, its source included. The entry in the
/// page table is not, nor what the system's allocator adds to an allocation.
const MOST: isize = 192;

struct Stage {
    iommu: Arc<Iommu>,
    context: Arc<Context>,
    ioas: ObjectId,
    memory: OwnPages,
}

impl Stage {
    fn new() -> Self {
        let iommu = Iommu::new(IommuConfig::default());
        let context = Context::new(&iommu);
        Stage {
            ioas: context.ioas_alloc().unwrap(),
            memory: OwnPages::new(iommu.space(), PAGE as usize).unwrap(),
            context,
            iommu,
        }
    }

    fn device(&self) -> BoundDevice {
        let address = PciAddress {
            segment: 0,
            rid: Rid(8),
        };
        let device = self.iommu.add_device(DeviceConfig::new(address)).unwrap();
        self.context.bind_device(&device, FaultLog::new(8)).unwrap()
    }

    fn map(&self, page: u64) {
        let args = MapArgs::fixed((1 << 30) + page * PAGE, PAGE, Prot::RW);
        let source = Arc::new(self.memory.clone());
        self.context.ioas_map(self.ioas, source, args).unwrap();
    }

    fn unmap(&self, page: u64) {
        let iova = (1 << 30) + page * PAGE;
        let unmapped = self.context.ioas_unmap(self.ioas, iova, PAGE);
        assert_eq!(unmapped, Ok(PAGE));
    }
}

/// Bytes on the heap that `work` leaves.
fn left_by(work: impl FnOnce()) -> isize {
    let before = CountedHeap::live();
    work();
    CountedHeap::live() - before
}

#[test]
fn a_mapping_costs_few_bytes_and_an_unmap_gives_them_back() {
    let stage = Stage::new();
    let orders: [(&str, Vec<u64>); 3] = [
        ("ascending", (0..COUNT).collect()),
        ("descending", (0..COUNT).rev().collect()),
        // 7919 is prime to the count: every page once, each far from the one before.
        ("scattered", (0..COUNT).map(|n| n * 7919 % COUNT).collect()),
    ];
    for attached in [false, true] {
        let device = attached.then(|| stage.device());
        if let Some(device) = &device {
            device.attach(stage.ioas).unwrap();
        }
        for (name, order) in &orders {
            // What the first use of a page table keeps for the next is no mapping's.
            order.iter().for_each(|page| stage.map(*page));
            stage.context.ioas_unmap_all(stage.ioas).unwrap();
            let mut mapped = 0;
            let all_at_once = left_by(|| {
                mapped = left_by(|| order.iter().for_each(|page| stage.map(*page)));
                stage.context.ioas_unmap_all(stage.ioas).unwrap();
            });
            let one_by_one = left_by(|| {
                order.iter().for_each(|page| stage.map(*page));
                order.iter().for_each(|page| stage.unmap(*page));
            });
            let each = mapped / COUNT.cast_signed() as isize;
            println!("{name}, attached {attached}: {each} bytes, {all_at_once} {one_by_one} left");
            let most = MOST + if *name == "scattered" { 32 } else { 0 };
            assert!(
                each <= most,
                "{name}, attached {attached}: {each} bytes each"
            );
            assert_eq!(
                (all_at_once, one_by_one),
                (0, 0),
                "{name}, attached {attached}"
            );
        }
    }
}
