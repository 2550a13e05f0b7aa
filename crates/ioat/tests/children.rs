//! Children with one channel: what they show, what they can reach, and how they come and go.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;

use common::*;
use ioasid_core::{Pasid, inspect::Inspect as _};
use ioasid_ioat::{
    ConfigError, Error, HostDriver, IoatChild, IoatDevice, IoatParent, TYPE_1CHAN,
    spec::{ChanErr, ChannelStatus, Descriptor, registers as reg},
};
use ioasid_iommu::{DmaSource, Domain, FaultLog, FaultSink, Iommu, PasidQuota};
use ioasid_vfio::{DefaultPasid, DeviceModel, mdev::MdevParent};

/// A parent with its driver; channels 1 to 3 are for children.
struct Parent {
    iommu: Arc<Iommu>,
    ioat: Arc<IoatDevice>,
    driver: Arc<HostDriver>,
}

impl Parent {
    fn new() -> Self {
        let iommu = new_iommu();
        let ioat = new_ioat(&iommu, "0000:6a:01.0", 4);
        let driver = HostDriver::probe(&ioat).unwrap();
        Parent {
            iommu,
            ioat,
            driver,
        }
    }
}

/// A child, bound and attached to a domain of its own.
struct Guest {
    child: Arc<IoatChild>,
    driver: Driver,
    pasid: Pasid,
    _domain: Arc<Domain>,
    area: Area,
    faults: Arc<FaultLog>,
}

impl Guest {
    fn new(parent: &Parent, channel: usize) -> Self {
        Guest::of(
            &parent.iommu,
            IoatChild::new(&parent.ioat, channel).unwrap(),
        )
    }

    fn of(iommu: &Arc<Iommu>, child: Arc<IoatChild>) -> Self {
        let (device, pasid) = child.bind().unwrap();
        let domain = new_domain(iommu, &device);
        let area = new_area(iommu, &domain);
        let faults = FaultLog::new(64);
        let sink: Arc<dyn FaultSink> = faults.clone();
        DmaSource::new(&device, Some(pasid))
            .attach(&domain, &sink)
            .unwrap();
        let driver = Driver::new(child.clone());
        driver.set_completion(WORD);
        driver.control(RUN);
        Guest {
            child,
            driver,
            pasid,
            _domain: domain,
            area,
            faults,
        }
    }

    fn copies(&self, seed: u64) -> bool {
        let bytes = pattern(0x1_0000, seed);
        self.driver.reset();
        self.driver.set_completion(WORD);
        self.driver.control(RUN);
        self.area.write(SRC, &bytes);
        self.area
            .write_chain(CHAIN, &[reporting(Descriptor::copy(DST, SRC, 0x1_0000))]);
        self.driver.start(CHAIN, 1);
        self.driver.wait_for_end().into_bits() == 0 && self.area.read(DST, 0x1_0000) == bytes
    }

    fn leave(&self) {
        self.child.quiesce();
        DmaSource::new(self.child.parent().device(), Some(self.pasid)).detach();
        self.child.unbind();
    }
}

#[test]
fn a_child_looks_like_a_device_with_one_channel() {
    let parent = Parent::new();
    let guest = Guest::new(&parent, 2);
    assert_eq!(guest.driver.get::<1>(reg::CHANCNT), 1);
    assert_eq!(guest.driver.get::<1>(reg::CBVER), 0x33);
    let function = guest.child.function();
    assert_eq!(function.vectors().count(), 1);
    assert_eq!(function.bar(0).unwrap().size, 0x4000);
    assert!(guest.copies(1));
}

#[test]
fn one_address_leads_each_channel_to_its_own_memory() {
    let parent = Parent::new();
    let guests: Vec<_> = (1..4).map(|channel| Guest::new(&parent, channel)).collect();
    std::thread::scope(|scope| {
        for (seed, guest) in (0..).zip(&guests) {
            scope.spawn(move || {
                for round in 0..100 {
                    assert!(guest.copies(seed * 1000 + round));
                }
            });
        }
    });
    for guest in &guests {
        assert_eq!(guest.faults.total(), 0);
    }
}

