//! Moving bytes: memmove for the whole range, over as many leaves and guards as it takes.
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use common::*;
use ioasid_core::{
    Access, Prot,
    host::{Job, Worker, WorkerStopped},
    memory::{Backing, Memory, MemoryGone, OwnMemory, RemoteMemory},
    spa::SpaRange,
};
use ioasid_iommu::{
    Direction, DmaPort, DmaSource, Domain, FaultReason, GUARD_BYTES, GUARD_SLACK, Iommu, Stop,
};

const IOVA: u64 = 0x20_0000;
const LEN: usize = 1 << 20;

/// A domain whose pages lie in memory in an order of their own, a port into it, and a copy of the
/// bytes as the device sees them.
struct Scattered {
    port: DmaPort,
    _domain: Arc<Domain>,
    memory: ioasid_core::memory::OwnPages,
    order: Vec<usize>,
    model: Vec<u8>,
}

impl Scattered {
    /// `runs`: how many pages in a row stay together.
    fn new(iommu: &Arc<Iommu>, number: u16, runs: usize) -> Self {
        let device = device(iommu, number);
        let domain = domain(iommu);
        let memory = pages(iommu, LEN);
        let mut random = Random(42);
        let mut order: Vec<usize> = (0..LEN / 4096 / runs).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, random.below(last as u64 + 1) as usize);
        }
        let order: Vec<usize> = order
            .iter()
            .flat_map(|run| (0..runs).map(move |page| run * runs + page))
            .collect();
        for (page, place) in order.iter().enumerate() {
            let iova = IOVA + page as u64 * 4096;
            let spa = memory.spa() + *place as u64 * 4096;
            domain.map(iova, spa, 4096, Prot::RW).unwrap();
        }
        DmaSource::new(&device, None)
            .attach(&domain, &sink())
            .unwrap();
        let mut scattered = Scattered {
            port: device.port(),
            _domain: domain,
            memory,
            order,
            model: (0..LEN).map(|_| random.next() as u8).collect(),
        };
        let bytes = scattered.model.clone();
        write(&mut scattered.port, None, IOVA, &bytes).unwrap();
        scattered
    }

    fn check(&self) {
        for (page, place) in self.order.iter().enumerate() {
            let mut found = [0; 4096];
            self.memory.memory().read(place * 4096, &mut found);
            assert!(found == self.model[page * 4096..][..4096], "page {page}");
        }
    }
}

#[test]
fn copies_are_memmove_whatever_the_overlap_and_however_the_pages_lie() {
    let iommu = machine();
    for (number, runs) in [1, 4, 256].into_iter().enumerate() {
        let mut s = Scattered::new(&iommu, number as u16, runs);
        let mut random = Random(number as u64 + 1);
        for round in 0..300 {
            let len = match round % 3 {
                0 => random.below(200),
                1 => random.below(20_000),
                _ => random.below(LEN as u64 / 2),
            };
            let src = random.below(LEN as u64 - len);
            // Half of them overlap.
            let dst = if round % 2 == 0 {
                random.below(LEN as u64 - len)
            } else {
                let shift = random.below(len + 1);
                let up = (src + shift).min(LEN as u64 - len);
                if round % 4 == 1 {
                    up
                } else {
                    src.saturating_sub(shift)
                }
            };
            copy(&mut s.port, None, IOVA + dst, IOVA + src, len).unwrap();
            s.model
                .copy_within(src as usize..(src + len) as usize, dst as usize);
        }
        s.check();
    }
}

#[test]
fn a_backward_copy_that_faults_has_done_its_tail_and_nothing_else() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let domain = domain(&iommu);
    let memory = pages(&iommu, 4 * 4096);
    // The first page is missing.
    domain
        .map(IOVA + 4096, memory.spa() + 4096, 3 * 4096, Prot::RW)
        .unwrap();
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let mut port = device.port();
    let before: Vec<u8> = (0..3 * 4096).map(|i| (i / 7) as u8).collect();
    write(&mut port, None, IOVA + 4096, &before).unwrap();
    let (dst, src, len) = (IOVA + 4096, IOVA, 3 * 4096);
    assert_eq!(Direction::of(dst, src, len), Direction::Backward);
    let transfer = port.enter(None).copy(dst, src, len);
    assert_eq!(transfer.done, 2 * 4096);
    let fault = transfer.fault().unwrap();
    assert_eq!(
        (fault.access, fault.reason),
        (Access::Read, FaultReason::NotPresent)
    );
    assert!(fault.iova < IOVA + 4096);
    let after = contents(&memory, 4 * 4096);
    assert!(after[2 * 4096..] == before[..2 * 4096]);
    assert!(after[4096..2 * 4096] == before[..4096], "not yet written");
}

