//! What a reset waits for besides descriptors.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

use common::{CHAIN, Whole, eventually, reporting};
use ioasid_core::host::IrqSink;
use ioasid_ioat::spec::{ChannelStatus, Descriptor};
use ioasid_vfio::DeviceModel;

/// Takes its interrupt only when it is let.
#[derive(Debug, Default)]
struct SlowIrq {
    entered: AtomicBool,
    open: AtomicBool,
    delivered: AtomicBool,
}

impl IrqSink for SlowIrq {
    fn signal(&self) {
        self.entered.store(true, Ordering::SeqCst);
        eventually("leave to go on", || self.open.load(Ordering::SeqCst));
        self.delivered.store(true, Ordering::SeqCst);
    }
}

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
    eventually("the interrupt", || irq.entered.load(Ordering::SeqCst));
    assert!(whole.driver.status().is(ChannelStatus::Done));
    let (ioat, delivered) = (whole.ioat.clone(), irq.clone());
    let reset = thread::spawn(move || {
        ioat.reset();
        delivered.delivered.load(Ordering::SeqCst)
    });
    eventually("the reset", || {
        whole.driver.status().is(ChannelStatus::Halted)
    });
    // One that waits for nothing returns now.
    (0..1000).for_each(|_| thread::yield_now());
    irq.open.store(true, Ordering::SeqCst);
    assert!(reset.join().unwrap(), "the interrupt came after the reset");
}
