//! The event log: errors without a record, in a ring that their owner has set up and sees alone.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::*;
use ioasid_dsa::{
    DsaChild, DsaConfig, HostDriver,
    spec::{
        Command, CommandError, Descriptor, Opcode, Status,
        completion::RECORD_SIZE,
        event_log::EVENT_SIZE,
        registers::{self as reg, GenCap},
    },
};
use ioasid_iommu::{DmaSource, FaultLog, FaultSink};
use ioasid_vfio::DefaultPasid;

const RING: u64 = Area::BASE + 0x8000;
const ENTRIES: u64 = 64;
/// Bit of GENCFG.
const ENABLE: u32 = 1 << 13;
const MIB: usize = 1 << 20;

/// Sets the ring of a disabled device up.
fn set_up(driver: &Driver, ring: u64, interrupts: bool) {
    driver.write64(reg::EVLCFG, ring);
    driver.write64(reg::EVLCFG + 8, ENTRIES);
    driver.write32(reg::GENCTRL, if interrupts { 4 } else { 0 });
    driver.write32(reg::GENCFG, ENABLE);
}

/// A whole device with a ring.
fn whole(ring: u64) -> Whole {
    let whole = Whole::new(16);
    assert_eq!(whole.driver.command(Command::DisableDevice, 0), 0);
    set_up(&whole.driver, ring, true);
    assert_eq!(whole.driver.command(Command::EnableDevice, 0), 0);
    assert_eq!(whole.driver.command(Command::EnableWq, 0), 0);
    whole
}

fn tail(driver: &Driver) -> u64 {
    driver.read64(reg::EVLSTATUS) >> 32 & 0xffff
}

/// A copy that works and whose record cannot be written.
fn lost(index: u64) -> Descriptor {
    let beyond = Area::BASE + Whole::SIZE + 32 * index;
    Descriptor::memory_move(Area::BASE, Area::BASE + 64, 32, beyond).with_interrupt(2)
}

#[test]
fn an_error_goes_to_the_ring_with_the_record_that_was_lost_and_not_to_swerr() {
    let whole = whole(RING);
    let driver = &whole.driver;
    assert_eq!(
        GenCap::from_bits(driver.read64(reg::GENCAP)).evl_support(),
        1
    );
    let irq = driver.listen(0);
    driver.submit(
        0,
        Descriptor {
            pasid: 0x77,
            ..lost(1)
        },
    );
    eventually("an entry", || tail(driver) == 1);
    eventually("its interrupt", || irq.count() == 1);
    let entry = whole.area.read(RING, EVENT_SIZE);
    assert_eq!(entry[1], Status::RecordFault as u8);
    assert_eq!(entry[4], Opcode::MemoryMove as u8);
    assert_eq!(entry[5], 0x77, "the PASID that the descriptor claimed");
    assert_eq!(entry[12..14], [2, 0], "the interrupt that was not raised");
    let address = Area::BASE + Whole::SIZE + 32;
    assert_eq!(entry[16..24], address.to_le_bytes());
    assert_eq!(entry[EVENT_SIZE - RECORD_SIZE], Status::Success as u8);
    assert_eq!(driver.software_error(), None);
    assert_eq!(driver.read32(reg::INTCAUSE), 1 << 5);
    // A second one raises no second interrupt until the first has been seen.
    driver.submit(0, lost(2));
    eventually("a second entry", || tail(driver) == 2);
    assert_eq!(irq.count(), 1);
    driver.write32(reg::EVLSTATUS + 4, 1 << 30);
    driver.write32(reg::EVLSTATUS, 2);
    driver.submit(0, lost(3));
    eventually("a third entry", || tail(driver) == 3);
    eventually("a second interrupt", || irq.count() == 2);
}

#[test]
fn a_full_ring_loses_nothing_that_it_holds_and_the_rest_goes_to_swerr() {
    let whole = whole(RING);
    for index in 0..ENTRIES + 8 {
        whole.driver.submit(0, lost(index));
        if index % 8 == 7 {
            assert_eq!(whole.driver.command(Command::DrainAll, 0), 0);
        }
    }
    assert_eq!(tail(&whole.driver), ENTRIES - 1);
    for index in 0..ENTRIES - 1 {
        let entry = whole.area.read(RING + 64 * index, EVENT_SIZE);
        assert_eq!(entry[1], Status::RecordFault as u8, "{index}");
    }
    assert_eq!(whole.area.read(RING + 64 * (ENTRIES - 1), 64), vec![0; 64]);
    let error = whole.driver.software_error();
    assert_eq!(error, Some(Status::RecordFault as u8));
}

#[test]
fn a_ring_that_cannot_be_reached_is_as_none() {
    let whole = whole((Area::BASE + Whole::SIZE) & !0xfff);
    whole.driver.submit(0, lost(1));
    assert_eq!(whole.driver.command(Command::DrainAll, 0), 0);
    let error = whole.driver.software_error();
    assert_eq!(error, Some(Status::RecordFault as u8));
    assert_eq!(tail(&whole.driver), 0);
}

