//! A whole device with all kinds of queues at work moves at any time, and does what one that stays
//! where it is does.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};

use common::*;
use ioasid_core::host::CountingIrq;
use ioasid_dsa::{
    DsaConfig, DsaDevice, Role,
    spec::{
        Command, Descriptor, Opcode,
        descriptor::DESCRIPTOR_SIZE,
        registers as reg,
        tables::{GRPCFG_SIZE, MsixPermission, WQCFG_SIZE, WqUse},
    },
};
use ioasid_iommu::{DmaSource, Domain, FaultLog, FaultSink, Iommu};
use ioasid_vfio::{DeviceModel, Migrate, StateError};
use proptest::prelude::*;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;
/// Beyond it a machine with holes has nothing mapped for [`OWN`].
const HOLES: u64 = 6 * MIB;
const ENTRIES: u16 = 32;
const QUEUES: usize = 4;

/// The PASID of a dedicated queue, and those of the clients of a shared one.
const OWN: u32 = 5;
const CLIENTS: [u32; 2] = [6, 7];

/// Queues by what they are.
const PLAIN: u64 = 0;
const TAGGED: u64 = 1;
const SHARED: u64 = 2;

/// A place in memory.
const fn at(offset: u64) -> u64 {
    Area::BASE + offset
}

const LOG: u64 = at(7 * MIB + 512 * KIB);
const LISTS: u64 = at(64 * KIB);

fn record(n: u64) -> u64 {
    at(64 * n)
}

/// A machine with a device that one program has for itself.
struct Setup {
    _iommu: Arc<Iommu>,
    dsa: Arc<DsaDevice>,
    driver: Driver,
    area: Area,
    irqs: Vec<Arc<CountingIrq>>,
    _domains: Vec<Arc<Domain>>,
    _requests: Arc<Requests>,
}

fn small() -> DsaConfig {
    let mut config = DsaConfig::with_queues(QUEUES);
    for queue in &mut config.queues {
        queue.size = ENTRIES;
    }
    config
}

impl Setup {
    fn new(holes: bool) -> Self {
        let (iommu, device) = new_device(true);
        let dsa = new_dsa(&iommu, &device, small());
        let area = Area::new(&iommu, SIZE as usize);
        let sink: Arc<dyn FaultSink> = FaultLog::new(64);
        let domains: Vec<_> = (0..4).map(|_| new_domain(&iommu, &device)).collect();
        let pasids = [None, Some(OWN), Some(CLIENTS[0]), Some(CLIENTS[1])];
        for (domain, pasid) in domains.iter().zip(pasids) {
            let holes = holes && pasid == Some(OWN);
            area.map(domain, if holes { HOLES } else { SIZE });
            match pasid {
                None => DmaSource::new(&device, None).attach(domain, &sink),
                Some(pasid) => DmaSource::with_pasid(&device, pasid)
                    .unwrap()
                    .attach(domain, &sink),
            }
            .unwrap();
        }
        let driver = Driver::new(dsa.clone());
        Setup {
            _iommu: iommu,
            irqs: (0..=QUEUES as u32).map(|n| driver.listen(n)).collect(),
            // There is no answer.
            _requests: Requests::install(&domains[1]),
            dsa,
            driver,
            area,
            _domains: domains,
        }
    }

    fn migrate(&self) -> &dyn Migrate {
        self.dsa.migration().unwrap()
    }

    /// As a device is restored.
    fn load(&self, state: &[u8]) -> Result<(), StateError> {
        self.dsa.reset();
        self.migrate().pause();
        self.migrate().load(state)
    }

