//! Two stages against one: reads of a word at random pages of a guest, and copies.

use std::sync::Arc;

use ioasid_core::{
    PciAddress, Prot, Rid,
    memory::{OwnPages, PAGE_SIZE},
};
use ioasid_iommu::{
    Device, DeviceConfig, DmaSource, Domain, DomainConfig, FaultLog, FaultSink, FirstStage, Iommu,
    IommuConfig,
};

use crate::{
    dma::copy,
    measure::{Contender, Effort, Table, measure},
    opaque::opaque,
};

/// Bytes that the guest's devices reach: 32768 pages, 64 tables of the lowest level.
const SPAN: u64 = 128 << 20;
/// The guest's memory: tables besides.
const MEMORY: u64 = SPAN + 3 * TABLES;
/// For the tables of each guest.
const TABLES: u64 = 1 << 20;
/// Where the guest's tables map its memory to.
const IOVA: u64 = 0x7f00_0000_0000;
/// Reads under one guard.
const READS: u64 = 64;

/// A guest whose memory stands in a domain, with leaves as large as they come or page by page.
struct Guest {
    sizes: Sizes,
    device: Arc<Device>,
    nested: Arc<Device>,
    _domains: [Arc<Domain>; 2],
}

struct Bench {
    _iommu: Arc<Iommu>,
    _memory: OwnPages,
    guests: [Guest; 3],
}

/// The sizes of leaves: of the guest's memory in its domain, and of the guest's own pages.
#[derive(Clone, Copy)]
struct Sizes {
    parent_large: bool,
    guest_large: bool,
}

impl Sizes {
    /// The guest-physical address of its memory. One that is one page off leaves no leaf larger than a page.
    fn base(self) -> u64 {
        (4 << 30) + if self.parent_large { 0 } else { PAGE_SIZE }
    }
}

impl Bench {
    fn new() -> Self {
        let iommu = Iommu::new(IommuConfig::default());
        let memory = OwnPages::new(iommu.space(), MEMORY as usize).expect("an empty space");
        memory.memory().write(0, &vec![1; SPAN as usize]);
        let mut number = 0;
        let guests = [(false, false), (true, true), (true, false)].map(|(parent, guest)| {
            number += 1;
            let sizes = Sizes {
                parent_large: parent,
                guest_large: guest,
            };
            Guest::new(&iommu, &memory, number, sizes)
        });
        Bench {
            _iommu: iommu,
            _memory: memory,
            guests,
        }
    }
}

impl Guest {
    /// One whose tables stand behind those of the guests with lower numbers.
    fn new(iommu: &Arc<Iommu>, memory: &OwnPages, number: u16, sizes: Sizes) -> Self {
        let log: Arc<dyn FaultSink> = FaultLog::new(16);
        let attached = |rid, domain: &Arc<Domain>| {
            let address = PciAddress {
                segment: 0,
                rid: Rid(rid),
            };
            let device = iommu.add_device(DeviceConfig::new(address));
            let device = device.expect("a new address");
            let source = DmaSource::new(&device, None);
            source.attach(domain, &log).expect("nothing is attached");
            device
        };
        let config = DomainConfig::unmanaged(iommu.config().format);
        let parent = iommu.alloc_domain(config).expect("a domain");
        let base = sizes.base();
        parent
            .map(base, memory.spa(), MEMORY, Prot::RW)
            .expect("nothing is mapped");
        let offset = SPAN + u64::from(number - 1) * TABLES;
        let root = write_tables(memory, base, offset, sizes.guest_large);
        let nested = parent.nest(FirstStage::new(root)).expect("a second stage");
        // What the guest's device reaches through two stages, another one reaches through one.
        Guest {
            sizes,
            device: attached(0x6a00 + 8 * number, &parent),
            nested: attached(0x6b00 + 8 * number, &nested),
            _domains: [parent, nested],
        }
    }
}

