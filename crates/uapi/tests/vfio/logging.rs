//! DMA logging, in the order of the kernel's checks.

use std::sync::Arc;

use ioasid_core::{Prot, memory::OwnPages};
use ioasid_iommu::{DmaSource, DomainConfig, FaultLog};
use ioasid_uapi::{
    Errno,
    spec::vfio::{DEVICE_FEATURE, Feature},
};

use crate::{
    common::{BASE, SIZE},
    machine::Machine,
};

const START: u32 = Feature::DMA_LOGGING_START | Feature::SET;
const STOP: u32 = Feature::DMA_LOGGING_STOP | Feature::SET;
const REPORT: u32 = Feature::DMA_LOGGING_REPORT | Feature::GET;

/// Where the ranges and the bitmap are.
const DATA: u64 = BASE + 0x200;

fn words(longs: &[u64]) -> Vec<u32> {
    let halves = |long: &u64| [*long as u32, (*long >> 32) as u32];
    longs.iter().flat_map(halves).collect()
}

fn feature(machine: &Machine, flags: u32, data: &[u64]) -> Result<u64, Errno> {
    let argsz = 8 + 8 * data.len() as u32;
    machine.call(
        DEVICE_FEATURE,
        &[&[argsz, flags][..], &words(data)].concat(),
    )
}

fn start(machine: &Machine, page_size: u64, ranges: &[u64]) -> Result<u64, Errno> {
    machine.program.put(DATA, &words(ranges));
    let count = ranges.len() as u64 / 2;
    feature(machine, START, &[page_size, count, DATA])
}

fn report(machine: &Machine, iova: u64, length: u64, page_size: u64) -> Result<u64, Errno> {
    feature(machine, REPORT, &[iova, length, page_size, DATA])
}

#[test]
fn a_log_is_probed_set_and_got() {
    for machine in [Machine::whole().bound(), Machine::child().bound()] {
        for (flags, other) in [
            (START, Feature::GET),
            (STOP, Feature::GET),
            (REPORT, Feature::SET),
        ] {
            assert_eq!(feature(&machine, flags | Feature::PROBE, &[]), Ok(0));
            let number = flags & Feature::NUMBER;
            let wrong = feature(&machine, number | other | Feature::PROBE, &[]);
            assert_eq!(wrong, Err(Errno::EINVAL));
            assert_eq!(feature(&machine, number, &[0; 4]), Err(Errno::EINVAL));
        }
    }
    let machine = Machine::emulated().bound();
    for flags in [START, STOP, REPORT] {
        assert_eq!(feature(&machine, flags, &[0; 4]), Err(Errno::ENOTTY));
    }
}

#[test]
fn a_start_is_refused_as_the_kernel_refuses_it() {
    let machine = Machine::whole().bound();
    assert_eq!(
        feature(&machine, START, &[4096, 1]),
        Err(Errno::EINVAL),
        "short"
    );
    assert_eq!(start(&machine, 4096, &[]), Err(Errno::EINVAL), "no range");
    let many = feature(&machine, START, &[4096, 257, DATA]);
    assert_eq!(many, Err(Errno::E2BIG));
    let past = BASE + SIZE as u64 - 8;
    let nowhere = feature(&machine, START, &[4096, 1, past]);
    assert_eq!(nowhere, Err(Errno::EFAULT));
    assert_eq!(start(&machine, 4096, &[1, 4096]), Err(Errno::EINVAL));
    assert_eq!(start(&machine, 4096, &[0, 1]), Err(Errno::EINVAL));
    let end = u64::MAX - 4095;
    assert_eq!(start(&machine, 4096, &[end, 4096]), Err(Errno::EOVERFLOW));
    let twice = start(&machine, 4096, &[0, 8192, 4096, 4096]);
    assert_eq!(twice, Err(Errno::EINVAL));
    // The first range that is wrong decides.
    let both = start(&machine, 4096, &[end, 4096, 1, 1]);
    assert_eq!(both, Err(Errno::EOVERFLOW));

    assert_eq!(start(&machine, 1024, &[0, 8192, 1 << 40, 1024]), Ok(0));
    let [_, _, low, high] = machine.words();
    assert_eq!((low, high), (4096, 0), "the page that it has");
    assert_eq!(start(&machine, 4096, &[0, 8192]), Err(Errno::EINVAL));
    assert_eq!(feature(&machine, STOP, &[]), Ok(0));
    assert_eq!(feature(&machine, STOP, &[]), Ok(0), "nothing to do");
    *machine.program.memory.writable.lock() = 0;
    assert_eq!(start(&machine, 4096, &[0, 8192]), Err(Errno::EFAULT));
    *machine.program.memory.writable.lock() = SIZE;
    assert_eq!(start(&machine, 4096, &[0, 8192]), Ok(0), "nothing was left");
}

#[test]
fn a_report_adds_bits_to_the_programs_bitmap() {
    let machine = Machine::whole().bound();
    let domain = machine
        .iommu
        .alloc_domain(DomainConfig::unmanaged(machine.dma.format()))
        .unwrap();
    let memory = OwnPages::new(machine.iommu.space(), 1 << 20).unwrap();
    domain.map(0, memory.spa(), 1 << 20, Prot::RW).unwrap();
    DmaSource::new(&machine.dma, None)
        .attach(&domain, &(FaultLog::new(4) as Arc<_>))
        .unwrap();
    assert_eq!(
        report(&machine, 0, 4096, 4096),
        Err(Errno::EINVAL),
        "no log"
    );
    start(&machine, 4096, &[0, 1 << 19]).unwrap();

    machine.file.write(7 << 40 | 4, &[6]).unwrap();
    let mut port = machine.dma.port();
    assert!(port.enter(None).write(0x41_f00, &[1; 0x200]).is_complete());
    assert!(port.enter(None).write(0x8_0000, &[1]).is_complete());
    machine.program.put(DATA, &[1, 0, 0, 8]);
    assert_eq!(report(&machine, 0, 1 << 19, 4096), Ok(0));
    let bitmap = [0, 4, 8, 12].map(|at| machine.program.word(DATA + at));
    // Page 0x41 is bit 1 of the third word.
    assert_eq!(bitmap, [1, 0, 6, 8]);
    machine.program.put(DATA, &[0; 4]);
    assert_eq!(report(&machine, 0, 1 << 19, 4096), Ok(0));
    assert_eq!(machine.program.word(DATA + 8), 0, "taken");

    for page_size in [0, 2048, 0x3000] {
        let found = report(&machine, 0, 4096, page_size);
        assert_eq!(found, Err(Errno::EINVAL), "{page_size}");
    }
    let end = u64::MAX - 4095;
    assert_eq!(report(&machine, end, 4096, 4096), Err(Errno::EOVERFLOW));
    for (iova, length) in [(1 << 19, 4096), (0, 1 << 20), (0, 0)] {
        assert_eq!(report(&machine, iova, length, 4096), Err(Errno::EINVAL));
    }
    let nowhere = BASE + SIZE as u64;
    let data = [0, 4096, 4096, nowhere];
    assert_eq!(feature(&machine, REPORT, &data), Ok(0), "nothing to say");
    assert!(port.enter(None).write(0, &[1]).is_complete());
    assert_eq!(feature(&machine, REPORT, &data), Err(Errno::EFAULT));
}