    /// Two groups, an event log, three queues of different kinds; the fourth is configured alone.
    fn bring_up(&self) {
        let driver = &self.driver;
        let _ = driver.model.function().write_config(4, &[6, 0]).unwrap();
        assert_eq!(driver.command(Command::ResetDevice, 0), 0);
        for (group, queues) in [(0, 0b0101), (1, 0b1010)] {
            let entry = reg::GRPCFG + group * GRPCFG_SIZE;
            driver.write64(entry, queues);
            driver.write64(entry + GRPCFG_SIZE / 2, 1 << group);
            driver.write64(entry + GRPCFG_SIZE / 2 + 8, 0x77 + group);
        }
        let usage = WqUse::new().with_dedicated(true).with_priority(10);
        let tagged = usage.with_block_on_fault(true).with_pasid(OWN);
        let tagged = tagged.with_pasid_en(true).with_privileged(true);
        let shared = WqUse::new().with_priority(3).with_pasid_en(true);
        for (queue, usage) in (0..).zip([usage, tagged, shared, usage]) {
            driver.configure_queue(queue, ENTRIES, usage);
        }
        driver.write32(reg::WQCFG + SHARED * WQCFG_SIZE + 4, (ENTRIES / 2).into());
        let any = MsixPermission::new().with_ignore(true).into_bits();
        driver.write64(reg::MSIXPERM + 8 * 3, any.into());
        driver.write64(reg::EVLCFG, LOG);
        driver.write64(reg::EVLCFG + 8, 64);
        driver.write32(reg::GENCFG, 1 << 13);
        driver.write32(reg::GENCTRL, 5);
        assert_eq!(driver.command(Command::EnableDevice, 0), 0);
        for queue in [PLAIN, TAGGED, SHARED] {
            assert_eq!(driver.command(Command::EnableWq, queue as u32), 0);
        }
    }

    /// Work for all queues, each descriptor with an interrupt of its own; how many that are.
    fn start(&self) -> Work {
        self.area.write(at(0), &vec![0; MIB as usize]);
        self.area
            .write(at(MIB), &pattern((SIZE - MIB) as usize, 11));
        self.area.write(LOG, &[0; 64 * DESCRIPTOR_SIZE]);
        let mut work = Work::default();
        // Batches, each of which goes on with what it did.
        for batch in 0..4 {
            let list = LISTS + batch * 4 * KIB;
            let data = at(MIB + batch * 256 * KIB);
            for n in 0..24 {
                let (step, size) = (64 * (n % 5 + 1), 100_000);
                let descriptor = match n % 3 {
                    0 => Descriptor::memory_move(data + step, data, size, work.record()),
                    1 => Descriptor::memory_move(data, data + step, size, work.record()),
                    _ => Descriptor::fill(data + 1000 * n, n, 77, work.record()),
                };
                let place = list + n * DESCRIPTOR_SIZE as u64;
                self.area
                    .write(place, &work.reporting(descriptor, PLAIN).to_bytes());
            }
            let batch = Descriptor::batch(list, 24, work.record());
            self.driver.submit(PLAIN, work.reporting(batch, PLAIN));
        }
        for n in 0..8 {
            // Without a record for what is wrong with it.
            let wrong = Descriptor {
                size: 1 << 30,
                flags: ioasid_dsa::spec::Flags::new(),
                ..Descriptor::memory_move(at(MIB), at(MIB), 0, 0)
            };
            self.driver.submit(PLAIN, wrong);
            let data = at(2 * MIB + n * 128 * KIB);
            let copy = Descriptor::memory_move(data + 8, data, 120_000, work.record());
            self.driver.submit(PLAIN, work.reporting(copy, PLAIN));
        }
        for n in 0..10 {
            let data = at(HOLES - 50_000 + n * 130_000);
            let copy = Descriptor::memory_move(data + 24, data, 120_000, work.record());
            let copy = work.reporting(copy, TAGGED).with_block_on_fault();
            self.driver.submit(TAGGED, copy);
            let sum = Descriptor {
                source: at(3 * MIB + n),
                size: 500_000,
                ..Descriptor::new(Opcode::CrcGen, work.record())
            };
            self.driver.submit(TAGGED, work.reporting(sum, TAGGED));
        }
        for n in 0..20 {
            let data = at(4 * MIB + n * 64 * KIB);
            let copy = Descriptor::memory_move(data, data + 40, 60_000, work.record());
            let client = CLIENTS[n as usize % 2];
            let copy = work.reporting(copy, SHARED);
            assert!(
                self.driver
                    .enqueue(SHARED * reg::PORTAL_STRIDE, client, copy)
            );
        }
        self.driver.start(Command::DrainAll, 0);
        work
    }

