//! A child whose queue is stopped in the middle of its work goes on in another machine.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::*;
use ioasid_core::{Prot, host::CountingIrq};
use ioasid_dsa::{
    DsaChild, DsaConfig, HostDriver,
    spec::{Command, Descriptor, Opcode},
};
use ioasid_iommu::{DmaSource, Domain, FaultLog, FaultSink, Iommu, PageRequest, PageResponse};
use ioasid_vfio::{DefaultPasid, DeviceModel, Migrate, StateError};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 4 * MIB;
/// What the source has mapped: everything beyond makes a descriptor wait for a page.
const MAPPED: u64 = MIB;
/// And another part of it.
const WINDOW: u64 = 3 * MIB;
const WINDOW_SIZE: u64 = 64 << 10;

/// A machine with a parent, its driver and one child.
struct Setup {
    iommu: Arc<Iommu>,
    child: Arc<DsaChild>,
    driver: Driver,
    domain: Arc<Domain>,
    area: Area,
    irq: Arc<CountingIrq>,
    _others: Vec<Arc<DsaChild>>,
    _parent: Arc<HostDriver>,
}

impl Setup {
    /// The child has queue `queue` of `size` entries.
    fn new(queue: usize, size: u16, mapped: u64) -> Self {
        let iommu = new_iommu();
        let device = add_device(&iommu, "0000:6a:01.0");
        let mut config = DsaConfig::with_queues(4);
        for queue in &mut config.queues[1..] {
            (queue.mdev, queue.size) = (true, size);
        }
        let dsa = new_dsa(&iommu, &device, config);
        let parent = HostDriver::probe(&dsa).unwrap();
        // The other children of this machine took their PASIDs first.
        let others = (1..queue).map(|other| {
            let other = DsaChild::new(&dsa, other).unwrap();
            other.bind().unwrap();
            other
        });
        let others = others.collect();
        let child = DsaChild::new(&dsa, queue).unwrap();
        let (device, pasid) = child.bind().unwrap();
        let domain = new_domain(&iommu, &device);
        let area = Area::new(&iommu, SIZE as usize);
        area.map(&domain, mapped);
        if mapped < SIZE {
            let window = area.pages.spa() + WINDOW;
            domain
                .map(at(WINDOW), window, WINDOW_SIZE, Prot::RW)
                .unwrap();
        }
        let sink: Arc<dyn FaultSink> = FaultLog::new(64);
        DmaSource::new(&device, Some(pasid))
            .attach(&domain, &sink)
            .unwrap();
        let driver = Driver::new(child.clone());
        let irq = driver.listen(1);
        Setup {
            iommu,
            child,
            driver,
            domain,
            area,
            irq,
            _others: others,
            _parent: parent,
        }
    }

    fn enable(&self) {
        for command in [
            Command::ResetDevice,
            Command::EnableDevice,
            Command::EnableWq,
        ] {
            assert_eq!(self.driver.command(command, 0), 0, "{command:?}");
        }
    }

    fn model(&self) -> &dyn Migrate {
        self.child.migration().unwrap()
    }

    /// As a device is restored.
    fn load(&self, state: &[u8]) -> Result<(), StateError> {
        self.child.reset();
        self.model().pause();
        self.model().load(state)
    }
}

/// Places in memory, and what they hold at the end.
type Expected = Vec<(u64, Vec<u8>)>;

/// A place in the area.
fn at(offset: u64) -> u64 {
    Area::BASE + offset
}