#[test]
fn no_register_of_a_child_leads_to_another_channel() {
    let parent = Parent::new();
    let (guest, other) = (Guest::new(&parent, 1), Guest::new(&parent, 2));
    assert!(other.copies(1));
    let snapshot = |driver: &Driver| -> Vec<u64> {
        let offsets = (0x80..0x2000).step_by(8);
        offsets.map(|at| driver.get::<8>(at)).collect()
    };
    let mut parents = Driver::new(parent.ioat.clone());
    parents.channel = 0;
    let before = (snapshot(&parents), snapshot(&other.driver));
    // Everything behind its own channel, and its own with every value that does something.
    for offset in (0x100..0x2000).step_by(2) {
        guest.child.write(0, offset, &[0xff; 2]);
        assert_eq!(guest.driver.get::<2>(offset), 0);
    }
    for command in 0..=255 {
        guest.driver.command(command);
    }
    guest.driver.command(RESET);
    assert_eq!((snapshot(&parents), snapshot(&other.driver)), before);
    assert!(other.copies(2) && guest.copies(3));
}

#[test]
fn the_parents_registers_do_not_reach_a_childs_channel() {
    let parent = Parent::new();
    let guest = Guest::new(&parent, 1);
    let parents = Driver::new(parent.ioat.clone()).with_channel(1);
    guest.area.write(DST, &[0; 8]);
    guest
        .area
        .write_chain(CHAIN, &[Descriptor::fill(DST, u64::MAX, 8)]);
    guest.driver.write(reg::CHAINADDR, &CHAIN.to_le_bytes());
    assert_eq!(parents.read::<8>(reg::CHAINADDR), 0);
    parents.count(1);
    parents.command(RESET);
    parents.write(reg::CHANCMP, &[0xff; 8]);
    assert!(guest.driver.status().is(ChannelStatus::Armed));
    assert_eq!(guest.area.read(DST, 8), [0; 8]);
    assert_eq!(guest.driver.read::<8>(reg::CHANCMP), WORD);
}

#[test]
fn no_register_of_a_child_shows_its_pasid() {
    let parent = Parent::new();
    // A number that no register holds by chance.
    let quota = PasidQuota::unlimited();
    let pool = parent.iommu.pasids();
    let _lower: Vec<_> = (1..0x2345).map(|_| pool.alloc(&quota).unwrap()).collect();
    let guest = Guest::new(&parent, 1);
    assert_eq!(guest.pasid.get(), 0x2345);
    assert!(guest.copies(1));
    for offset in (0..0x2000).step_by(4) {
        let value = guest.driver.get::<8>(offset);
        let shown = (0..45).any(|bit| value >> bit & 0xf_ffff == 0x2345);
        assert!(!shown, "{offset:#x} holds {value:#x}");
    }
}

#[test]
fn a_fault_of_one_child_is_told_to_its_owner_alone() {
    let parent = Parent::new();
    let (guest, other) = (Guest::new(&parent, 1), Guest::new(&parent, 2));
    let irq = other.driver.listen(0);
    guest
        .area
        .write_chain(CHAIN, &[reporting(Descriptor::fill(END, 0, 8))]);
    guest.driver.start(CHAIN, 1);
    assert_eq!(
        guest.driver.wait_for_end(),
        ChanErr::new().with_write_data(true)
    );
    let faults = guest.faults.drain();
    assert_eq!(faults.len(), 1);
    assert_eq!((faults[0].iova, faults[0].pasid), (END, Some(guest.pasid)));
    assert_eq!(
        other.faults.total() + parent.ioat.device().fault_log().total(),
        0
    );
    assert_eq!(other.driver.errors().into_bits(), 0);
    assert_eq!(irq.count(), 0);
}

