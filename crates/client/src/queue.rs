//! Queue 0 of a DSA that is ready: submit, wait, commands, registers.

use std::{
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::EventFd,
};

use crate::{
    bring_up::{self, Limits},
    device::Device,
    dsa::{Command, CommandStatus, Completion, Descriptor, Flags, SoftwareErrorWord, register},
    error::{Error, Result},
    vm::Area,
};

/// MSI-X vector of command completions and errors.
const MISC_VECTOR: usize = 0;
/// MSI-X vector, and so the interrupt handle, of queue 0.
const QUEUE_VECTOR: u16 = 1;

/// A place for one completion record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RecordSlot(usize);

/// A descriptor that is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completed {
    /// Its completion record.
    pub record: Completion,
    /// Time from the submission to the moment when the record was seen.
    pub took: Duration,
}

/// Queue 0 of one device, with completion records in mapped memory and an eventfd per vector.
#[derive(Debug)]
pub struct DsaQueue {
    device: Device,
    limits: Limits,
    records: Area,
    first: u64,
    submitted: Vec<Option<Instant>>,
    vectors: [EventFd; 2],
    queue_events: EpollFor,
    interrupts: u64,
    requested: u64,
    timeout: Duration,
}

impl DsaQueue {
    /// Brings the device up and enables its queue 0. The completion records of this queue are the
    /// `slots` times 32 bytes at `first` (bytes, a multiple of 32) of `records`; `timeout` bounds
    /// every wait.
    ///
    /// # Errors
    /// [`Error::Unusable`] if it is no DSA or has no queue; [`Error::Command`] and
    /// [`Error::RegisterDiffers`] if the device does not do what its specification says.
    pub fn bring_up(
        device: Device,
        records: &Area,
        first: u64,
        slots: usize,
        timeout: Duration,
    ) -> Result<DsaQueue> {
        let end = first + (slots * Completion::SIZE) as u64;
        if slots == 0 || end > records.len() || !first.is_multiple_of(Completion::SIZE as u64) {
            return Err(Error::Limit(
                "the completion records lie outside of their area",
            ));
        }
        let limits = bring_up::bring_up(&device, timeout)?;
        let vectors = [eventfd()?, eventfd()?];
        device.enable_vectors(&vectors)?;
        let queue_events = EpollFor::new(&vectors[usize::from(QUEUE_VECTOR)])?;
        Ok(DsaQueue {
            device,
            limits,
            records: records.clone(),
            first,
            submitted: vec![None; slots],
            vectors,
            queue_events,
            interrupts: 0,
            requested: 0,
            timeout,
        })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// What the queue can take.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Descriptors that may be in flight: what the queue and the record slots allow.
    pub fn depth(&self) -> usize {
        self.submitted
            .len()
            .min(usize::from(self.limits.queue_size))
    }

    /// Interrupts taken on the queue's vector so far.
    pub fn interrupts(&self) -> u64 {
        self.interrupts
    }

    /// Descriptors that asked for an interrupt so far.
    pub fn interrupts_requested(&self) -> u64 {
        self.requested
    }

    /// Slot `index`; `None` if there is no such slot.
    pub fn slot(&self, index: usize) -> Option<RecordSlot> {
        (index < self.submitted.len()).then_some(RecordSlot(index))
    }

    /// IOVA of a slot's completion record.
    pub fn record_iova(&self, slot: RecordSlot) -> u64 {
        self.records.iova + self.offset(slot)
    }

    /// Submits `descriptor` with its completion record in `slot` and an interrupt on completion.
    ///
    /// # Errors
    /// [`Error::Limit`] if the slot is in use.
    pub fn submit(&mut self, slot: RecordSlot, descriptor: Descriptor) -> Result<()> {
        let flags = Flags::RECORD_VALID | Flags::REQUEST_RECORD | Flags::REQUEST_INTERRUPT;
        self.submit_forged(
            slot,
            Descriptor {
                completion: self.record_iova(slot),
                flags: descriptor.flags | flags,
                interrupt: QUEUE_VECTOR,
                ..descriptor
            },
        )
    }

    /// Submits `descriptor` exactly as it is, and watches `slot` for it. Whether a record ever
    /// appears there depends on the descriptor.
    ///
    /// # Errors
    /// [`Error::Limit`] if the slot is in use.
    pub fn submit_forged(&mut self, slot: RecordSlot, descriptor: Descriptor) -> Result<()> {
        if self.submitted[slot.0].is_some() {
            return Err(Error::Limit("the slot of the completion record is in use"));
        }
        let offset = self.offset(slot);
        self.records.memory.write(offset, &[0; Completion::SIZE]);
        if descriptor.flags.0 & Flags::REQUEST_INTERRUPT.0 != 0 {
            self.requested += 1;
        }
        self.submitted[slot.0] = Some(Instant::now());
        self.submit_unwatched(&descriptor);
        Ok(())
    }

    /// Writes `descriptor` to the portal: one 64-byte store, and nothing else.
    pub fn submit_unwatched(&self, descriptor: &Descriptor) {
        self.device.write(Device::PORTALS, 0, &descriptor.encode());
    }

    /// The record of `slot`, if its descriptor is done; the slot is free then.
    pub fn poll(&mut self, slot: RecordSlot) -> Option<Completed> {
        let offset = self.offset(slot);
        // The status is the last byte that the device writes of a record.
        if self.submitted[slot.0].is_none() || self.records.memory.load(offset) == 0 {
            return None;
        }
        let submitted = self.submitted[slot.0].take()?;
        let mut bytes = [0; Completion::SIZE];
        self.records.memory.read(offset, &mut bytes);
        Some(Completed {
            record: Completion::decode(&bytes),
            took: submitted.elapsed(),
        })
    }

    /// Sleeps on the queue's eventfd until the descriptor of `slot` is done.
    ///
    /// # Errors
    /// [`Error::Timeout`] if no interrupt came, or one came and the record is not there.
    pub fn wait(&mut self, slot: RecordSlot) -> Result<Completed> {
        let deadline = Instant::now() + self.timeout;
        loop {
            if let Some(done) = self.poll(slot) {
                return Ok(done);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if self.take_interrupts(left)? == 0 {
                return Err(Error::Timeout("a completion interrupt"));
            }
        }
    }

    /// As [`DsaQueue::wait`] for a descriptor that raises no interrupt: looks at the record again
    /// and again.
    ///
    /// # Errors
    /// [`Error::Timeout`] if nothing came within `timeout`.
    pub fn wait_for_record(&mut self, slot: RecordSlot, timeout: Duration) -> Result<Completed> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(done) = self.poll(slot) {
                return Ok(done);
            }
            if Instant::now() > deadline {
                return Err(Error::Timeout("a completion record"));
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    }

    /// Stops watching `slot`: its descriptor was dropped or its queue was reset.
    pub fn forget(&mut self, slot: RecordSlot) {
        self.submitted[slot.0] = None;
    }

    /// Submits `descriptor` in the first free slot and waits for it.
    ///
    /// # Errors
    /// As for [`DsaQueue::wait`]; [`Error::Limit`] if every slot is in use.
    pub fn execute(&mut self, descriptor: Descriptor) -> Result<Completed> {
        let free = self.submitted.iter().position(Option::is_none);
        let slot = free.map(RecordSlot);
        let slot = slot.ok_or(Error::Limit("every completion record is in use"))?;
        self.submit(slot, descriptor)?;
        self.wait(slot)
    }

    /// Copies `size` bytes and waits.
    ///
    /// # Errors
    /// As for [`DsaQueue::execute`].
    pub fn memmove(&mut self, destination: u64, source: u64, size: u32) -> Result<Completed> {
        self.execute(Descriptor::memmove(destination, source, size))
    }

    /// Fills `size` bytes with a repeated pattern and waits.
    ///
    /// # Errors
    /// As for [`DsaQueue::execute`].
    pub fn fill(&mut self, destination: u64, pattern: u64, size: u32) -> Result<Completed> {
        self.execute(Descriptor::fill(destination, pattern, size))
    }

    /// Compares two areas and waits; the record's `result` is 0 if they are equal.
    ///
    /// # Errors
    /// As for [`DsaQueue::execute`].
    pub fn compare(&mut self, first: u64, second: u64, size: u32) -> Result<Completed> {
        self.execute(Descriptor::compare(first, second, size))
    }

    /// Writes `list` to memory at `offset` of `area` (a multiple of 64) and submits it as one batch
    /// with its completion record in `slot`.
    ///
    /// # Errors
    /// As for [`DsaQueue::submit`].
    pub fn submit_batch(
        &mut self,
        slot: RecordSlot,
        area: &Area,
        offset: u64,
        list: &[Descriptor],
    ) -> Result<()> {
        for (index, descriptor) in list.iter().enumerate() {
            let at = offset + (index * Descriptor::SIZE) as u64;
            area.memory.write(at, &descriptor.encode());
        }
        let count = u32::try_from(list.len()).map_err(|_| Error::Limit("too long a batch"))?;
        self.submit(slot, Descriptor::batch(area.iova + offset, count))
    }

    /// Waits until the device has raised as many interrupts as descriptors asked for, or until no
    /// more come for `quiet`.
    ///
    /// # Errors
    /// [`Error::System`] if the eventfd cannot be read.
    pub fn settle_interrupts(&mut self, quiet: Duration) -> Result<()> {
        while self.interrupts < self.requested && self.take_interrupts(quiet)? > 0 {}
        // One more look, without waiting, for one too many.
        self.take_interrupts(Duration::ZERO).map(drop)
    }

    /// Sleeps until the queue's vector fires, for at most `timeout`, and gives back how often it
    /// did.
    fn take_interrupts(&mut self, timeout: Duration) -> Result<u64> {
        if !self.queue_events.wait(timeout)? {
            return Ok(0);
        }
        let count = match self.vectors[usize::from(QUEUE_VECTOR)].read() {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => 0,
            Err(error) => {
                return Err(Error::System {
                    doing: "reading an eventfd",
                    error,
                });
            }
        };
        self.interrupts += count;
        Ok(count)
    }

    /// Interrupts of the vector for commands and errors since the last call.
    pub fn misc_interrupts(&self) -> u64 {
        self.vectors[MISC_VECTOR].read().unwrap_or(0)
    }

    /// Runs a device command to its end.
    ///
    /// # Errors
    /// [`Error::Command`] with the device's code.
    pub fn command(&self, command: Command, operand: u32) -> Result<CommandStatus> {
        bring_up::command(&self.device, command, operand, self.timeout)
    }

    /// Brings the device up again after a reset.
    ///
    /// # Errors
    /// As for [`DsaQueue::bring_up`].
    pub fn bring_up_again(&mut self) -> Result<()> {
        self.submitted.fill(None);
        self.limits = bring_up::bring_up(&self.device, self.timeout)?;
        Ok(())
    }

    /// What the device reports outside of any descriptor.
    ///
    /// # Errors
    /// [`Error::RegionRead`].
    pub fn software_error(&self) -> Result<SoftwareErrorWord> {
        let word = self.device.read64(register::SWERR)?;
        Ok(SoftwareErrorWord::from_bits(word))
    }

    /// Resets the device and gives up its interrupts; it stays attached.
    ///
    /// # Errors
    /// [`Error::Command`] and [`Error::Vfio`].
    pub fn shut_down(self) -> Result<Device> {
        self.command(Command::ResetDevice, 0)?;
        self.device.disable_vectors()?;
        Ok(self.device)
    }

    fn offset(&self, slot: RecordSlot) -> u64 {
        self.first + (slot.0 * Completion::SIZE) as u64
    }
}

/// An epoll on one eventfd.
#[derive(Debug)]
struct EpollFor(Epoll);

impl EpollFor {
    fn new(event: &EventFd) -> Result<EpollFor> {
        let wrap = |error| Error::System {
            doing: "waiting for an eventfd",
            error,
        };
        let epoll = Epoll::new().map_err(wrap)?;
        let fd = event.as_raw_fd();
        let interest = EpollEvent::new(EventSet::IN, 0);
        epoll
            .ctl(ControlOperation::Add, fd, interest)
            .map_err(wrap)?;
        Ok(EpollFor(epoll))
    }

    /// Whether it became readable within `timeout`.
    fn wait(&self, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up, so that a wait of less than a millisecond does not spin.
            let millis = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
            match self.0.wait(millis, &mut [EpollEvent::default()]) {
                Ok(count) => return Ok(count > 0),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    return Err(Error::System {
                        doing: "waiting for an eventfd",
                        error,
                    });
                }
            }
        }
    }
}

fn eventfd() -> Result<EventFd> {
    EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC).map_err(|error| Error::System {
        doing: "creating an eventfd",
        error,
    })
}
