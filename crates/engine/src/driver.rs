//! The half of a host driver that knows no registers: one driver a device, with its DMA API, and
//! the jobs of one of its queues, from their submission to the statistics.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ioasid_core::{
    host::{CountingIrq, IrqSink},
    inspect::Node,
    statistics::{JobCounts, JobEnd, JobStatistics, Latency},
    sync::Mutex,
};
use ioasid_iommu::{CoherentBuffer, Device, DmaApi, DmaMapError, OwnershipError};

/// How long a driver waits for a job.
const JOB_TIMEOUT: Duration = Duration::from_secs(30);

/// The driver of a device: none, or one.
#[derive(Debug, Default)]
pub struct DriverSlot {
    taken: Arc<AtomicBool>,
}

/// Why the host's driver of a device cannot work.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The device has a driver of the host (EBUSY).
    #[error("the device has a driver")]
    Driven,
    /// A user owns the device's DMA (EBUSY, EPERM).
    #[error(transparent)]
    Ownership(#[from] OwnershipError),
    /// A buffer could not be mapped for the device (ENOMEM).
    #[error("cannot map a buffer for the device: {0}")]
    Buffer(DmaMapError),
    /// A job did not end in time (ETIMEDOUT).
    #[error("the device did not complete a job in time")]
    Timeout,
}

impl From<DmaMapError> for DriverError {
    fn from(error: DmaMapError) -> Self {
        DriverError::Buffer(error)
    }
}

impl DriverSlot {
    /// Binds a driver to `device`, and takes its DMA for the DMA API.
    ///
    /// # Errors
    /// [`DriverError::Driven`], [`DriverError::Ownership`].
    pub fn bind(&self, device: &Arc<Device>) -> Result<Bound, DriverError> {
        if self.taken.swap(true, Ordering::AcqRel) {
            return Err(DriverError::Driven);
        }
        let taken = Taken(Arc::clone(&self.taken));
        Ok(Bound {
            dma: device.use_dma_api()?,
            _taken: taken,
        })
    }
}

/// A driver is bound as long as this lives.
#[derive(Debug)]
pub struct Bound {
    // Dropped in this order: the next driver finds the DMA API free.
    dma: DmaApi,
    _taken: Taken,
}

impl Bound {
    /// The DMA API: buffers that jobs can name.
    pub const fn dma(&self) -> &DmaApi {
        &self.dma
    }

    /// Memory that the driver and the device share.
    ///
    /// # Errors
    /// [`DriverError::Buffer`].
    pub fn alloc(&self, len: usize) -> Result<CoherentBuffer, DriverError> {
        Ok(self.dma.alloc_coherent(len)?)
    }
}

#[derive(Debug)]
struct Taken(Arc<AtomicBool>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A job under way.
#[derive(Debug)]
#[must_use = "a job is waited for"]
pub struct PendingJob<K> {
    /// What the driver knows it by.
    pub key: K,
    submitted: Instant,
}

impl<K> PendingJob<K> {
    /// A job that is submitted now.
    pub fn now(key: K) -> Self {
        PendingJob {
            key,
            submitted: Instant::now(),
        }
    }
}

/// The jobs of one queue: their completion interrupt, and what came of them.
#[derive(Debug)]
pub struct Jobs {
    completions: Arc<CountingIrq>,
    statistics: Mutex<JobStatistics>,
}

impl Default for Jobs {
    fn default() -> Self {
        Jobs {
            completions: CountingIrq::new(),
            statistics: Mutex::default(),
        }
    }
}

impl Jobs {
    /// Where the completion interrupt goes.
    pub fn sink(&self) -> Arc<dyn IrqSink> {
        self.completions.clone()
    }

    /// Waits until `completed` finds what came of `job`: it is asked at first, and after each
    /// interrupt. With the time from the submission until then.
    ///
    /// # Errors
    /// [`DriverError::Timeout`], 30 seconds after the submission.
    pub fn wait<K, R>(
        &self,
        job: &PendingJob<K>,
        mut completed: impl FnMut(&K) -> Option<R>,
    ) -> Result<(R, Duration), DriverError> {
        let deadline = job.submitted + JOB_TIMEOUT;
        loop {
            // Counted before the look: an interrupt that comes after it is not missed.
            let seen = self.completions.count();
            if let Some(result) = completed(&job.key) {
                return Ok((result, job.submitted.elapsed()));
            }
            if !self.completions.wait_past(seen, deadline) {
                return Err(DriverError::Timeout);
            }
        }
    }

    /// Counts a job that has ended.
    pub fn count(&self, end: JobEnd, latency: Duration) {
        self.statistics.lock().add(end, latency);
    }

    /// Jobs so far.
    pub fn counts(&self) -> JobCounts {
        self.statistics.lock().counts
    }

    /// Times from the submission to the completed wait.
    pub fn latency(&self) -> Latency {
        self.statistics.lock().latency.clone()
    }

    /// Puts them into `node`.
    #[must_use]
    pub fn inspect_into(&self, node: Node) -> Node {
        self.statistics.lock().inspect_into(node)
    }
}
