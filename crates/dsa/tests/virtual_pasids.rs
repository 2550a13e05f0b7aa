//! Children of one shared queue, each with PASID numbers of its own: what a number leads to, and that
//! nothing goes there any more once it was taken away. `IOASID_RACES` sets the number of races (300 by default).
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::*;
use ioasid_dsa::{
    DsaConfig, DsaDevice, Error, HostDriver, SharedChild, SharedQueue, VirtualPasidError,
    spec::{
        Command, CommandError, Descriptor, Opcode, Status,
        registers::{self as reg, PORTAL_PAGE, WqCap},
        tables::{MsixPermission, WqUse},
    },
};
use ioasid_iommu::{Device, Domain, FaultLog, FaultSink, Iommu, PasidError};

const SIZE: u64 = 1 << 20;
/// Not mapped for anybody.
const HOLE: u64 = Area::BASE + SIZE;
/// The number that every user has.
const OWN: u32 = 1;

fn record(index: u64) -> u64 {
    Area::BASE + 32 * index
}

/// An address space.
struct Space {
    domain: Arc<Domain>,
    area: Area,
    faults: Arc<FaultLog>,
}

/// A parent whose own driver has queue 0 and whose queue 1 is shared by children.
struct Parent {
    iommu: Arc<Iommu>,
    device: Arc<Device>,
    dsa: Arc<DsaDevice>,
    queue: Arc<SharedQueue>,
    _host: Arc<HostDriver>,
}

impl Parent {
    fn new() -> Self {
        let iommu = new_iommu();
        let device = add_device(&iommu, "0000:6a:01.0");
        let mut config = DsaConfig::with_queues(3);
        config.queues[1].mdev = true;
        config.queues[1].size = 8;
        let dsa = new_dsa(&iommu, &device, config);
        let host = HostDriver::probe(&dsa).unwrap();
        let queue = SharedQueue::new(&dsa, 1).unwrap();
        Parent {
            iommu,
            device,
            dsa,
            queue,
            _host: host,
        }
    }

    fn space(&self) -> Space {
        let domain = new_domain(&self.iommu, &self.device);
        let area = Area::new(&self.iommu, SIZE as usize);
        area.map(&domain, SIZE);
        Space {
            domain,
            area,
            faults: FaultLog::new(64),
        }
    }

    fn child(&self) -> (Arc<SharedChild>, Driver) {
        let child = SharedChild::new(&self.queue, 4).unwrap();
        let driver = Driver::new(child.clone());
        assert_eq!(driver.command(Command::EnableDevice, 0), 0);
        assert_eq!(driver.command(Command::EnableWq, 0), 0);
        (child, driver)
    }
}

impl Space {
    fn bind(&self, child: &SharedChild, pasid: u32) -> Result<(), VirtualPasidError> {
        let sink: Arc<dyn FaultSink> = self.faults.clone();
        child.bind_pasid(pasid, &self.domain, &sink)
    }
}

#[test]
fn the_same_number_of_two_children_leads_to_two_address_spaces() {
    let parent = Parent::new();
    let spaces = [parent.space(), parent.space(), parent.space()];
    let (one, first) = parent.child();
    let (other, second) = parent.child();
    spaces[0].bind(&one, OWN).unwrap();
    spaces[1].bind(&other, OWN).unwrap();
    spaces[2].bind(&other, 77).unwrap();
    let leased = [one.leased(OWN), other.leased(OWN), other.leased(77)];
    assert!(leased.iter().all(Option::is_some));
    assert!(leased[0] != leased[1] && leased[1] != leased[2]);
    for (driver, pasid, value) in [(&first, OWN, 10), (&second, OWN, 20), (&second, 77, 30)] {
        let job = Descriptor::fill(Area::BASE + 0x1000, value, 4096, record(0));
        assert!(driver.enqueue(PORTAL_PAGE, pasid, job));
    }
    for (space, value) in spaces.iter().zip([10_u64, 20, 30]) {
        assert_eq!(space.area.wait(record(0)).status, 1);
        let bytes = space.area.read(Area::BASE + 0x1000, 4096);
        assert!(bytes.chunks(8).all(|chunk| chunk == value.to_le_bytes()));
        assert_eq!(space.faults.total(), 0);
    }
}

