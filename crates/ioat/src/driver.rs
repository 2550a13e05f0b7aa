//! The parent's own driver, as a driver of real hardware is written: it knows the registers, the
//! descriptors and the DMA API, and nothing of what is behind them.
//!
//! Each channel has a ring of descriptors, linked in a circle. A job is one descriptor; it is done
//! when the completion word names it or one after it. A job that fails halts the channel: the
//! driver gives that job its error, clears it and starts a new chain at the next one.

use std::sync::{
    Arc,
    atomic::{Ordering, fence},
};

use ioasid_core::{
    inspect::{Inspect, Node},
    statistics::{JobCounts, JobEnd, Latency},
    sync::{Condvar, Mutex, MutexGuard},
};
use ioasid_engine::driver::{Bound, Jobs, PendingJob};
use ioasid_iommu::{CoherentBuffer, DmaApi};
use ioasid_vfio::{DeviceModel, pci::spec as pci};

pub use ioasid_engine::driver::DriverError;

use crate::{
    claim::ChannelClaim,
    config::{ChannelOwner, Error},
    device::IoatDevice,
    spec::{
        ChanCmd, ChanCtrl, ChanErr, ChanSts, ChannelStatus, DESCRIPTOR_SIZE, Descriptor, IntrCtrl,
        registers::{self as reg, CHANNEL_STRIDE},
    },
};

/// Descriptors in a ring; a power of two, at most 2^15.
const RING: u64 = 64;
/// Offset of the completion word in a channel's buffer, behind the ring.
const COMPLETION: u64 = RING * DESCRIPTOR_SIZE as u64;

/// An I/OAT device under its own driver, its DMA in the driver's own address space.
#[derive(Debug)]
pub struct HostDriver {
    device: Arc<IoatDevice>,
    bound: Bound,
}

/// A job under way, by its number.
pub type Job = PendingJob<u64>;

impl HostDriver {
    /// Takes the device: claims it for the DMA API and lets each channel use its own vector.
    ///
    /// # Errors
    /// [`Error::Driver`] if the device has a driver, or if a user has it.
    pub fn probe(device: &Arc<IoatDevice>) -> Result<Arc<Self>, Error> {
        let this = HostDriver {
            device: Arc::clone(device),
            bound: device.driver.bind(device.device())?,
        };
        let command = (pci::COMMAND_MEMORY | pci::COMMAND_MASTER).to_le_bytes();
        // The register exists, and the bits ask for no reset.
        let _ = device
            .function()
            .write_config(pci::COMMAND as u64, &command);
        let control = IntrCtrl::new()
            .with_master_int_en(true)
            .with_msix_vector_control(true);
        this.device.write(0, reg::INTRCTRL, &[control.into_bits()]);
        Ok(Arc::new(this))
    }

    /// The device.
    pub fn device(&self) -> &Arc<IoatDevice> {
        &self.device
    }

    /// The DMA API: buffers that jobs can name.
    pub fn dma(&self) -> &DmaApi {
        self.bound.dma()
    }

    /// Takes channel `index` for this driver and starts it.
    ///
    /// # Errors
    /// [`Error::NoChannel`], [`Error::ChannelBusy`], [`Error::Driver`].
    pub fn open_channel(self: &Arc<Self>, index: usize) -> Result<HostChannel, Error> {
        let claim = self.device.claim_channel(index, ChannelOwner::Kernel)?;
        let memory = self.bound.alloc(COMPLETION as usize + 64)?;
        let jobs = Jobs::default();
        let vectors = self.device.function().vectors();
        vectors.connect(index as u32, Some(jobs.sink()));
        let channel = HostChannel {
            _claim: claim,
            memory,
            index,
            ring: Mutex::new(Ring::default()),
            freed: Condvar::new(),
            jobs,
            driver: Arc::clone(self),
        };
        channel.write64(reg::CHANCMP, channel.memory.iova() + COMPLETION);
        channel.start(&mut channel.ring.lock());
        Ok(channel)
    }
}

