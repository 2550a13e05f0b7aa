//! The parent's own driver: jobs, errors and many at once, by the DMA API.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::*;
use ioasid_core::statistics::JobCounts;
use ioasid_ioat::{
    DriverError, Error, HostChannel, HostDriver,
    spec::{ChanErr, Descriptor},
};

fn new_channel() -> (HostChannel, Arc<HostDriver>) {
    let driver = HostDriver::probe(&new_ioat(&new_iommu(), "0000:6a:01.0", 1)).unwrap();
    (driver.open_channel(0).unwrap(), driver)
}

#[test]
fn jobs_of_the_driver_copy_and_fill_its_buffers() {
    let (channel, driver) = new_channel();
    let [from, to] = [1, 2].map(|_| driver.dma().alloc_coherent(1 << 18).unwrap());
    let mut found = vec![0; 1 << 18];
    for round in 0..300 {
        let bytes = pattern(4096, round);
        from.memory().write(0, &bytes);
        channel.copy(to.iova() + round, from.iova(), 4096).unwrap();
        to.memory().read(0, &mut found);
        assert!(found[round as usize..][..4096] == bytes);
    }
    channel
        .fill(to.iova(), 0x1111_1111_1111_1111, 1 << 18)
        .unwrap();
    to.memory().read(0, &mut found);
    assert!(found.iter().all(|byte| *byte == 0x11));
    let counts = channel.counts();
    assert_eq!(
        counts,
        JobCounts {
            jobs: 301,
            errors: 0,
            faults: 0
        }
    );
    assert_eq!(channel.latency().count(), 301);
}

#[test]
fn a_job_that_fails_has_its_error_and_the_others_are_done() {
    let (channel, driver) = new_channel();
    let buffer = driver.dma().alloc_coherent(4096).unwrap();
    let at = |n: u64| buffer.iova() + n * 8;
    for round in 0..50 {
        let pattern = round + 1;
        let unmapped = 0x1000;
        let tickets: Vec<_> = (0..40)
            .map(|n| match n % 10 {
                3 => channel.submit(Descriptor::fill(unmapped, pattern, 8)),
                7 => channel.submit(Descriptor::fill(at(n), pattern, 0)),
                _ => channel.submit(Descriptor::fill(at(n), pattern, 8)),
            })
            .collect();
        for (n, ticket) in (0..).zip(tickets) {
            let error = match channel.wait(ticket) {
                Ok(()) => ChanErr::new(),
                Err(Error::Job(error)) => error,
                Err(other) => panic!("{other}"),
            };
            let expected = match n % 10 {
                3 => ChanErr::new().with_write_data(true),
                7 => ChanErr::new().with_length(true),
                _ => ChanErr::new(),
            };
            assert_eq!(error, expected, "{n}");
            let mut found = [0; 8];
            buffer.memory().read(n as usize * 8, &mut found);
            let done = !matches!(n % 10, 3 | 7);
            assert_eq!(u64::from_le_bytes(found) == pattern, done, "{n}");
        }
    }
    let counts = channel.counts();
    assert_eq!(
        counts,
        JobCounts {
            jobs: 2000,
            errors: 400,
            faults: 200
        }
    );
}

#[test]
fn several_threads_share_a_channel() {
    let (channel, driver) = new_channel();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (channel, dma) = (&channel, driver.dma());
            scope.spawn(move || {
                let [from, to] = [1, 2].map(|_| dma.alloc_coherent(0x8000).unwrap());
                let mut found = vec![0; 0x8000];
                for round in 0..500 {
                    let bytes = pattern(0x8000, thread << 32 | round);
                    from.memory().write(0, &bytes);
                    channel.copy(to.iova(), from.iova(), 0x8000).unwrap();
                    to.memory().read(0, &mut found);
                    assert!(found == bytes);
                }
            });
        }
    });
    assert_eq!(channel.counts().jobs, 2000);
}

#[test]
fn a_device_has_one_driver_at_a_time() {
    let iommu = new_iommu();
    let ioat = new_ioat(&iommu, "0000:6a:01.0", 1);
    let driver = HostDriver::probe(&ioat).unwrap();
    assert!(matches!(
        HostDriver::probe(&ioat),
        Err(Error::Driver(DriverError::Driven))
    ));
    drop(driver);
    let driver = HostDriver::probe(&ioat).unwrap();
    drop(driver.open_channel(0).unwrap());
    assert_eq!(iommu.paging_domains(), 1);
}