#[test]
fn a_number_that_its_user_has_not_is_an_error_that_its_user_alone_sees() {
    let parent = Parent::new();
    let space = parent.space();
    let (child, driver) = parent.child();
    let (other, second) = parent.child();
    space.bind(&other, OWN).unwrap();
    let host = other.leased(OWN).unwrap().get();
    // Unknown, 0, and the number that the other one's stands for.
    for pasid in [OWN, 0, host, 0xf_ffff] {
        driver.write32(reg::SWERR, 3);
        let job = Descriptor::fill(Area::BASE, u64::MAX, 4096, record(0));
        assert!(driver.enqueue(PORTAL_PAGE, pasid, job));
        assert_eq!(driver.command(Command::DrainAll, 0), 0);
        assert_eq!(driver.software_error(), Some(Status::RecordFault as u8));
        let info = driver.read64(reg::SWERR);
        assert_eq!(info >> 40 & 0xf_ffff, pasid.into(), "the number as given");
    }
    assert_eq!(second.software_error(), None);
    assert_eq!(space.area.read(Area::BASE, 4096), vec![0; 4096]);
    assert_eq!(space.faults.total(), 0);
    assert_eq!(child.leased(OWN), None);
}

#[test]
fn what_was_unbound_gets_no_byte_and_its_pasid_is_free_only_then() {
    let parent = Parent::new();
    let space = parent.space();
    let (child, driver) = parent.child();
    space.bind(&child, OWN).unwrap();
    let leased = child.leased(OWN).unwrap();
    let requests = Requests::install(&space.domain);
    // One waits for a page, one for that one, others in the queue.
    let waiting = Descriptor::fill(HOLE, 0, 64, record(1)).with_block_on_fault();
    assert!(driver.enqueue(0, OWN, waiting));
    eventually("the page request", || !requests.is_empty());
    assert!(driver.enqueue(0, OWN, Descriptor::new(Opcode::Drain, record(2))));
    for index in 3..6 {
        let job = Descriptor::fill(Area::BASE + 0x1000, 7, 4096, record(index));
        assert!(driver.enqueue(0, OWN, job));
    }
    space.area.write(Area::BASE, &[0; 4096]);
    let held = parent.iommu.pasids().held();
    child.unbind_pasid(OWN);
    let pool = parent.iommu.pasids();
    assert_eq!((pool.held(), pool.pending()), (held - 1, 0));
    let seen = space.area.read(Area::BASE, SIZE as usize);
    // The number leads nowhere now, and then to another address space, at the same PASID of the host.
    assert!(driver.enqueue(0, OWN, Descriptor::new(Opcode::Noop, record(7))));
    let next = parent.space();
    next.bind(&child, OWN).unwrap();
    assert_eq!(
        child.leased(OWN),
        Some(leased),
        "the lowest one that is free"
    );
    assert!(driver.enqueue(0, OWN, Descriptor::new(Opcode::Noop, record(8))));
    assert_eq!(next.area.wait(record(8)).status, 1);
    assert_eq!(space.area.read(Area::BASE, SIZE as usize), seen);
    assert_eq!(next.area.record(record(7)).status, 0);
    child.unbind_pasid(OWN);
    child.unbind_pasid(OWN);
}

#[test]
fn unbinding_races_with_descriptors_and_leaves_no_byte_behind() {
    let parent = Parent::new();
    let (child, driver) = parent.child();
    let asked = std::env::var("IOASID_RACES").ok();
    let rounds = asked.and_then(|text| text.parse().ok()).unwrap_or(300);
    for round in 1..=rounds {
        let space = parent.space();
        space.bind(&child, OWN).unwrap();
        std::thread::scope(|scope| {
            let submitter = scope.spawn(|| {
                for _ in 0..16 {
                    let job = Descriptor::fill(Area::BASE + 0x1000, round, 4096, record(0));
                    let _ = driver.enqueue(0, OWN, job);
                }
            });
            child.unbind_pasid(OWN);
            space.area.write(Area::BASE, &[0; 0x2000]);
            submitter.join().unwrap();
        });
        assert_eq!(driver.command(Command::DrainAll, 0), 0);
        assert_eq!(space.area.read(Area::BASE, 0x2000), vec![0; 0x2000]);
        assert_eq!(parent.iommu.pasids().pending(), 0);
    }
}

