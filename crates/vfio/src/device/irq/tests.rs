use ioasid_core::host::CountingIrq;

use super::*;
use crate::pci::{Bar, FunctionBuilder, MsixLayout};

/// With bus mastering on: interrupts by message are memory writes.
fn master(builder: FunctionBuilder) -> Function {
    let function = builder.build().unwrap();
    let _ = function.write_config(4, &[6]).unwrap();
    function
}

fn function() -> Function {
    let builder = FunctionBuilder::new(1, 2)
        .bar(0, Bar::memory64(0x4000))
        .express()
        .power_management()
        .msix(MsixLayout::new(0, 0x2000, 0x3000, 4));
    master(builder)
}

fn wired() -> Function {
    let builder = FunctionBuilder::new(1, 2)
        .bar(0, Bar::memory64(0x4000))
        .intx()
        .power_management()
        .msi(3)
        .msix(MsixLayout::new(0, 0x2000, 0x3000, 4));
    master(builder)
}

fn trigger(index: IrqIndex, start: u32, count: u32, data: IrqData) -> SetIrqs {
    SetIrqs {
        index,
        action: IrqAction::Trigger,
        start,
        count,
        data,
    }
}

fn msix(start: u32, fds: &[Eventfd]) -> SetIrqs {
    let data = IrqData::Eventfds(fds.to_vec());
    trigger(IrqIndex::Msix, start, fds.len() as u32, data)
}

fn sink(counter: &Arc<CountingIrq>) -> Eventfd {
    Eventfd::Sink(counter.clone())
}

#[test]
fn vectors_fire_from_the_device_and_by_loopback() {
    let (function, irqs) = (function(), Interrupts::default());
    let (zero, two) = (CountingIrq::new(), CountingIrq::new());
    let fds = [sink(&zero), Eventfd::None, sink(&two)];
    irqs.set(&function, &msix(0, &fds)).unwrap();
    for vector in 0..9 {
        function.vectors().signal(vector);
    }
    assert_eq!((zero.count(), two.count()), (1, 1));
    let none = trigger(IrqIndex::Msix, 0, 4, IrqData::None);
    irqs.set(&function, &none).unwrap();
    assert_eq!((zero.count(), two.count()), (2, 2));
    let bools = IrqData::Bools(vec![true, false]);
    let bools = trigger(IrqIndex::Msix, 1, 2, bools);
    irqs.set(&function, &bools).unwrap();
    assert_eq!((zero.count(), two.count()), (2, 2));
}

#[test]
fn count_0_disables_and_off_refuses_everything_but_eventfds() {
    let (function, irqs) = (function(), Interrupts::default());
    let off = trigger(IrqIndex::Msix, 0, 0, IrqData::None);
    let fire = trigger(IrqIndex::Msix, 0, 1, IrqData::None);
    let refused = Err(IrqError::NotEnabled {
        index: IrqIndex::Msix,
    });
    assert_eq!(irqs.set(&function, &off), refused);
    assert_eq!(irqs.set(&function, &fire), refused);
    let counter = CountingIrq::new();
    irqs.set(&function, &msix(3, &[sink(&counter)])).unwrap();
    assert!(irqs.msix_enabled());
    irqs.set(&function, &off).unwrap();
    assert!(!irqs.msix_enabled());
    function.vectors().signal(3);
    assert_eq!(counter.count(), 0);
    let index = IrqIndex::Msix;
    let no_vectors = Err(IrqError::NoVectors { index });
    assert_eq!(irqs.set(&function, &msix(0, &[])), no_vectors);
}

#[test]
fn a_bad_eventfd_disconnects_the_vectors_of_its_request_only() {
    let (function, irqs) = (function(), Interrupts::default());
    let counter = CountingIrq::new();
    let bad = || Eventfd::Unusable(FdError::NotOpen);
    let request = msix(0, &[sink(&counter), bad()]);
    let refused = |vector| Err(unusable(vector, FdError::NotOpen));
    assert_eq!(irqs.set(&function, &request), refused(1));
    assert!(!irqs.msix_enabled(), "nothing was enabled before");
    let all = [(); 4].map(|()| sink(&counter));
    irqs.set(&function, &msix(0, &all)).unwrap();
    let request = msix(1, &[sink(&counter), bad(), sink(&counter)]);
    assert_eq!(irqs.set(&function, &request), refused(2));
    assert!(irqs.msix_enabled());
    for vector in 0..4 {
        function.vectors().signal(vector);
    }
    assert_eq!(counter.count(), 2, "vectors 0 and 3 are still connected");
}

