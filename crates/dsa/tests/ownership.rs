//! The owners of queues, and the parent's own driver as one of them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use ioasid_core::inspect::Value;
use ioasid_dsa::{
    DriverError, DsaConfig, Error, HostDriver, QueueType,
    spec::{
        Command, CommandError,
        command::queue_operand,
        registers::{self as reg},
        tables::WQCFG_SIZE,
    },
};

#[test]
fn a_queue_has_one_owner_and_an_mdev_queue_is_locked_for_its_parent() {
    let whole = Whole::new(16);
    let claim = whole.dsa.claim_queue(2, QueueType::Mdev).unwrap();
    assert!(matches!(
        whole.dsa.claim_queue(2, QueueType::User),
        Err(Error::QueueBusy {
            index: 2,
            owner: QueueType::Mdev
        })
    ));
    assert!(matches!(
        whole.dsa.claim_queue(9, QueueType::User),
        Err(Error::NoQueue(9))
    ));
    let entry = reg::WQCFG + 2 * WQCFG_SIZE;
    let before = whole.driver.read32(entry + 8);
    whole
        .driver
        .write32(entry + 8, usage().with_pasid(9).into_bits());
    assert_eq!(whole.driver.read32(entry + 8), before);
    let invalid = CommandError::InvalidQueue as u8;
    assert_eq!(whole.driver.command(Command::EnableWq, 2), invalid);
    assert_eq!(
        whole.driver.command(Command::ResetWq, queue_operand(2)),
        invalid
    );
    assert_eq!(
        queue_field(&*whole.dsa, 2, "state"),
        Value::Text("locked".into())
    );
    drop(claim);
    assert_eq!(whole.driver.command(Command::EnableWq, 2), 0);
}

#[test]
fn the_parents_driver_moves_bytes_through_the_dma_api() {
    let iommu = new_iommu();
    let device = add_device(&iommu, "0000:6a:01.0");
    let dsa = new_dsa(&iommu, &device, DsaConfig::with_queues(4));
    let driver = HostDriver::probe(&dsa).unwrap();
    assert!(matches!(
        HostDriver::probe(&dsa),
        Err(Error::Driver(DriverError::Driven))
    ));
    let queue = driver.open_queue(0).unwrap();
    assert!(matches!(driver.open_queue(0), Err(Error::QueueBusy { .. })));
    let (from, to) = (
        driver.dma().alloc_coherent(1 << 20).unwrap(),
        driver.dma().alloc_coherent(1 << 20).unwrap(),
    );
    from.memory().write(0, &pattern(1 << 20, 7));
    queue.memory_move(to.iova(), from.iova(), 1 << 20).unwrap();
    assert_eq!(
        queue.compare(to.iova(), from.iova(), 1 << 20).unwrap(),
        None
    );
    queue.fill(to.iova() + 4096, 0x55, 8).unwrap();
    assert_eq!(
        queue.compare(to.iova(), from.iova(), 1 << 20).unwrap(),
        Some(4096)
    );
    queue.drain().unwrap();
    let gone = to.iova();
    drop(to);
    let Err(Error::Job {
        status, fault_addr, ..
    }) = queue.fill(gone, 0, 64)
    else {
        panic!("an unmapped buffer is out of reach")
    };
    assert_eq!((status, fault_addr), (0x83, gone));
    let counts = queue.counts();
    assert_eq!((counts.jobs, counts.errors, counts.faults), (6, 1, 1));
    assert_eq!(queue.latency().count(), 6);
    drop((queue, from));
    drop(driver);
    HostDriver::probe(&dsa).expect("the device is free again");
}