#[test]
fn a_guard_moves_a_bounded_number_of_bytes_and_can_still_write_a_record() {
    let iommu = machine();
    let mut s = Scattered::new(&iommu, 1, 256);
    let mut guard = s.port.enter(None);
    let transfer = guard.copy(IOVA, IOVA + LEN as u64 / 2, LEN as u64 / 2);
    assert_eq!(transfer.done, GUARD_BYTES);
    assert!(matches!(transfer.stop, Some(Stop::Budget)));
    assert!(matches!(guard.fill(IOVA, 0, 8).stop, Some(Stop::Budget)));
    assert!(guard.write(IOVA, &[0; 32]).is_complete());
    // Small writes are bounded as well, by number.
    let mut writes = 0;
    while guard.publish(IOVA, 1).is_complete() {
        writes += 1;
        assert!(writes < GUARD_SLACK);
    }
}

#[test]
fn contiguous_small_leaves_are_one_run() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let domain = domain(&iommu);
    // Memory whose accesses can be counted, mapped page by page, high to low, so that no large leaf
    // can be made.
    let (remote, range) = Remote::register(&iommu, 16 * 4096);
    for page in (0..16).rev() {
        domain
            .map(
                IOVA + page * 4096,
                range.start() + page * 4096,
                4096,
                Prot::RW,
            )
            .unwrap();
    }
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let mut port = device.port();
    let mut buffer = vec![0; 0x8000];
    assert!(
        port.enter_blocking(None)
            .read(IOVA + 8, &mut buffer)
            .is_complete()
    );
    assert_eq!(remote.calls.load(Ordering::Relaxed), 1, "all at once");
}

#[test]
fn fill_repeats_its_pattern_over_pages_and_resumes_by_rotation() {
    let iommu = machine();
    let mut s = Scattered::new(&iommu, 1, 1);
    let pattern = 0x0807_0605_0403_0201_u64;
    let (start, len) = (4001_usize, 300_001_usize);
    let mut done = 0;
    loop {
        let rest = pattern.rotate_right(8 * (done % 8) as u32);
        let mut guard = s.port.enter(None);
        let transfer = guard.fill(IOVA + start as u64 + done, rest, len as u64 - done);
        done += transfer.done;
        match transfer.stop {
            None => break,
            Some(Stop::Budget) => {}
            Some(stop) => panic!("{stop}"),
        }
    }
    for (index, byte) in s.model[start..start + len].iter_mut().enumerate() {
        *byte = (index % 8) as u8 + 1;
    }
    s.check();
}

#[test]
fn compare_finds_the_first_difference_and_faults_only_before_it() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, memory) = mapped(&iommu, IOVA, 64 << 10);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let mut port = device.port();
    let (a, b) = (IOVA + 3, IOVA + 0x8000 + 5);
    let (transfer, difference) = port.enter(None).compare(a, b, 0x7000);
    assert_eq!((transfer.done, difference), (0x7000, None));
    memory.memory().write(0x8000 + 5 + 0x2345, &[1]);
    let (transfer, difference) = port.enter(None).compare(a, b, 0x7000);
    assert!(transfer.is_complete());
    assert_eq!((transfer.done, difference), (0x2345, Some(0x2345)));
    // The end of the mapping lies behind the difference, then before it.
    let (transfer, difference) = port.enter(None).compare(a, b, 0x10_0000);
    assert_eq!((transfer.is_complete(), difference), (true, Some(0x2345)));
    memory.memory().write(0x8000 + 5 + 0x2345, &[0]);
    let (transfer, difference) = port.enter(None).compare(a, b, 0x10_0000);
    assert_eq!(difference, None);
    assert_eq!(transfer.fault().unwrap().iova, IOVA + (64 << 10));
}