#[test]
fn intx_msi_and_msix_exclude_each_other() {
    let function = wired();
    let irqs = Interrupts::default();
    let counter = CountingIrq::new();
    let data = || IrqData::Eventfds(vec![sink(&counter)]);
    let indexes = [IrqIndex::Intx, IrqIndex::Msi, IrqIndex::Msix];
    for on in indexes {
        irqs.set(&function, &trigger(on, 0, 1, data())).unwrap();
        for other in indexes.into_iter().filter(|other| *other != on) {
            let excluded = Err(IrqError::OtherEnabled {
                index: other,
                enabled: on,
            });
            for data in [data(), IrqData::None] {
                let refused = irqs.set(&function, &trigger(other, 0, 1, data));
                assert_eq!(refused, excluded, "{on:?} {other:?}");
            }
            let off = trigger(other, 0, 0, IrqData::None);
            assert_eq!(irqs.set(&function, &off), excluded);
        }
        irqs.set(&function, &trigger(on, 0, 0, IrqData::None))
            .unwrap();
    }
}

#[test]
fn intx_is_enabled_swapped_fired_masked_and_disabled() {
    let function = wired();
    let irqs = Interrupts::default();
    let set = |action, count, data| {
        let request = trigger(IrqIndex::Intx, 0, count, data);
        irqs.set(&function, &SetIrqs { action, ..request })
    };
    let fd = |fd| IrqData::Eventfds(vec![fd]);
    let index = IrqIndex::Intx;
    let off = Err(IrqError::NotEnabled { index });
    let not_one = Err(IrqError::NotOneVector { index, count: 0 });
    use IrqAction::{Mask, Trigger, Unmask};
    assert_eq!(set(Trigger, 0, IrqData::None), not_one);
    assert_eq!(set(Trigger, 1, IrqData::None), off);
    assert_eq!(set(Mask, 1, IrqData::None), off);
    let (old, new) = (CountingIrq::new(), CountingIrq::new());
    set(Trigger, 1, fd(Eventfd::None)).unwrap();
    set(Trigger, 1, IrqData::None).unwrap();
    set(Trigger, 1, fd(sink(&old))).unwrap();
    set(Trigger, 1, IrqData::None).unwrap();
    set(Trigger, 1, IrqData::Bools(vec![false])).unwrap();
    set(Trigger, 1, fd(sink(&new))).unwrap();
    set(Trigger, 1, IrqData::Bools(vec![true])).unwrap();
    assert_eq!((old.count(), new.count()), (1, 1));
    set(Mask, 1, IrqData::None).unwrap();
    function.intx().set(true);
    assert_eq!(new.count(), 1);
    set(Unmask, 1, IrqData::Bools(vec![false])).unwrap();
    assert_eq!(new.count(), 1);
    set(Unmask, 1, IrqData::Bools(vec![true])).unwrap();
    assert_eq!(new.count(), 2);
    assert_eq!(set(Mask, 0, IrqData::None), not_one);
    let by_eventfd = set(Mask, 1, fd(sink(&new)));
    let no_such = IrqError::NoSuchAction {
        index,
        action: Mask,
    };
    assert_eq!(by_eventfd, Err(no_such));
    let closed = fd(Eventfd::Unusable(FdError::NotOpen));
    let refused = Err(unusable(0, FdError::NotOpen));
    assert_eq!(set(Trigger, 1, closed), refused);
    set(Trigger, 0, IrqData::None).unwrap();
    assert_eq!(set(Unmask, 1, IrqData::None), off);
}

