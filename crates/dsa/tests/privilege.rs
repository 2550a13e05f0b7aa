//! Whose requests are privileged, as a guest's first-stage table tells: supervisor pages are for them alone.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::*;
use ioasid_dsa::{
    DsaChild, DsaConfig, DsaDevice, HostDriver,
    spec::{
        Command, Descriptor, Status,
        completion::FAULT_ON_WRITE,
        registers::{self as reg},
        tables::WqUse,
    },
};
use ioasid_iommu::{Device, DmaSource, Domain, FaultLog, FaultSink, FirstStage, Iommu};
use ioasid_vfio::DefaultPasid;

const SIZE: u64 = 1 << 20;
const PASID: u32 = 5;
/// Addresses of the guest: a page for records that anybody may use, a supervisor page.
const RECORD: u64 = 0x1000;
const KERNEL: u64 = 0x2000;
/// Guest-physical addresses of what they lead to, and of the tables.
const USER_PAGE: u64 = Area::BASE + 0x1000;
const KERNEL_PAGE: u64 = Area::BASE + 0x2000;
const TABLES: u64 = Area::BASE + 0x1_0000;

/// A device whose PASID leads to a nested domain.
struct Setup {
    _iommu: Arc<Iommu>,
    device: Arc<Device>,
    dsa: Arc<DsaDevice>,
    parent: Arc<Domain>,
    area: Area,
}

impl Setup {
    fn new(config: DsaConfig) -> Self {
        let (iommu, device) = new_device(true);
        let dsa = new_dsa(&iommu, &device, config);
        let parent = new_domain(&iommu, &device);
        let area = Area::new(&iommu, SIZE as usize);
        area.map(&parent, SIZE);
        // Present and writable; the user bit in every entry but the supervisor page's.
        let entry = |at: u64, value: u64| area.write(at, &value.to_le_bytes());
        for level in 0..3 {
            let table = TABLES + 0x1000 * level;
            entry(table, (table + 0x1000) | 7);
        }
        let lowest = TABLES + 0x3000;
        entry(lowest + 8, USER_PAGE | 7);
        entry(lowest + 16, KERNEL_PAGE | 3);
        Setup {
            _iommu: iommu,
            device,
            dsa,
            parent,
            area,
        }
    }

    fn attach(&self, source: &DmaSource, supervisor: bool) {
        let table = FirstStage {
            supervisor,
            ..FirstStage::new(TABLES)
        };
        let nested = self.parent.nest(table).unwrap();
        let faults: Arc<dyn FaultSink> = FaultLog::new(16);
        source.attach(&nested, &faults).unwrap();
    }

    /// The status of a write to the supervisor page that `submit` submits.
    fn write(&self, submit: impl FnOnce(Descriptor)) -> u8 {
        self.area.write(USER_PAGE, &[0; 32]);
        self.area.write(KERNEL_PAGE, &[0; 64]);
        submit(Descriptor::fill(KERNEL, u64::MAX, 64, RECORD));
        let status = self.area.wait(USER_PAGE).status;
        let written = self.area.read(KERNEL_PAGE, 64) == vec![0xff; 64];
        assert_eq!(written, status == 1);
        status
    }
}

const REFUSED: u8 = Status::PageFault as u8 | FAULT_ON_WRITE;

#[test]
fn a_dedicated_queue_is_privileged_by_its_configuration() {
    let setup = Setup::new(DsaConfig::with_queues(2));
    let source = DmaSource::with_pasid(&setup.device, PASID).unwrap();
    setup.attach(&source, true);
    let driver = Driver::new(setup.dsa.clone());
    driver.configure(&[8, 8]);
    let tagged = usage().with_pasid_en(true).with_pasid(PASID);
    driver.configure_queue(0, 8, tagged.with_privileged(true));
    driver.configure_queue(1, 8, tagged);
    for queue in [0, 1] {
        assert_eq!(driver.command(Command::EnableWq, queue), 0);
    }
    // Whatever the descriptor says, and one engine after the other.
    for round in 0..8 {
        let job = |queue: u64| {
            setup.write(|job| {
                let privileged = round % 2 == 0;
                driver.submit(queue, Descriptor { privileged, ..job });
            })
        };
        assert_eq!(job(0), 1);
        assert_eq!(job(1), REFUSED);
    }
}

#[test]
fn a_descriptor_of_a_shared_queue_is_privileged_by_its_own_bit() {
    let setup = Setup::new(DsaConfig::with_queues(1));
    let source = DmaSource::with_pasid(&setup.device, PASID).unwrap();
    setup.attach(&source, true);
    let driver = Driver::new(setup.dsa.clone());
    driver.configure(&[8]);
    let shared = WqUse::new().with_priority(8).with_pasid_en(true);
    driver.configure_queue(0, 8, shared);
    driver.write32(reg::WQCFG + 4, 8);
    assert_eq!(driver.command(Command::EnableWq, 0), 0);
    for (privileged, status) in [(true, 1), (false, REFUSED), (true, 1)] {
        let found = setup.write(|job| {
            let job = Descriptor { privileged, ..job };
            assert!(driver.enqueue(0, PASID, job));
        });
        assert_eq!(found, status);
    }
}

#[test]
fn a_child_makes_user_requests() {
    let mut config = DsaConfig::with_queues(2);
    config.queues[1].mdev = true;
    let setup = Setup::new(config);
    let _host = HostDriver::probe(&setup.dsa).unwrap();
    let child = DsaChild::new(&setup.dsa, 1).unwrap();
    let (device, pasid) = child.bind().unwrap();
    let driver = Driver::new(child.clone());
    assert_eq!(driver.command(Command::EnableDevice, 0), 0);
    assert_eq!(driver.command(Command::EnableWq, 0), 0);
    let source = DmaSource::new(&device, Some(pasid));
    // They need no leave for supervisor requests, and reach no supervisor page with it.
    for supervisor in [false, true] {
        setup.attach(&source, supervisor);
        assert_eq!(setup.write(|job| driver.submit(0, job)), REFUSED);
        source.detach();
    }
    child.quiesce();
    child.unbind();
}
