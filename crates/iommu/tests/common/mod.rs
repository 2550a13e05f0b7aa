//! A small machine for the tests: devices, buffers and copies that retry.
#![allow(dead_code, unreachable_pub)] // Each test file uses its part.
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

pub mod guest;
pub mod race;

use std::sync::Arc;

use ioasid_core::{
    AddrRange, Pasid, PciAddress, Prot, Rid,
    host::{Job, Worker, WorkerStopped},
    memory::{Backing, Memory, MemoryGone, OwnMemory, OwnPages, RemoteMemory},
    spa::SpaRange,
    sync::{Condvar, Mutex},
};
use ioasid_iommu::{
    Device, DeviceConfig, DmaPort, DmaSource, Domain, DomainConfig, Fault, FaultLog, FaultSink,
    Iommu, IommuConfig, Stop, TableFormat,
};

pub const FORMAT: TableFormat = TableFormat::VtdSecondStage;

pub fn machine() -> Arc<Iommu> {
    Iommu::new(IommuConfig::default())
}

pub fn address(device: u16) -> PciAddress {
    PciAddress {
        segment: 0,
        rid: Rid(0x6a00 | device << 3),
    }
}

pub fn device(iommu: &Arc<Iommu>, number: u16) -> Arc<Device> {
    iommu
        .add_device(DeviceConfig::new(address(number)))
        .unwrap()
}

/// The DMA of `device` with a PASID.
pub fn source(device: &Arc<Device>, pasid: u32) -> DmaSource {
    DmaSource::with_pasid(device, pasid).unwrap()
}

pub fn domain(iommu: &Arc<Iommu>) -> Arc<Domain> {
    iommu.alloc_domain(DomainConfig::unmanaged(FORMAT)).unwrap()
}

pub fn pages(iommu: &Arc<Iommu>, len: usize) -> OwnPages {
    OwnPages::new(iommu.space(), len).unwrap()
}

/// A domain with `len` bytes of new memory at `iova`.
pub fn mapped(iommu: &Arc<Iommu>, iova: u64, len: usize) -> (Arc<Domain>, OwnPages) {
    let domain = domain(iommu);
    let pages = pages(iommu, len);
    domain.map(iova, pages.spa(), len as u64, Prot::RW).unwrap();
    (domain, pages)
}

pub fn log() -> (Arc<FaultLog>, Arc<dyn FaultSink>) {
    let log = FaultLog::new(64);
    (Arc::clone(&log), log)
}

pub fn sink() -> Arc<dyn FaultSink> {
    FaultLog::new(64)
}

pub fn pasid(number: u32) -> Option<Pasid> {
    Some(Pasid::new(number).unwrap())
}

pub fn range(start: u64, len: u64) -> AddrRange {
    AddrRange::from_len(start, len).unwrap()
}

/// Writes all of `bytes` or says which fault stopped it; the fault is reported.
pub fn write(
    port: &mut DmaPort,
    pasid: Option<Pasid>,
    iova: u64,
    bytes: &[u8],
) -> Result<(), Fault> {
    let mut done = 0;
    loop {
        let mut guard = port.enter(pasid);
        let transfer = guard.write(iova + done as u64, &bytes[done..]);
        done += transfer.done as usize;
        match transfer.stop {
            None => return Ok(()),
            Some(Stop::Budget) => {}
            Some(Stop::Fault(fault)) => {
                guard.report(&fault);
                return Err(fault);
            }
            Some(other) => panic!("{other:?}"),
        }
    }
}

/// Copies all of a range, over as many guards as it takes; the fault is reported.
pub fn copy(
    port: &mut DmaPort,
    pasid: Option<Pasid>,
    dst: u64,
    src: u64,
    len: u64,
) -> Result<(), Fault> {
    let mut done = 0;
    loop {
        let mut guard = port.enter(pasid);
        let transfer = guard.copy_on(dst, src, len, done);
        done += transfer.done;
        match transfer.stop {
            None => return Ok(()),
            Some(Stop::Budget) => {}
            Some(Stop::Fault(fault)) => {
                guard.report(&fault);
                return Err(fault);
            }
            Some(other) => panic!("{other:?}"),
        }
    }
}

pub fn contents(pages: &OwnPages, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    pages.memory().read(0, &mut bytes);
    bytes
}

/// A small generator of numbers (xorshift64*), so that a failure can be repeated.
#[derive(Debug)]
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// Memory of a client that does not answer until it is told to.
#[derive(Debug)]
pub struct Stuck {
    pub memory: Arc<OwnMemory>,
    state: Mutex<StuckState>,
    changed: Condvar,
    worker: Arc<dyn Worker>,
}

#[derive(Debug, Default)]
struct StuckState {
    waiting: usize,
    answers: bool,
}

#[derive(Debug)]
struct NoWorker;

impl Worker for NoWorker {
    fn submit(&self, _job: Job) -> Result<(), WorkerStopped> {
        Err(WorkerStopped)
    }
}

impl Stuck {
    /// Maps one page of it at `iova`.
    pub fn map(iommu: &Arc<Iommu>, domain: &Domain, iova: u64) -> (Arc<Self>, SpaRange) {
        let stuck = Arc::new(Stuck {
            memory: OwnMemory::new(4096),
            state: Mutex::default(),
            changed: Condvar::new(),
            worker: Arc::new(NoWorker),
        });
        let range = iommu.space().register(stuck.clone(), 0).unwrap();
        domain.map(iova, range.start(), 4096, Prot::RW).unwrap();
        (stuck, range)
    }

    /// Returns when a reader waits for an answer.
    pub fn wait_until_asked(&self) {
        let mut state = self.state.lock();
        while state.waiting == 0 {
            state = self.changed.wait(state);
        }
    }

    /// Answers from now on.
    pub fn answer(&self) {
        self.state.lock().answers = true;
        self.changed.notify_all();
    }

    fn asked(&self) {
        let mut state = self.state.lock();
        state.waiting += 1;
        self.changed.notify_all();
        while !state.answers {
            state = self.changed.wait(state);
        }
    }
}

impl Backing for Stuck {
    fn size(&self) -> u64 {
        4096
    }

    fn memory(&self) -> Memory<'_> {
        Memory::Remote(self)
    }
}

impl RemoteMemory for Stuck {
    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.asked();
        self.memory.read(offset as usize, dst);
        Ok(())
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        self.asked();
        self.memory.write(offset as usize, src);
        Ok(())
    }

    fn worker(&self) -> &Arc<dyn Worker> {
        &self.worker
    }
}
