//! DMA through the port (route, walk, marker, copy) against a bare copy of the same memory.

use std::sync::Arc;

use ioasid_core::{PciAddress, Prot, Rid, memory::OwnPages};
use ioasid_iommu::{
    Device, DeviceConfig, DmaPort, DmaSource, DomainConfig, FaultLog, FaultSink, Iommu,
    IommuConfig, Requests, Stop, Tlb, WriteWatch,
};
use ioasid_vfio::write_log::{LogRanges, WriteLog};

use crate::{
    measure::{Contender, Effort, Table, measure},
    opaque::opaque,
};

/// Bytes on each side: more than the caches hold.
const SPAN: u64 = 128 << 20;
/// Where the source is mapped with leaves as large as they come, and where page by page.
const LARGE_LEAVES: u64 = 1 << 40;
const SMALL_LEAVES: u64 = 2 << 40;

struct Bench {
    _iommu: Arc<Iommu>,
    device: Arc<Device>,
    /// Another one, whose writes are logged.
    logged: Arc<Device>,
    log: WriteWatch,
    tlb: Arc<Tlb>,
    source: OwnPages,
    target: OwnPages,
}

impl Bench {
    fn new() -> Bench {
        let iommu = Iommu::new(IommuConfig::default());
        let device_at = |rid| {
            let address = PciAddress {
                segment: 0,
                rid: Rid(rid),
            };
            let device = iommu.add_device(DeviceConfig::new(address));
            device.expect("a new address")
        };
        let (device, logged) = (device_at(0x6a08), device_at(0x6a10));
        let domain = iommu
            .alloc_domain(DomainConfig::unmanaged(device.format()))
            .expect("a domain");
        let log: Arc<dyn FaultSink> = FaultLog::new(16);
        for device in [&device, &logged] {
            DmaSource::new(device, None)
                .attach(&domain, &log)
                .expect("nothing is attached yet");
        }
        let own = || {
            let pages = OwnPages::new(iommu.space(), SPAN as usize).expect("an empty space");
            // Touched once, so that no page is made while it is timed.
            pages.memory().write(0, &vec![1; SPAN as usize]);
            pages
        };
        let (source, target) = (own(), own());
        for (offset, pages) in [(0, &source), (SPAN, &target)] {
            domain
                .map(LARGE_LEAVES + offset, pages.spa(), SPAN, Prot::RW)
                .expect("nothing is mapped there");
            // An IOVA one page off leaves no leaf larger than a page.
            domain
                .map(SMALL_LEAVES + 4096 + offset, pages.spa(), SPAN, Prot::RW)
                .expect("nothing is mapped there");
        }
        let pages = WriteLog::new(LogRanges::all(4096)).expect("a page");
        Bench {
            _iommu: iommu,
            log: logged.watch_writes(Requests::All, Arc::new(pages)),
            logged,
            tlb: {
                let tlb = Tlb::new();
                device.enable_ats(tlb.clone());
                tlb
            },
            device,
            source,
            target,
        }
    }

    fn memcpy(&self, piece: u64, span: u64) -> Contender<'_> {
        let mut offset = 0;
        Contender::new("memcpy", move |iterations| {
            for _ in 0..iterations {
                offset = (offset + piece) % span;
                let at = offset as usize;
                let (target, source) = (self.target.memory().bytes(), self.source.memory().bytes());
                let target = target.slice(at, piece as usize);
                let source = source.slice(at, piece as usize);
                if let (Some(target), Some(source)) = (target, source) {
                    opaque(u64::from(target.copy_from(source).is_ok()));
                }
            }
        })
    }

    fn dma(&self, name: &str, base: u64, piece: u64, span: u64) -> Contender<'_> {
        Self::dma_through(self.device.port(), name, base, piece, span)
    }

    /// The same by a device whose writes are logged.
    fn dma_with_log(&self, base: u64, piece: u64, span: u64) -> Contender<'_> {
        self.log.flush();
        let name = "dma, large leaves, logged";
        Self::dma_through(self.logged.port(), name, base, piece, span)
    }

    /// The same by a device that keeps translations.
    fn dma_with_tlb(&self, name: &str, base: u64, piece: u64, span: u64) -> Contender<'_> {
        let port = self.device.port_with_tlb(&self.tlb);
        Self::dma_through(port, name, base, piece, span)
    }

    fn dma_through<'a>(
        mut port: DmaPort,
        name: &str,
        base: u64,
        piece: u64,
        span: u64,
    ) -> Contender<'a> {
        let mut offset = 0;
        Contender::new(name, move |iterations| {
            for _ in 0..iterations {
                offset = (offset + piece) % span;
                copy(&mut port, base + SPAN + offset, base + offset, piece);
            }
        })
    }
}

