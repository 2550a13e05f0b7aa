//! What a reset waits for besides descriptors.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{sync::Arc, thread};

use common::*;
use ioasid_ioat::spec::{ChannelStatus, Descriptor};
use ioasid_testing::SlowIrq;
use ioasid_vfio::DeviceModel;

#[test]
fn a_reset_waits_for_an_interrupt_that_an_engine_is_about_to_raise() {
    let whole = Whole::new();
    let irq = Arc::<SlowIrq>::default();
    let vectors = whole.ioat.function().vectors();
    vectors.connect(0, Some(irq.clone()));
    whole
        .area
        .write_chain(CHAIN, &[reporting(Descriptor::null()); 1]);
    whole.driver.start(CHAIN, 1);
    // The descriptor has ended, and the engine is on its way to say so.
    irq.wait_until_raised();
    assert!(whole.driver.status().is(ChannelStatus::Done));
    let (ioat, delivered) = (whole.ioat.clone(), irq.clone());
    let reset = thread::spawn(move || {
        ioat.reset();
        delivered.is_delivered()
    });
    eventually("the reset", || {
        whole.driver.status().is(ChannelStatus::Halted)
    });
    // One that waits for nothing returns now.
    (0..1000).for_each(|_| thread::yield_now());
    irq.let_go();
    assert!(reset.join().unwrap(), "the interrupt came after the reset");
}
