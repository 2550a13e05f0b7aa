//! Map and unmap: one page at a time, and many leaves in one call.

use ioasid_core::{AddrRange, PciAddress, Prot, Rid, memory::PAGE_SIZE as PAGE};
use ioasid_iommu::{DmaSource, Domain, DomainConfig, Iommu, IommuConfig};
use ioasid_pgtable::{PageTable, TableConfig, TableFormat};
use vm_memory::{GuestAddress, Iotlb, Permissions};

use std::sync::Arc;

use crate::{
    clock::thread_cpu,
    measure::{Contender, Effort, Table, measure},
    opaque::opaque,
};

const GIB: u64 = 1 << 30;
/// Physical addresses that are a page off, so that no leaf can be larger than 4 KiB.
const SPA: u64 = (1 << 40) + PAGE;

fn page(iova: u64) -> AddrRange {
    AddrRange::from_len(iova, PAGE).expect("a page inside the space")
}

/// The IOVA of the `number`th page: spread over 1 GiB.
fn spread(number: u64) -> u64 {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - 18)) * PAGE
}

/// Maps and unmaps one page after another; a neighbour keeps the tables in place.
fn one_page<'a>(
    name: impl Into<String>,
    mut map: impl FnMut(u64, u64) + 'a,
    mut unmap: impl FnMut(u64) + 'a,
) -> Contender<'a> {
    let mut number = 0;
    Contender::new(name, move |iterations| {
        for _ in 0..iterations {
            number += 1;
            // Odd pages only: the even ones stay mapped.
            let iova = spread(number) | PAGE;
            map(iova, SPA + spread(number));
            unmap(iova);
        }
    })
}

fn every_second_page(mut map: impl FnMut(u64, u64)) {
    for number in 0..GIB / PAGE / 2 {
        let iova = 2 * number * PAGE;
        map(iova, SPA + iova);
    }
}

fn single(effort: Effort) -> Table {
    let formats = TableFormat::ALL.map(|format| PageTable::new(TableConfig::new(format)));
    for table in &formats {
        every_second_page(|iova, spa| {
            let mapped = table.map(iova, spa, PAGE, Prot::RW);
            assert_eq!(mapped, Ok(()), "mapping {iova:#x}");
        });
    }
    let (_iommu, domain) = domain();
    every_second_page(|iova, spa| {
        let mapped = domain.map(iova, spa, PAGE, Prot::RW);
        assert_eq!(mapped, Ok(()), "mapping {iova:#x}");
    });
    let mut iotlb = Iotlb::new();
    let permissions = Permissions::ReadWrite;
    every_second_page(|iova, spa| {
        // Scattered targets: what lies beside each other would become one entry.
        let spa = GuestAddress(spa ^ (iova << 4));
        let mapped = iotlb.set_mapping(GuestAddress(iova), spa, PAGE as usize, permissions);
        assert!(mapped.is_ok(), "mapping {iova:#x}");
    });
    let iotlb = std::cell::RefCell::new(iotlb);
    let mut contenders = vec![one_page(
        "vm-memory Iotlb",
        |iova, spa| {
            let (iova, spa) = (GuestAddress(iova), GuestAddress(spa ^ (iova << 4)));
            let mapped = iotlb
                .borrow_mut()
                .set_mapping(iova, spa, PAGE as usize, permissions);
            opaque(u64::from(mapped.is_ok()));
        },
        |iova| {
            let mut iotlb = iotlb.borrow_mut();
            iotlb.invalidate_mapping(GuestAddress(iova), PAGE as usize);
        },
    )];
    for table in &formats {
        let contender = one_page(
            table.format().name(),
            |iova, spa| {
                opaque(u64::from(table.map(iova, spa, PAGE, Prot::RW).is_ok()));
            },
            |iova| {
                let unmapped = table.unmap(page(iova));
                table.recycle(unmapped.freed);
            },
        );
        contenders.push(contender);
    }
    contenders.push(one_page(
        "domain, with its barrier",
        |iova, spa| {
            opaque(u64::from(domain.map(iova, spa, PAGE, Prot::RW).is_ok()));
        },
        |iova| {
            opaque(domain.unmap(page(iova)));
        },
    ));
    measure(
        "map and unmap one page of 4 KiB, at random in 1 GiB, tables in place",
        "ns",
        effort,
        contenders,
    )
    .note("Linux 7.2's generic page table: about 31 + 33 ns, on an idle machine, not in this run")
}

