//! What a reset waits for besides descriptors.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{sync::Arc, thread};

use common::*;
use ioasid_dsa::spec::{Cmd, Command, registers as reg};
use ioasid_testing::SlowIrq;
use ioasid_vfio::DeviceModel;

#[test]
fn a_reset_waits_for_the_interrupt_of_a_command_that_has_ended() {
    let whole = Whole::new(16);
    let irq = Arc::<SlowIrq>::default();
    let vectors = whole.dsa.function().vectors();
    vectors.connect(0, Some(irq.clone()));
    let drain = Cmd::new()
        .with_code(Command::DrainAll as u8)
        .with_request_interrupt(true);
    let driver = whole.driver.clone();
    let command = thread::spawn(move || driver.write32(reg::CMD, drain.into_bits()));
    irq.wait_until_raised();
    assert!(!whole.driver.command_status().active(), "it has ended");
    let (dsa, delivered) = (whole.dsa.clone(), irq.clone());
    let reset = thread::spawn(move || {
        dsa.reset();
        delivered.is_delivered()
    });
    // One that waits for nothing returns now.
    (0..1000).for_each(|_| thread::yield_now());
    irq.let_go();
    assert!(reset.join().unwrap(), "the interrupt came after the reset");
    command.join().unwrap();
}