#[test]
fn a_ring_is_set_up_while_the_device_is_disabled_and_goes_with_a_reset() {
    let whole = whole(RING);
    let driver = &whole.driver;
    driver.write64(reg::EVLCFG, 0);
    driver.write32(reg::GENCFG, 0);
    assert_eq!(driver.read64(reg::EVLCFG), RING);
    assert_eq!(driver.read32(reg::GENCFG), ENABLE);
    assert_eq!(driver.command(Command::ResetDevice, 0), 0);
    assert_eq!(driver.read64(reg::EVLCFG), 0);
    assert_eq!(
        (driver.read32(reg::GENCFG), driver.read64(reg::EVLSTATUS)),
        (0, 0)
    );
    driver.write32(reg::GENCFG, ENABLE);
    assert_eq!(
        driver.command(Command::EnableDevice, 0),
        CommandError::Configuration as u8,
        "a ring without entries"
    );
    driver.write64(reg::EVLCFG + 8, ENTRIES);
    driver.write64(reg::EVLCFG, RING | 1);
    assert_eq!(
        driver.command(Command::EnableDevice, 0),
        CommandError::PasidInvalid as u8
    );
}

#[test]
fn a_ring_may_have_a_pasid_of_its_own() {
    let whole = Whole::new(16);
    let (domain, area) = (
        new_domain(&whole.iommu, &whole.device),
        Area::new(&whole.iommu, MIB),
    );
    area.map(&domain, MIB as u64);
    let sink: Arc<dyn FaultSink> = FaultLog::new(4);
    DmaSource::with_pasid(&whole.device, 9)
        .unwrap()
        .attach(&domain, &sink)
        .unwrap();
    let driver = &whole.driver;
    assert_eq!(driver.command(Command::DisableDevice, 0), 0);
    set_up(driver, RING, false);
    driver.write64(reg::EVLCFG, RING | 1);
    driver.write64(reg::EVLCFG + 8, ENTRIES | 9 << 16);
    assert_eq!(driver.command(Command::EnableDevice, 0), 0);
    driver.configure_queue(0, 16, usage());
    assert_eq!(driver.command(Command::EnableWq, 0), 0);
    driver.submit(0, lost(1));
    eventually("an entry", || tail(driver) == 1);
    assert_eq!(area.read(RING, 2)[1], Status::RecordFault as u8);
    assert_eq!(whole.area.read(RING, EVENT_SIZE), vec![0; EVENT_SIZE]);
}

#[test]
fn the_log_of_one_child_shows_to_no_other_and_not_to_the_parent() {
    let iommu = new_iommu();
    let device = add_device(&iommu, "0000:6a:01.0");
    let mut config = DsaConfig::with_queues(3);
    config.queues[1..]
        .iter_mut()
        .for_each(|queue| queue.mdev = true);
    let dsa = new_dsa(&iommu, &device, config);
    let _host = HostDriver::probe(&dsa).unwrap();
    let children = [1, 2].map(|queue| {
        let child = DsaChild::new(&dsa, queue).unwrap();
        let (device, pasid) = child.bind().unwrap();
        let domain = new_domain(&iommu, &device);
        let area = Area::new(&iommu, MIB);
        area.map(&domain, MIB as u64);
        let sink: Arc<dyn FaultSink> = FaultLog::new(64);
        DmaSource::new(&device, Some(pasid))
            .attach(&domain, &sink)
            .unwrap();
        let driver = Driver::new(child.clone());
        // A PASID that it claims for its ring is refused.
        driver.write64(reg::EVLCFG + 8, ENTRIES | u64::from(pasid.get()) << 16);
        driver.write64(reg::EVLCFG, RING | 1);
        driver.write32(reg::GENCFG, ENABLE);
        let refused = driver.command(Command::EnableDevice, 0);
        assert_eq!(refused, CommandError::PasidInvalid as u8);
        set_up(&driver, RING, true);
        assert_eq!(driver.command(Command::EnableDevice, 0), 0);
        assert_eq!(driver.command(Command::EnableWq, 0), 0);
        (child, driver, area, domain)
    });
    let [(_, guest, own, _), (_, other, others, _)] = &children;
    let parent = Driver { model: dsa.clone() };
    let irqs = [other.listen(0), parent.listen(0)];
    guest.submit(0, lost(1));
    eventually("an entry", || tail(guest) == 1);
    let entry = own.read(RING, EVENT_SIZE);
    assert_eq!(entry[1], Status::RecordFault as u8);
    assert_eq!(entry[2], 0, "its own queue index");
    assert_eq!(entry[5..8], [0, 0, 0], "no PASID");
    assert_eq!((tail(other), tail(&parent)), (0, 0));
    assert_eq!(others.read(RING, EVENT_SIZE), vec![0; EVENT_SIZE]);
    for driver in [guest, other, &parent] {
        assert_eq!(driver.software_error(), None);
    }
    assert!(irqs.iter().all(|irq| irq.count() == 0));
    assert_eq!(
        parent.read32(reg::INTCAUSE) | other.read32(reg::INTCAUSE),
        0
    );
}