/// A domain with one attached device whose engine is idle.
fn domain() -> (Arc<Iommu>, Arc<Domain>) {
    let iommu = Iommu::new(IommuConfig::default());
    let address = PciAddress {
        segment: 0,
        rid: Rid(0x6a08),
    };
    let device = iommu
        .add_device(ioasid_iommu::DeviceConfig::new(address))
        .expect("the first device");
    let domain = iommu
        .alloc_domain(DomainConfig::unmanaged(device.format()))
        .expect("a domain");
    let log: Arc<dyn ioasid_iommu::FaultSink> = ioasid_iommu::FaultLog::new(16);
    DmaSource::new(&device, None)
        .attach(&domain, &log)
        .expect("nothing is attached yet");
    (iommu, domain)
}

/// Leaves of one size that one call maps or unmaps.
struct Whole {
    what: &'static str,
    len: u64,
    leaf: u64,
    /// What a leaf takes at most, as a multiple of a `memset` of as many entries: to map and to unmap.
    goals: [f64; 2],
    /// What is known of Linux.
    note: &'static str,
}

const WHOLES: [Whole; 2] = [
    Whole {
        what: "1 GiB as 262144 leaves of 4 KiB",
        len: GIB,
        leaf: PAGE,
        goals: [2.0, 1.4],
        note: "Linux 7.2's generic page table: 335 us to map, 240 us to unmap, not in this run",
    },
    Whole {
        what: "64 GiB as 32768 leaves of 2 MiB",
        len: 64 * GIB,
        leaf: 2 << 20,
        goals: [2.0, 2.0],
        note: "Linux 7.2's generic page table: 40 us to map, 32 us to unmap, not in this run",
    },
];

fn whole(effort: Effort, whole: &Whole, mapping: bool) -> Table {
    let formats = TableFormat::ALL.map(|format| PageTable::new(TableConfig::new(format)));
    // One leaf off, so that none can be larger.
    let (iova, spa) = (64 * GIB, (1 << 40) + whole.leaf);
    let map = |table: &PageTable| {
        let mapped = table.map(iova, spa, whole.len, Prot::RW);
        assert_eq!(mapped, Ok(()), "{}", whole.what);
    };
    let unmap = |table: &PageTable| {
        let range = AddrRange::from_len(iova, whole.len).expect("inside the space");
        let unmapped = table.unmap(range);
        assert_eq!(unmapped.bytes, whole.len);
        table.recycle(unmapped.freed);
    };
    // Only one half of each pair is timed.
    fn timed(work: impl FnOnce()) -> u64 {
        let before = thread_cpu();
        work();
        thread_cpu() - before
    }
    let entries = (whole.len / whole.leaf) as usize;
    let mut memory = vec![0_u64; entries];
    let mut value = 0;
    let mut contenders = vec![
        Contender::new("memset of as many entries", move |n| {
            for _ in 0..n {
                value += 1;
                memory.fill(opaque(value));
                opaque(memory[value as usize % entries]);
            }
        })
        .per(1000),
    ];
    for table in &formats {
        let contender = Contender::timing_itself(table.format().name(), move |n| {
            let mut spent = 0;
            for _ in 0..n {
                if mapping {
                    spent += timed(|| map(table));
                    unmap(table);
                } else {
                    map(table);
                    spent += timed(|| unmap(table));
                }
            }
            spent
        });
        let contender = contender.per(1000);
        let goal = whole.goals[usize::from(!mapping)];
        contenders.push(contender.goal(0, goal));
    }
    let verb = if mapping { "map" } else { "unmap" };
    let title = format!("{verb} {} in one call", whole.what);
    measure(title, "us", effort, contenders).note(whole.note)
}

/// The tables of this benchmark.
pub(crate) fn tables(effort: Effort) -> Vec<Table> {
    let mut tables = vec![single(effort)];
    for kind in &WHOLES {
        tables.extend([true, false].map(|mapping| whole(effort, kind, mapping)));
    }
    tables
}
