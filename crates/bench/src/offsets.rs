//! DMA to and from a program's shared memory, the two sides at any distance modulo the page: a copy
//! whose destination lies a few bytes behind the source modulo 4096 is an order of magnitude slower on
//! some processors, if it is made by the string instructions.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use ioasid_core::{PciAddress, Prot, Rid, memory::Extent};
use ioasid_host::{Client, Closer, ReceivedFd};
use ioasid_iommu::{
    Device, DeviceConfig, DmaSource, DomainConfig, FaultLog, FaultSink, Iommu, IommuConfig,
};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use crate::{
    dma::copy,
    measure::{Contender, Effort, Table, measure},
};

/// Bytes on each side: more than most caches hold.
const SPAN: u64 = 128 << 20;
/// Where the memory is mapped.
const BASE: u64 = 1 << 40;

/// Offsets of the source and of the destination in their pages. The first pair is the anchor.
const OFFSETS: [(u64, u64); 30] = [
    (0, 0),
    (0, 1),
    (0, 2),
    (0, 3),
    (0, 4),
    (0, 7),
    (0, 8),
    (0, 12),
    (0, 15),
    (0, 16),
    (0, 17),
    (0, 24),
    (0, 31),
    (0, 32),
    (0, 33),
    (0, 48),
    (0, 63),
    (0, 64),
    (0, 65),
    (0, 256),
    (0, 2048),
    (0, 2056),
    (0, 4032),
    (0, 4095),
    (1, 0),
    (8, 0),
    (33, 0),
    (1, 1),
    (5, 13),
    (4095, 2),
];

struct Bench {
    _iommu: Arc<Iommu>,
    _client: Arc<Client>,
    /// Keep the memory registered.
    _extents: Vec<Extent>,
    device: Arc<Device>,
}

impl Bench {
    fn new() -> Result<Bench> {
        let iommu = Iommu::new(IommuConfig::default());
        let address = PciAddress {
            segment: 0,
            rid: Rid(0x6a08),
        };
        let device = iommu.add_device(DeviceConfig::new(address))?;
        let domain = iommu.alloc_domain(DomainConfig::unmanaged(device.format()))?;
        let log: Arc<dyn FaultSink> = FaultLog::new(16);
        DmaSource::new(&device, None).attach(&domain, &log)?;
        let client = Client::new("bench", Arc::clone(iommu.space()))?;
        // The offsets make the last piece of a side reach into one more page.
        let len = 2 * SPAN + 4096;
        let file = memfd_create(c"bench", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, len)?;
        let file = ReceivedFd::new(file, &Closer::new("bench"));
        let (_, pages) = client.received_file(file, 0, len)?;
        // Touched once, so that no page is made while it is timed.
        let ones = vec![1; len as usize];
        pages.write(0, &ones).context("filling the memory")?;
        let mut iova = BASE;
        let extents = pages.pin(0, len, Prot::RW)?;
        for extent in &extents {
            domain.map(iova, extent.spa, extent.len, Prot::RW)?;
            iova += extent.len;
        }
        Ok(Bench {
            _iommu: iommu,
            _client: client,
            _extents: extents,
            device,
        })
    }

    /// Copies of `piece` bytes, the two sides at these offsets.
    fn dma(&self, (source, target): (u64, u64), piece: u64, span: u64) -> Contender<'_> {
        let mut port = self.device.port();
        let name = match (source, target) {
            (0, 0) => "dma, both sides aligned".to_owned(),
            _ => format!("source at {source}, destination at {target}"),
        };
        let mut offset = 0;
        Contender::new(name, move |iterations| {
            for _ in 0..iterations {
                offset = (offset + piece) % span;
                let (target, source) = (SPAN + offset + target, offset + source);
                copy(&mut port, BASE + target, BASE + source, piece);
            }
        })
    }
}

/// The tables of this benchmark.
pub(crate) fn tables(effort: Effort) -> Vec<Table> {
    let bench = match Bench::new() {
        Ok(bench) => bench,
        Err(error) => {
            eprintln!("ioasid-bench: no table of dma at any offset: {error:#}");
            return Vec::new();
        }
    };
    let mut tables = Vec::new();
    for (temperature, span) in [("cold", SPAN), ("hot", 0)] {
        for (size, piece) in [
            ("4 KiB", 4_u64 << 10),
            ("64 KiB", 64 << 10),
            ("1 MiB", 1 << 20),
        ] {
            let span = if span == 0 { piece } else { span };
            let contenders = OFFSETS.map(|offsets| bench.dma(offsets, piece, span));
            let contenders = contenders.map(|contender| contender.goal(0, 1.2)).into();
            let title = format!("dma of {size} at any offset, {temperature}");
            let table = measure(title, "ns", effort, contenders).only_worst();
            tables.push(table.note(format!("the worst of {} pairs of offsets", OFFSETS.len())));
        }
    }
    tables
}
