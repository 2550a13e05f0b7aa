//! MSI-X vectors: where each one's signal goes.

use std::{fmt, sync::Arc};

use ioasid_core::{host::IrqSink, sync::Mutex};

/// Who listens to one vector.
type Listener = Option<Arc<dyn IrqSink>>;

/// The MSI-X vectors of one function. Shared with the engines that signal them.
///
/// A vector is signalled under its lock: once it is disconnected, no signal of the time before can
/// still arrive.
pub struct Vectors {
    sinks: Box<[Mutex<Listener>]>,
}

impl Vectors {
    /// `count` vectors that nobody listens to.
    pub fn new(count: u16) -> Arc<Self> {
        Arc::new(Vectors {
            sinks: (0..count).map(|_| Mutex::new(None)).collect(),
        })
    }

    /// Number of vectors.
    pub fn count(&self) -> u32 {
        self.sinks.len() as u32
    }

    /// Signals `vector`. Never blocks; does nothing if there is no such vector or nobody listens.
    pub fn signal(&self, vector: u32) {
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
}

impl fmt::Debug for Vectors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vectors")
            .field("count", &self.count())
            .field("connected", &self.connected())
            .finish()
    }
}
