//! Shared queues: many clients, distinguished by the PASID that the processor puts into each
//! descriptor, and answered whether their descriptor was taken.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::*;
use ioasid_core::Pasid;
use ioasid_dsa::{
    DsaConfig, DsaDevice,
    spec::{
        Command, CommandError, Descriptor, Opcode, Status,
        registers::{self as reg, PORTAL_PAGE, WqCap},
        tables::{MsixPermission, WQCFG_SIZE, WqUse},
    },
};
use ioasid_iommu::{Device, DmaSource, Domain, FaultLog, FaultSink, Iommu, PageResponse};
use ioasid_iommufd::Context;
use ioasid_vfio::{Passthrough, Vfio};

const SIZE: u64 = 1 << 20;
const ENTRIES: u16 = 8;
const THRESHOLD: u16 = 3;
/// Not mapped for anybody.
const HOLE: u64 = Area::BASE + SIZE;

fn record(index: u64) -> u64 {
    Area::BASE + 32 * index
}

/// One address space at one PASID.
struct Client {
    pasid: u32,
    domain: Arc<Domain>,
    area: Area,
    faults: Arc<FaultLog>,
}

struct Setup {
    iommu: Arc<Iommu>,
    device: Arc<Device>,
    dsa: Arc<DsaDevice>,
    driver: Driver,
}

impl Setup {
    /// A device whose queue 0 is shared.
    fn new() -> Self {
        let setup = Setup::with(shared());
        assert_eq!(setup.driver.command(Command::EnableWq, 0), 0);
        setup
    }

    fn with(usage: WqUse) -> Self {
        Setup::of(new_device(false), usage)
    }

    fn of((iommu, device): (Arc<Iommu>, Arc<Device>), usage: WqUse) -> Self {
        let dsa = new_dsa(&iommu, &device, DsaConfig::with_queues(2));
        let driver = Driver::new(dsa.clone());
        driver.configure(&[ENTRIES, ENTRIES]);
        driver.configure_queue(0, ENTRIES, usage);
        driver.write32(reg::WQCFG + 4, THRESHOLD.into());
        Setup {
            iommu,
            device,
            dsa,
            driver,
        }
    }

    fn client(&self, pasid: u32) -> Client {
        let domain = new_domain(&self.iommu, &self.device);
        let area = Area::new(&self.iommu, SIZE as usize);
        area.map(&domain, SIZE);
        let faults = FaultLog::new(64);
        let sink: Arc<dyn FaultSink> = faults.clone();
        DmaSource::with_pasid(&self.device, pasid)
            .unwrap()
            .attach(&domain, &sink)
            .unwrap();
        Client {
            pasid,
            domain,
            area,
            faults,
        }
    }

    /// Submits through the unlimited portal of queue 0.
    fn enqueue(&self, client: &Client, descriptor: Descriptor) -> bool {
        self.driver.enqueue(0, client.pasid, descriptor)
    }

    /// Keeps `client`'s descriptors from running: one waits for a page and one for that one.
    fn hold_up(&self, client: &Client) -> Arc<Requests> {
        let requests = Requests::install(&client.domain);
        let waiting = Descriptor::fill(HOLE, 0, 64, record(100)).with_block_on_fault();
        assert!(self.enqueue(client, waiting));
        eventually("the page request", || !requests.is_empty());
        assert!(self.enqueue(client, Descriptor::new(Opcode::Drain, record(101))));
        requests
    }

    fn refuse(&self, requests: &Requests) {
        let id = requests.next().id;
        self.iommu.page_response(id, PageResponse::Invalid).unwrap();
    }
}

fn shared() -> WqUse {
    WqUse::new()
        .with_block_on_fault(true)
        .with_priority(10)
        .with_pasid_en(true)
}

#[test]
fn each_descriptor_works_in_the_address_space_of_its_own_pasid() {
    let setup = Setup::new();
    let queues = WqCap::from_bits(setup.driver.read64(reg::WQCAP));
    assert!(queues.shared_mode() && queues.dedicated_mode());
    let clients: Vec<_> = [7, 8, 0xf_fff0].map(|pasid| setup.client(pasid)).into();
    for (round, client) in (1..).zip(&clients) {
        let job = Descriptor::fill(Area::BASE + 0x1000, round, 4096, record(0));
        assert!(setup.enqueue(client, job));
    }
    for (round, client) in (1_u64..).zip(&clients) {
        assert_eq!(client.area.wait(record(0)).status, 1);
        let bytes = client.area.read(Area::BASE + 0x1000, 4096);
        assert!(bytes.chunks(8).all(|chunk| chunk == round.to_le_bytes()));
        assert_eq!(client.faults.total(), 0);
    }
}

