//! The IOMMU as a library: no VFIO, no file descriptor, no program. A small machine of its own.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Result, ensure};
use ioasid_core::{AddrRange, Pasid, Prot, memory::OwnPages};
use ioasid_iommu::{
    Device, DeviceConfig, DmaSource, Domain, DomainConfig, FaultLog, FaultSink, Iommu, IommuConfig,
};

use super::Check;
use crate::demo::{Demo, verdict};

/// These claims, in order.
pub(crate) const CLAIMS: &[(&str, Check)] = &[
    (
        "The IOMMU works without VFIO: devices, domains and routes are a library",
        as_library,
    ),
    (
        "After an unmap has returned, not one byte arrives",
        unmap_races,
    ),
    (
        "Random attach, detach, map, unmap and DMA agree with a simple model",
        model,
    ),
];

const PAGE: u64 = 4096;

struct Bench {
    iommu: Arc<Iommu>,
    device: Arc<Device>,
    faults: Arc<dyn FaultSink>,
}

impl Bench {
    fn new() -> Result<Self> {
        let iommu = Iommu::new(IommuConfig::default());
        let config = DeviceConfig {
            pasid_bits: 8,
            ..DeviceConfig::new("0000:01:00.0".parse()?)
        };
        let device = iommu.add_device(config)?;
        Ok(Bench {
            iommu,
            device,
            faults: FaultLog::new(16),
        })
    }

    fn domain(&self) -> Result<Arc<Domain>> {
        Ok(self
            .iommu
            .alloc_domain(DomainConfig::unmanaged(self.device.format()))?)
    }

    fn route(&self, pasid: Option<u32>) -> DmaSource {
        DmaSource::new(&self.device, pasid.and_then(Pasid::new))
    }
}

fn as_library(_: &mut Demo) -> Result<Result<String, String>> {
    const DOMAINS: u32 = 9;
    let bench = Bench::new()?;
    let mut memories = Vec::new();
    for number in 0..DOMAINS {
        let domain = bench.domain()?;
        let pages = OwnPages::new(bench.iommu.space(), PAGE as usize)?;
        domain.map(0x1000, pages.spa(), PAGE, Prot::RW)?;
        bench
            .route((number > 0).then_some(number))
            .attach(&domain, &bench.faults)?;
        memories.push((domain, pages));
    }
    let mut port = bench.device.port();
    for number in 0..DOMAINS {
        let mut guard = port.enter((number > 0).then_some(number).and_then(Pasid::new));
        let transfer = guard.write(0x1000, &[number as u8 + 1; 64]);
        ensure!(
            transfer.done == 64,
            "DMA with PASID {number} stopped: {:?}",
            transfer.stop
        );
    }
    let right = memories.iter().enumerate().filter(|(number, (_, pages))| {
        let mut bytes = [0; 64];
        pages.memory().read(0, &mut bytes);
        bytes == [*number as u8 + 1; 64]
    });
    Ok(verdict(
        right.count() == DOMAINS as usize,
        format!("one device, {DOMAINS} routes, one IOVA: {DOMAINS} different memories"),
    ))
}