/// Work that comes to a stop at the end of what the source has mapped, with work behind it; what
/// memory holds at its end, as far as it is known; and its records.
fn work(area: &Area) -> (Vec<Descriptor>, Expected, Vec<u64>) {
    let data = pattern(512 << 10, 7);
    area.write(at(0x2_0000), &data);
    let record = |n: u64| at(0x40 * n);
    let split = MAPPED - (64 << 10);
    let mut descriptors = vec![
        Descriptor::memory_move(at(split), at(0x2_0000), 200_000, record(1)),
        // Two pieces fit before the edge of the window, and a part of the third.
        Descriptor {
            source: at(0x2_0000),
            destination: at(WINDOW + WINDOW_SIZE - 40_000),
            size: 100_000,
            ..Descriptor::new(Opcode::CopyCrc, record(2))
        },
    ];
    let list = [
        Descriptor::fill(at(0x1_0000), 0x1122_3344_5566_7788, 4096, record(4)),
        Descriptor::memory_move(at(2 * MIB), at(0x2_0000), 300_000, record(5)),
        Descriptor::compare(at(2 * MIB), at(0x2_0000), 300_000, record(6)),
        Descriptor::fill(at(0x1_2000), 0x99, 8, record(7)).with_fence(),
    ];
    for (slot, item) in (0..).zip(list) {
        let item = item.with_block_on_fault().with_interrupt(1);
        area.write(at(0x8000 + 64 * slot), &item.to_bytes());
    }
    descriptors.push(Descriptor::batch(at(0x8000), 4, record(3)));
    let mut drain = Descriptor::new(Opcode::Drain, record(8));
    drain.flags.set_request_record(true);
    descriptors.push(drain);
    for n in 0..5 {
        let to = at(0x1_4000 + 0x1000 * n);
        descriptors.push(Descriptor::fill(to, 0x30 + n, 4096, record(9 + n)));
    }
    let expected = vec![
        (at(split), data[..200_000].to_vec()),
        (at(2 * MIB), data[..300_000].to_vec()),
        (at(WINDOW + WINDOW_SIZE - 40_000), data[..100_000].to_vec()),
        (
            at(0x1_0000),
            0x1122_3344_5566_7788_u64.to_le_bytes().repeat(512),
        ),
    ];
    let descriptors = descriptors
        .into_iter()
        .map(|one| match one.opcode == Opcode::Drain as u8 {
            true => one.with_interrupt(1),
            false => one.with_block_on_fault().with_interrupt(1),
        })
        .collect();
    (descriptors, expected, (1..14).map(record).collect())
}

/// A source in the middle of its work.
struct Stopped {
    expected: Expected,
    records: Vec<u64>,
    /// What it has asked for.
    requests: Vec<PageRequest>,
}

/// Stops `source` with three descriptors half-way and six behind them.
fn stopped(source: &Setup) -> Stopped {
    let requests = Requests::install(&source.domain);
    let (descriptors, expected, records) = work(&source.area);
    for descriptor in descriptors {
        source.driver.submit(0, descriptor);
    }
    let mut waiting = Vec::new();
    for _ in 0..3 {
        waiting.push(requests.next());
    }
    source.model().pause();
    Stopped {
        expected,
        records,
        requests: waiting,
    }
}

#[test]
fn a_queue_goes_on_where_it_was_and_every_descriptor_completes_once() {
    let source = Setup::new(1, 32, MAPPED);
    source.enable();
    let Stopped {
        expected, records, ..
    } = &stopped(&source);
    let before = source.area.record(records[0]).status;
    assert_eq!(before, 0, "it is under way");
    let inner = source.area.record(records[3]).status;
    assert_eq!(inner, 1, "the first of the batch is done");
    let state = source.model().save();
    assert_eq!(state, source.model().save(), "nothing moves any more");

    let destination = Setup::new(3, 32, SIZE);
    assert_ne!(source.child.pasid(), destination.child.pasid());
    destination.load(&state).unwrap();
    let ram = source.area.read(at(0), SIZE as usize);
    destination.area.write(at(0), &ram);
    assert_eq!(destination.irq.count(), 0);
    destination.model().resume();
    for record in records {
        let done = destination.area.wait(*record);
        assert_eq!(done.status, 1, "record at {record:#x}");
    }
    for (place, bytes) in expected {
        assert!(
            destination.area.read(*place, bytes.len()) == *bytes,
            "{place:#x}"
        );
    }
    let again = Descriptor {
        source: at(0x2_0000),
        size: 100_000,
        ..Descriptor::new(Opcode::CrcGen, at(0x1000))
    };
    destination.driver.submit(0, again);
    let again = destination.area.wait(at(0x1000)).specific;
    assert_eq!(destination.area.record(records[1]).specific, again);
    eventually("the interrupts", || {
        source.irq.count() + destination.irq.count() >= 13
    });
    assert_eq!(source.irq.count() + destination.irq.count(), 13);
    // The one that stays behind writes nothing.
    source.child.reset();
    assert!(source.area.read(at(0), SIZE as usize) == ram);
}

