//! Reporting what a device writes: the base of a log of dirty pages for each device.
//!
//! A guard looks up the sink when it begins, after its marker is published, and reports after the
//! bytes are written and before it ends. So whoever registers a sink waits once for the guards that
//! began before ([`crate::WriteWatch::flush`]), and whoever reads a log waits for those that are under
//! way: a write that anybody could have seen before is in it then. Without a sink all that costs one
//! relaxed load for each guard.

use std::{fmt, sync::Arc};

use ioasid_core::{
    AddrRange, Pasid,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

/// Takes reports of what a device writes.
pub trait WriteSink: Send + Sync + fmt::Debug {
    /// The device has written these bytes. Called under a guard: it must not block.
    fn wrote(&self, range: AddrRange);
}

/// Which requests of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Requests {
    /// All of them, whatever PASID they have.
    All,
    /// Those with this PASID.
    Of(Pasid),
}

impl Requests {
    /// Whether requests with `pasid`, or without one, are among them.
    pub fn include(self, pasid: Option<Pasid>) -> bool {
        match self {
            Requests::All => true,
            Requests::Of(own) => pasid == Some(own),
        }
    }
}

/// The sinks of one device.
#[derive(Debug, Default)]
pub(crate) struct WriteSinks {
    /// Whether there is one. Changes with `list`.
    any: AtomicBool,
    list: Mutex<Vec<(Requests, Arc<dyn WriteSink>)>>,
}

impl WriteSinks {
    /// Where writes with `pasid` are reported, for a guard whose marker is published.
    #[inline]
    pub(crate) fn of(&self, pasid: Option<Pasid>) -> Option<Arc<dyn WriteSink>> {
        // The fence of the marker stands before this load, that of the barrier behind the store.
        if self.any.load(Ordering::Relaxed) {
            self.find(pasid)
        } else {
            None
        }
    }

    #[cold]
    fn find(&self, pasid: Option<Pasid>) -> Option<Arc<dyn WriteSink>> {
        let list = self.list.lock();
        let found = list.iter().find(|(writes, _)| writes.include(pasid));
        found.map(|(_, sink)| Arc::clone(sink))
    }

    /// Adds a sink for guards that begin from now on.
    pub(crate) fn add(&self, writes: Requests, sink: Arc<dyn WriteSink>) {
        let mut list = self.list.lock();
        list.push((writes, sink));
        self.any.store(true, Ordering::Relaxed);
    }

    /// Takes a sink out; guards that are under way may still report to it.
    pub(crate) fn remove(&self, sink: &Arc<dyn WriteSink>) {
        let mut list = self.list.lock();
        if let Some(at) = list.iter().position(|(_, own)| Arc::ptr_eq(own, sink)) {
            list.remove(at);
        }
        self.any.store(!list.is_empty(), Ordering::Relaxed);
    }
}
