//! The parent's own driver, as a driver of real hardware is written: it knows the registers, the
//! portal and the DMA API, and nothing of what is behind them.

use std::{
    sync::{
        Arc,
        atomic::{Ordering, fence},
    },
    time::{Duration, Instant},
};

use ioasid_core::{
    inspect::{Inspect, Node},
    statistics::{JobCounts, JobEnd, Latency},
    sync::{Condvar, Mutex},
};
use ioasid_engine::driver::{Bound, Jobs, PendingJob};
use ioasid_iommu::{CoherentBuffer, DmaApi};
use ioasid_vfio::{DeviceModel, pci::spec as pci};

pub use ioasid_engine::driver::DriverError;

use crate::{
    config::{Error, QueueType},
    devices::claim::QueueClaim,
    devices::device::DsaDevice,
    spec::{
        Cmd, CmdStatus, Command, CommandError, CompletionRecord, Descriptor, Opcode, Status,
        command::queue_operand,
        completion::{FAULT_ON_WRITE, RECORD_SIZE},
        registers::{self as reg, GenCap, PORTAL_STRIDE},
        tables::{GRPCFG_SIZE, WQCFG_SIZE, WqLimits, WqUse},
    },
};

/// How long the driver waits for a command.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// A DSA device under its own driver: configured, enabled, its DMA in the driver's own address
/// space.
#[derive(Debug)]
pub struct HostDriver {
    device: Arc<DsaDevice>,
    bound: Bound,
}

/// A job under way, by the slot of its completion record.
pub type Job = PendingJob<usize>;

/// The bits of those whose group is `group`.
fn members(groups: impl Iterator<Item = usize>, group: usize) -> u64 {
    let own = (0..).zip(groups).filter(|(_, of)| *of == group);
    own.fold(0, |bits, (index, _): (u32, usize)| bits | 1 << index)
}

impl HostDriver {
    /// Takes the device: claims it for the DMA API, puts its queues and engines into their groups,
    /// gives each queue its entries and enables the device.
    ///
    /// # Errors
    /// [`Error::Driver`] if the device has a driver, or if a user has it;
    /// [`Error::Command`] if it refuses.
    pub fn probe(device: &Arc<DsaDevice>) -> Result<Arc<Self>, Error> {
        let this = HostDriver {
            device: Arc::clone(device),
            bound: device.driver.bind(device.device())?,
        };
        let command = (pci::COMMAND_MEMORY | pci::COMMAND_MASTER).to_le_bytes();
        // The register exists, and the bits ask for no reset.
        let _ = device
            .function()
            .write_config(pci::COMMAND as u64, &command);
        this.command(Command::ResetDevice, 0)?;
        for group in 0..device.engines() {
            let entry = reg::GRPCFG + group as u64 * GRPCFG_SIZE;
            let queues = device.queues().iter().map(|queue| queue.group);
            let engines = (0..device.engines()).map(|engine| device.engine_group(engine));
            this.write64(entry, members(queues, group));
            this.write64(entry + GRPCFG_SIZE / 2, members(engines, group));
        }
        let capabilities = GenCap::from_bits(this.read64(reg::GENCAP));
        for (queue, config) in (0..).zip(device.queues()) {
            let entry = reg::WQCFG + queue * WQCFG_SIZE;
            let (transfer, batch) = (
                capabilities.max_xfer_shift(),
                capabilities.max_batch_shift(),
            );
            let limits = WqLimits::new()
                .with_max_xfer_shift(config.transfer_shift.unwrap_or(transfer).min(transfer))
                .with_max_batch_shift(config.batch_shift.unwrap_or(batch).min(batch));
            let usage = WqUse::new()
                .with_dedicated(true)
                .with_priority(config.priority.clamp(1, 15));
            this.write32(entry, config.size.into());
            this.write32(entry + 8, usage.into_bits());
            this.write32(entry + 12, limits.into_bits());
        }
        this.command(Command::EnableDevice, 0)?;
        Ok(Arc::new(this))
    }

    /// The device.
    pub fn device(&self) -> &Arc<DsaDevice> {
        &self.device
    }

