//! Copies inside of one program's memory are made in place where something makes them so.
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
    mpsc,
};

use common::*;
use ioasid_core::{
    Access, Prot,
    host::{Job, Worker, WorkerStopped},
    memory::{Backing, InnerCopy, Memory, MemoryGone, OwnMemory, RemoteMemory, RemotePlace},
    spa::SpaRange,
    sync::Mutex,
};
use ioasid_iommu::{Copy, DmaSource, Domain, FaultReason, Iommu};

const IOVA: u64 = 0x20_0000;
const LEN: u64 = 2 << 20;
/// The program's address of its first byte.
const START: u64 = 0x7000_0000;

#[derive(Debug)]
struct Idle;

impl Worker for Idle {
    fn submit(&self, _job: Job) -> Result<(), WorkerStopped> {
        Err(WorkerStopped)
    }
}

/// A program, and what copies in it. Reads and writes go as far as `good`.
#[derive(Debug)]
struct Program {
    memory: Arc<OwnMemory>,
    space: u64,
    good: AtomicU64,
    /// Whether something makes copies in place.
    has_agent: AtomicBool,
    /// The copies that were made in place.
    made: Mutex<Vec<InnerCopy>>,
    accesses: AtomicU64,
    /// Told when a copy in place begins, and asked before it ends.
    gate: Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<()>)>>,
    worker: Arc<dyn Worker>,
}

impl Program {
    fn map(iommu: &Arc<Iommu>, domain: &Domain, iova: u64, space: u64) -> (Arc<Self>, SpaRange) {
        let program = Arc::new(Program {
            memory: OwnMemory::new(LEN as usize),
            space,
            good: AtomicU64::new(u64::MAX),
            has_agent: AtomicBool::new(true),
            made: Mutex::default(),
            accesses: AtomicU64::new(0),
            gate: Mutex::default(),
            worker: Arc::new(Idle),
        });
        let range = iommu.space().register(program.clone(), 0).unwrap();
        domain.map(iova, range.start(), LEN, Prot::RW).unwrap();
        (program, range)
    }

    fn reach(&self, offset: u64, len: u64) -> u64 {
        let good = self.good.load(Ordering::Relaxed);
        good.saturating_sub(offset).min(len)
    }

    fn content(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(offset as usize, &mut bytes);
        bytes
    }
}

impl Backing for Program {
    fn size(&self) -> u64 {
        LEN
    }

    fn memory(&self) -> Memory<'_> {
        Memory::Remote(self)
    }
}

impl RemoteMemory for Program {
    fn read(&self, offset: u64, dst: &mut [u8]) -> Result<(), MemoryGone> {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        let done = self.reach(offset, dst.len() as u64) as usize;
        self.memory.read(offset as usize, &mut dst[..done]);
        match done == dst.len() {
            true => Ok(()),
            false => Err(MemoryGone { done }),
        }
    }

    fn write(&self, offset: u64, src: &[u8]) -> Result<(), MemoryGone> {
        self.accesses.fetch_add(1, Ordering::Relaxed);
        let done = self.reach(offset, src.len() as u64) as usize;
        self.memory.write(offset as usize, &src[..done]);
        match done == src.len() {
            true => Ok(()),
            false => Err(MemoryGone { done }),
        }
    }

    fn worker(&self) -> &Arc<dyn Worker> {
        &self.worker
    }

    fn place(&self, offset: u64) -> Option<RemotePlace> {
        Some(RemotePlace {
            space: self.space,
            address: START + offset,
        })
    }

    fn copy_inside(&self, copies: &mut [InnerCopy]) -> bool {
        if !self.has_agent.load(Ordering::Relaxed) {
            return false;
        }
        if let Some((began, may_end)) = &*self.gate.lock() {
            began.send(()).unwrap();
            may_end.recv().unwrap();
        }
        for copy in copies {
            let (dst, src) = (copy.dst - START, copy.src - START);
            copy.done = self.reach(dst, copy.len).min(self.reach(src, copy.len));
            let bytes = self.content(src, copy.done as usize);
            self.memory.write(dst as usize, &bytes);
            self.made.lock().push(*copy);
            if copy.done != copy.len {
                break;
            }
        }
        true
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 7 + at / 251) as u8).collect()
}