#[test]
fn a_reset_of_a_child_stops_its_channel_and_no_other() {
    let parent = Parent::new();
    let (guest, other) = (Guest::new(&parent, 1), Guest::new(&parent, 2));
    let endless = |guest: &Guest| {
        let fill = Descriptor::fill(DST, 0, 1 << 18).with_next(CHAIN);
        guest.area.write(CHAIN, &fill.to_bytes());
        guest.driver.start(CHAIN, u16::MAX);
    };
    for _ in 0..20 {
        endless(&guest);
        if !other.driver.status().is(ChannelStatus::Active) {
            other.driver.reset();
            endless(&other);
        }
        guest.child.reset();
        guest.area.write(DST, &[0x11; 0x1_0000]);
        assert_eq!(guest.driver.status().into_bits(), 3);
        let at = other.driver.read::<2>(reg::DMACOUNT);
        other.area.write(DST, &[0x11; 0x1_0000]);
        eventually("the other's fills", || other.area.read(DST, 1) == [0]);
        assert_eq!(at, u64::from(u16::MAX));
        assert!(guest.area.read(DST, 0x1_0000) == vec![0x11; 0x1_0000]);
        assert_eq!(other.driver.errors().into_bits(), 0);
    }
}

#[test]
fn a_child_that_is_not_bound_does_not_hear_its_doorbell() {
    let parent = Parent::new();
    let guest = Guest::new(&parent, 1);
    guest.leave();
    guest.area.write(DST, &[7; 8]);
    guest
        .area
        .write_chain(CHAIN, &[Descriptor::fill(DST, 0, 8)]);
    guest.driver.start(CHAIN, 1);
    std::thread::yield_now();
    assert_eq!(guest.driver.status().into_bits(), 3);
    assert_eq!(guest.area.read(DST, 8), [7; 8]);
    let again = Guest::of(&parent.iommu, guest.child.clone());
    assert!(again.copies(1));
    again.leave();
    assert_eq!(
        parent.iommu.pasids().held() + parent.iommu.pasids().pending(),
        0
    );
}

#[test]
fn a_child_that_leaves_in_flight_writes_nothing_any_more_and_its_pasid_is_free() {
    let parent = Parent::new();
    let child = IoatChild::new(&parent.ioat, 1).unwrap();
    for round in 0..30_u64 {
        let guest = Guest::of(&parent.iommu, child.clone());
        let fill = reporting(Descriptor::fill(DST, round, 1 << 18)).with_next(CHAIN);
        guest.area.write(CHAIN, &fill.to_bytes());
        guest.driver.start(CHAIN, u16::MAX);
        (0..round * 50).for_each(|_| std::hint::spin_loop());
        guest.leave();
        assert_eq!(
            parent.iommu.pasids().held() + parent.iommu.pasids().pending(),
            0
        );
        guest.area.write(DST, &[0xa5; 1 << 18]);
        std::thread::yield_now();
        assert!(
            guest.area.read(DST, 1 << 18) == vec![0xa5; 1 << 18],
            "{round}"
        );
        assert_eq!(guest.faults.total(), 0);
    }
}

#[test]
fn a_new_user_finds_nothing_of_the_one_before() {
    let parent = Parent::new();
    let first = Guest::new(&parent, 1);
    assert!(first.copies(1));
    first.driver.write(reg::CHANERRMSK, &[0xff; 4]);
    first.driver.write(reg::DCACTRL, &[0xff; 4]);
    first.child.release();
    first.leave();
    let fresh = IoatChild::new(&parent.ioat, 2).unwrap();
    fresh.bind().unwrap();
    first.child.bind().unwrap();
    for offset in (0..0x2000).step_by(8) {
        let (mut old, mut new) = ([0; 8], [0; 8]);
        first.child.read(0, offset, &mut old);
        fresh.read(0, offset, &mut new);
        assert_eq!(old, new, "{offset:#x}");
    }
}