    /// The DMA API: buffers that jobs can name.
    pub fn dma(&self) -> &DmaApi {
        self.bound.dma()
    }

    /// Takes queue `index` for this driver and enables it.
    ///
    /// # Errors
    /// [`Error::NoQueue`], [`Error::QueueBusy`], [`Error::Driver`], [`Error::Command`].
    pub fn open_queue(self: &Arc<Self>, index: usize) -> Result<HostQueue, Error> {
        let claim = self.device.claim_queue(index, QueueType::Kernel)?;
        let slots = usize::from(self.device.queues()[index].size);
        let records = self.bound.alloc(slots * RECORD_SIZE)?;
        let jobs = Jobs::default();
        let vector = index as u16 + 1;
        let vectors = self.device.function().vectors();
        vectors.connect(vector.into(), Some(jobs.sink()));
        let queue = HostQueue {
            driver: Arc::clone(self),
            index,
            vector,
            records,
            slots: Mutex::new((0..slots).rev().collect()),
            freed: Condvar::new(),
            jobs,
            _claim: claim,
        };
        self.command(Command::EnableWq, index as u32)?;
        Ok(queue)
    }

    /// Stores a command and waits for its result.
    fn command(&self, command: Command, operand: u32) -> Result<(), Error> {
        let cmd = Cmd::new().with_code(command as u8).with_operand(operand);
        self.write32(reg::CMD, cmd.into_bits());
        let deadline = Instant::now() + COMMAND_TIMEOUT;
        loop {
            let status = CmdStatus::from_bits(self.read32(reg::CMDSTS));
            if !status.active() {
                return command_result(status.error());
            }
            if Instant::now() > deadline {
                return Err(DriverError::Timeout.into());
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    fn read32(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.device.read(0, offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    fn read64(&self, offset: u64) -> u64 {
        let mut bytes = [0; 8];
        self.device.read(0, offset, &mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn write32(&self, offset: u64, value: u32) {
        self.device.write(0, offset, &value.to_le_bytes());
    }

    fn write64(&self, offset: u64, value: u64) {
        self.device.write(0, offset, &value.to_le_bytes());
    }
}

impl Drop for HostDriver {
    fn drop(&mut self) {
        // The device is the driver's own: it cannot refuse, and a command that does not end leaves
        // nothing to do here.
        let _ = self.command(Command::ResetDevice, 0);
    }
}

/// The result of a command as its status register has it.
fn command_result(code: u8) -> Result<(), Error> {
    match code {
        0 => Ok(()),
        code => {
            let error = CommandError::from_code(code);
            Err(error.unwrap_or(CommandError::Hardware).into())
        }
    }
}

/// One queue of the parent's own driver. Jobs may be submitted from several threads; no more of
/// them are under way than the queue has entries, so none is dropped.
#[derive(Debug)]
pub struct HostQueue {
    // Fields are dropped in this order: nothing of the queue is in flight when its records go, and
    // the driver outlives both.
    _claim: QueueClaim,
    records: CoherentBuffer,
    index: usize,
    vector: u16,
    jobs: Jobs,
    /// Record slots that are free.
    slots: Mutex<Vec<usize>>,
    freed: Condvar,
    driver: Arc<HostDriver>,
}

impl HostQueue {
    /// The driver.
    pub fn driver(&self) -> &Arc<HostDriver> {
        &self.driver
    }

    /// The queue's index.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Stores a descriptor to the portal. Its record address, completion flags and interrupt are
    /// the driver's; waits while as many jobs are under way as the queue has entries.
    pub fn submit(&self, mut descriptor: Descriptor) -> Job {
        let slot = {
            let mut slots = self.slots.lock();
            loop {
                match slots.pop() {
                    Some(slot) => break slot,
                    None => slots = self.freed.wait(slots),
                }
            }
        };
        let offset = slot * RECORD_SIZE;
        self.records.memory().write(offset, &[0; RECORD_SIZE]);
        descriptor.record_addr = self.records.iova() + offset as u64;
        descriptor.flags.set_record_valid(true);
        descriptor.flags.set_request_record(true);
        let descriptor = descriptor.with_interrupt(self.vector);
        let portal = self.index as u64 * PORTAL_STRIDE;
        let job = Job::now(slot);
        fence(Ordering::Release);
        self.driver.device.write(2, portal, &descriptor.to_bytes());
        job
    }

    /// Waits for the completion interrupt of a job and gives its record.
    ///
    /// # Errors
    /// [`DriverError::Timeout`]; the job's slot is not used again then.
    pub fn wait(&self, job: Job) -> Result<CompletionRecord, Error> {
        let offset = job.key * RECORD_SIZE;
        let ((), latency) = self.jobs.wait(&job, |_| {
            let mut status = [0];
            self.records.memory().read(offset, &mut status);
            (status[0] != 0).then_some(())
        })?;
        // The status was written last.
        fence(Ordering::Acquire);
        let mut bytes = [0; RECORD_SIZE];
        self.records.memory().read(offset, &mut bytes);
        let record = CompletionRecord::from_bytes(&bytes);
        self.slots.lock().push(job.key);
        self.freed.notify_one();
        let end = match record.status & !FAULT_ON_WRITE {
            _ if record.succeeded() => JobEnd::Done,
            status if status == Status::PageFault as u8 => JobEnd::Fault,
            _ => JobEnd::Failed,
        };
        self.jobs.count(end, latency);
        Ok(record)
    }

    /// Submits one job and waits for it.
    ///
    /// # Errors
    /// [`Error::Job`] if it does not succeed, [`DriverError::Timeout`].
    pub fn run(&self, descriptor: Descriptor) -> Result<CompletionRecord, Error> {
        let job = self.submit(descriptor);
        let record = self.wait(job)?;
        if record.succeeded() {
            Ok(record)
        } else {
            Err(Error::Job {
                status: record.status,
                completed: record.completed,
                fault_addr: record.fault_addr,
            })
        }
    }

    /// Copies `size` bytes between two addresses of the DMA API.
    ///
    /// # Errors
    /// As for [`HostQueue::run`].
    pub fn memory_move(&self, destination: u64, source: u64, size: u32) -> Result<(), Error> {
        self.run(Descriptor::memory_move(destination, source, size, 0))
            .map(drop)
    }

    /// Fills `size` bytes with a pattern.
    ///
    /// # Errors
    /// As for [`HostQueue::run`].
    pub fn fill(&self, destination: u64, pattern: u64, size: u32) -> Result<(), Error> {
        self.run(Descriptor::fill(destination, pattern, size, 0))
            .map(drop)
    }

    /// Compares `size` bytes; `Some` is the offset of the first difference.
    ///
    /// # Errors
    /// As for [`HostQueue::run`].
    pub fn compare(&self, a: u64, b: u64, size: u32) -> Result<Option<u32>, Error> {
        let record = self.run(Descriptor::compare(a, b, size, 0))?;
        Ok((record.result != 0).then_some(record.completed))
    }

    /// Waits until everything submitted before has ended, by a Drain descriptor.
    ///
    /// # Errors
    /// As for [`HostQueue::run`].
    pub fn drain(&self) -> Result<(), Error> {
        self.run(Descriptor::new(Opcode::Drain, 0)).map(drop)
    }

    /// Aborts what the queue still has; jobs that are dropped never complete.
    ///
    /// # Errors
    /// [`Error::Command`], [`DriverError::Timeout`].
    pub fn abort(&self) -> Result<(), Error> {
        let operand = queue_operand(self.index as u32);
        self.driver.command(Command::AbortWq, operand)
    }

    /// Jobs so far.
    pub fn counts(&self) -> JobCounts {
        self.jobs.counts()
    }

    /// Times from the store to the portal to the completed wait.
    pub fn latency(&self) -> Latency {
        self.jobs.latency()
    }
}

impl Drop for HostQueue {
    fn drop(&mut self) {
        let vectors = self.driver.device.function().vectors();
        vectors.connect(self.vector.into(), None);
    }
}

impl Inspect for HostQueue {
    fn inspect(&self) -> Node {
        let node = Node::new().with("queue", self.index);
        self.jobs.inspect_into(node)
    }
}
