//! Both tables of a nested domain driven at random, against a walker of both stages that knows them from
//! their specifications alone: the same result, fault, bytes, accessed and dirty bits and dirty pages for every
//! access, by whatever kind of port.
#![cfg(not(ioasid_shuttle))]
#![allow(clippy::unwrap_used)] // A failed unwrap is a failed test.

mod common;
#[path = "nested_model/model.rs"]
mod model;
#[path = "nested_model/walker.rs"]
mod walker;

use common::Random;
use model::{Kind, Run};
use proptest::prelude::*;

fn run(kind: Kind, seed: u64, steps: &[u64]) -> (u64, u64) {
    let mut run = Run::new(kind, seed);
    for step in steps {
        run.step(*step);
    }
    (run.moved, run.refused)
}

/// A fixed walk first: it shows that both outcomes occur.
fn explore(kind: Kind) {
    let mut random = Random(0x1234_5678 + kind as u64);
    let (mut moved, mut refused) = (0, 0);
    for _ in 0..64 {
        let steps: Vec<u64> = (0..48).map(|_| random.next()).collect();
        let (more_moved, more_refused) = run(kind, random.next(), &steps);
        moved += more_moved;
        refused += more_refused;
    }
    assert!(
        moved > 100 && refused > 100,
        "{moved} moved, {refused} refused"
    );
}

#[test]
fn a_plain_port_does_what_the_specifications_say() {
    explore(Kind::Plain);
}

#[test]
fn a_port_with_a_tlb_does_what_the_specifications_say() {
    explore(Kind::Caching);
}

#[test]
fn a_port_on_memory_that_blocks_does_what_the_specifications_say() {
    explore(Kind::Private);
}

proptest! {
    #[test]
    fn any_guest_is_served_as_the_specifications_say(
        seed: u64,
        steps in prop::collection::vec(any::<u64>(), 1..64),
    ) {
        for kind in [Kind::Plain, Kind::Caching, Kind::Private] {
            run(kind, seed, &steps);
        }
    }
}