#[test]
fn one_eventfd_unmasks_intx() {
    #[derive(Debug)]
    struct Watch;
    impl EventfdWatch for Watch {}
    type Answer = std::result::Result<Box<dyn EventfdWatch>, FdError>;
    let function = wired();
    let irqs = Interrupts::default();
    let heard = Mutex::new(None);
    let watch = |listener: Arc<dyn IrqSink>| -> Answer {
        *heard.lock() = Some(listener);
        Ok(Box::new(Watch))
    };
    let none: Option<fn(Arc<dyn IrqSink>) -> Answer> = None;
    let off = irqs.unmask_by(&function, none);
    let index = IrqIndex::Intx;
    assert_eq!(off, Err(IrqError::NotEnabled { index }));
    let counter = CountingIrq::new();
    let data = IrqData::Eventfds(vec![sink(&counter)]);
    irqs.set(&function, &trigger(IrqIndex::Intx, 0, 1, data))
        .unwrap();
    irqs.unmask_by(&function, Some(watch)).unwrap();
    let second = irqs.unmask_by(&function, Some(watch));
    assert_eq!(second, Err(IrqError::UnmaskedAlready));
    function.intx().set(true);
    heard.lock().take().unwrap().signal();
    assert_eq!(counter.count(), 2);
    irqs.unmask_by(&function, none).unwrap();
    irqs.unmask_by(&function, Some(watch)).unwrap();
}

#[test]
fn msi_keeps_the_vectors_that_it_was_enabled_with() {
    let function = wired();
    let irqs = Interrupts::default();
    let counters: Vec<_> = (0..8).map(|_| CountingIrq::new()).collect();
    let msi = |start: u32, fds: Vec<Eventfd>| {
        let count = fds.len() as u32;
        let data = IrqData::Eventfds(fds);
        irqs.set(&function, &trigger(IrqIndex::Msi, start, count, data))
    };
    let index = IrqIndex::Msi;
    assert_eq!(msi(0, vec![]), Err(IrqError::NoVectors { index }));
    msi(0, vec![sink(&counters[0]), sink(&counters[1])]).unwrap();
    let beyond = Err(IrqError::BeyondEnabled {
        vector: 2,
        enabled: 2,
    });
    assert_eq!(msi(2, vec![sink(&counters[2])]), beyond);
    msi(2, vec![Eventfd::None]).unwrap();
    for vector in 0..8 {
        function.vectors().signal(vector);
    }
    assert_eq!(counters[0].count(), 4, "the low bits of the number");
    assert_eq!(counters[1].count(), 4);
    let mixed = vec![sink(&counters[1]), sink(&counters[2])];
    assert_eq!(msi(1, mixed), beyond);
    function.vectors().signal(1);
    assert_eq!(counters[1].count(), 4, "the failed request took it away");
}

#[test]
fn ranges_past_the_last_vector_and_missing_actions_are_refused() {
    let (function, irqs) = (function(), Interrupts::default());
    for (index, start, count, available) in [
        (IrqIndex::Msix, 4, 0, 4),
        (IrqIndex::Msix, 0, 5, 4),
        (IrqIndex::Msix, u32::MAX, 2, 4),
        (IrqIndex::Intx, 0, 0, 0),
        (IrqIndex::Msi, 0, 0, 0),
        (IrqIndex::Error, 1, 0, 1),
        (IrqIndex::Request, 0, 2, 1),
    ] {
        let request = trigger(index, start, count, IrqData::None);
        let found = irqs.set(&function, &request);
        let none = IrqError::NoSuchVectors {
            index,
            start,
            count,
            available,
        };
        assert_eq!(found, Err(none));
    }
    for index in [IrqIndex::Msix, IrqIndex::Error, IrqIndex::Request] {
        for action in [IrqAction::Mask, IrqAction::Unmask] {
            let request = trigger(index, 0, 1, IrqData::None);
            let request = SetIrqs { action, ..request };
            let found = irqs.set(&function, &request);
            assert_eq!(found, Err(IrqError::NoSuchAction { index, action }));
        }
    }
}

#[test]
fn single_triggers_connect_fire_and_go() {
    let (function, irqs) = (function(), Interrupts::default());
    let request = |data, count| trigger(IrqIndex::Request, 0, count, data);
    let set = |data, count| irqs.set(&function, &request(data, count));
    let no_eventfd = Err(IrqError::NoEventfd {
        index: IrqIndex::Request,
    });
    assert_eq!(set(IrqData::None, 1), no_eventfd);
    let fd = |fd: Eventfd| IrqData::Eventfds(vec![fd]);
    let counter = CountingIrq::new();
    set(fd(sink(&counter)), 1).unwrap();
    set(IrqData::None, 1).unwrap();
    set(IrqData::Bools(vec![true]), 1).unwrap();
    set(IrqData::Bools(vec![false]), 1).unwrap();
    irqs.request_release();
    irqs.report_error();
    assert_eq!(counter.count(), 3);
    let no_data = IrqError::DataCount {
        elements: 0,
        count: 0,
    };
    assert_eq!(set(IrqData::Bools(vec![]), 0), Err(no_data));
    assert_eq!(set(fd(Eventfd::Negative), 1), no_eventfd);
    set(fd(Eventfd::None), 1).unwrap();
    set(IrqData::Bools(vec![true]), 1).unwrap();
    set(fd(sink(&counter)), 1).unwrap();
    set(IrqData::None, 0).unwrap();
    irqs.request_release();
    assert_eq!(counter.count(), 3);
}