#[test]
fn a_full_queue_asks_to_try_again_and_a_limited_portal_does_so_at_the_threshold() {
    let setup = Setup::new();
    let client = setup.client(5);
    let requests = setup.hold_up(&client);
    // The Drain waits in the queue.
    let noop = |index| Descriptor::new(Opcode::Noop, record(index));
    for index in 1..u64::from(THRESHOLD) {
        assert!(setup.driver.enqueue(PORTAL_PAGE, 5, noop(index)));
    }
    assert!(!setup.driver.enqueue(PORTAL_PAGE, 5, noop(50)));
    for index in u64::from(THRESHOLD)..ENTRIES.into() {
        assert!(setup.driver.enqueue(64 * index, 5, noop(index)));
    }
    assert!(!setup.driver.enqueue(0, 5, noop(50)));
    setup.refuse(&requests);
    for index in 1..ENTRIES.into() {
        assert_eq!(client.area.wait(record(index)).status, 1);
    }
    assert!(setup.driver.enqueue(PORTAL_PAGE, 5, noop(50)));
    assert_eq!(client.area.wait(record(50)).status, 1);
    assert_eq!(
        setup.driver.software_error(),
        None,
        "to try again is no error"
    );
}

#[test]
fn stores_of_the_wrong_kind_are_not_taken() {
    let setup = Setup::new();
    let client = setup.client(5);
    let job = Descriptor::new(Opcode::Noop, record(0));
    setup.driver.submit(0, Descriptor { pasid: 5, ..job });
    assert!(
        !setup.driver.enqueue(reg::PORTAL_STRIDE, 5, job),
        "not enabled"
    );
    assert_eq!(setup.driver.command(Command::EnableWq, 1), 0);
    assert!(
        !setup.driver.enqueue(reg::PORTAL_STRIDE, 5, job),
        "dedicated"
    );
    assert!(!setup.driver.enqueue(32, 5, job), "not aligned");
    assert!(
        !setup.driver.enqueue(2 * PORTAL_PAGE, 5, job),
        "no such page"
    );
    assert!(
        !setup.driver.enqueue(9 * reg::PORTAL_STRIDE, 5, job),
        "no such queue"
    );
    let bytes = Descriptor { pasid: 5, ..job }.to_bytes();
    assert!(!setup.driver.model.enqueue(0, 0, &bytes), "no portal");
    assert_eq!(setup.driver.command(Command::DrainAll, 0), 0);
    assert_eq!(client.area.read(record(0), 1), [0]);
}

#[test]
fn a_pasid_that_leads_nowhere_is_an_error_and_never_the_devices_own_address_space() {
    let setup = Setup::new();
    let own = new_domain(&setup.iommu, &setup.device);
    let area = Area::new(&setup.iommu, SIZE as usize);
    area.map(&own, SIZE);
    let faults: Arc<dyn FaultSink> = FaultLog::new(4);
    DmaSource::new(&setup.device, None)
        .attach(&own, &faults)
        .unwrap();
    for pasid in [0, 99] {
        setup.driver.write32(reg::SWERR, 3);
        let job = Descriptor::fill(Area::BASE, u64::MAX, 4096, record(0));
        assert!(setup.driver.enqueue(0, pasid, job));
        assert_eq!(setup.driver.command(Command::DrainAll, 0), 0);
        let error = setup.driver.software_error();
        assert_eq!(error, Some(Status::RecordFault as u8));
        let named = setup.driver.read64(reg::SWERR) >> 40 & 0xf_ffff;
        assert_eq!(named, pasid.into());
    }
    assert_eq!(area.read(Area::BASE, 4096), vec![0; 4096]);
}

