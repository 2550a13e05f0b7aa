//! Message signalled interrupts: where each vector's signal goes.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use ioasid_core::{
    host::IrqSink,
    inject::{Failure, Injections, Point},
    sync::Mutex,
};

/// One vector.
#[derive(Default)]
struct Slot {
    listener: Option<Arc<dyn IrqSink>>,
    /// A message is to be sent as soon as one may be.
    waits: bool,
}

/// The vectors of one function, of MSI-X or MSI. Shared with the engines that signal them.
///
/// A vector is signalled under its lock: once it is disconnected, no signal of the time before can
/// still arrive.
///
/// Messages are memory writes: while the function must not issue any, a vector that is signalled waits,
/// and fires once when it may again.
pub struct Vectors {
    slots: Box<[Mutex<Slot>]>,
    /// Whether messages may be sent.
    open: AtomicBool,
    /// Vectors that MSI was given, a power of two; 0 while it is not MSI that is enabled.
    msi: AtomicU32,
    /// Per-vector masking of MSI.
    mask: Mutex<Mask>,
    injections: Arc<Injections>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Mask {
    masked: u32,
    pending: u32,
}

impl Vectors {
    /// `count` vectors that nobody listens to.
    pub fn new(count: u16) -> Arc<Self> {
        Arc::new(Vectors {
            slots: (0..count).map(|_| Mutex::default()).collect(),
            open: AtomicBool::new(true),
            msi: AtomicU32::new(0),
            mask: Mutex::default(),
            injections: Arc::default(),
        })
    }

    /// Failures of interrupts that a test asks for.
    pub fn injections(&self) -> &Arc<Injections> {
        &self.injections
    }

    /// Number of vectors.
    pub fn count(&self) -> u32 {
        self.slots.len() as u32
    }

    /// Signals `vector`. Never blocks; does nothing if there is no such vector or nobody listens.
    ///
    /// With MSI, a device that was given fewer vectors than it has uses the low bits of the number.
    pub fn signal(&self, vector: u32) {
        if self.injections.at(Point::Interrupt) == Some(Failure::Lose) {
            return;
        }
        match self.msi.load(Ordering::Acquire) {
            0 => self.deliver(vector),
            given => {
                let vector = vector & (given - 1);
                let mut mask = self.mask.lock();
                if mask.masked >> vector & 1 == 0 {
                    self.deliver(vector);
                } else {
                    mask.pending |= 1 << vector;
                }
            }
        }
    }

    /// Sends the message of `vector`, which is not masked, as soon as one may be sent.
    fn deliver(&self, vector: u32) {
        if let Some(slot) = self.slots.get(vector as usize) {
            let mut slot = slot.lock();
            let open = self.open.load(Ordering::Acquire);
            match &slot.listener {
                Some(listener) if open => listener.signal(),
                listener => slot.waits = listener.is_some(),
            }
        }
    }

    /// Signals the listener of `vector` without the device, whatever is masked or withheld.
    pub(crate) fn trigger(&self, vector: u32) {
        if let Some(slot) = self.slots.get(vector as usize)
            && let Some(listener) = &slot.lock().listener
        {
            listener.signal();
        }
    }

    /// Messages may be sent from now on: those that waited have been when this returns.
    pub(super) fn open(&self) {
        self.open.store(true, Ordering::Release);
        for slot in &self.slots {
            let mut slot = slot.lock();
            if std::mem::take(&mut slot.waits)
                && let Some(listener) = &slot.listener
            {
                listener.signal();
            }
        }
    }

    /// No message may be sent from now on: those that were sent have arrived when this returns, as far
    /// as their receivers let them within `patience`.
    pub(super) fn close(&self, patience: Duration) {
        self.open.store(false, Ordering::Release);
        let deadline = Instant::now() + patience;
        for slot in &self.slots {
            // Not under the lock: engines signal.
            let listener = slot.lock().listener.clone();
            if let Some(listener) = listener {
                listener.flush(deadline.saturating_duration_since(Instant::now()));
            }
        }
    }

    /// Forgets what waits, as a reset does.
    pub(super) fn forget(&self) {
        for slot in &self.slots {
            slot.lock().waits = false;
        }
    }

    /// Sends the signals of `vector` to `sink`, or nowhere. A vector that does not exist is left
    /// alone.
    pub fn connect(&self, vector: u32, sink: Option<Arc<dyn IrqSink>>) {
        if let Some(slot) = self.slots.get(vector as usize) {
            let mut slot = slot.lock();
            slot.waits &= sink.is_some();
            slot.listener = sink;
        }
    }

    /// Sends every vector's signals nowhere.
    pub fn disconnect_all(&self) {
        for slot in &self.slots {
            *slot.lock() = Slot::default();
        }
    }

    /// Vectors that somebody listens to.
    pub fn connected(&self) -> usize {
        self.slots
            .iter()
            .filter(|slot| slot.lock().listener.is_some())
            .count()
    }

    /// MSI has `given` vectors from now on, at most 32; 0 if it is off.
    pub(crate) fn set_msi(&self, given: u32) {
        let given = match given {
            0 => 0,
            given => given.min(32).next_power_of_two(),
        };
        self.msi.store(given, Ordering::Release);
    }

    /// The mask register of MSI was written: what was pending and is not masked any more fires.
    pub(crate) fn set_msi_mask(&self, masked: u32) {
        let mut mask = self.mask.lock();
        let fires = mask.pending & !masked;
        *mask = Mask {
            masked,
            pending: mask.pending & masked,
        };
        for vector in (0..32).filter(|vector| fires >> vector & 1 == 1) {
            self.deliver(vector);
        }
    }

    /// The pending register of MSI.
    pub(crate) fn msi_pending(&self) -> u32 {
        self.mask.lock().pending
    }
}

impl fmt::Debug for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vectors")
            .field("count", &self.count())
            .field("connected", &self.connected())
            .finish()
    }
}
