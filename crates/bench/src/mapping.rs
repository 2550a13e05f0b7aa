//! Map and unmap: one page at a time, and a gibibyte of pages in one call.

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

fn gibibyte(effort: Effort) -> [Table; 2] {
    let formats = TableFormat::ALL.map(|format| PageTable::new(TableConfig::new(format)));
    let map = |table: &PageTable| {
        let mapped = table.map(0, SPA, GIB, Prot::RW);
        assert_eq!(mapped, Ok(()), "1 GiB");
    };
    let unmap = |table: &PageTable| {
        let range = AddrRange::from_len(0, GIB).expect("1 GiB");
        let unmapped = table.unmap(range);
        assert_eq!(unmapped.bytes, GIB);
        table.recycle(unmapped.freed);
    };
    // Only one half of each pair is timed.
    fn timed(work: impl FnOnce()) -> u64 {
        let before = thread_cpu();
        work();
        thread_cpu() - before
    }
    let entries = (GIB / PAGE) as usize;
    let tables = [true, false].map(|mapping| {
        let mut memory = vec![0_u64; entries];
        let mut value = 0;
        let mut contenders = vec![
            Contender::new("memset of 2 MiB of entries", move |n| {
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
            contenders.push(contender.goal(0, 2.0));
        }
        let what = if mapping { "map" } else { "unmap" };
        let title = format!("{what} 1 GiB as 262144 leaves of 4 KiB in one call");
        measure(title, "us", effort, contenders)
    });
    tables.map(|table| {
        table
            .note("Linux 7.2's generic page table: 335 us to map, 240 us to unmap, not in this run")
    })
}

/// The tables of this benchmark.
pub(crate) fn tables(effort: Effort) -> Vec<Table> {
    let mut tables = vec![single(effort)];
    tables.extend(gibibyte(effort));
    tables
}
