//! An unmap that waits for DMA in flight, against the round trip between two cores: less than that no
//! wait for another core can take.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ioasid_core::{
    AddrRange, PciAddress, Prot, Rid,
    memory::{OwnPages, PAGE_SIZE as PAGE},
};
use ioasid_iommu::{
    DeviceConfig, DmaSource, DomainConfig, FaultLog, FaultSink, Iommu, IommuConfig,
};

use crate::{
    clock::{self, Presence},
    host,
    measure::{Effort, Quartiles, Table},
    opaque::opaque,
};

/// What the reader reads, and what is mapped and unmapped beside it.
const READER_IOVA: u64 = 1 << 30;
const TOGGLED_IOVA: u64 = READER_IOVA + 16 * PAGE;

/// The tables of this benchmark.
pub(crate) fn tables(effort: Effort) -> Vec<Table> {
    let processors = clock::processors();
    let (Some(&first), Some(&second)) = (processors.first(), processors.get(1)) else {
        return Vec::new();
    };
    let iommu = Iommu::new(IommuConfig::default());
    let address = PciAddress {
        segment: 0,
        rid: Rid(0x6a08),
    };
    let device = iommu
        .add_device(DeviceConfig::new(address))
        .expect("the first device");
    let domain = iommu
        .alloc_domain(DomainConfig::unmanaged(device.format()))
        .expect("a domain");
    let log: Arc<dyn FaultSink> = FaultLog::new(16);
    DmaSource::new(&device, None)
        .attach(&domain, &log)
        .expect("nothing is attached yet");
    let pages = OwnPages::new(iommu.space(), 32 * PAGE as usize).expect("an empty space");
    domain
        .map(READER_IOVA, pages.spa(), 16 * PAGE, Prot::RW)
        .expect("nothing is mapped yet");

    let window = Duration::from_nanos(2 * effort.slot);
    // Median nanoseconds of one unmap, each of a page that was just mapped.
    let toggle = || {
        let range = AddrRange::from_len(TOGGLED_IOVA, PAGE).expect("a page");
        let (deadline, mut samples) = (Instant::now() + window, Vec::new());
        while Instant::now() < deadline {
            domain
                .map(TOGGLED_IOVA, pages.spa() + 16 * PAGE, PAGE, Prot::RW)
                .expect("it was unmapped");
            let before = Instant::now();
            opaque(domain.unmap(range));
            samples.push(before.elapsed().as_nanos() as f64);
        }
        Quartiles::of(samples).median
    };
    // The same while another core reads; `None` if the reader did not run all the time.
    let with_reader = |reads_per_guard: u64| {
        let stop = AtomicBool::new(false);
        thread::scope(|scope| {
            let reader = scope.spawn(|| {
                clock::pin(second);
                let mut port = device.port();
                let mut word = [0; 8];
                let presence = Presence::start();
                while !stop.load(Ordering::Relaxed) {
                    let mut guard = port.enter(None);
                    for read in 0..reads_per_guard {
                        let iova = READER_IOVA + (read % 16) * PAGE;
                        opaque(guard.read(iova, &mut word).done);
                    }
                }
                presence.held()
            });
            let writer = scope.spawn(|| {
                clock::pin(first);
                let median = toggle();
                stop.store(true, Ordering::Relaxed);
                median
            });
            let median = writer.join().ok();
            median.filter(|_| reader.join().unwrap_or(false))
        })
    };
    let (mut trips, mut alone) = (Vec::new(), Vec::new());
    let (mut short, mut long) = (Vec::new(), Vec::new());
    // Two threads must run at once, at one distance: a round where they did not is void.
    for _ in 0..3 * effort.rounds {
        let Some(before) = host::core_to_core(window / 4) else {
            continue;
        };
        let (Some(one), Some(many)) = (with_reader(1), with_reader(32)) else {
            continue;
        };
        let Some(after) = host::core_to_core(window / 4) else {
            continue;
        };
        if before.max(after) > 2.0 * before.min(after) {
            continue;
        }
        trips.push((before + after) / 2.0);
        short.push(one);
        long.push(many);
        alone.push(toggle());
        if trips.len() == effort.rounds {
            break;
        }
    }
    let title = "unmap that waits for DMA in flight";
    if trips.len() < effort.rounds.div_ceil(2) {
        let void = "void: the machine is too busy to run two threads at once";
        return vec![Table::from_samples(title, "ns", Vec::new()).note(void)];
    }
    let rows = vec![
        ("core to core and back".to_owned(), trips, None),
        ("unmap, 1 read per guard".to_owned(), short, Some(2.0)),
        ("unmap, 32 reads per guard".to_owned(), long, None),
        ("unmap, nobody reading".to_owned(), alone, None),
    ];
    let note = "one page of 4 KiB, while another core reads 8 bytes at a time; wall time";
    vec![Table::from_samples(title, "ns", rows).note(note)]
}
