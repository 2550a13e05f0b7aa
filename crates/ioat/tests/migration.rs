//! A device or a child that is stopped in the middle of its work goes on in another machine.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::{Arc, LazyLock, Mutex},
    time::{Duration, Instant},
};

use common::*;
use ioasid_core::host::CountingIrq;
use ioasid_ioat::{
    HostDriver, IoatChild,
    spec::{
        ChannelStatus, Descriptor,
        registers::{self as reg, CHANNEL_STRIDE},
    },
};
use ioasid_iommu::{DmaSource, FaultLog, FaultSink};
use ioasid_vfio::{DefaultPasid, DeviceModel, Migrate, StateError};
use proptest::prelude::*;

/// A device in a machine of its own.
struct Setup {
    model: Arc<dyn DeviceModel>,
    /// One for each channel.
    drivers: Vec<Driver>,
    irqs: Vec<Arc<CountingIrq>>,
    area: Area,
    _keeps: Box<dyn std::any::Any + Send + Sync>,
}

impl Setup {
    fn new(
        model: Arc<dyn DeviceModel>,
        area: Area,
        channels: u64,
        keeps: impl std::any::Any + Send + Sync,
    ) -> Self {
        let first = Driver::new(Arc::clone(&model));
        let drivers: Vec<_> = (0..channels).map(|n| first.with_channel(n)).collect();
        Setup {
            irqs: (0..channels).map(|n| first.listen(n as u32)).collect(),
            model,
            drivers,
            area,
            _keeps: Box::new(keeps),
        }
    }

    /// A device with four channels.
    fn whole() -> Self {
        let whole = Whole::new();
        let (model, area) = (whole.ioat.clone(), whole.area.clone());
        Setup::new(model, area, 4, (whole.iommu, whole.domain, whole.faults))
    }

    /// A child with channel `channel` of its parent, the last one that was given a PASID.
    fn child(channel: usize) -> Self {
        let iommu = new_iommu();
        let ioat = new_ioat(&iommu, "0000:6a:01.0", 4);
        let parent = HostDriver::probe(&ioat).unwrap();
        let others = (1..channel).map(|other| {
            let other = IoatChild::new(&ioat, other).unwrap();
            other.bind().unwrap();
            other
        });
        let others: Vec<_> = others.collect();
        let child = IoatChild::new(&ioat, channel).unwrap();
        let (device, pasid) = child.bind().unwrap();
        let domain = new_domain(&iommu, &device);
        let area = new_area(&iommu, &domain);
        let sink: Arc<dyn FaultSink> = FaultLog::new(64);
        DmaSource::new(&device, Some(pasid))
            .attach(&domain, &sink)
            .unwrap();
        Setup::new(child, area, 1, (iommu, parent, others, domain))
    }

    fn migrate(&self) -> &dyn Migrate {
        self.model.migration().unwrap()
    }

    /// As a device is restored.
    fn load(&self, state: &[u8]) -> Result<(), StateError> {
        self.model.reset();
        self.migrate().pause();
        self.migrate().load(state)
    }

    /// All registers, but for INTRCTRL, whose bit 0 goes with a look.
    fn registers(&self) -> Vec<u64> {
        let end = (self.drivers.len() as u64 + 1) * CHANNEL_STRIDE;
        let offsets = (4..end).step_by(4);
        offsets.map(|at| self.drivers[0].get::<4>(at)).collect()
    }

    /// Starts the work of every channel.
    fn start(&self) {
        for (driver, n) in self.drivers.iter().zip(0..) {
            let at = part(n);
            self.area.write(at + DATA, &pattern(SPAN as usize, n));
            let chain = work(at);
            self.area.write_chain(at + CHAIN, &chain);
            driver.set_completion(at + WORD);
            driver.control(RUN);
            // What a check finds is no failure.
            driver.write(reg::CHANERRMSK, &0x3_0000_u32.to_le_bytes());
            driver.start(at + CHAIN, chain.len() as u16);
        }
    }

    /// Takes over what `source` was doing.
    fn take_over(&self, source: &Setup) {
        source.migrate().pause();
        let state = source.migrate().save();
        let memory = source.area.read(Area::BASE, AREA_SIZE as usize);
        self.area.write(Area::BASE, &memory);
        self.load(&state).unwrap();
        assert!(self.migrate().save() == state, "every field is there");
        assert_eq!(self.registers(), source.registers());
        // The one that stays behind does nothing more.
        source.model.reset();
        assert!(source.area.read(Area::BASE, AREA_SIZE as usize) == memory);
        self.migrate().resume();
    }

    fn is_done(&self) -> bool {
        let active = |driver: &Driver| driver.status().is(ChannelStatus::Active);
        !self.drivers.iter().any(active)
    }

