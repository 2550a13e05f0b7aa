//! A third accelerator: what one has to write for itself, and what the pool then keeps for it. Its
//! one kind of job fills memory with a byte.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::VecDeque,
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use ioasid_core::{
    Prot,
    host::{IrqSink, StdSpawner},
    memory::OwnPages,
};
use ioasid_engine::{
    Claim, ClaimError, Claimable, EnginePool, Halt, Interrupt, Job, JobId, Place, Schedule, Wanted,
    driver::{DriverError, DriverSlot},
};
use ioasid_iommu::{
    DeviceConfig, DmaPort, DmaSource, DomainConfig, FaultLog, FaultSink, Iommu, IommuConfig,
    TableFormat,
};
use ioasid_testing::SlowIrq;

const BASE: u64 = 0x10_0000;
/// More than the bytes of one guard.
const SIZE: usize = 4 << 20;
const UNITS: usize = 2;

/// Fills memory from [`BASE`] on with `byte`.
#[derive(Debug)]
struct Fill {
    unit: usize,
    byte: u8,
    len: u64,
    done: u64,
    aborted: Arc<AtomicBool>,
}

impl Job for Fill {
    fn id(&self) -> JobId {
        let (unit, number) = (self.unit, 0);
        JobId { unit, number }
    }

    fn aborted(&self) -> bool {
        self.aborted.load(Ordering::Acquire)
    }

    fn step(&mut self, port: &mut DmaPort, _place: Place) -> Result<(), Halt> {
        let mut guard = port.enter(None);
        let pattern = u64::from_ne_bytes([self.byte; 8]);
        let transfer = guard.fill(BASE + self.done, pattern, self.len - self.done);
        match transfer.advance(&mut self.done) {
            Ok(()) => Ok(()),
            // A fault ends it: what is not mapped stays as it is.
            Err(stop) => Halt::or_fault(stop).map(|fault| guard.report(&fault)),
        }
    }
}

/// The end of a job, for a listener.
#[derive(Debug)]
struct Done(Arc<dyn IrqSink>);

impl Interrupt for Done {
    fn raise(self) {
        self.0.signal();
    }
}

#[derive(Debug, Default)]
struct Unit {
    owner: Option<&'static str>,
    waiting: VecDeque<Fill>,
    under_way: usize,
    aborted: Arc<AtomicBool>,
    bytes: u64,
    listener: Option<Arc<dyn IrqSink>>,
}

#[derive(Debug, Default)]
struct Units {
    units: [Unit; UNITS],
    done: Vec<Done>,
}

impl Units {
    fn abort(&mut self, unit: usize) {
        let unit = &mut self.units[unit];
        mem::take(&mut unit.aborted).store(true, Ordering::Release);
        unit.under_way -= unit.waiting.len();
        unit.waiting.clear();
    }
}

impl Schedule for Units {
    type Job = Fill;
    type Interrupts = Vec<Done>;

    fn next(&mut self, _engine: usize) -> Option<Fill> {
        self.units
            .iter_mut()
            .find_map(|unit| unit.waiting.pop_front())
    }

    fn after_change(&mut self) -> Vec<Done> {
        mem::take(&mut self.done)
    }

    fn wanted(&self) -> Wanted {
        Wanted::Some(self.units.iter().map(|unit| unit.waiting.len()).sum())
    }

    fn account(&mut self, job: &mut Fill, _place: Place) {
        self.units[job.unit].bytes = job.done;
    }

    fn put_back(&mut self, job: Fill, _withheld: bool) -> Result<bool, Fill> {
        if job.aborted() {
            return Err(job);
        }
        self.units[job.unit].waiting.push_back(job);
        Ok(false)
    }

    fn make_remote(&mut self, _job: &Fill) {}

    fn end(&mut self, job: Fill) {
        let unit = &mut self.units[job.unit];
        unit.under_way -= 1;
        self.done.extend(unit.listener.clone().map(Done));
    }

    fn is_paused(&self, _unit: usize) -> bool {
        false
    }
}

/// The device.
#[derive(Debug)]
struct Filler {
    pool: Arc<EnginePool<Units>>,
    driver: DriverSlot,
    pages: OwnPages,
    _iommu: Arc<Iommu>,
}

