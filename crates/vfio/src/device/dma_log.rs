//! A log of the pages that a device writes, for a program that copies memory which is in use
//! (`VFIO_DEVICE_FEATURE_DMA_LOGGING_*`; `vfio_ioctl_device_feature_logging_start` and its two
//! neighbours in `drivers/vfio/vfio_main.c`. What they leave to a driver is as in
//! `drivers/vfio/pci/mlx5/cmd.c`).
//!
//! A write is in the log at the latest when it can be seen: a report waits for the DMA that is under
//! way. So the order of a program is: report, then copy the pages.

use std::sync::Arc;

use ioasid_core::{AddrRange, sync::Mutex};
use ioasid_iommu::{Device, Requests, WriteSink, WriteWatch};

use crate::{
    base::error::DmaLogError,
    dma::write_log::{LogRanges, WriteLog},
};

/// The log of one device, if there is one.
#[derive(Debug, Default)]
pub(crate) struct DmaLog(Mutex<Option<Arc<Current>>>);

/// A log that is under way.
#[derive(Debug)]
pub(crate) struct Current {
    log: Arc<WriteLog>,
    watch: WriteWatch,
}

impl DmaLog {
    /// Logs what `requests` of `device` write from now on; the bytes of a page of the log.
    ///
    /// # Errors
    /// [`DmaLogError::Started`], and as [`WriteLog::new`].
    pub(crate) fn start(
        &self,
        (device, requests): (Arc<Device>, Requests),
        ranges: LogRanges,
    ) -> Result<u64, DmaLogError> {
        let mut current = self.0.lock();
        if current.is_some() {
            return Err(DmaLogError::Started);
        }
        let log = Arc::new(WriteLog::new(ranges)?);
        let page_size = log.page_size();
        let sink = Arc::clone(&log) as Arc<dyn WriteSink>;
        let watch = device.watch_writes(requests, sink);
        *current = Some(Arc::new(Current { log, watch }));
        Ok(page_size)
    }

    /// Ends the log. Nothing to do if there is none.
    pub(crate) fn stop(&self) {
        let ended = self.0.lock().take();
        drop(ended);
    }

    /// The log that is under way, complete as far as `range` of it goes: it has waited for the DMA that
    /// was under way.
    ///
    /// # Errors
    /// [`DmaLogError::NotStarted`], [`DmaLogError::NotLogged`] if not all of `range` is watched.
    pub(crate) fn complete(&self, range: AddrRange) -> Result<Arc<Current>, DmaLogError> {
        let current = self.0.lock().clone();
        let current = current.ok_or(DmaLogError::NotStarted)?;
        if !current.log.watches(range) {
            return Err(DmaLogError::NotLogged { range });
        }
        current.watch.flush();
        Ok(current)
    }
}

impl Current {
    /// Takes what was written in `range` out of the log, as [`WriteLog::take`].
    ///
    /// # Errors
    /// [`DmaLogError::Overrun`].
    pub(crate) fn take(
        &self,
        range: AddrRange,
        found: &mut dyn FnMut(AddrRange),
    ) -> Result<(), DmaLogError> {
        self.log.take(range, found)
    }
}
