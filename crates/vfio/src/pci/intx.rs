//! The wired interrupt of a function, with the masking that VFIO adds
//! (`vfio_intx_handler`, `drivers/vfio/pci/vfio_pci_intrs.c`).

use std::{fmt, sync::Arc};

use ioasid_core::{
    host::IrqSink,
    inject::{Failure, Injections, Point},
    sync::Mutex,
};

/// INTx of one function: a level that the device asserts, and the eventfd that it signals.
///
/// Firing masks it, until the program unmasks it; if the device still asserts it then, it fires again.
/// While `PCI_COMMAND.INTX_DISABLE` is set it stays masked and says nothing.
#[derive(Default)]
pub struct Intx {
    line: Mutex<Line>,
    /// Failures of interrupts that a test asks for.
    injections: Arc<Injections>,
}

#[derive(Default)]
struct Line {
    /// The device asserts it.
    asserted: bool,
    /// `PCI_COMMAND.INTX_DISABLE`.
    disabled: bool,
    /// A program has enabled it, with or without an eventfd.
    enabled: bool,
    masked: bool,
    sink: Option<Arc<dyn IrqSink>>,
}

impl Line {
    fn fire(&mut self) {
        if self.enabled && self.asserted && !self.masked {
            self.masked = true;
            self.send();
        }
    }

    fn send(&self) {
        if let Some(sink) = &self.sink
            && self.enabled
            && !self.disabled
        {
            sink.signal();
        }
    }
}

impl Intx {
    /// A line that is not asserted, of a function with these `injections`.
    pub(crate) fn new(injections: Arc<Injections>) -> Arc<Self> {
        Arc::new(Intx {
            line: Mutex::default(),
            injections,
        })
    }

    /// Asserts or deasserts the line, as the device does. Never blocks.
    pub fn set(&self, asserted: bool) {
        let mut line = self.line.lock();
        let rises = asserted && !line.asserted;
        line.asserted = asserted;
        // One that nobody waits for is not counted.
        if rises && line.enabled && self.injections.at(Point::Interrupt) == Some(Failure::Lose) {
            return;
        }
        line.fire();
    }

    /// Whether the device asserts it: the bit in the status register.
    pub fn asserted(&self) -> bool {
        self.line.lock().asserted
    }

    /// Sends its signals to `sink`, or nowhere, and turns it on if it is off.
    pub(crate) fn enable(&self, sink: Option<Arc<dyn IrqSink>>) {
        let mut line = self.line.lock();
        line.sink = sink;
        if !line.enabled {
            line.enabled = true;
            line.masked = line.disabled;
        }
        line.fire();
    }

    /// Turns it off.
    pub(crate) fn disable(&self) {
        let mut line = self.line.lock();
        line.enabled = false;
        line.sink = None;
    }

    pub(crate) fn mask(&self) {
        self.line.lock().masked = true;
    }

    /// Unmasks it; fires if the device asserts it.
    pub(crate) fn unmask(&self) {
        let mut line = self.line.lock();
        if !line.disabled {
            line.masked = false;
            line.fire();
        }
    }

    /// Signals without the device.
    pub(crate) fn trigger(&self) {
        self.line.lock().send();
    }

    /// Follows `PCI_COMMAND.INTX_DISABLE`: set, it masks; cleared, it unmasks.
    pub(crate) fn set_disabled(&self, disabled: bool) {
        let mut line = self.line.lock();
        if line.disabled != disabled {
            line.disabled = disabled;
            line.masked = disabled;
            line.fire();
        }
    }
}

impl fmt::Debug for Intx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = self.line.lock();
        f.debug_struct("Intx")
            .field("asserted", &line.asserted)
            .field("enabled", &line.enabled)
            .field("masked", &line.masked)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use ioasid_core::host::CountingIrq;

    use super::*;

    #[test]
    fn firing_masks_and_unmasking_fires_again_while_the_device_asserts() {
        let (intx, counter) = (Intx::default(), CountingIrq::new());
        intx.set(true);
        intx.enable(Some(counter.clone()));
        assert_eq!(counter.count(), 1, "asserted before it was enabled");
        intx.set(true);
        assert_eq!(counter.count(), 1, "masked");
        intx.unmask();
        assert_eq!(counter.count(), 2, "still asserted");
        intx.set(false);
        intx.unmask();
        assert_eq!(counter.count(), 2);
        intx.mask();
        intx.set(true);
        assert_eq!(counter.count(), 2);
        intx.disable();
        intx.unmask();
        intx.trigger();
        assert_eq!(counter.count(), 2);
    }

    #[test]
    fn the_command_register_masks_and_silences() {
        let (intx, counter) = (Intx::default(), CountingIrq::new());
        intx.set_disabled(true);
        intx.enable(Some(counter.clone()));
        intx.set(true);
        intx.unmask();
        intx.trigger();
        assert_eq!(counter.count(), 0);
        intx.set_disabled(false);
        assert_eq!(counter.count(), 1);
    }
}