    fn interrupts(&self) -> Vec<u64> {
        self.irqs.iter().map(|irq| irq.count()).collect()
    }
}

/// Each channel's part of memory, and what is where in it.
const PART: u64 = AREA_SIZE / 4;
const CHAIN: u64 = 0;
const WORD: u64 = 0xf000;
const DATA: u64 = 0x1_0000;
const SPAN: u64 = PART - DATA;
const LEN: u64 = 200_000;

fn part(channel: u64) -> u64 {
    Area::BASE + channel * PART
}

/// Descriptors that use their own results, so that nothing may be done twice or left out.
fn work(at: u64) -> Vec<Descriptor> {
    let data = |n: u64| at + DATA + n * LEN;
    let size = LEN as u32;
    let mut chain = Vec::new();
    let mut add = |(descriptor, extension): (Descriptor, Option<Descriptor>)| {
        chain.push(reporting(descriptor));
        chain.extend(extension);
    };
    for round in 0..3 {
        // To itself, from below and from above.
        add((Descriptor::copy(data(0) + 100, data(0), size), None));
        add((Descriptor::copy(data(1), data(1) + 100, size), None));
        add((
            Descriptor::fill(data(2) + 1, 0x0123_4567_89ab_cdef << round, 9_001),
            None,
        ));
        // In place.
        let five: Vec<u64> = (0..5).map(data).collect();
        add(Descriptor::xor(data(3), &five, size, false));
        let eight: Vec<(u64, u8)> = (0..8).map(|n| (data(n), (n + round) as u8 + 1)).collect();
        add(Descriptor::pq([data(4), data(5)], &eight, size, false));
        add(Descriptor::xor(data(6), &five, size, true));
        add(Descriptor::pq([data(7), data(8)], &eight, size, true));
        add((Descriptor::null(), None));
    }
    chain
}

/// The whole devices and the children that the cases share: two of each.
static SETUPS: LazyLock<Mutex<[[Setup; 2]; 2]>> = LazyLock::new(|| {
    Mutex::new([
        [Setup::whole(), Setup::whole()],
        [Setup::child(1), Setup::child(3)],
    ])
});

/// Memory and registers after the work of a device that stays where it is.
static EXPECTED: LazyLock<[(Vec<u8>, Vec<u64>); 2]> = LazyLock::new(|| {
    [Setup::whole(), Setup::child(2)].map(|setup| {
        setup.start();
        eventually("the end of the work", || setup.is_done());
        let memory = setup.area.read(Area::BASE, AREA_SIZE as usize);
        (memory, setup.registers())
    })
});

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_device_that_moves_at_any_time_does_what_one_that_stays_does(
        waits in proptest::collection::vec(0_u64..2_000, 1..6),
        child in any::<bool>(),
    ) {
        let setups = SETUPS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let setups = &setups[usize::from(child)];
        let before: Vec<_> = setups.iter().map(Setup::interrupts).collect();
        setups[0].area.write(Area::BASE, &vec![0; AREA_SIZE as usize]);
        setups[0].model.reset();
        let _ = Driver::new(Arc::clone(&setups[0].model));
        setups[0].start();
        let mut here = 0;
        for wait in waits {
            let until = Instant::now() + Duration::from_micros(wait);
            while Instant::now() < until {
                std::thread::yield_now();
            }
            setups[1 - here].take_over(&setups[here]);
            here = 1 - here;
        }
        let setup = &setups[here];
        eventually("the end of the work", || setup.is_done());
        let (memory, registers) = &EXPECTED[usize::from(child)];
        prop_assert!(setup.area.read(Area::BASE, AREA_SIZE as usize) == *memory);
        prop_assert_eq!(&setup.registers(), registers);
        // Nothing was rearmed: one interrupt of each channel, wherever it was.
        let raised = || -> Vec<u64> {
            let after = setups.iter().map(Setup::interrupts);
            let sums = after.zip(&before).map(|(after, before)| {
                after.iter().zip(before).map(|(a, b)| a - b).collect::<Vec<_>>()
            });
            sums.reduce(|a, b| a.iter().zip(&b).map(|(a, b)| a + b).collect()).unwrap()
        };
        let once = vec![1; setup.drivers.len()];
        eventually("the interrupts", || raised() == once);
    }

    #[test]
    fn every_register_goes_along(
        writes in proptest::collection::vec((0_u64..4, 0_usize..8, any::<u64>()), 0..40),
        general in any::<[u8; 2]>(),
        child in any::<bool>(),
    ) {
        const REGISTERS: [(u64, usize); 8] = [
            (reg::CHANCTRL, 2),
            (reg::CHANCMD, 1),
            (reg::DMACOUNT, 2),
            (reg::CHAINADDR, 8),
            (reg::CHANCMP, 8),
            (reg::CHANERR, 4),
            (reg::CHANERRMSK, 4),
            (reg::DCACTRL, 4),
        ];
        let setups = SETUPS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let [source, destination] = &setups[usize::from(child)];
        source.model.reset();
        source.model.write(0, reg::INTRDELAY, &general);
        for (channel, register, value) in writes {
            let driver = &source.drivers[channel as usize % source.drivers.len()];
            let (register, width) = REGISTERS[register];
            driver.write(register, &value.to_le_bytes()[..width]);
        }
        source.migrate().pause();
        let state = source.migrate().save();
        destination.load(&state).unwrap();
        prop_assert_eq!(destination.migrate().save(), state);
        prop_assert_eq!(destination.registers(), source.registers());
        destination.model.reset();
        source.model.reset();
    }

    #[test]
    fn a_forged_state_harms_nobody(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
        wait in 0_u64..1_000,
    ) {
        let setups = SETUPS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let [source, destination] = &setups[0];
        source.model.reset();
        source.start();
        std::thread::sleep(Duration::from_micros(wait));
        source.migrate().pause();
        let mut state = source.migrate().save();
        source.model.reset();
        for (index, value) in changes {
            let at = index.index(state.len());
            state[at] = value;
        }
        if destination.load(&state).is_ok() {
            destination.migrate().resume();
        }
        destination.model.reset();
        let driver = &destination.drivers[0];
        driver.reset();
        driver.set_completion(part(0) + WORD);
        destination.area.write(part(0) + DATA, &pattern(64, 9));
        let copy = reporting(Descriptor::copy(part(0) + DATA + 64, part(0) + DATA, 64));
        destination.area.write_chain(part(0) + CHAIN, &[copy]);
        driver.start(part(0) + CHAIN, 1);
        prop_assert_eq!(driver.wait_for_end().into_bits(), 0);
        prop_assert_eq!(destination.area.read(part(0) + DATA + 64, 64), pattern(64, 9));
    }
}

