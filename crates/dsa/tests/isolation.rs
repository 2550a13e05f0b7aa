//! What one client may try against the others, while the parent's own driver is at work.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use common::*;
use ioasid_core::{Pasid, Prot, memory::OwnPages};
use ioasid_dsa::{
    DsaChild, DsaConfig, DsaDevice, DsaParent, HostDriver, HostQueue, TYPE_1DWQ,
    spec::{
        Command, Descriptor, Opcode, Status,
        registers::{PORTAL_PAGE, PORTAL_STRIDE},
    },
};
use ioasid_iommu::{
    DeviceConfig, DmaSource, Domain, FaultLog, FaultSink, Iommu, PageRequest, PageRequestHandler,
    ReservedRegion,
};
use ioasid_iommufd::Context;
use ioasid_vfio::{
    DefaultPasid, Error, MapRequest, Vfio,
    error::RegionError,
    mdev::{MdevParent, MdevRegistry},
    pci::Bar,
};

const SIZE: u64 = 4 << 20;
const RECORD: u64 = Area::BASE;
/// File offset of BAR 2 of a VFIO device.
const PORTALS: u64 = 2 << 40;

/// A parent whose own driver works on queue 0 as long as this lives.
struct Parent {
    iommu: Arc<Iommu>,
    dsa: Arc<DsaDevice>,
    queue: Arc<HostQueue>,
    stop: Arc<AtomicBool>,
    worker: Option<std::thread::JoinHandle<u64>>,
}

impl Parent {
    fn new() -> Self {
        let iommu = new_iommu();
        let device = add_device(&iommu, "0000:6a:01.0");
        let mut config = DsaConfig::with_queues(4);
        config.queues[1..]
            .iter_mut()
            .for_each(|queue| queue.mdev = true);
        let dsa = new_dsa(&iommu, &device, config);
        let host = HostDriver::probe(&dsa).unwrap();
        let queue = Arc::new(host.open_queue(0).unwrap());
        let stop = Arc::new(AtomicBool::new(false));
        let worker = {
            let (queue, stop) = (Arc::clone(&queue), Arc::clone(&stop));
            std::thread::spawn(move || {
                let buffer = queue.driver().dma().alloc_coherent(8192).unwrap();
                let mut jobs = 0;
                while !stop.load(Ordering::Relaxed) || jobs < 10 {
                    let (to, from) = (buffer.iova() + 4096, buffer.iova());
                    queue.memory_move(to, from, 4096).unwrap();
                    jobs += 1;
                }
                jobs
            })
        };
        Parent {
            iommu,
            dsa,
            queue,
            stop,
            worker: Some(worker),
        }
    }

    fn child(&self, queue: usize) -> Child {
        let child = DsaChild::new(&self.dsa, queue).unwrap();
        let (device, pasid) = child.bind().unwrap();
        let domain = new_domain(&self.iommu, &device);
        let area = Area::new(&self.iommu, SIZE as usize);
        area.map(&domain, SIZE);
        let faults = FaultLog::new(64);
        let sink: Arc<dyn FaultSink> = faults.clone();
        DmaSource::new(&device, Some(pasid))
            .attach(&domain, &sink)
            .unwrap();
        let driver = Driver::new(child.clone());
        assert_eq!(driver.command(Command::ResetDevice, 0), 0);
        assert_eq!(driver.command(Command::EnableDevice, 0), 0);
        assert_eq!(driver.command(Command::EnableWq, 0), 0);
        Child {
            child,
            pasid,
            driver,
            domain,
            area,
            faults,
        }
    }

    /// Ends the parent's work and sees that none of it failed.
    fn finish(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let jobs = self.worker.take().unwrap().join().unwrap();
        let counts = self.queue.counts();
        assert_eq!((counts.jobs, counts.errors, counts.faults), (jobs, 0, 0));
    }
}

struct Child {
    child: Arc<DsaChild>,
    pasid: Pasid,
    driver: Driver,
    domain: Arc<Domain>,
    area: Area,
    faults: Arc<FaultLog>,
}

impl Child {
    fn run(&self, mut descriptor: Descriptor) -> u8 {
        self.area.write(RECORD, &[0; 32]);
        descriptor.record_addr = RECORD;
        self.driver.submit(0, descriptor);
        self.area.wait(RECORD).status
    }
}