/// Writes first-stage tables at `offset` of the memory, which map its first `SPAN` bytes from `IOVA` on, by pages of
/// 2 MiB or of 4 KiB; gives the guest-physical address of the top one.
fn write_tables(memory: &OwnPages, base: u64, offset: u64, large: bool) -> u64 {
    const TABLE: u64 = 0x27; // present, writable, user, accessed
    const PAGE: u64 = 0x67; // dirty too
    const LARGE: u64 = PAGE | 1 << 7;
    let table = |number: u64| offset + number * PAGE_SIZE;
    let write = |table: u64, index: u64, entry: u64| {
        let entry = entry.to_le_bytes();
        memory.memory().write((table + 8 * index) as usize, &entry);
    };
    let (top, third, second) = (table(0), table(1), table(2));
    write(top, IOVA >> 39 & 511, (base + third) | TABLE);
    write(third, IOVA >> 30 & 511, (base + second) | TABLE);
    for number in 0..SPAN >> 21 {
        if large {
            write(second, number, (base + (number << 21)) | LARGE);
            continue;
        }
        let lowest = table(3 + number);
        write(second, number, (base + lowest) | TABLE);
        for page in 0..512 {
            let address = base + (number << 21) + page * PAGE_SIZE;
            write(lowest, page, address | PAGE);
        }
    }
    base + top
}

/// Reads of 8 bytes at pages in an order without order, of the first `pages` ones.
fn reads<'a>(device: &Arc<Device>, name: String, base: u64, pages: u64) -> Contender<'a> {
    let mut port = device.port();
    let mut number = 0_u64;
    let contender = Contender::new(name, move |n| {
        for _ in 0..n {
            let mut guard = port.enter(None);
            for _ in 0..READS {
                number = number.wrapping_mul(0xd134_2543_de82_ef95).wrapping_add(1);
                let page = (number >> 40) % pages;
                let mut word = [0; 8];
                let done = guard.read(base + page * PAGE_SIZE, &mut word).done;
                assert_eq!(done, 8, "a read stopped");
                opaque(u64::from_le_bytes(word));
            }
        }
    });
    contender.per(READS)
}

fn copies<'a>(device: &Arc<Device>, name: String, base: u64, span: u64) -> Contender<'a> {
    let mut port = device.port();
    let mut offset = 0;
    Contender::new(name, move |n| {
        for _ in 0..n {
            offset = (offset + PAGE_SIZE) % span;
            copy(
                &mut port,
                base + SPAN / 2 + offset,
                base + offset,
                PAGE_SIZE,
            );
        }
    })
}

/// The tables of this benchmark.
pub(crate) fn tables(effort: Effort) -> Vec<Table> {
    let bench = Bench::new();
    let mut tables = Vec::new();
    let pairs = |make: &dyn Fn(&Arc<Device>, String, u64) -> Contender<'static>, goal: f64| {
        let mut contenders = Vec::new();
        for Guest {
            sizes,
            device,
            nested,
            ..
        } in &bench.guests
        {
            let leaves = if sizes.parent_large { "large" } else { "4 KiB" };
            let pages = if sizes.guest_large { "2 MiB" } else { "4 KiB" };
            let two = make(
                nested,
                format!("{pages} pages of a guest, {leaves} leaves"),
                IOVA,
            );
            // What one stage does with such leaves; a translation that is kept covers as much there.
            if sizes.parent_large == sizes.guest_large {
                let one = format!("one stage, {leaves} leaves");
                contenders.push(make(device, one, sizes.base()));
                let anchor = contenders.len() - 1;
                contenders.push(two.goal(anchor, goal));
            } else {
                contenders.push(two);
            }
        }
        contenders
    };
    for (temperature, pages, goal) in [("cold", SPAN / PAGE_SIZE, 2.5), ("warm", 48, 1.2)] {
        let make = |device: &Arc<Device>, name, base| reads(device, name, base, pages);
        tables.push(measure(
            format!("reads of 8 bytes through two stages, {temperature}, {pages} pages"),
            "ns",
            effort,
            pairs(&make, goal),
        ));
    }
    for (temperature, span, goal) in [("cold", SPAN / 2, 2.5), ("hot", PAGE_SIZE, 1.2)] {
        let make = |device: &Arc<Device>, name, base| copies(device, name, base, span);
        tables.push(measure(
            format!("dma of 4 KiB through two stages, {temperature}"),
            "ns",
            effort,
            pairs(&make, goal),
        ));
    }
    tables
}