#[test]
fn a_channel_has_one_owner_and_the_first_is_not_for_children() {
    let parent = Parent::new();
    let own = parent.driver.open_channel(0).unwrap();
    assert!(matches!(
        parent.driver.open_channel(0),
        Err(Error::ChannelBusy { index: 0, .. })
    ));
    assert!(matches!(
        IoatChild::new(&parent.ioat, 0),
        Err(Error::Config(ConfigError::NotForChildren(0)))
    ));
    assert!(matches!(
        IoatChild::new(&parent.ioat, 4),
        Err(Error::NoChannel(4))
    ));
    let _child = IoatChild::new(&parent.ioat, 1).unwrap();
    assert!(matches!(
        IoatChild::new(&parent.ioat, 1),
        Err(Error::ChannelBusy { index: 1, .. })
    ));
    drop(own);
    drop(parent.driver.open_channel(0).unwrap());
}

#[test]
fn a_parent_offers_as_many_children_as_it_has_free_channels() {
    let iommu = new_iommu();
    let ioat = new_ioat(&iommu, "0000:6a:01.0", 3);
    let parent = IoatParent::new(ioat);
    let uuid = |n: u8| ioasid_vfio::mdev::Uuid::from_bytes([n; 16]);
    assert_eq!(parent.types()[0].id, TYPE_1CHAN);
    assert_eq!(parent.available_instances(TYPE_1CHAN), 2);
    assert_eq!(parent.available_instances("dsa-1dwq"), 0);
    parent.keep(2, uuid(9));
    drop(parent.create(TYPE_1CHAN, uuid(1)).unwrap());
    assert_eq!(parent.child(uuid(1)).unwrap().channel(), 1);
    assert!(
        parent.create(TYPE_1CHAN, uuid(2)).is_err(),
        "kept for another"
    );
    drop(parent.create(TYPE_1CHAN, uuid(9)).unwrap());
    assert_eq!(parent.child(uuid(9)).unwrap().channel(), 2);
    let child = parent.child(uuid(9)).unwrap();
    parent.remove(uuid(9));
    assert_eq!(parent.available_instances(TYPE_1CHAN), 1);
    // What is left of it answers nothing, also when its channel has another child.
    drop(parent.create(TYPE_1CHAN, uuid(9)).unwrap());
    child.write(0, 0x80 + reg::CHANCMP, &[0xff; 8]);
    let mut bytes = [0; 8];
    parent
        .child(uuid(9))
        .unwrap()
        .read(0, 0x80 + reg::CHANCMP, &mut bytes);
    assert_eq!(bytes, [0; 8]);
    assert!(parent.inspect().field("children").is_some());
}

fn set_master(model: &dyn DeviceModel, on: bool) {
    let command = if on { 6 } else { 2 };
    let _ = model.function().write_config(4, &[command]).unwrap();
}

#[test]
fn a_childs_bus_master_bit_holds_its_own_channel_and_its_parents_holds_all() {
    let parent = Parent::new();
    let [one, two] = [1, 2].map(|channel| Guest::new(&parent, channel));
    set_master(&*parent.ioat, false);
    for guest in [&one, &two] {
        guest.area.write(SRC, &[0x5a; 64]);
        let chain = [reporting(Descriptor::copy(DST, SRC, 64))];
        guest.area.write_chain(CHAIN, &chain);
        guest.driver.start(CHAIN, 1);
    }
    set_master(&*two.child, false);
    assert!(one.driver.status().is(ChannelStatus::Active));
    assert_eq!(one.area.read(DST, 64), [0; 64]);
    set_master(&*parent.ioat, true);
    one.driver.wait_for(ChannelStatus::Done);
    assert_eq!(one.area.read(DST, 64), [0x5a; 64]);
    assert_eq!(two.area.read(DST, 64), [0; 64], "its own bit is 0");
    assert!(two.driver.status().is(ChannelStatus::Active));
    assert!(one.copies(1), "the others are not held up by that");
    set_master(&*two.child, true);
    two.driver.wait_for(ChannelStatus::Done);
    assert!(two.copies(2));
}
