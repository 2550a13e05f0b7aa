//! A log of the pages that a device writes, for a program that copies memory which is in use
//! (`VFIO_DEVICE_FEATURE_DMA_LOGGING_*`; `vfio_ioctl_device_feature_logging_start` and its two
//! neighbours in `drivers/vfio/vfio_main.c`. What they leave to a driver is as in
//! `drivers/vfio/pci/mlx5/cmd.c`).
//!
//! A write is in the log at the latest when it can be seen: a report waits for the DMA that is under
//! way. So the order of a program is: report, then copy the pages.

use std::sync::Arc;

use ioasid_core::{AddrRange, Pasid, sync::Mutex};
use ioasid_iommu::{Device, Requests, WriteSink, WriteWatch};

use super::{DeviceFile, VfioDevice};
use crate::{
    error::{Error, Result},
    model::Passthrough,
    write_log::{LogRanges, WriteLog},
};

/// The log of one device.
#[derive(Debug, Default)]
pub(super) struct Logging {
    current: Mutex<Option<Arc<Current>>>,
    /// Where a child's DMA comes from, as long as it is bound.
    child: Mutex<Option<(Arc<Device>, Pasid)>>,
}

#[derive(Debug)]
struct Current {
    log: Arc<WriteLog>,
    watch: WriteWatch,
}

impl Logging {
    /// A child is bound, and its DMA has this PASID of `device`.
    pub(super) fn set_child(&self, device: &Arc<Device>, pasid: Pasid) {
        *self.child.lock() = Some((Arc::clone(device), pasid));
    }

    /// It is bound no more.
    pub(super) fn take_child(&self) -> Option<(Arc<Device>, Pasid)> {
        self.child.lock().take()
    }
}

impl DeviceFile {
    /// Logs from now on which pages the device writes; returns the size of a page of the log, in
    /// bytes: what `ranges` asks for if that can be, else the nearest. When it returns, no write
    /// is missed any more. It goes on over a reset, and ends when the file is closed.
    ///
    /// # Errors
    /// [`Error::NotBound`], [`Error::NoFeature`] of an emulated device, [`Error::LogState`] if there
    /// is a log, [`Error::BadLogRange`] if `ranges` has none, or pages of no power of two.
    pub fn start_dma_log(&self, ranges: LogRanges) -> Result<u64> {
        // Nothing is attached meanwhile.
        let _state = self.state.lock();
        self.expect_bound()?;
        let logging = &self.device.logging;
        let child = logging.child.lock().clone();
        let (device, writes) = match (&self.device.passthrough, child) {
            (Passthrough::Whole(device), _) => (Arc::clone(device), Requests::All),
            (Passthrough::Child(_), Some((device, pasid))) => (device, Requests::Of(pasid)),
            _ => return Err(Error::NoFeature),
        };
        let mut current = logging.current.lock();
        if current.is_some() {
            return Err(Error::LogState);
        }
        let log = Arc::new(WriteLog::new(ranges)?);
        let page_size = log.page_size();
        let sink = Arc::clone(&log) as Arc<dyn WriteSink>;
        let watch = device.watch_writes(writes, sink);
        *current = Some(Arc::new(Current { log, watch }));
        Ok(page_size)
    }

    /// Ends the log. Nothing to do if there is none.
    ///
    /// # Errors
    /// [`Error::NotBound`].
    pub fn stop_dma_log(&self) -> Result<()> {
        self.expect_bound()?;
        self.device.end_log();
        Ok(())
    }

    /// Tells `found` what the device has written in `range`, in ascending order, rounded to pages of
    /// the log but within `range`, and takes it out of the log. Waits for the DMA that is under way.
    ///
    /// # Errors
    /// [`Error::NotBound`]; [`Error::LogState`] if there is no log; [`Error::BadLogRange`] if not all of
    /// `range` is watched; [`Error::LogSpoilt`].
    pub fn report_dma_log(&self, range: AddrRange, found: &mut dyn FnMut(AddrRange)) -> Result<()> {
        let state = self.state.lock();
        self.expect_bound()?;
        let current = self.device.logging.current.lock().clone();
        let current = current.ok_or(Error::LogState)?;
        if !current.log.watches(range) {
            return Err(Error::BadLogRange);
        }
        current.watch.settle();
        // What is done with it may take as long as it likes.
        drop(state);
        current.log.take(range, found)
    }
}

impl VfioDevice {
    pub(super) fn end_log(&self) {
        let ended = self.logging.current.lock().take();
        drop(ended);
    }
}
