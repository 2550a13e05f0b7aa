//! A sink gets reports of all that its device writes, and of nothing else.
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;

use std::sync::Arc;

use common::*;
use ioasid_core::{AddrRange, sync::Mutex};
use ioasid_iommu::{Device, DmaPort, DmaSource, FaultReason, Iommu, Requests, WriteSink};

const IOVA: u64 = 0x10_0000;
const LEN: usize = 1 << 20;

/// What was written, in the order in which it was told.
#[derive(Debug, Default)]
struct Seen(Mutex<Vec<AddrRange>>);

impl WriteSink for Seen {
    fn wrote(&self, range: AddrRange) {
        self.0.lock().push(range);
    }
}

impl Seen {
    /// Since the last time, as a sorted list of ranges that do not touch.
    fn take(&self) -> Vec<AddrRange> {
        let mut all = std::mem::take(&mut *self.0.lock());
        all.sort_unstable();
        let mut joined: Vec<AddrRange> = Vec::new();
        for range in all {
            match joined.last_mut() {
                Some(last) if last.last() + 1 >= range.start() => {
                    let end = last.last().max(range.last());
                    *last = AddrRange::new(last.start(), end).unwrap();
                }
                _ => joined.push(range),
            }
        }
        joined
    }
}

struct Setup {
    device: Arc<Device>,
    port: DmaPort,
    seen: Arc<Seen>,
    // What is mapped.
    _keep: (
        Arc<Iommu>,
        Arc<ioasid_iommu::Domain>,
        ioasid_core::memory::OwnPages,
    ),
}

impl Setup {
    fn new() -> Self {
        let iommu = machine();
        let device = device(&iommu, 1);
        let (domain, memory) = mapped(&iommu, IOVA, LEN);
        DmaSource::new(&device, None)
            .attach(&domain, &sink())
            .unwrap();
        for pasid in [5, 6] {
            source(&device, pasid).attach(&domain, &sink()).unwrap();
        }
        Setup {
            port: device.port(),
            device,
            seen: Arc::default(),
            _keep: (iommu, domain, memory),
        }
    }

    fn watch(&self, writes: Requests) -> ioasid_iommu::WriteWatch {
        self.device.watch_writes(writes, self.seen.clone())
    }
}

#[test]
fn every_way_to_write_is_told_and_no_read() {
    let mut setup = Setup::new();
    let _watch = setup.watch(Requests::All);
    let (port, seen) = (&mut setup.port, &setup.seen);
    let mut buffer = [0; 100];
    assert!(port.enter(None).read(IOVA, &mut buffer).is_complete());
    let (transfer, _) = port.enter(None).compare(IOVA, IOVA + 0x2000, 0x1000);
    assert!(transfer.is_complete());
    assert_eq!(seen.take(), []);

    assert!(port.enter(None).write(IOVA + 0xffe, &buffer).is_complete());
    assert_eq!(seen.take(), [range(IOVA + 0xffe, 100)]);
    assert!(port.enter(None).publish(IOVA + 7, 1).is_complete());
    assert_eq!(seen.take(), [range(IOVA + 7, 1)]);
    assert!(port.enter(None).publish_word(IOVA + 8, 1).is_complete());
    assert_eq!(seen.take(), [range(IOVA + 8, 8)]);
    assert!(port.enter(None).fill(IOVA + 3, 9, 70_000).is_complete());
    assert_eq!(seen.take(), [range(IOVA + 3, 70_000)]);
    assert!(
        port.enter(None)
            .copy(IOVA, IOVA + 0x5_0001, 70_000)
            .is_complete()
    );
    assert_eq!(seen.take(), [range(IOVA, 70_000)]);
    // Backward.
    assert!(port.enter(None).copy(IOVA + 5, IOVA, 70_000).is_complete());
    assert_eq!(seen.take(), [range(IOVA + 5, 70_000)]);
}

#[test]
fn a_write_that_fails_is_told_as_far_as_it_came() {
    let mut setup = Setup::new();
    let _watch = setup.watch(Requests::All);
    let end = IOVA + LEN as u64;
    let transfer = setup.port.enter(None).fill(end - 0x1800, 1, 0x3000);
    assert_eq!(transfer.done, 0x1800);
    assert_eq!(setup.seen.take(), [range(end - 0x1800, 0x1800)]);
    let fault = setup
        .port
        .enter(None)
        .write(0xfee0_0000, &[1])
        .fault()
        .unwrap()
        .reason;
    assert_eq!(fault, FaultReason::InterruptWindow);
    assert!(setup.port.enter(None).write(end, &[1]).fault().is_some());
    assert_eq!(setup.seen.take(), []);
}

#[test]
fn a_sink_of_one_pasid_gets_its_writes_alone_and_none_once_dropped() {
    let mut setup = Setup::new();
    let watch = setup.watch(Requests::Of(pasid(5).unwrap()));
    for (n, pasid) in (0..).zip([None, pasid(5), pasid(6)]) {
        let written = setup.port.enter(pasid).write(IOVA + n, &[1]);
        assert!(written.is_complete());
    }
    assert_eq!(setup.seen.take(), [range(IOVA + 1, 1)]);
    drop(watch);
    assert!(setup.port.enter(pasid(5)).write(IOVA, &[1]).is_complete());
    assert_eq!(setup.seen.take(), []);
    let _all = setup.watch(Requests::All);
    assert!(setup.port.enter(pasid(6)).write(IOVA, &[1]).is_complete());
    assert_eq!(setup.seen.take(), [range(IOVA, 1)]);
}

#[test]
fn a_copy_with_memory_that_may_block_reports_what_it_wrote_on_either_side() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let (domain, _memory) = mapped(&iommu, IOVA, 4096);
    let far = IOVA + 4096;
    let (stuck, _range) = Stuck::map(&iommu, &domain, far);
    stuck.answer();
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let seen = Arc::<Seen>::default();
    let _watch = device.watch_writes(Requests::All, seen.clone());
    let mut port = device.port();
    let pulled = port.enter_blocking(None).copy(IOVA + 3, far, 100);
    assert!(pulled.is_complete());
    assert_eq!(seen.take(), [range(IOVA + 3, 100)]);
    let pushed = port.enter_blocking(None).copy(far + 5, IOVA, 200);
    assert!(pushed.is_complete());
    assert_eq!(seen.take(), [range(far + 5, 200)]);
}

#[test]
fn whoever_waits_knows_of_a_write_that_blocks() {
    let iommu = machine();
    let device = device(&iommu, 1);
    let domain = domain(&iommu);
    let (stuck, _memory) = Stuck::map(&iommu, &domain, IOVA);
    DmaSource::new(&device, None)
        .attach(&domain, &sink())
        .unwrap();
    let seen = Arc::<Seen>::default();
    let watch = device.watch_writes(Requests::All, seen.clone());
    std::thread::scope(|threads| {
        let mut port = device.port();
        let engine = threads.spawn(move || port.enter_blocking(None).write(IOVA + 8, &[1; 16]));
        stuck.wait_until_asked();
        assert_eq!(seen.take(), []);
        let waiter = threads.spawn(|| {
            watch.flush();
            seen.take()
        });
        stuck.answer();
        assert_eq!(waiter.join().unwrap(), [range(IOVA + 8, 16)]);
        assert!(engine.join().unwrap().is_complete());
    });
}
