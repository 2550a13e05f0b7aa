//! Registering a sink for what a device writes.

use std::{fmt, sync::Arc};

use crate::{
    device::Device,
    events::writes::{Requests, WriteSink},
};

/// A sink gets reports of what a device writes until this is dropped.
pub struct WriteWatch {
    device: Arc<Device>,
    writes: Requests,
    sink: Arc<dyn WriteSink>,
}

impl Device {
    /// Reports writes of this device to `sink`: all that begin after this returns. Of two sinks for
    /// the same writes the first gets them. Waits as [`WriteWatch::flush`] does.
    pub fn watch_writes(
        self: &Arc<Self>,
        writes: Requests,
        sink: Arc<dyn WriteSink>,
    ) -> WriteWatch {
        self.write_sinks().add(writes, Arc::clone(&sink));
        let watch = WriteWatch {
            device: Arc::clone(self),
            writes,
            sink,
        };
        watch.flush();
        watch
    }
}

impl WriteWatch {
    /// Waits for the guards that are under way on the routes that are watched: when it returns, all
    /// that was written before the call has been reported. The caller sees to it that nothing is
    /// attached or detached there meanwhile.
    ///
    /// Never to be called under a guard, nor with a lock held that a reader needs to finish.
    pub fn flush(&self) {
        for (pasid, domain) in self.device.attachments() {
            if self.writes.include(pasid) {
                self.device.shared().grace.wait(domain.marker());
            }
        }
    }
}

impl Drop for WriteWatch {
    fn drop(&mut self) {
        self.device.write_sinks().remove(&self.sink);
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
