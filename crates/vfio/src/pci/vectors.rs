//! Message signalled interrupts: where each vector's signal goes.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use ioasid_core::{host::IrqSink, sync::Mutex};

/// Who listens to one vector.
type Listener = Option<Arc<dyn IrqSink>>;

/// The vectors of one function, of MSI-X or MSI. Shared with the engines that signal them.
///
/// A vector is signalled under its lock: once it is disconnected, no signal of the time before can
/// still arrive.
pub struct Vectors {
    sinks: Box<[Mutex<Listener>]>,
    /// Vectors that MSI was given, a power of two; 0 while it is not MSI that is enabled.
    msi: AtomicU32,
    /// Per-vector masking of MSI.
    mask: Mutex<Mask>,
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
            sinks: (0..count).map(|_| Mutex::new(None)).collect(),
            msi: AtomicU32::new(0),
            mask: Mutex::default(),
        })
    }

    /// Number of vectors.
    pub fn count(&self) -> u32 {
        self.sinks.len() as u32
    }

    /// Signals `vector`. Never blocks; does nothing if there is no such vector or nobody listens.
    ///
    /// With MSI, a device that was given fewer vectors than it has uses the low bits of the number.
    pub fn signal(&self, vector: u32) {
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

    /// Signals the listener of `vector`, whatever is masked.
    pub(crate) fn deliver(&self, vector: u32) {
        if let Some(sink) = self.sinks.get(vector as usize)
            && let Some(sink) = &*sink.lock()
        {
            sink.signal();
        }
    }

    /// Sends the signals of `vector` to `sink`, or nowhere. A vector that does not exist is left
    /// alone.
    pub fn connect(&self, vector: u32, sink: Option<Arc<dyn IrqSink>>) {
        if let Some(slot) = self.sinks.get(vector as usize) {
            *slot.lock() = sink;
        }
    }

    /// Sends every vector's signals nowhere.
    pub fn disconnect_all(&self) {
        for sink in &self.sinks {
            *sink.lock() = None;
        }
    }

    /// Vectors that somebody listens to.
    pub fn connected(&self) -> usize {
        self.sinks
            .iter()
            .filter(|sink| sink.lock().is_some())
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
