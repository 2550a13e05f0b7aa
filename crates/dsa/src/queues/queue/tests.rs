use super::*;
use crate::{exec::Terms, function::endpoint::test_endpoint};

fn queue(size: u16) -> Queue {
    let mut queue = Queue::new();
    queue.config.size = size;
    queue.session = Some(Session::new(
        test_endpoint(),
        0,
        None,
        None,
        Terms::for_tests(),
    ));
    queue
}

#[test]
fn a_full_queue_drops_and_a_taken_descriptor_makes_room() {
    let mut queue = queue(2);
    let descriptor = Descriptor::new(Opcode::Noop, 0);
    assert_eq!(queue.accept(descriptor, Store::Posted), Ok(()));
    assert_eq!(queue.accept(descriptor, Store::Posted), Ok(()));
    assert_eq!(queue.accept(descriptor, Store::Posted), Err(Refused::Full));
    let task = queue.take(0).unwrap();
    assert_eq!(queue.accept(descriptor, Store::Posted), Ok(()));
    assert_eq!((queue.stats.accepted, queue.stats.dropped), (3, 1));
    queue.end(task.sequence, false);
    assert_eq!(queue.depth(), (2, 0));
}

#[test]
fn a_drain_descriptor_waits_for_what_is_under_way() {
    let mut queue = queue(8);
    queue
        .accept(Descriptor::new(Opcode::Noop, 0), Store::Posted)
        .unwrap();
    queue
        .accept(Descriptor::new(Opcode::Drain, 0), Store::Posted)
        .unwrap();
    let first = queue.take(0).unwrap();
    assert!(!queue.has_work());
    queue.end(first.sequence, false);
    assert!(queue.has_work());
}

#[test]
fn a_mark_is_passed_when_everything_before_it_is_done() {
    let mut queue = queue(8);
    queue
        .accept(Descriptor::new(Opcode::Noop, 0), Store::Posted)
        .unwrap();
    let first = queue.take(0).unwrap();
    let point = queue.drain_point(0, None);
    queue
        .accept(Descriptor::new(Opcode::Noop, 0), Store::Posted)
        .unwrap();
    assert!(!queue.passed(&point));
    queue.end(first.sequence, false);
    assert!(queue.passed(&point), "later descriptors do not count");
}

#[test]
fn an_abort_drops_what_waits_and_spares_what_comes_later() {
    let mut queue = queue(8);
    for _ in 0..5 {
        queue
            .accept(Descriptor::new(Opcode::Noop, 0), Store::Posted)
            .unwrap();
    }
    let under_way = queue.take(0).unwrap();
    let parked = queue.take(0).unwrap();
    queue.park(parked).unwrap();
    queue.abort();
    assert_eq!(queue.depth(), (0, 1));
    assert!(under_way.session.aborted());
    assert!(queue.resume_later(under_way).is_err());
    queue
        .accept(Descriptor::new(Opcode::Noop, 0), Store::Posted)
        .unwrap();
    assert!(!queue.take(0).unwrap().session.aborted());
}