    fn is_done(&self, work: &Work) -> bool {
        let records = (0..work.records).map(record);
        records
            .clone()
            .all(|record| self.area.read(record, 1) != [0])
            && !self.driver.command_status().active()
    }

    /// Waits until this much of the work is done.
    fn wait_for(&self, share: usize, work: &Work) {
        let done = || {
            (0..work.records)
                .filter(|n| self.area.read(record(*n), 1) != [0])
                .count()
        };
        let wanted = work.records as usize * share / 200;
        eventually("some work", || done() >= wanted);
    }

    /// All registers that show configuration and results.
    fn registers(&self) -> Vec<u64> {
        let offsets = (0..reg::MSIX_TABLE).step_by(8);
        offsets.map(|at| self.driver.read64(at)).collect()
    }

    fn memory(&self) -> Vec<u8> {
        self.area.read(at(0), SIZE as usize)
    }

    fn take_over(&self, source: &Setup) {
        source.migrate().pause();
        let state = source.migrate().save();
        assert!(source.migrate().save() == state, "nothing goes on");
        let memory = source.memory();
        self.area.write(at(0), &memory);
        self.load(&state).unwrap();
        assert!(self.migrate().save() == state, "every field is there");
        assert_eq!(self.registers(), source.registers());
        source.dsa.reset();
        assert!(source.memory() == memory, "the one that stays does no more");
        self.migrate().resume();
    }

    fn interrupts(&self) -> Vec<u64> {
        self.irqs.iter().map(|irq| irq.count()).collect()
    }
}

/// What was submitted.
#[derive(Default)]
struct Work {
    records: u64,
    /// Interrupts of each queue.
    reporting: [u64; QUEUES],
}

impl Work {
    fn record(&mut self) -> u64 {
        self.records += 1;
        record(self.records - 1)
    }

    fn reporting(&mut self, descriptor: Descriptor, queue: u64) -> Descriptor {
        self.reporting[queue as usize] += 1;
        descriptor.with_interrupt(queue as u16 + 1)
    }
}

/// Machines for the cases: the first has holes.
static SETUPS: LazyLock<Mutex<[Setup; 2]>> =
    LazyLock::new(|| Mutex::new([Setup::new(true), Setup::new(false)]));