#[test]
fn a_program_reaches_the_portals_of_its_own_queue_and_no_others() {
    let iommu = new_iommu();
    let device = add_device(&iommu, "0000:6a:01.0");
    let mut config = DsaConfig::with_queues(3);
    config.queues[1..]
        .iter_mut()
        .for_each(|queue| queue.mdev = true);
    let dsa = new_dsa(&iommu, &device, config);
    let host = HostDriver::probe(&dsa).unwrap();
    let vfio = Vfio::new(&iommu);
    let registry = MdevRegistry::new(&vfio);
    let parents = DsaParent::new(dsa);
    registry.add_parent(parents.clone());
    let context = Context::new(&iommu);
    let files: Vec<_> = [1, 2]
        .iter()
        .map(|last| {
            let uuid = format!("5f2e6a9e-93a1-4f0a-9b3e-3d8f0c1b2a0{last}");
            let mdev = registry.create(&parents.name(), TYPE_1DWQ, uuid.as_bytes());
            let file = mdev.unwrap().device().open().unwrap();
            file.bind(&context).unwrap();
            file
        })
        .collect();
    for file in &files {
        let driver = Driver::new(file.device().model().clone());
        assert_eq!(driver.command(Command::EnableDevice, 0), 0);
        assert_eq!(driver.command(Command::EnableWq, 0), 0);
    }
    let descriptor = Descriptor::new(Opcode::Noop, 0).to_bytes();
    // One queue's four pages are all there is: what would be the next queue's is outside.
    let function = files[0].device().model().function();
    let portals: Bar = function.bar(2).unwrap();
    assert_eq!(portals.size, PORTAL_STRIDE);
    files[0].device().set_mappable(true);
    let map = |offset| MapRequest {
        offset: PORTALS + offset,
        len: PORTAL_PAGE,
        shared: true,
        writable: true,
    };
    assert!(files[0].mmap_check(map(0)).is_ok());
    for beyond in [PORTAL_STRIDE, 2 * PORTAL_STRIDE, 7 * PORTAL_STRIDE] {
        let refused = files[0].write(PORTALS + beyond, &descriptor);
        let end = Error::Region(RegionError::BeyondEnd {
            index: 2,
            offset: beyond,
            size: PORTAL_STRIDE,
        });
        assert_eq!(refused, Err(end));
        let refused = files[0].mmap_check(map(beyond));
        let (offset, len) = (PORTALS + beyond, PORTAL_PAGE);
        let not_mappable = Error::Region(RegionError::NotMappable { offset, len });
        assert_eq!(refused, Err(not_mappable));
        let refused = files[0].mapped_write(PORTALS + beyond, &descriptor);
        assert!(refused.is_err(), "{beyond:#x}");
        assert!(
            files[0]
                .mapped_enqueue(PORTALS + beyond, &descriptor)
                .is_err()
        );
    }
    // Nor do the two pages that its queue does not have lead anywhere.
    for page in [2, 3] {
        files[0]
            .write(PORTALS + page * PORTAL_PAGE, &descriptor)
            .unwrap();
    }
    let model = files[0].device().model();
    for portal in (0..8 * PORTAL_STRIDE).step_by(PORTAL_PAGE as usize) {
        assert!(!model.enqueue(2, portal, &descriptor), "a dedicated queue");
    }
    drop(host);
}

/// Answers nothing.
#[derive(Debug)]
struct Silent;

impl PageRequestHandler for Silent {
    fn request(&self, _request: PageRequest) {}
}

#[test]
fn page_requests_that_nobody_answers_delay_their_own_client_only() {
    let parent = Parent::new();
    let (stuck, other) = (parent.child(1), parent.child(2));
    stuck
        .domain
        .set_page_request_handler(Some(Arc::new(Silent)));
    for index in 0..32 {
        let beyond = Area::BASE + SIZE + 4096 * index;
        let job = Descriptor::fill(beyond, 0, 64, RECORD).with_block_on_fault();
        stuck.driver.submit(0, job);
    }
    let before = parent.queue.counts().jobs;
    for _ in 0..100 {
        let (to, from) = (Area::BASE + 0x2000, Area::BASE + 0x1000);
        assert_eq!(other.run(Descriptor::memory_move(to, from, 4096, 0)), 1);
    }
    eventually("the parent's own jobs", || {
        parent.queue.counts().jobs >= before + 100
    });
    assert_eq!(stuck.area.read(RECORD, 1), [0], "it waits still");
    stuck.child.quiesce();
    parent.finish();
}

#[test]
fn commands_of_a_child_leave_the_work_of_the_others_alone() {
    let parent = Parent::new();
    let (hostile, other) = (parent.child(1), parent.child(2));
    for round in 0..200_u32 {
        let (command, operand) = match round % 7 {
            0 => (Command::ResetDevice, 0),
            1 => (Command::EnableDevice, 0),
            2 => (Command::AbortAll, 0),
            3 => (Command::DrainAll, 0),
            4 => (Command::DisableDevice, 0),
            5 => (Command::ResetWq, u32::from(u16::MAX)),
            _ => (Command::AbortPasid, other.pasid.get()),
        };
        hostile.driver.command(command, operand);
        let (to, from) = (Area::BASE + 0x2000, Area::BASE + 0x1000);
        assert_eq!(other.run(Descriptor::memory_move(to, from, 4096, 0)), 1);
    }
    parent.finish();
}

