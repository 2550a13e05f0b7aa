//! Telling somebody what a device writes: the base of a log of dirty pages for each device.
//!
//! A guard finds out who is to be told when it begins, after its marker is published, and tells after
//! the bytes are written and before it ends. So whoever comes waits once for the guards that began
//! before ([`WriteWatch::settle`]), and whoever reads a log waits for those that are under way: a
//! write that anybody could have seen before is in it then. While nobody watches, all that costs one
//! relaxed load for each guard.

use std::{fmt, sync::Arc};

use ioasid_core::{
    AddrRange, Pasid,
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::device::Device;

/// Is told what a device writes.
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
    pub(crate) fn include(self, pasid: Option<Pasid>) -> bool {
        match self {
            Requests::All => true,
            Requests::Of(own) => pasid == Some(own),
        }
    }
}

/// Who watches a device.
#[derive(Debug, Default)]
pub(crate) struct Watchers {
    /// Whether there is anybody. Changes with `list`.
    any: AtomicBool,
    list: Mutex<Vec<(Requests, Arc<dyn WriteSink>)>>,
}

impl Watchers {
    /// Who is told of writes with `pasid`, for a guard whose marker is published.
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
}

/// Somebody is told what a device writes, until this is dropped.
pub struct WriteWatch {
    device: Arc<Device>,
    writes: Requests,
    sink: Arc<dyn WriteSink>,
}

impl Device {
    /// Has `sink` told of writes of this device; from when this returns on, of all of them. Of two
    /// that ask for the same writes the first is told. Waits as [`WriteWatch::settle`] does.
    pub fn watch_writes(
        self: &Arc<Self>,
        writes: Requests,
        sink: Arc<dyn WriteSink>,
    ) -> WriteWatch {
        let watchers = self.watchers();
        let mut list = watchers.list.lock();
        list.push((writes, Arc::clone(&sink)));
        watchers.any.store(true, Ordering::Relaxed);
        drop(list);
        let watch = WriteWatch {
            device: Arc::clone(self),
            writes,
            sink,
        };
        watch.settle();
        watch
    }
}

impl WriteWatch {
    /// Waits for the guards that are under way on the routes that are watched: when it returns, the
    /// sink has been told of everything that was written before the call. The caller sees to it that
    /// nothing is attached or detached there meanwhile.
    ///
    /// Never to be called under a guard, nor with a lock held that a reader needs to finish.
    pub fn settle(&self) {
        for (pasid, domain) in self.device.attachments() {
            if self.writes.include(pasid) {
                self.device.shared().grace.wait(domain.id());
            }
        }
    }
}

impl Drop for WriteWatch {
    fn drop(&mut self) {
        let watchers = self.device.watchers();
        let mut list = watchers.list.lock();
        let own = |(_, sink): &(Requests, Arc<dyn WriteSink>)| Arc::ptr_eq(sink, &self.sink);
        if let Some(at) = list.iter().position(own) {
            list.remove(at);
        }
        watchers.any.store(!list.is_empty(), Ordering::Relaxed);
    }
}

impl fmt::Debug for WriteWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WriteWatch")
            .field("device", &self.device.address())
            .field("writes", &self.writes)
            .finish_non_exhaustive()
    }
}
