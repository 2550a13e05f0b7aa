//! How a descriptor ends: completion record, then interrupt; or the error register.

use ioasid_core::Access;
use ioasid_engine::Halt;
use ioasid_iommu::{DmaGuard, Fault, Stop};

use super::terms::{Effects, Terms};
use crate::spec::{
    CompletionRecord, Descriptor, Event, Status,
    completion::{FAULT_ON_WRITE, RECORD_SIZE},
    registers::{SwError, SwErrorInfo},
};

/// The end of one descriptor; resumable, and the same bytes however often it is resumed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ending {
    record: CompletionRecord,
    /// Position in its batch.
    index: Option<u16>,
}

impl Ending {
    pub(crate) const fn new(record: CompletionRecord, index: Option<u16>) -> Self {
        Ending { record, index }
    }

    /// An end with `status` and nothing done.
    pub(crate) fn status(status: Status, index: Option<u16>) -> Self {
        let record = CompletionRecord {
            status: status as u8,
            ..CompletionRecord::default()
        };
        Ending { record, index }
    }

    /// An end by a page fault after `completed` bytes or descriptors.
    pub(crate) fn fault(status: Status, fault: &Fault, completed: u32, index: Option<u16>) -> Self {
        let write = match fault.access {
            Access::Write => FAULT_ON_WRITE,
            Access::Read => 0,
        };
        let record = CompletionRecord {
            status: status as u8 | write,
            completed,
            fault_addr: fault.iova,
            ..CompletionRecord::default()
        };
        Ending { record, index }
    }

    /// The record as it will be written.
    pub(crate) const fn record(&self) -> &CompletionRecord {
        &self.record
    }

    /// The same, to be completed.
    pub(crate) const fn record_mut(&mut self) -> &mut CompletionRecord {
        &mut self.record
    }

    /// Whether the operation succeeded.
    pub(crate) const fn succeeded(&self) -> bool {
        self.record.succeeded()
    }

    /// Writes the record if `descriptor` wants one, and asks for its interrupt.
    pub(crate) fn step(
        &self,
        descriptor: &Descriptor,
        guard: &mut DmaGuard<'_>,
        terms: &Terms,
        effects: &mut Effects,
    ) -> Result<(), Halt> {
        let flags = descriptor.flags;
        // Who has claimed a privilege that there is not gets no write either.
        let refused = self.record.status == Status::Privilege as u8;
        let usable = flags.record_valid() && descriptor.record_aligned() && !refused;
        let mut reached = true;
        if usable && (flags.request_record() || !self.succeeded()) {
            if let Err(stop) = self.write_record(descriptor.record_addr, guard) {
                // A record lies in one page, so all of it is what could not be reached.
                let fault = Fault {
                    iova: descriptor.record_addr,
                    ..Halt::or_fault(stop)?
                };
                guard.report(&fault);
                effects.counts.faults += 1;
                effects.errors.push(self.event(descriptor, Some(&fault)));
                reached = false;
            }
        } else if !usable && !self.succeeded() {
            effects.errors.push(self.event(descriptor, None));
        }
        effects.counts.ended += 1;
        effects.counts.failed += u64::from(!reached || !self.succeeded());
        if reached && flags.request_interrupt() && terms.permits(descriptor.int_handle) {
            effects.interrupts.push(descriptor.int_handle);
        }
        Ok(())
    }

    /// All bytes but the status, then the status: a reader that sees it sees the rest.
    fn write_record(&self, address: u64, guard: &mut DmaGuard<'_>) -> Result<(), Stop> {
        let bytes: [u8; RECORD_SIZE] = self.record.to_bytes();
        let mut done = 0;
        guard
            .write(address.wrapping_add(1), &bytes[1..])
            .advance(&mut done)?;
        guard.publish(address, bytes[0]).advance(&mut done)
    }

    fn event(&self, descriptor: &Descriptor, fault: Option<&Fault>) -> Event {
        Event {
            error: self.error(descriptor, fault),
            record: self.record,
            int_handle: descriptor.int_handle,
            request_interrupt: descriptor.flags.request_interrupt(),
            request_record: descriptor.flags.request_record(),
        }
    }

    fn error(&self, descriptor: &Descriptor, fault: Option<&Fault>) -> SwError {
        let code = match fault {
            Some(_) => Status::RecordFault as u8,
            None => self.record.status & !FAULT_ON_WRITE,
        };
        SwError {
            info: SwErrorInfo::new()
                .with_desc_valid(true)
                .with_batch(self.index.is_some())
                .with_fault_write(fault.is_some() || self.record.status & FAULT_ON_WRITE != 0)
                .with_privileged(descriptor.privileged)
                .with_error(code)
                .with_operation(descriptor.opcode)
                .with_pasid(descriptor.pasid),
            batch_idx: self.index.unwrap_or(0),
            invalid_flags: if code == Status::InvalidFlags as u8 {
                self.record.specific as u32
            } else {
                0
            },
            fault_addr: fault.map_or(self.record.fault_addr, |fault| fault.iova),
        }
    }
}