#[test]
fn draining_and_aborting_a_pasid_concern_nobody_else() {
    let setup = Setup::new();
    let (held, free) = (setup.client(5), setup.client(6));
    let requests = setup.hold_up(&held);
    assert!(setup.enqueue(&held, Descriptor::new(Opcode::Noop, record(1))));
    assert!(setup.enqueue(&free, Descriptor::new(Opcode::Noop, record(2))));
    // The one that is held up does not hold up the other.
    assert_eq!(setup.driver.command(Command::DrainPasid, 6), 0);
    assert_eq!(free.area.record(record(2)).status, 1);
    assert_eq!(setup.driver.command(Command::DrainPasid, 0), 0);
    setup.driver.start(Command::DrainPasid, 5);
    assert!(setup.driver.command_status().active());
    setup.refuse(&requests);
    eventually("the drain", || !setup.driver.command_status().active());
    assert_eq!(held.area.record(record(1)).status, 1);
    // Once more, with an abort: nothing of it is written, now or later.
    let requests = setup.hold_up(&held);
    held.area.write(Area::BASE, &[0; 4096]);
    assert!(setup.enqueue(&held, Descriptor::new(Opcode::Noop, record(1))));
    assert!(setup.enqueue(&free, Descriptor::new(Opcode::Noop, record(3))));
    assert_eq!(setup.driver.command(Command::AbortPasid, 5), 0);
    setup.refuse(&requests);
    assert_eq!(setup.driver.command(Command::DrainAll, 0), 0);
    assert_eq!(held.area.read(Area::BASE, 4096), vec![0; 4096]);
    assert_eq!(free.area.record(record(3)).status, 1);
    // The PASID works again, for its next user.
    assert!(setup.enqueue(&held, Descriptor::new(Opcode::Noop, record(1))));
    assert_eq!(held.area.wait(record(1)).status, 1);
}

#[test]
fn a_client_that_waits_for_many_pages_leaves_the_queue_to_the_others() {
    let setup = Setup::new();
    let (greedy, other) = (setup.client(5), setup.client(6));
    let requests = Requests::install(&greedy.domain);
    let mut taken = 0;
    // More than may wait at a time; what is over stays in the queue, but for its last entry.
    eventually("no more is taken", || {
        let job = Descriptor::fill(HOLE, 0, 64, record(taken)).with_block_on_fault();
        taken += u64::from(setup.driver.enqueue(PORTAL_PAGE, 5, job));
        taken >= 32 + u64::from(THRESHOLD)
    });
    assert!(setup.enqueue(&other, Descriptor::new(Opcode::Noop, record(0))));
    assert_eq!(other.area.wait(record(0)).status, 1);
    assert_eq!(setup.driver.command(Command::AbortPasid, 5), 0);
    drop(requests);
}

#[test]
fn privilege_is_the_processors_to_give_and_the_devices_to_have() {
    let job = Descriptor {
        privileged: true,
        ..Descriptor::new(Opcode::Noop, record(0))
    };
    // The queue's own bit is for dedicated queues alone.
    for (privileged_mode, usage) in [
        (false, shared().with_privileged(true)),
        (true, shared().with_privileged(false)),
    ] {
        let setup = Setup::of(new_device(privileged_mode), usage);
        assert_eq!(setup.driver.command(Command::EnableWq, 0), 0);
        let client = setup.client(5);
        assert!(setup.enqueue(&client, job));
        assert_eq!(setup.driver.command(Command::DrainAll, 0), 0);
        let (status, error) = match privileged_mode {
            // It gets no record.
            false => (0, Some(Status::Privilege as u8)),
            true => (1, None),
        };
        assert_eq!(client.area.record(record(0)).status, status);
        assert_eq!(setup.driver.software_error(), error);
    }
}

#[test]
fn a_dedicated_queue_is_privileged_only_where_the_device_can_be() {
    let plain = usage().with_privileged(true);
    let tagged = plain.with_pasid_en(true).with_pasid(5);
    let refused = CommandError::PasidEnable as u8;
    for (privileged_mode, usage, error) in [
        (false, tagged, refused),
        (true, tagged, 0),
        // Without a PASID there is no privilege.
        (false, plain, 0),
    ] {
        let setup = Setup::of(new_device(privileged_mode), usage);
        assert_eq!(setup.driver.command(Command::EnableWq, 0), error);
    }
}