#[test]
fn a_copy_inside_of_a_program_is_made_in_place_and_only_where_blocking_is_allowed() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let domain = domain(&iommu);
    let (program, _range) = Program::map(&iommu, &domain, IOVA, 1);
    let source = DmaSource::new(&device, None);
    source.attach(&domain, &sink()).unwrap();
    let data = pattern(600_000);
    program.memory.write(5, &data);
    let mut port = device.port();
    let len = data.len() as u64;
    assert!(
        !port
            .enter(None)
            .copy(IOVA + (1 << 20), IOVA + 5, len)
            .is_complete()
    );
    assert!(program.made.lock().is_empty());
    let transfer = port
        .enter_blocking(None)
        .copy(IOVA + (1 << 20), IOVA + 5, len);
    assert!(transfer.is_complete());
    assert!(program.content(1 << 20, data.len()) == data);
    assert_eq!(program.made.lock().len(), 1);
    assert_eq!(program.accesses.load(Ordering::Relaxed), 0);

    // Whoever made such copies is gone: another way is found.
    program.has_agent.store(false, Ordering::Relaxed);
    let transfer = port
        .enter_blocking(None)
        .copy(IOVA + (1 << 20) + 1, IOVA + 5, len);
    assert!(transfer.is_complete());
    assert!(program.content((1 << 20) + 1, data.len()) == data);
    assert!(program.accesses.load(Ordering::Relaxed) > 0);
}

#[test]
fn what_ends_a_copy_in_place_is_the_fault_of_the_other_way() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let domain = domain(&iommu);
    let (program, _range) = Program::map(&iommu, &domain, IOVA, 1);
    let source = DmaSource::new(&device, None);
    source.attach(&domain, &sink()).unwrap();
    let data = pattern(300_000);
    program.memory.write(0, &data);
    program.good.store((1 << 20) + 1234, Ordering::Relaxed);
    let mut port = device.port();
    let transfer = port
        .enter_blocking(None)
        .copy(IOVA + (1 << 20), IOVA, 300_000);
    let fault = transfer.fault().unwrap();
    assert_eq!(
        (transfer.done, fault.iova, fault.access, fault.reason),
        (
            1234,
            IOVA + (1 << 20) + 1234,
            Access::Write,
            FaultReason::MemoryGone
        )
    );
    assert!(program.content(1 << 20, 1234) == data[..1234]);
}

#[test]
fn several_copies_are_made_ahead_up_to_the_first_that_fails_or_leaves_the_program() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let domain = domain(&iommu);
    let (program, _range) = Program::map(&iommu, &domain, IOVA, 1);
    let (_other, _its_range) = Program::map(&iommu, &domain, IOVA + LEN, 2);
    let source = DmaSource::new(&device, None);
    source.attach(&domain, &sink()).unwrap();
    let data = pattern(1 << 20);
    program.memory.write(0, &data);
    let copy = |number: u64| Copy {
        dst: IOVA + (1 << 20) + number * 5000,
        src: IOVA + number * 4096 + 3,
        len: 4096,
        done: 0,
    };
    let mut port = device.port();
    let mut copies: Vec<_> = (0..8).map(copy).collect();
    port.enter(None).copy_ahead(&mut copies);
    assert!(copies.iter().all(|copy| copy.done == 0), "it may not block");

    let mut guard = port.enter_blocking(None);
    guard.copy_ahead(&mut copies);
    drop(guard);
    assert!(copies.iter().all(|copy| copy.done == 4096));
    for number in 0..8 {
        let (from, to) = (number * 4096 + 3, (1 << 20) + number * 5000);
        assert!(program.content(to as u64, 4096) == data[from..from + 4096]);
    }
    assert_eq!(domain.dma_bytes(), 8 * 4096);

    // The fourth leads to another program, and the second ends early.
    let mut copies: Vec<_> = (0..6).map(copy).collect();
    copies[3].dst = IOVA + LEN;
    let end = (1 << 20) + 5000 + 100;
    program.good.store(end, Ordering::Relaxed);
    program.made.lock().clear();
    port.enter_blocking(None).copy_ahead(&mut copies);
    let done: Vec<_> = copies.iter().map(|copy| copy.done).collect();
    assert_eq!(done, [4096, 100, 0, 0, 0, 0]);
    assert_eq!(program.made.lock().len(), 2);
}

#[test]
fn an_unmap_waits_for_a_copy_in_place() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let domain = domain(&iommu);
    let (program, _range) = Program::map(&iommu, &domain, IOVA, 1);
    let source = DmaSource::new(&device, None);
    source.attach(&domain, &sink()).unwrap();
    let (began, has_begun) = mpsc::channel();
    let (end, may_end) = mpsc::channel();
    *program.gate.lock() = Some((began, may_end));
    let unmapped = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut port = device.port();
            let _ = port.enter_blocking(None).copy(IOVA + (1 << 20), IOVA, 4096);
        });
        has_begun.recv().unwrap();
        let unmap = scope.spawn(|| {
            domain.unmap(range(IOVA, LEN));
            unmapped.store(true, Ordering::SeqCst);
        });
        // Whenever it looks, the copy has not ended.
        for _ in 0..1000 {
            std::thread::yield_now();
            assert!(!unmapped.load(Ordering::SeqCst));
        }
        end.send(()).unwrap();
        unmap.join().unwrap();
    });
    assert_eq!(program.made.lock().len(), 1, "before the unmap returned");
}
