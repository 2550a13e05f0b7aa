//! The parent's own driver at work: one thread that copies through queue 0, checks every byte and
//! never stops while the demo runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, Result};
use ioasid_core::statistics::JobCounts;
use ioasid_dsa::HostQueue;
use ioasid_ioat::HostChannel;
use ioasid_iommu::{CoherentBuffer, DmaApi};
use ioasid_machine::{
    Machine,
    models::{dsa, ioat},
};

/// Bytes of each copy.
const COPY: usize = 64 << 10;

/// What a parent's own driver copies with.
pub(crate) trait Copier: Send + Sync + 'static {
    fn dma(&self) -> &DmaApi;
    fn copy(&self, target: u64, source: u64, size: u32) -> Result<()>;
    fn counts(&self) -> JobCounts;
}

impl Copier for HostQueue {
    fn dma(&self) -> &DmaApi {
        self.driver().dma()
    }

    fn copy(&self, target: u64, source: u64, size: u32) -> Result<()> {
        Ok(self.memory_move(target, source, size)?)
    }

    fn counts(&self) -> JobCounts {
        self.counts()
    }
}

impl Copier for HostChannel {
    fn dma(&self) -> &DmaApi {
        self.driver().dma()
    }

    fn copy(&self, target: u64, source: u64, size: u32) -> Result<()> {
        Ok(self.copy(target, source, size)?)
    }

    fn counts(&self) -> JobCounts {
        self.counts()
    }
}

/// The busy queue.
pub(crate) struct Parent<Q: ?Sized = HostQueue> {
    queue: Arc<Q>,
    stop: Arc<AtomicBool>,
    worker: Option<JoinHandle<Result<()>>>,
    before: JobCounts,
}

/// What it did.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    /// Jobs that ended.
    pub(crate) jobs: u64,
    /// Jobs that failed or copied wrong bytes.
    pub(crate) errors: u64,
    /// Jobs that a fault ended.
    pub(crate) faults: u64,
}

/// Starts work in the first queue, or channel, of every parent's own driver.
pub(crate) fn keep_busy(machine: &Machine) -> Result<Vec<Parent<dyn Copier>>> {
    let mut first: Vec<Arc<dyn Copier>> = Vec::new();
    for (_, host) in machine.host_drivers::<dsa::Host>() {
        first.extend(host.queues().first().map(|queue| queue.clone() as _));
    }
    for (_, host) in machine.host_drivers::<ioat::Host>() {
        first.extend(host.channels().first().map(|channel| channel.clone() as _));
    }
    first.into_iter().map(Parent::start).collect()
}

impl Parent {
    /// The queue, for jobs beside the thread's own.
    pub(crate) fn queue(&self) -> &Arc<HostQueue> {
        &self.queue
    }

    /// A buffer of the DMA API.
    pub(crate) fn buffer(&self, len: usize) -> Result<CoherentBuffer> {
        self.queue
            .driver()
            .dma()
            .alloc_coherent(len)
            .context("allocating a DMA buffer")
    }
}

impl<Q: Copier + ?Sized> Parent<Q> {
    /// Starts to work.
    pub(crate) fn start(queue: Arc<Q>) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let before = queue.counts();
        let worker = {
            let (queue, stop) = (queue.clone(), stop.clone());
            std::thread::Builder::new()
                .name("parent-driver".into())
                .spawn(move || work(&*queue, &stop))
                .context("starting the parent driver's thread")?
        };
        Ok(Parent {
            queue,
            stop,
            worker: Some(worker),
            before,
        })
    }

    /// What it did so far.
    pub(crate) fn work(&self) -> Work {
        let counts = self.queue.counts();
        Work {
            jobs: counts.jobs - self.before.jobs,
            errors: counts.errors - self.before.errors,
            faults: counts.faults - self.before.faults,
        }
    }

    /// Leaves jobs out of the account that were meant to fail.
    pub(crate) fn forgive(&mut self, errors: u64) {
        self.before.errors += errors;
        self.before.faults += errors;
    }

    /// Stops and gives the account. A wrong byte counts as an error.
    pub(crate) fn stop(mut self) -> Work {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.worker.take().map(JoinHandle::join);
        let mut work = self.work();
        if !matches!(ended, Some(Ok(Ok(())))) {
            work.errors += 1;
        }
        work
    }
}

fn work<Q: Copier + ?Sized>(queue: &Q, stop: &AtomicBool) -> Result<()> {
    let dma = queue.dma();
    let (source, target) = (dma.alloc_coherent(COPY)?, dma.alloc_coherent(COPY)?);
    let mut found = vec![0; COPY];
    for round in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let pattern = vec![round as u8 ^ 0x5a; COPY];
        source.memory().write(0, &pattern);
        queue.copy(target.iova(), source.iova(), COPY as u32)?;
        target.memory().read(0, &mut found);
        anyhow::ensure!(found == pattern, "round {round} copied wrong bytes");
        // It is to be watched, not to burn both CPUs.
        std::thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}

impl<Q: ?Sized> Drop for Parent<Q> {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}