impl Drop for HostDriver {
    fn drop(&mut self) {
        self.device.write(0, reg::INTRCTRL, &[0]);
    }
}

/// Jobs of a channel, by their numbers: the descriptor of job n is number n modulo [`RING`].
#[derive(Debug, Default)]
struct Ring {
    /// The next job to submit.
    head: u64,
    /// The first job that has not ended.
    tail: u64,
    /// The first job whose result has not been taken.
    taken: u64,
    /// Results that have not been taken: number and error, 0 for none.
    results: Vec<(u64, ChanErr)>,
    /// First job of the chain that the channel is on.
    base: u64,
}

/// One channel of the parent's own driver. Jobs may be submitted from several threads.
#[derive(Debug)]
pub struct HostChannel {
    // Fields are dropped in this order: nothing of the channel is in flight when its memory goes,
    // and the driver outlives both.
    _claim: ChannelClaim,
    memory: CoherentBuffer,
    index: usize,
    jobs: Jobs,
    ring: Mutex<Ring>,
    freed: Condvar,
    driver: Arc<HostDriver>,
}

impl HostChannel {
    /// The driver.
    pub fn driver(&self) -> &Arc<HostDriver> {
        &self.driver
    }

    /// The channel's index.
    pub fn index(&self) -> usize {
        self.index
    }