fn unmap_races(_: &mut Demo) -> Result<Result<String, String>> {
    const RACES: u32 = 2_000;
    let bench = Bench::new()?;
    let domain = bench.domain()?;
    bench.route(Some(1)).attach(&domain, &bench.faults)?;
    let pages = OwnPages::new(bench.iommu.space(), PAGE as usize)?;
    let stop = AtomicBool::new(false);
    let (mut late, mut written) = (0, 0);
    std::thread::scope(|scope| -> Result<()> {
        let writer = scope.spawn(|| {
            let mut port = bench.device.port();
            let mut count = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                count += port.enter(Pasid::new(1)).write(0x1000, &[0xff; 256]).done;
            }
            count
        });
        let mut races = || -> Result<()> {
            for _ in 0..RACES {
                domain.map(0x1000, pages.spa(), PAGE, Prot::RW)?;
                let mut byte = [0];
                while byte == [0] {
                    pages.memory().read(0, &mut byte);
                }
                domain.unmap(AddrRange::from_len(0x1000, PAGE).expect("a page"));
                pages.memory().write(0, &[0; 256]);
                std::hint::black_box(&pages);
                let mut after = [1; 256];
                for _ in 0..20 {
                    pages.memory().read(0, &mut after);
                    late += u32::from(after != [0; 256]);
                }
            }
            Ok(())
        };
        let result = races();
        stop.store(true, Ordering::Relaxed);
        written = writer.join().unwrap_or(0);
        result
    })?;
    Ok(verdict(
        late == 0 && written > 0,
        format!("{RACES} unmaps under a running writer ({written} bytes): {late} late bytes"),
    ))
}

fn model(_: &mut Demo) -> Result<Result<String, String>> {
    const STEPS: u64 = 40_000;
    const DOMAINS: usize = 4;
    const PAGES: u64 = 16;
    let bench = Bench::new()?;
    let domains = (0..DOMAINS)
        .map(|_| bench.domain())
        .collect::<Result<Vec<_>>>()?;
    let memory = OwnPages::new(bench.iommu.space(), (PAGES * PAGE) as usize)?;
    let mut port = bench.device.port();
    // The model: which domain a PASID leads to, and which page a domain maps at an address.
    let mut routes: BTreeMap<u32, usize> = BTreeMap::new();
    let mut maps: Vec<BTreeMap<u64, u64>> = vec![BTreeMap::new(); DOMAINS];
    let (mut transfers, mut faults) = (0_u64, 0_u64);
    // xorshift64: the same steps in every run.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for step in 0..STEPS {
        let pasid = random(4) as u32;
        let domain = random(DOMAINS as u64) as usize;
        let iova = random(PAGES) * PAGE;
        let route = bench.route((pasid > 0).then_some(pasid));
        match random(8) {
            0 => {
                let attached = route.attach(&domains[domain], &bench.faults).is_ok();
                ensure!(
                    attached != routes.contains_key(&pasid),
                    "step {step}: attach"
                );
                routes.entry(pasid).or_insert(domain);
            }
            1 => {
                route.detach();
                routes.remove(&pasid);
            }
            2 => {
                let page = random(PAGES);
                let mapped = domains[domain]
                    .map(iova, memory.spa() + page * PAGE, PAGE, Prot::RW)
                    .is_ok();
                ensure!(
                    mapped != maps[domain].contains_key(&iova),
                    "step {step}: map"
                );
                maps[domain].entry(iova).or_insert(page);
            }
            3 => {
                let range = AddrRange::from_len(iova, PAGE).expect("a page");
                let bytes = domains[domain].unmap(range);
                let expected = maps[domain].remove(&iova).map_or(0, |_| PAGE);
                ensure!(bytes == expected, "step {step}: unmap");
            }
            _ => {
                let target = routes
                    .get(&pasid)
                    .and_then(|domain| maps[*domain].get(&iova));
                let mark = step.to_le_bytes();
                let done = port.enter(route.pasid).write(iova + 8, &mark).done;
                let expected = if target.is_some() { 8 } else { 0 };
                ensure!(
                    done == expected,
                    "step {step}: {done} bytes instead of {expected}"
                );
                if let Some(page) = target {
                    let mut found = [0; 8];
                    memory.memory().read((page * PAGE + 8) as usize, &mut found);
                    ensure!(found == mark, "step {step}: the bytes went elsewhere");
                    transfers += 1;
                } else {
                    faults += 1;
                }
            }
        }
    }
    Ok(verdict(
        transfers > 0 && faults > 0,
        format!(
            "{STEPS} steps: {transfers} transfers arrived, {faults} faulted, each as the model says"
        ),
    ))
}
