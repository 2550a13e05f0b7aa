//! Interrupts that a test looks at.

use std::sync::atomic::{AtomicBool, Ordering};

use ioasid_core::host::IrqSink;

use crate::eventually;

/// Takes its interrupt only when it is let.
#[derive(Debug, Default)]
pub struct SlowIrq {
    entered: AtomicBool,
    open: AtomicBool,
    delivered: AtomicBool,
}

impl SlowIrq {
    /// Waits until somebody raises it.
    pub fn wait_until_raised(&self) {
        eventually("the interrupt", || self.entered.load(Ordering::SeqCst));
    }

    /// Lets it be delivered.
    pub fn let_go(&self) {
        self.open.store(true, Ordering::SeqCst);
    }

    /// Whether it was delivered.
    pub fn is_delivered(&self) -> bool {
        self.delivered.load(Ordering::SeqCst)
    }
}

impl IrqSink for SlowIrq {
    fn signal(&self) {
        self.entered.store(true, Ordering::SeqCst);
        eventually("leave to go on", || self.open.load(Ordering::SeqCst));
        self.delivered.store(true, Ordering::SeqCst);
    }
}