#[test]
fn commands_of_a_child_concern_its_own_descriptors() {
    let parent = Parent::new();
    let (held, free) = (parent.space(), parent.space());
    let (one, first) = parent.child();
    let (other, second) = parent.child();
    held.bind(&one, OWN).unwrap();
    free.bind(&other, OWN).unwrap();
    let requests = Requests::install(&held.domain);
    let waiting = Descriptor::fill(HOLE, 0, 64, record(1)).with_block_on_fault();
    assert!(first.enqueue(0, OWN, waiting));
    eventually("the page request", || !requests.is_empty());
    // The other one neither waits for it nor ends it.
    for (command, operand) in [
        (Command::DrainPasid, OWN),
        (Command::AbortPasid, OWN),
        (Command::DrainAll, 0),
        (Command::AbortAll, 0),
        (Command::DisableWq, 1),
        (Command::EnableWq, 0),
        (Command::ResetDevice, 0),
    ] {
        assert_eq!(second.command(command, operand), 0, "{command:?}");
    }
    second.model.reset();
    assert!(!second.enqueue(0, OWN, Descriptor::new(Opcode::Noop, record(0))));
    first.start(Command::DrainPasid, OWN);
    assert!(first.command_status().active());
    let id = requests.next().id;
    let answered = parent
        .iommu
        .page_response(id, ioasid_iommu::PageResponse::Invalid);
    answered.unwrap();
    eventually("the drain", || !first.command_status().active());
    assert_eq!(held.area.record(record(1)).status, 0x83);
    // Its own abort ends it without a record.
    let waiting = Descriptor::fill(HOLE, 0, 64, record(2)).with_block_on_fault();
    assert!(first.enqueue(0, OWN, waiting));
    eventually("the page request", || !requests.is_empty());
    assert_eq!(first.command(Command::AbortPasid, 9), 0, "not its own");
    assert_eq!(first.command(Command::ResetWq, 1), 0);
    assert_eq!(held.area.record(record(2)).status, 0);
}

#[test]
fn a_child_shows_one_shared_queue_and_its_user_names_vectors_by_its_own_numbers() {
    let parent = Parent::new();
    let space = parent.space();
    let (child, driver) = parent.child();
    space.bind(&child, OWN).unwrap();
    let queues = WqCap::from_bits(driver.read64(reg::WQCAP));
    assert!(queues.shared_mode() && !queues.dedicated_mode());
    let usage = WqUse::from_bits(driver.read32(reg::WQCFG + 8));
    assert!(usage.pasid_en() && !usage.dedicated() && usage.pasid() == 0);
    driver.submit(0, Descriptor::new(Opcode::Noop, record(0)));
    let host = child.leased(OWN).unwrap().get();
    assert_ne!(host, 9);
    let run = |permitted: u32| {
        let own = MsixPermission::new().with_pasid_en(true);
        let entry = own.with_pasid(permitted).into_bits();
        driver.write32(reg::MSIXPERM + 8, entry);
        space.area.write(record(0), &[0; 32]);
        let job = Descriptor::new(Opcode::Noop, record(0)).with_interrupt(1);
        assert!(driver.enqueue(0, OWN, job));
        space.area.wait(record(0)).status
    };
    assert_eq!(run(OWN), 1);
    assert_eq!(run(9), Status::InterruptHandle as u8);
    // An event log has no address space.
    assert_eq!(driver.command(Command::DisableDevice, 0), 0);
    driver.write32(reg::GENCFG, 1 << 13);
    let enabled = driver.command(Command::EnableDevice, 0);
    assert_eq!(enabled, CommandError::Configuration as u8);
}

#[test]
fn numbers_are_bound_once_within_the_quota_and_go_with_the_child() {
    let parent = Parent::new();
    assert!(matches!(
        SharedQueue::new(&parent.dsa, 2),
        Err(Error::Config(_))
    ));
    assert!(matches!(
        SharedQueue::new(&parent.dsa, 1),
        Err(Error::QueueBusy { .. })
    ));
    let held = parent.iommu.pasids().held();
    let child = SharedChild::new(&parent.queue, 4).unwrap();
    let space = parent.space();
    for pasid in 1..=4 {
        space.bind(&child, pasid).unwrap();
    }
    let refused = space.bind(&child, 1).unwrap_err();
    assert!(matches!(refused, VirtualPasidError::Bound(1)));
    let refused = space.bind(&child, 5).unwrap_err();
    assert!(matches!(
        refused,
        VirtualPasidError::Lease(PasidError::OverQuota { limit: 4 })
    ));
    for pasid in [0, 1 << 20] {
        let refused = space.bind(&child, pasid).unwrap_err();
        assert!(matches!(refused, VirtualPasidError::NoPasid { .. }));
    }
    assert_eq!(parent.iommu.pasids().held(), held + 4);
    drop(child);
    let pool = parent.iommu.pasids();
    assert_eq!((pool.held(), pool.pending()), (held, 0));
}