#[test]
fn a_suspend_that_waits_for_its_descriptor_goes_along() {
    let (source, destination) = (Setup::child(1), Setup::child(2));
    source.start();
    source.drivers[0].command(SUSPEND);
    destination.take_over(&source);
    let driver = &destination.drivers[0];
    driver.wait_for(ChannelStatus::Suspended);
    destination.migrate().pause();
    assert!(driver.status().is(ChannelStatus::Suspended));
    driver.command(RESUME);
    assert!(driver.status().is(ChannelStatus::Active));
    destination.migrate().resume();
    eventually("the end of the work", || destination.is_done());
    assert_eq!(destination.registers(), EXPECTED[1].1);
}

#[test]
fn nothing_goes_on_in_a_pause_and_a_reset_ends_it() {
    let setup = Setup::whole();
    setup.migrate().pause();
    let driver = &setup.drivers[0];
    // A reset that the program asks for does not.
    driver.command(RESET);
    let fill = reporting(Descriptor::fill(part(0) + DATA, 7, 64));
    setup.area.write_chain(part(0) + CHAIN, &[fill]);
    driver.set_completion(part(0) + WORD);
    driver.start(part(0) + CHAIN, 1);
    let state = setup.migrate().save();
    setup.migrate().pause();
    assert_eq!(setup.migrate().save(), state);
    assert_eq!(setup.area.word(part(0) + WORD).into_bits(), 0);
    setup.model.reset();
    driver.set_completion(part(0) + WORD);
    driver.start(part(0) + CHAIN, 1);
    assert_eq!(driver.wait_for_end().into_bits(), 0);
    assert!(setup.area.word(part(0) + WORD).is(ChannelStatus::Done));
}

#[test]
fn a_state_of_another_device_or_a_part_of_one_is_refused() {
    let (whole, child) = (Setup::whole(), Setup::child(1));
    let states = [&whole, &child].map(|setup| {
        setup.start();
        setup.migrate().pause();
        setup.migrate().save()
    });
    assert_eq!(whole.load(&states[1]), Err(StateError));
    assert_eq!(child.load(&states[0]), Err(StateError));
    for (setup, state) in [&whole, &child].into_iter().zip(&states) {
        for len in 0..state.len() {
            assert_eq!(setup.load(&state[..len]), Err(StateError), "{len}");
        }
        let longer = [state.as_slice(), &[0]].concat();
        assert_eq!(setup.load(&longer), Err(StateError));
        setup.load(state).unwrap();
    }
    let iommu = new_iommu();
    let smaller = new_ioat(&iommu, "0000:6b:01.0", 2);
    assert_eq!(smaller.load(&states[0]), Err(StateError));
}