/// Memory and registers of a device that stays where it is.
static EXPECTED: LazyLock<(Vec<u8>, Vec<u64>)> = LazyLock::new(|| {
    let setup = Setup::new(false);
    setup.bring_up();
    let work = setup.start();
    eventually("the end of the work", || setup.is_done(&work));
    (setup.memory(), setup.registers())
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_device_that_moves_at_any_time_does_what_one_that_stays_does(
        first in 0_usize..100,
        more in proptest::collection::vec((0_u64..1_500, 0_u64..1_500), 0..3),
    ) {
        let setups = SETUPS.lock().unwrap_or_else(PoisonError::into_inner);
        let [source, destination] = &*setups;
        let before = [source.interrupts(), destination.interrupts()];
        source.bring_up();
        let work = source.start();
        source.wait_for(first, &work);
        destination.take_over(source);
        // There and back again.
        for (there, here) in more {
            std::thread::sleep(Duration::from_micros(there));
            source.take_over(destination);
            std::thread::sleep(Duration::from_micros(here));
            destination.take_over(source);
        }
        eventually("the end of the work", || destination.is_done(&work));
        let (memory, registers) = &*EXPECTED;
        for n in 0..work.records {
            prop_assert_eq!(destination.area.record(record(n)).status, 1, "record {}", n);
        }
        prop_assert!(destination.memory() == *memory);
        prop_assert_eq!(&destination.registers(), registers);
        let raised = |queue: usize| {
            let after = [source.interrupts(), destination.interrupts()];
            let counts = after.iter().zip(&before);
            counts.map(|(after, before)| after[queue + 1] - before[queue + 1]).sum::<u64>()
        };
        for queue in 0..QUEUES {
            prop_assert_eq!(raised(queue), work.reporting[queue], "queue {}", queue);
        }
    }

    #[test]
    fn every_register_goes_along(
        groups in any::<[u64; 6]>(),
        queues in any::<[u32; 16]>(),
        general in any::<[u32; 2]>(),
        log in any::<[u64; 2]>(),
        permissions in any::<[u64; 5]>(),
        commands in proptest::collection::vec((1_u32..14, any::<u32>()), 0..4),
    ) {
        let setups = SETUPS.lock().unwrap_or_else(PoisonError::into_inner);
        let [source, destination] = &*setups;
        source.dsa.reset();
        let driver = &source.driver;
        for (index, value) in groups.into_iter().enumerate() {
            let entry = reg::GRPCFG + index as u64 / 3 * GRPCFG_SIZE;
            driver.write64(entry + [0, 32, 40][index % 3], value);
        }
        for (index, value) in (0..).zip(queues) {
            driver.write32(reg::WQCFG + index / 4 * WQCFG_SIZE + index % 4 * 4, value);
        }
        driver.write32(reg::GENCFG, general[0]);
        driver.write32(reg::GENCTRL, general[1]);
        driver.write64(reg::EVLCFG, log[0]);
        driver.write64(reg::EVLCFG + 8, log[1]);
        for (vector, value) in (0..).zip(permissions) {
            driver.write64(reg::MSIXPERM + 8 * vector, value);
        }
        for (command, operand) in commands {
            driver.write32(reg::CMD, command << 20 | operand & 0x800f_ffff);
            eventually("the end of a command", || !driver.command_status().active());
        }
        driver.submit(3, Descriptor::new(Opcode::Noop, 0));
        source.migrate().pause();
        let state = source.migrate().save();
        prop_assert_eq!(destination.load(&state), Ok(()));
        prop_assert_eq!(destination.migrate().save(), state);
        prop_assert_eq!(destination.registers(), source.registers());
        destination.dsa.reset();
        source.dsa.reset();
    }

    #[test]
    fn a_forged_state_harms_nobody(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        share in 0_usize..100,
    ) {
        let setups = SETUPS.lock().unwrap_or_else(PoisonError::into_inner);
        let [source, destination] = &*setups;
        source.bring_up();
        let work = source.start();
        source.wait_for(share, &work);
        source.migrate().pause();
        let mut state = source.migrate().save();
        source.dsa.reset();
        for (index, value) in changes {
            let at = index.index(state.len());
            state[at] = value;
        }
        if destination.load(&state).is_ok() {
            destination.migrate().resume();
        }
        destination.dsa.reset();
        destination.bring_up();
        destination.area.write(record(0), &[0; 32]);
        destination.driver.submit(PLAIN, Descriptor::fill(at(MIB), 7, 64, record(0)));
        prop_assert_eq!(destination.area.wait(record(0)).status, 1);
        destination.dsa.reset();
    }
}

#[test]
fn a_state_of_another_device_or_a_part_of_one_is_refused() {
    let setup = Setup::new(true);
    setup.bring_up();
    let work = setup.start();
    setup.wait_for(20, &work);
    setup.migrate().pause();
    let state = setup.migrate().save();
    for len in (0..state.len()).step_by(3) {
        assert_eq!(setup.load(&state[..len]), Err(StateError), "{len}");
    }
    assert_eq!(
        setup.load(&[state.as_slice(), &[0]].concat()),
        Err(StateError)
    );
    setup.load(&state).unwrap();
    let iommu = new_iommu();
    let device = add_device(&iommu, "0000:6b:01.0");
    let mut other = small();
    other.engines = 3;
    let other = new_dsa(&iommu, &device, other);
    assert_eq!(other.load(&state), Err(StateError));
}

#[test]
fn a_physical_function_stays_where_it_is() {
    let iommu = new_iommu();
    let device = add_device(&iommu, "0000:6b:01.0");
    let mut config = small();
    config.role = Role::Physical { total: 2 };
    assert!(new_dsa(&iommu, &device, config).migration().is_none());
}