/// Puts a function into a power state.
fn set_power(function: &Function, state: u8) {
    let mut at = [0; 1];
    function.read_config(0x34, &mut at).unwrap();
    loop {
        let mut header = [0; 2];
        function.read_config(at[0].into(), &mut header).unwrap();
        if header[0] == 1 {
            break;
        }
        at[0] = header[1];
    }
    let control = u64::from(at[0]) + 4;
    let _ = function.write_config(control, &[state]).unwrap();
}

#[test]
fn messages_wait_for_bus_mastering_and_the_wire_does_not() {
    let (function, irqs) = (wired(), Interrupts::default());
    let command = |bits: u8| function.write_config(4, &[bits]).unwrap();
    for index in [IrqIndex::Msix, IrqIndex::Msi] {
        let sinks: Vec<_> = (0..2).map(|_| CountingIrq::new()).collect();
        let fds = IrqData::Eventfds(sinks.iter().map(sink).collect());
        irqs.set(&function, &trigger(index, 0, 2, fds)).unwrap();
        let counts = || (sinks[0].count(), sinks[1].count());
        let _ = command(2);
        function.vectors().signal(1);
        function.vectors().signal(1);
        assert_eq!(counts(), (0, 0));
        // By the program itself they come at once.
        let both = trigger(index, 0, 2, IrqData::None);
        irqs.set(&function, &both).unwrap();
        assert_eq!(counts(), (1, 1));
        let _ = command(6);
        assert_eq!(counts(), (1, 2), "once, however often it was signalled");
        let _ = command(2);
        let _ = command(6);
        assert_eq!(counts(), (1, 2), "and only once");
        // D3 is the same, and a reset forgets what waits.
        set_power(&function, 3);
        function.vectors().signal(0);
        set_power(&function, 0);
        assert_eq!(counts(), (2, 2));
        let _ = command(2);
        function.vectors().signal(0);
        function.end_reset();
        let _ = command(6);
        assert_eq!(counts(), (2, 2));
        irqs.clear(&function);
    }
    let wire = CountingIrq::new();
    let _ = command(2);
    let fds = IrqData::Eventfds(vec![sink(&wire)]);
    irqs.set(&function, &trigger(IrqIndex::Intx, 0, 1, fds))
        .unwrap();
    function.intx().set(true);
    assert_eq!(wire.count(), 1);
}

#[test]
fn messages_cannot_be_enabled_in_d3_and_stay_enabled_over_it() {
    let (function, irqs) = (wired(), Interrupts::default());
    let counter = CountingIrq::new();
    let request = |index| trigger(index, 0, 1, IrqData::Eventfds(vec![sink(&counter)]));
    set_power(&function, 3);
    for index in [IrqIndex::Msi, IrqIndex::Msix] {
        let refused = irqs.set(&function, &request(index));
        assert_eq!(refused, Err(IrqError::Asleep { index }));
    }
    let none = |index| trigger(index, 0, 0, IrqData::Eventfds(Vec::new()));
    let refused = [IrqIndex::Msi, IrqIndex::Msix].map(|index| irqs.set(&function, &none(index)));
    let asleep = IrqError::Asleep {
        index: IrqIndex::Msi,
    };
    let no_vectors = IrqError::NoVectors {
        index: IrqIndex::Msix,
    };
    assert_eq!(refused, [Err(asleep), Err(no_vectors)]);
    irqs.set(&function, &request(IrqIndex::Intx)).unwrap();
    irqs.clear(&function);
    set_power(&function, 0);
    irqs.set(&function, &request(IrqIndex::Msix)).unwrap();
    set_power(&function, 3);
    let more = trigger(
        IrqIndex::Msix,
        3,
        1,
        IrqData::Eventfds(vec![sink(&counter)]),
    );
    irqs.set(&function, &more).unwrap();
    set_power(&function, 0);
    function.vectors().signal(3);
    assert_eq!(counter.count(), 1);
}