#[test]
fn a_shared_queue_needs_pasids_and_a_threshold_within_its_size() {
    let setup = Setup::with(shared().with_pasid_en(false));
    let enable = || setup.driver.command(Command::EnableWq, 0);
    assert_eq!(enable(), CommandError::PasidEnable as u8);
    setup.driver.configure_queue(0, ENTRIES, shared());
    for threshold in [0, ENTRIES + 1] {
        setup.driver.write32(reg::WQCFG + 4, threshold.into());
        assert_eq!(enable(), CommandError::QueueSize as u8);
    }
    setup.driver.write32(reg::WQCFG + 4, ENTRIES.into());
    assert_eq!(enable(), 0);
    // A shared queue has no PASID of its own: the field is ignored.
    let usage = WqUse::from_bits(setup.driver.read32(reg::WQCFG + 8));
    assert!(usage.pasid_en() && usage.pasid() == 0);
    assert_eq!(setup.driver.command(Command::ResetWq, 1), 0);
    assert_eq!(setup.driver.read32(reg::WQCFG + 4), 0);
    assert_eq!(setup.driver.read32(reg::WQCFG + WQCFG_SIZE - 8) >> 30, 0);
    assert!(Pasid::new(0).is_none() && setup.dsa.queues().len() == 2);
}

#[test]
fn a_program_with_the_whole_device_is_answered_through_its_file() {
    let iommu = new_iommu();
    let device = add_device(&iommu, "0000:6b:01.0");
    let dsa = new_dsa(&iommu, &device, DsaConfig::with_queues(1));
    let vfio = Vfio::new(&iommu);
    let whole = vfio.add(dsa.clone(), Passthrough::Whole(Arc::clone(&device)));
    whole.set_mappable(true);
    let file = whole.open().unwrap();
    file.bind(&Context::new(&iommu)).unwrap();
    let setup = Setup {
        driver: Driver::new(dsa.clone()),
        iommu,
        device,
        dsa,
    };
    setup.driver.configure(&[ENTRIES]);
    setup.driver.configure_queue(0, ENTRIES, shared());
    setup.driver.write32(reg::WQCFG + 4, 1);
    assert_eq!(setup.driver.command(Command::EnableWq, 0), 0);
    let client = setup.client(3);
    let requests = setup.hold_up(&client);
    let job = Descriptor {
        pasid: 3,
        ..Descriptor::new(Opcode::Noop, record(0))
    };
    // Bit 40 and up of a file offset is the region: BAR 2.
    let portal = |offset| (2 << 40) + offset;
    let limited = file.mapped_enqueue(portal(PORTAL_PAGE), &job.to_bytes());
    assert!(!limited.unwrap(), "the threshold is reached");
    assert!(file.mapped_enqueue(portal(0), &job.to_bytes()).unwrap());
    setup.refuse(&requests);
    assert_eq!(client.area.wait(record(0)).status, 1);
}

#[test]
fn a_client_names_the_vectors_that_are_its_own() {
    let setup = Setup::new();
    let (one, other) = (setup.client(5), setup.client(6));
    let permit = |vector: u64, permission: MsixPermission| {
        let entry = reg::MSIXPERM + 8 * vector;
        setup.driver.write32(entry, permission.into_bits());
    };
    let own = MsixPermission::new().with_pasid_en(true);
    permit(1, own.with_pasid(5));
    permit(2, MsixPermission::new().with_ignore(true));
    let irqs: Vec<_> = (0..3).map(|vector| setup.driver.listen(vector)).collect();
    let run = |client: &Client, vector: u16| {
        client.area.write(record(0), &[0; 32]);
        let job = Descriptor::new(Opcode::Noop, record(0)).with_interrupt(vector);
        assert!(setup.enqueue(client, job));
        client.area.wait(record(0)).status
    };
    let forged = Status::InterruptHandle as u8;
    // Vector 0 is for descriptors without a PASID, and there are none.
    for (vector, statuses) in [
        (0, [forged; 2]),
        (1, [1, forged]),
        (2, [1, 1]),
        (3, [forged; 2]),
    ] {
        assert_eq!(
            [run(&one, vector), run(&other, vector)],
            statuses,
            "{vector}"
        );
    }
    eventually("its own interrupts", || {
        irqs.iter().map(|irq| irq.count()).eq([0, 1, 2])
    });
    // The vector goes to the other client.
    permit(1, own.with_pasid(6));
    assert_eq!([run(&one, 1), run(&other, 1)], [forged, 1]);
}