/// Many small copies: what a guard costs, alone and shared by several of them.
fn small(bench: &Bench, effort: Effort) -> Vec<Table> {
    let sizes = [("64 bytes", 64, None), ("4 KiB", 4096, Some([1.5, 1.25]))];
    let tables = sizes.map(|(size, piece, goals)| {
        let mut contenders = vec![bench.memcpy(piece, piece)];
        for (index, copies) in [1, 8].into_iter().enumerate() {
            let mut port = bench.device.port();
            let mut contender = Contender::new(format!("dma, {copies} a guard"), move |n| {
                for _ in 0..n {
                    let mut guard = port.enter(None);
                    for _ in 0..copies {
                        let (target, source) = (LARGE_LEAVES + SPAN, LARGE_LEAVES);
                        let done = guard.copy(target, source, piece).done;
                        assert_eq!(done, opaque(piece), "a copy stopped");
                    }
                }
            });
            contender = contender.per(copies);
            if let Some(goals) = goals {
                contender = contender.goal(0, goals[index]);
            }
            contenders.push(contender);
        }
        measure(
            format!("dma of {size}, hot, one copy after another"),
            "ns",
            effort,
            contenders,
        )
    });
    tables.into()
}

/// One descriptor's worth, in as many guards as it takes.
pub(crate) fn copy(port: &mut DmaPort, target: u64, source: u64, len: u64) {
    let mut done = 0;
    while done < len {
        let transfer = port.enter(None).copy_on(target, source, len, done);
        done += transfer.done;
        match transfer.stop {
            None | Some(Stop::Budget) => {}
            Some(stop) => panic!("a copy stopped after {done} bytes: {stop:?}"),
        }
    }
}

/// The tables of this benchmark.
pub(crate) fn tables(effort: Effort) -> Vec<Table> {
    let bench = Bench::new();
    let mut tables = small(&bench, effort);
    for (temperature, span) in [("cold", SPAN), ("hot", 0)] {
        for (size, piece, goal) in [
            ("4 KiB", 4_u64 << 10, (span > 0).then_some(1.3)),
            ("64 KiB", 64 << 10, Some(1.11)),
            ("1 MiB", 1 << 20, Some(1.11)),
        ] {
            // Hot: the same two pieces again and again.
            let span = if span == 0 { piece } else { span };
            let large = bench.dma("dma, large leaves", LARGE_LEAVES, piece, span);
            let contenders = vec![
                bench.memcpy(piece, span),
                match goal {
                    Some(at_most) => large.goal(0, at_most),
                    None => large,
                },
                bench.dma("dma, 4 KiB leaves", SMALL_LEAVES + 4096, piece, span),
                bench.dma_with_tlb("dma, large leaves, kept", LARGE_LEAVES, piece, span),
                bench.dma_with_tlb("dma, 4 KiB leaves, kept", SMALL_LEAVES + 4096, piece, span),
                bench.dma_with_log(LARGE_LEAVES, piece, span),
            ];
            let title = format!("dma of {size}, {temperature}");
            tables.push(measure(title, "ns", effort, contenders));
        }
    }
    tables
}
