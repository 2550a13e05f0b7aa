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
const MEMORY: u64 = SPAN + (2 << 20);
/// Where the guest's tables map its memory to.
const IOVA: u64 = 0x7f00_0000_0000;
/// Reads under one guard.
const READS: u64 = 64;

/// A guest whose memory stands in a domain, with leaves as large as they come or page by page.
struct Guest {
    device: Arc<Device>,
    nested: Arc<Device>,
    _domains: [Arc<Domain>; 2],
}

struct Bench {
    _iommu: Arc<Iommu>,
    _memory: OwnPages,
    guests: [(&'static str, Guest); 2],
}

impl Bench {
    fn new() -> Self {
        let iommu = Iommu::new(IommuConfig::default());
        let memory = OwnPages::new(iommu.space(), MEMORY as usize).expect("an empty space");
        memory.memory().write(0, &vec![1; SPAN as usize]);
        let guests = [("4 KiB", false), ("large", true)].map(|(leaves, large)| {
            let guest = guest(&iommu, &memory, 8 * u16::from(large), large);
            (leaves, guest)
        });
        Bench {
            _iommu: iommu,
            _memory: memory,
            guests,
        }
    }
}

fn guest(iommu: &Arc<Iommu>, memory: &OwnPages, first_rid: u16, large: bool) -> Guest {
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
    // A guest-physical address one page off leaves no leaf larger than a page.
    let base = (4 << 30) + if large { 0 } else { PAGE_SIZE };
    parent
        .map(base, memory.spa(), MEMORY, Prot::RW)
        .expect("nothing is mapped");
    let root = write_tables(memory, base);
    let nested = parent.nest(FirstStage::new(root)).expect("a second stage");
    // What the guest's device reaches through two stages, another one reaches through one.
    Guest {
        device: attached(0x6a00 + first_rid, &parent),
        nested: attached(0x6a40 + first_rid, &nested),
        _domains: [parent, nested],
    }
}

/// Writes first-stage tables behind the first `SPAN` bytes, which map those from `IOVA` on page by page;
/// gives the guest-physical address of the top one.
fn write_tables(memory: &OwnPages, base: u64) -> u64 {
    const TABLE: u64 = 0x27; // present, writable, user, accessed
    const PAGE: u64 = 0x67; // dirty too
    let table = |number: u64| SPAN + number * PAGE_SIZE;
    let write = |table: u64, index: u64, entry: u64| {
        let entry = entry.to_le_bytes();
        memory.memory().write((table + 8 * index) as usize, &entry);
    };
    let (top, third, second) = (table(0), table(1), table(2));
    write(top, IOVA >> 39 & 511, (base + third) | TABLE);
    write(third, IOVA >> 30 & 511, (base + second) | TABLE);
    for number in 0..SPAN >> 21 {
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
        for (leaves, guest) in &bench.guests {
            let base = (4 << 30) + if *leaves == "large" { 0 } else { PAGE_SIZE };
            let anchor = contenders.len();
            let one = format!("one stage, {leaves} leaves");
            contenders.push(make(&guest.device, one, base));
            let two = format!("4 KiB pages of the guest on that");
            contenders.push(make(&guest.nested, two, IOVA).goal(anchor, goal));
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