/// Memory of "another process": a worker that is never run, and pages that can vanish.
#[derive(Debug)]
struct Remote {
    memory: Arc<OwnMemory>,
    /// Accesses so far.
    calls: AtomicU64,
    good: AtomicU64,
    worker: Arc<dyn Worker>,
}

#[derive(Debug)]
struct Idle;

impl Worker for Idle {
    fn submit(&self, _job: Job) -> Result<(), WorkerStopped> {
        Err(WorkerStopped)
    }
}

impl Remote {
    fn register(iommu: &Arc<Iommu>, len: usize) -> (Arc<Self>, SpaRange) {
        let remote = Arc::new(Remote {
            memory: OwnMemory::new(len),
            good: AtomicU64::new(u64::MAX),
            calls: AtomicU64::new(0),
            worker: Arc::new(Idle),
        });
        let range = iommu.space().register(remote.clone(), 0).unwrap();
        (remote, range)
    }

    fn map(iommu: &Arc<Iommu>, domain: &Domain, iova: u64, len: usize) -> (Arc<Self>, SpaRange) {
        let (remote, range) = Remote::register(iommu, len);
        domain
            .map(iova, range.start(), len as u64, Prot::RW)
            .unwrap();
        (remote, range)
    }

    fn check(&self, offset: u64, len: usize) -> Result<(), MemoryGone> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let good = self.good.load(Ordering::Relaxed);
        let done = good.saturating_sub(offset).min(len as u64) as usize;
        if done == len {
            Ok(())
        } else {
            Err(MemoryGone { done })
        }
    }
}

impl Backing for Remote {
    fn size(&self) -> u64 {
        Backing::size(&*self.memory)
    }

    fn memory(&self) -> Memory<'_> {
        Memory::Remote(self)
    }
}

impl RemoteMemory for Remote {
    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.memory.read(offset as usize, dst);
        self.check(offset, dst.len())
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        let result = self.check(offset, src.len());
        let done = result.map_or_else(|gone| gone.done, |()| src.len());
        self.memory.write(offset as usize, &src[..done]);
        result
    }

    fn worker(&self) -> &Arc<dyn Worker> {
        &self.worker
    }
}

#[test]
fn memory_that_may_block_is_touched_only_where_blocking_is_allowed() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, local) = mapped(&iommu, IOVA, LEN);
    let far = IOVA + LEN as u64;
    let (remote, _range) = Remote::map(&iommu, &domain, far, LEN);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let data: Vec<u8> = (0..LEN).map(|i| (i / 3) as u8).collect();
    local.memory().write(0, &data);
    let mut port = device.port();

    let is_remote = |stop: &Option<Stop>| match stop {
        Some(Stop::Remote(worker)) => Arc::ptr_eq(worker, &remote.worker),
        _ => false,
    };
    // What is local is done before the engine gives up.
    let transfer = port.enter(None).copy(far - 100, IOVA, 200);
    assert_eq!(transfer.done, 100);
    assert!(is_remote(&transfer.stop));
    assert!(is_remote(&port.enter(None).read(far, &mut [0]).stop));
    assert!(is_remote(&port.enter(None).write(far, &[0]).stop));

    local.memory().write(0, &data);
    let mut done = 0;
    while done < LEN as u64 / 2 {
        let mut guard = port.enter_blocking(None);
        done += guard.copy_on(far + 77, IOVA, LEN as u64 / 2, done).done;
    }
    let mut found = vec![0; LEN / 2];
    remote.memory.read(77, &mut found);
    assert!(found == data[..LEN / 2]);
    // Overlapping, downwards, through the bounce buffer.
    let mut done = 0;
    while done < LEN as u64 / 2 {
        let mut guard = port.enter_blocking(None);
        done += guard
            .copy_on(far + 5000, far + 77, LEN as u64 / 2, done)
            .done;
    }
    remote.memory.read(5000, &mut found);
    assert!(found == data[..LEN / 2]);
}