#[test]
fn a_write_with_a_pasid_to_the_interrupt_window_is_plain_dma() {
    let parent = Parent::new();
    let guest = parent.child(1);
    let irqs: Vec<_> = (0..2).map(|vector| guest.driver.listen(vector)).collect();
    let host = Driver {
        model: parent.dsa.clone(),
    };
    let others: Vec<_> = [0, 2, 3].map(|vector| host.listen(vector)).into();
    let window = ReservedRegion::msi_window().range;
    // An MSI message, as a device would write it.
    let message = Descriptor::fill(window.start(), 0x4021, 64, 0);
    let fault = Status::PageFault as u8 | 0x80;
    assert_eq!(guest.run(message), fault);
    let faults = guest.faults.total();
    assert!(faults > 0, "and a fault of its own");
    // Where its owner has mapped something there, that is what is written.
    let pages = OwnPages::new(parent.iommu.space(), 4096).unwrap();
    guest
        .domain
        .map(window.start(), pages.spa(), 4096, Prot::RW)
        .unwrap();
    assert_eq!(guest.run(message), Status::Success as u8);
    let mut bytes = [0; 64];
    pages.memory().read(0, &mut bytes);
    assert!(bytes.chunks(8).all(|word| word == 0x4021_u64.to_le_bytes()));
    assert_eq!(guest.faults.total(), faults);
    assert!(irqs.iter().chain(&others).all(|irq| irq.count() == 0));
    parent.finish();
}

/// In one address space, so that a job of one queue can see how far the other has come: what it
/// copies is the other's records.
#[test]
fn jobs_of_a_queue_are_not_behind_a_flood_of_another() {
    const FLOOD: u64 = 16;
    const JOBS: u64 = 16;
    const SPACE: u64 = 64 << 20;
    const FLOODED: u64 = Area::BASE + (4 << 20);
    const EVIDENCE: u64 = Area::BASE + 0x4000;
    let iommu = new_iommu();
    let config = DeviceConfig::new("0000:6b:01.0".parse().unwrap());
    let device = iommu.add_device(config).unwrap();
    let dsa = new_dsa(
        &iommu,
        &device,
        DsaConfig {
            engines: 1,
            ..DsaConfig::with_queues(2)
        },
    );
    let domain = new_domain(&iommu, &device);
    let area = Area::new(&iommu, SPACE as usize);
    area.map(&domain, SPACE);
    let sink: Arc<dyn FaultSink> = FaultLog::new(4);
    DmaSource::new(&device, None)
        .attach(&domain, &sink)
        .unwrap();
    let driver = Driver::new(dsa);
    driver.configure(&[32, 32]);
    assert_eq!(driver.command(Command::EnableWq, 0), 0);
    assert_eq!(driver.command(Command::EnableWq, 1), 0);
    // Neither queue starts before both are filled: each waits for a page.
    domain.set_page_request_handler(Some(Arc::new(Silent)));
    for queue in 0..2 {
        let held = Area::BASE + 64 * queue;
        let beyond = Area::BASE + SPACE;
        driver.submit(
            queue,
            Descriptor::fill(beyond, 0, 64, held).with_block_on_fault(),
        );
        eventually("a page request", || {
            iommu.pending_page_requests() == queue as usize + 1
        });
        driver.submit(queue, Descriptor::new(Opcode::Drain, held + 32));
    }
    let records = |index| Area::BASE + 0x1000 + 32 * index;
    for index in 0..FLOOD {
        let to = FLOODED + (index % 8) * (2 << 20);
        driver.submit(1, Descriptor::fill(to, index, 2 << 20, records(index)));
    }
    for index in 0..JOBS {
        let (to, from) = (EVIDENCE + 512 * index, records(0));
        let record = Area::BASE + 0x2000 + 32 * index;
        driver.submit(0, Descriptor::memory_move(to, from, 512, record));
    }
    domain.set_page_request_handler(None);
    area.wait(Area::BASE + 0x2000 + 32 * (JOBS - 1));
    let evidence = area.read(EVIDENCE + 512 * (JOBS - 1), 512);
    let flooded = evidence.chunks(32).filter(|record| record[0] != 0).count();
    // All jobs together fit into one round; the flood is a hundred of them.
    assert!(
        flooded <= 1,
        "{flooded} of {FLOOD} jobs of the flood were first"
    );
    for index in 0..FLOOD {
        assert_eq!(
            area.wait(records(index)).status,
            1,
            "and the flood ends too"
        );
    }
}
