//! What a test asks for that concerns a device as a whole.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ioasid_core::host::StdSpawner;
use ioasid_edu::{Edu, spec::offset};
use ioasid_machine::{Machine, MachineFile};
use ioasid_vfio::DeviceModel as _;

/// A machine of one educational device, of which the first interrupt does `action`.
fn machine(action: &str) -> (Arc<Machine>, Arc<Edu>) {
    let text = format!(
        "[[device]]\nmodel = \"edu\"\n[[inject]]\ndevice = \"0000:6a:01.0\"\nat = \"interrupt\"\n\
         action = \"{action}\"\n"
    );
    let file: MachineFile = text.parse().unwrap();
    let machine = Machine::build("injected", &file, &StdSpawner).unwrap();
    let edu = machine.device("0000:6a:01.0".parse().unwrap()).unwrap();
    (machine, edu)
}

/// Waits until `holds`; the deadline is for what never happens.
fn until(holds: impl Fn() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < Duration::from_secs(600),
            "nothing happens"
        );
        std::thread::yield_now();
    }
}

fn liveness(edu: &Edu) -> u32 {
    let mut bytes = [0; 4];
    edu.read(0, offset::LIVENESS, &mut bytes);
    u32::from_le_bytes(bytes)
}

#[test]
fn a_device_is_reset_at_its_first_interrupt() {
    let (_machine, edu) = machine("reset");
    edu.write(0, offset::LIVENESS, &5_u32.to_le_bytes());
    assert_eq!(liveness(&edu), !5);
    edu.function().vectors().signal(0);
    until(|| liveness(&edu) == 0);
}

#[test]
fn a_device_is_taken_away_at_its_first_interrupt() {
    let (machine, edu) = machine("remove");
    let before = machine.generation();
    assert_eq!(machine.nodes(None).len(), 1);
    edu.function().vectors().signal(0);
    until(|| machine.generation() != before);
    assert!(machine.nodes(None).is_empty() && machine.exports().is_empty());
    let shown = machine.sysfs(None);
    assert!(
        !shown
            .iter()
            .any(|entry| entry.path.contains("0000:6a:01.0"))
    );
}

#[test]
fn a_machine_that_goes_takes_what_was_asked_for_along() {
    let (machine, edu) = machine("reset");
    let gone = Arc::downgrade(&machine);
    drop(machine);
    until(|| gone.upgrade().is_none());
    // Nobody is there to be told.
    edu.function().vectors().signal(0);
}