#[test]
fn memory_that_vanishes_is_a_fault_at_the_first_byte_that_is_gone() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, local) = mapped(&iommu, IOVA, LEN);
    let far = IOVA + LEN as u64;
    let (remote, _range) = Remote::map(&iommu, &domain, far, LEN);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    remote.good.store(10_000, Ordering::Relaxed);
    remote.memory.write(0, &[7; 10_000]);
    let mut port = device.port();
    let transfer = port.enter_blocking(None).copy(IOVA, far, 32 << 10);
    let fault = transfer.fault().unwrap();
    assert_eq!(
        (fault.iova, fault.access, fault.reason),
        (far + 10_000, Access::Read, FaultReason::MemoryGone)
    );
    assert_eq!(transfer.done, 10_000);
    assert_eq!(contents(&local, 10_001)[9_998..], [7, 7, 0]);
    let transfer = port.enter_blocking(None).write(far + 9_000, &[1; 2000]);
    let fault = transfer.fault().unwrap();
    assert_eq!(
        (transfer.done, fault.iova, fault.access),
        (1000, far + 10_000, Access::Write)
    );
    local.memory().write(0, &[5; 32 << 10]);
    let transfer = port.enter_blocking(None).copy(far, IOVA, 32 << 10);
    let fault = transfer.fault().unwrap();
    assert_eq!(
        (fault.iova, fault.access, fault.reason),
        (far + 10_000, Access::Write, FaultReason::MemoryGone)
    );
    assert_eq!(transfer.done, 10_000);
    let mut found = [1; 10_001];
    remote.memory.read(0, &mut found);
    assert_eq!(found[9_998..], [5, 5, 0]);
}

#[test]
fn a_copy_with_addressable_memory_asks_the_other_side_once_and_one_between_others_twice() {
    const PIECE: u64 = 64 << 10;
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, local) = mapped(&iommu, IOVA, LEN);
    let far = IOVA + LEN as u64;
    let (remote, _range) = Remote::map(&iommu, &domain, far, LEN);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let data: Vec<u8> = (0..LEN).map(|i| (i / 3) as u8).collect();
    local.memory().write(0, &data);
    let mut port = device.port();
    let mut calls = |dst, src| {
        let before = remote.calls.load(Ordering::Relaxed);
        let transfer = port.enter_blocking(None).copy(dst, src, PIECE);
        assert!(transfer.is_complete(), "{:?}", transfer.stop);
        remote.calls.load(Ordering::Relaxed) - before
    };
    assert_eq!(calls(far + 7, IOVA + 3), 1);
    assert_eq!(calls(far + PIECE + 100, far + 7), 2);
    assert_eq!(calls(IOVA + PIECE + 500, far + PIECE + 100), 1);
    let mut found = vec![0; PIECE as usize];
    local.memory().read(PIECE as usize + 500, &mut found);
    assert!(found == data[3..][..PIECE as usize]);
}

#[test]
fn memory_that_is_read_only_takes_nothing_from_memory_that_may_block() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, local) = mapped(&iommu, IOVA, LEN);
    let far = IOVA + LEN as u64;
    let (remote, _range) = Remote::map(&iommu, &domain, far, LEN);
    remote.memory.write(0, &[7; 64]);
    let there = IOVA + 4 * LEN as u64;
    domain
        .map(there, local.spa(), LEN as u64, Prot::READ)
        .unwrap();
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let transfer = device.port().enter_blocking(None).copy(there, far, 64);
    let fault = transfer.fault().unwrap();
    assert_eq!(
        (transfer.done, fault.iova, fault.access, fault.reason),
        (0, there, Access::Write, FaultReason::Permission)
    );
    assert_eq!(contents(&local, 1), [0]);
}

#[test]
fn operations_and_bytes_are_counted_per_domain() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, _memory) = mapped(&iommu, IOVA, 8192);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let mut port = device.port();
    let mut guard = port.enter(None);
    assert!(guard.copy(IOVA, IOVA + 4096, 4096).is_complete());
    assert!(guard.write(IOVA, &[0; 32]).is_complete());
    drop(guard);
    assert_eq!((domain.dma_operations(), domain.dma_bytes()), (2, 4128));
}