    fn read64(&self, register: u64) -> u64 {
        let mut bytes = [0; 8];
        let device = &self.driver.device;
        device.read(0, self.block() + register, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn write(&self, register: u64, bytes: &[u8]) {
        let device = &self.driver.device;
        device.write(0, self.block() + register, bytes);
    }

    fn write64(&self, register: u64, value: u64) {
        self.write(register, &value.to_le_bytes());
    }

    /// The channel's block of registers.
    const fn block(&self) -> u64 {
        (self.index as u64 + 1) * CHANNEL_STRIDE
    }

    /// Address of the descriptor of a job.
    fn address(&self, number: u64) -> u64 {
        self.memory.iova() + number % RING * DESCRIPTOR_SIZE as u64
    }

    /// Starts a chain at the first job that has not ended. The channel has none.
    fn start(&self, ring: &mut Ring) {
        ring.base = ring.tail;
        let completion = COMPLETION as usize;
        self.memory.memory().write(completion, &[0; 8]);
        self.write64(reg::CHAINADDR, self.address(ring.tail));
        self.arm();
        self.ring_doorbell(ring);
    }

    /// Lets the channel interrupt again, and report errors.
    fn arm(&self) {
        let control = ChanCtrl::new()
            .with_int_disable(true)
            .with_err_int_en(true)
            .with_err_completion_en(true)
            .with_any_err_abort_en(true);
        self.write(reg::CHANCTRL, &control.into_bits().to_le_bytes());
    }

    fn ring_doorbell(&self, ring: &Ring) {
        let count = (ring.head - ring.base) as u16;
        fence(Ordering::Release);
        self.write(reg::DMACOUNT, &count.to_le_bytes());
    }

    /// Appends a descriptor to the chain. Its completion flags and its successor are the driver's;
    /// waits while the ring is full.
    pub fn submit(&self, descriptor: Descriptor) -> Job {
        let mut ring = self.ring.lock();
        while ring.head - ring.taken >= RING - 1 {
            ring = self.freed.wait(ring);
        }
        let number = ring.head;
        let descriptor = descriptor
            .with_next(self.address(number + 1))
            .with_control(|control| {
                control.set_int_en(true);
                control.set_compl_write(true);
            });
        let place = (number % RING) as usize * DESCRIPTOR_SIZE;
        self.memory.memory().write(place, &descriptor.to_bytes());
        ring.head += 1;
        let job = Job::now(number);
        self.ring_doorbell(&ring);
        job
    }

    /// Takes the completion word in: what has ended, and what has failed.
    fn progress(&self, ring: &mut Ring) {
        let mut bytes = [0; 8];
        self.memory.memory().read(COMPLETION as usize, &mut bytes);
        fence(Ordering::Acquire);
        let status = ChanSts::from_bits(u64::from_le_bytes(bytes));
        let place = status.completed_address().checked_sub(self.memory.iova());
        if let Some(place) = place {
            let slot = place / DESCRIPTOR_SIZE as u64;
            // The last job up to `head` with this descriptor, if it is one that has not ended.
            let pending = ring.tail..ring.head;
            if let Some(last) = pending.rev().find(|number| number % RING == slot) {
                for number in ring.tail..=last {
                    ring.results.push((number, ChanErr::new()));
                }
                ring.tail = last + 1;
            }
        }
        if status.is(ChannelStatus::Halted) {
            let error = ChanErr::from_bits(self.read64(reg::CHANERR) as u32);
            self.write(reg::CHANERR, &error.into_bits().to_le_bytes());
            if ring.tail < ring.head {
                ring.results.push((ring.tail, error));
                ring.tail += 1;
            }
            self.start(ring);
        }
    }

    /// The error of a job that has ended.
    fn take(&self, ring: &mut MutexGuard<'_, Ring>, number: u64) -> Option<ChanErr> {
        self.progress(ring);
        let at = ring.results.iter().position(|result| result.0 == number)?;
        let (_, error) = ring.results.swap_remove(at);
        let first = ring.results.iter().map(|result| result.0).min();
        ring.taken = first.unwrap_or(ring.tail).min(ring.tail);
        self.freed.notify_all();
        Some(error)
    }

    /// Waits for the completion interrupt of a job.
    ///
    /// # Errors
    /// [`Error::Job`] if it did not succeed, [`DriverError::Timeout`].
    pub fn wait(&self, job: Job) -> Result<(), Error> {
        let (error, latency) = self.jobs.wait(&job, |number| {
            // Rearmed before the look: what comes after it interrupts.
            self.arm();
            self.take(&mut self.ring.lock(), *number)
        })?;
        let end = match error {
            error if error.into_bits() == 0 => JobEnd::Done,
            error if error.read_data() || error.write_data() => JobEnd::Fault,
            _ => JobEnd::Failed,
        };
        self.jobs.count(end, latency);
        match end {
            JobEnd::Done => Ok(()),
            _ => Err(Error::Job(error)),
        }
    }

    /// Submits one job and waits for it.
    ///
    /// # Errors
    /// As for [`HostChannel::wait`].
    pub fn run(&self, descriptor: Descriptor) -> Result<(), Error> {
        self.wait(self.submit(descriptor))
    }

    /// Copies `size` bytes between two addresses of the DMA API.
    ///
    /// # Errors
    /// As for [`HostChannel::wait`].
    pub fn copy(&self, destination: u64, source: u64, size: u32) -> Result<(), Error> {
        self.run(Descriptor::copy(destination, source, size))
    }

    /// Fills `size` bytes with a pattern.
    ///
    /// # Errors
    /// As for [`HostChannel::wait`].
    pub fn fill(&self, destination: u64, pattern: u64, size: u32) -> Result<(), Error> {
        self.run(Descriptor::fill(destination, pattern, size))
    }

    /// Jobs so far.
    pub fn counts(&self) -> JobCounts {
        self.jobs.counts()
    }

    /// Times from the doorbell to the completed wait.
    pub fn latency(&self) -> Latency {
        self.jobs.latency()
    }
}

impl Drop for HostChannel {
    fn drop(&mut self) {
        let reset = ChanCmd::new().with_reset(true);
        self.write(reg::CHANCMD, &[reset.into_bits()]);
        let vectors = self.driver.device.function().vectors();
        vectors.connect(self.index as u32, None);
    }
}

impl Inspect for HostChannel {
    fn inspect(&self) -> Node {
        let node = Node::new().with("channel", self.index);
        self.jobs.inspect_into(node)
    }
}