#[test]
fn a_source_that_stays_goes_on_itself() {
    let source = Setup::new(1, 32, MAPPED);
    source.enable();
    let Stopped {
        expected,
        records,
        requests,
    } = stopped(&source);
    let state = source.model().save();
    source.model().resume();
    let window = source.area.pages.spa();
    let rest = WINDOW - MAPPED;
    let domain = &source.domain;
    domain
        .map(at(MAPPED), window + MAPPED, rest, Prot::RW)
        .unwrap();
    let after = WINDOW + WINDOW_SIZE;
    domain
        .map(at(after), window + after, SIZE - after, Prot::RW)
        .unwrap();
    for request in requests {
        let answered = source
            .iommu
            .page_response(request.id, PageResponse::Success);
        assert!(answered.is_ok());
    }
    for record in &records {
        assert_eq!(source.area.wait(*record).status, 1, "{record:#x}");
    }
    for (place, bytes) in expected {
        assert!(source.area.read(place, bytes.len()) == bytes);
    }
    assert_ne!(source.model().save(), state);
}

#[test]
fn a_command_that_waits_goes_on_waiting_elsewhere() {
    let source = Setup::new(1, 32, MAPPED);
    source.enable();
    let stopped = stopped(&source);
    source.model().resume();
    source.driver.start(Command::DisableWq, 1);
    assert!(source.driver.command_status().active());
    source.model().pause();
    let state = source.model().save();
    let destination = Setup::new(2, 32, SIZE);
    destination.load(&state).unwrap();
    let ram = source.area.read(at(0), SIZE as usize);
    destination.area.write(at(0), &ram);
    assert!(destination.driver.command_status().active());
    destination.model().resume();
    eventually("the end of the command", || {
        !destination.driver.command_status().active()
    });
    assert_eq!(destination.driver.command_status().error(), 0);
    for record in &stopped.records {
        assert_eq!(destination.area.record(*record).status, 1, "{record:#x}");
    }
    let refused = Descriptor::fill(at(0), 1, 8, at(0x1000));
    destination.driver.submit(0, refused);
    assert_eq!(destination.driver.software_error(), Some(0x52));
}

#[test]
fn a_reset_ends_a_pause() {
    let setup = Setup::new(1, 32, SIZE);
    setup.enable();
    setup.model().pause();
    setup
        .driver
        .submit(0, Descriptor::fill(at(0x1000), 1, 8, at(0)));
    setup.child.reset();
    setup.enable();
    setup
        .driver
        .submit(0, Descriptor::fill(at(0x1000), 2, 8, at(0x40)));
    assert_eq!(setup.area.wait(at(0x40)).status, 1);
    assert_eq!(setup.area.record(at(0)).status, 0);
}

#[test]
fn a_state_of_another_device_or_a_part_of_one_is_refused() {
    let source = Setup::new(1, 32, MAPPED);
    source.enable();
    let stopped = stopped(&source);
    let state = source.model().save();
    let smaller = Setup::new(1, 16, SIZE);
    assert_eq!(smaller.load(&state), Err(StateError));
    let destination = Setup::new(1, 32, SIZE);
    for len in 0..state.len() {
        assert_eq!(destination.load(&state[..len]), Err(StateError), "{len}");
    }
    let longer = [state.as_slice(), &[0]].concat();
    assert_eq!(destination.load(&longer), Err(StateError));
    let mut foreign = state.clone();
    foreign[0] ^= 1;
    assert_eq!(destination.load(&foreign), Err(StateError));
    // Nothing is left of them.
    destination.child.reset();
    destination.enable();
    destination
        .driver
        .submit(0, Descriptor::fill(at(0x1000), 2, 8, at(0)));
    assert_eq!(destination.area.wait(at(0)).status, 1);
    drop(stopped);
}