impl Filler {
    /// With two engines, all of its memory mapped.
    fn new() -> Arc<Self> {
        let iommu = Iommu::new(IommuConfig::default());
        let address = "0000:6a:01.0".parse().unwrap();
        let device = iommu.add_device(DeviceConfig::new(address)).unwrap();
        let config = DomainConfig::unmanaged(TableFormat::VtdSecondStage);
        let domain = iommu.alloc_domain(config).unwrap();
        let pages = OwnPages::new(iommu.space(), SIZE).unwrap();
        let mapped = domain.map(BASE, pages.spa(), SIZE as u64, Prot::RW);
        mapped.unwrap();
        let sink: Arc<dyn FaultSink> = FaultLog::new(64);
        DmaSource::new(&device, None)
            .attach(&domain, &sink)
            .unwrap();
        let pool = EnginePool::new(device, Units::default(), true);
        pool.start(2, "filler", &StdSpawner).unwrap();
        Arc::new(Filler {
            pool,
            driver: DriverSlot::default(),
            pages,
            _iommu: iommu,
        })
    }

    fn submit(&self, unit: usize, byte: u8, len: usize) {
        self.pool.submit(|units| {
            let unit_state = &mut units.units[unit];
            unit_state.under_way += 1;
            unit_state.waiting.push_back(Fill {
                unit,
                byte,
                len: len as u64,
                done: 0,
                aborted: Arc::clone(&unit_state.aborted),
            });
            ((), Wanted::Some(1))
        });
    }

    fn listen(&self, unit: usize, listener: Arc<dyn IrqSink>) {
        self.pool.lock().units[unit].listener = Some(listener);
    }

    /// Waits until the jobs of a unit have ended.
    fn drain(&self, unit: usize) {
        self.pool
            .wait_until_quiet(|units| units.units[unit].under_way == 0);
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; SIZE];
        self.pages.memory().read(0, &mut bytes);
        bytes
    }
}

impl Claimable for Filler {
    type Owner = &'static str;

    fn with_owner<R>(
        &self,
        unit: usize,
        op: impl FnOnce(&mut Option<&'static str>) -> R,
    ) -> Option<R> {
        let mut units = self.pool.lock();
        units.units.get_mut(unit).map(|unit| op(&mut unit.owner))
    }

    fn release(&self, unit: usize) {
        self.pool.change(|units| units.abort(unit));
        self.drain(unit);
        self.with_owner(unit, |owner| *owner = None);
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.pool.stop();
    }
}

#[test]
fn a_job_goes_over_as_many_guards_as_it_takes() {
    let filler = Filler::new();
    filler.submit(0, 7, SIZE - 1);
    filler.drain(0);
    let bytes = filler.bytes();
    assert!(bytes[..SIZE - 1].iter().all(|byte| *byte == 7));
    assert_eq!(bytes[SIZE - 1], 0);
    assert_eq!(filler.pool.lock().units[0].bytes, SIZE as u64 - 1);
    let (hits, misses) = filler.pool.tlb().unwrap().lookups();
    // Counted when a port goes.
    assert_eq!((hits, misses), (0, 0));
}

#[test]
fn a_wait_for_jobs_includes_their_interrupts() {
    let filler = Filler::new();
    let irq = Arc::<SlowIrq>::default();
    filler.listen(0, irq.clone());
    filler.submit(0, 1, 64);
    irq.wait_until_raised();
    assert_eq!(filler.pool.lock().units[0].under_way, 0, "it has ended");
    let (other, seen) = (filler.clone(), irq.clone());
    let waiter = thread::spawn(move || {
        other.drain(0);
        seen.is_delivered()
    });
    // One that waits for nothing returns now.
    (0..1000).for_each(|_| thread::yield_now());
    irq.let_go();
    assert!(waiter.join().unwrap(), "the interrupt came after the wait");
}

#[test]
fn a_claim_excludes_and_its_end_stops_the_unit() {
    let filler = Filler::new();
    let claim = Claim::new(&filler, 1, "one").unwrap();
    let busy = ClaimError::Busy {
        unit: 1,
        owner: "one",
    };
    assert_eq!(Claim::new(&filler, 1, "two").unwrap_err(), busy);
    let none = ClaimError::NoUnit(UNITS);
    assert_eq!(Claim::new(&filler, UNITS, "two").unwrap_err(), none);
    for byte in 1..50 {
        filler.submit(1, byte, SIZE);
    }
    drop(claim);
    let before = filler.bytes();
    assert_eq!(filler.pool.lock().units[1].under_way, 0);
    assert_eq!(before, filler.bytes(), "nothing of it goes on");
    assert!(Claim::new(&filler, 1, "two").is_ok());
}

#[test]
fn a_device_has_one_driver_at_a_time() {
    let filler = Filler::new();
    let device = filler.pool.device();
    // A user's domain is attached.
    let refused = filler.driver.bind(device);
    assert!(matches!(refused, Err(DriverError::Ownership(_))));
    DmaSource::new(device, None).detach();
    let bound = filler.driver.bind(device).unwrap();
    assert!(matches!(
        filler.driver.bind(device),
        Err(DriverError::Driven)
    ));
    drop(bound);
    assert!(filler.driver.bind(device).is_ok());
}
