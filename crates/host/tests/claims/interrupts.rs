use ioasid_core::{
    host::{Caller, FdError},
    inspect::{Inspect, Value},
};

use crate::dma::Fixture;

#[test]
fn a_signal_reaches_the_eventfd_of_another_process() {
    let mut f = Fixture::new();
    let fd = f.child.ask("eventfd 0");
    let sink = f.process.eventfd(fd as i32).unwrap();
    sink.signal();
    assert_eq!(f.child.ask(&format!("read {fd}")), 1);
    for _ in 0..1000 {
        sink.signal();
    }
    let mut seen = 0;
    while seen < 1000 {
        seen += f.child.ask(&format!("read {fd}"));
    }
    assert_eq!(seen, 1000, "every signal is counted, whole");
}

#[test]
fn only_an_eventfd_is_an_eventfd() {
    let mut f = Fixture::new();
    let memfd = f.child.ask("memfd 4096");
    let device = f.child.ask("open /dev/null");
    for wrong in [0, 1, memfd, device] {
        assert_eq!(
            f.process.eventfd(wrong as i32).unwrap_err(),
            FdError::WrongType
        );
    }
    for closed in [-1, 500, i32::MAX] {
        assert_eq!(f.process.eventfd(closed).unwrap_err(), FdError::NotOpen);
    }
}

#[test]
fn an_eventfd_with_a_full_counter_delays_nobody() {
    let mut hostile = Fixture::new();
    let mut other = Fixture::in_space(&hostile.space);
    // Nothing fits; and one fits but not two, which blocks whoever adds two.
    let full = hostile.child.ask(&format!("eventfd {}", u64::MAX - 1));
    let nearly = hostile.child.ask(&format!("eventfd {}", u64::MAX - 2));
    let sinks = [full, nearly].map(|fd| hostile.process.eventfd(fd as i32).unwrap());
    let good = other.child.ask("eventfd 0");
    let good_sink = other.process.eventfd(good as i32).unwrap();
    for round in 0..100 {
        for sink in &sinks {
            sink.signal();
            sink.signal();
            sink.signal();
        }
        good_sink.signal();
        assert_eq!(other.child.ask(&format!("read {good}")), 1, "round {round}");
    }
    // The hostile client is served again once it reads.
    for fd in [full, nearly] {
        assert!(hostile.child.ask(&format!("read {fd}")) >= u64::MAX - 2);
    }
    let again = hostile.child.ask("eventfd 0");
    hostile.process.eventfd(again as i32).unwrap().signal();
    assert_eq!(hostile.child.ask(&format!("read {again}")), 1);
}

#[test]
fn a_full_counter_takes_no_more_and_is_not_waited_for() {
    let mut f = Fixture::new();
    let full = f.child.ask(&format!("eventfd {}", u64::MAX - 1));
    let good = f.child.ask("eventfd 0");
    f.process.eventfd(full as i32).unwrap().signal();
    f.process.eventfd(good as i32).unwrap().signal();
    assert_eq!(f.child.ask(&format!("read {good}")), 1);
    assert_eq!(f.child.ask(&format!("read {full}")), u64::MAX - 1);
}

#[test]
fn a_signal_after_the_client_has_stopped_goes_nowhere() {
    let mut f = Fixture::new();
    let fd = f.child.ask("eventfd 5 nonblock");
    let sink = f.process.eventfd(fd as i32).unwrap();
    f.client.stop();
    while !f.client.has_stopped() {
        std::thread::yield_now();
    }
    sink.signal();
    assert_eq!(f.child.ask(&format!("read {fd}")), 5);
    let Some(Value::Node(interrupts)) = f.client.inspect().field("interrupts").cloned() else {
        panic!("the client shows its interrupts")
    };
    assert_eq!(interrupts.field("ended"), Some(&Value::Flag(true)));
}
